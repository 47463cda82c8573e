"""What audits show over many seeds; minutes.

python -m pytest -n 0 -m slow tests/auditing/test_evidence.py
"""

from dataclasses import replace

import numpy as np
import pytest
from audited import seeded

from securefed.auditing.audit import audit_policy
from securefed.auditing.faults import FAULTS
from securefed.privacy.policy import PrivacyPolicy

pytestmark = pytest.mark.slow

CLIENT = PrivacyPolicy(
    clip_norm=1.0, noise_multiplier=1.0, corrupt_fraction=0.0, dropout_fraction=0.0
)
EXAMPLE = replace(CLIENT, unit="example", max_examples=512)
SIZES = {
    "client": {"clients": 64, "dimension": 256},
    "example": {"clients": 8, "dimension": 256, "canaries": 256},
}


def audits(policy, seeds, **options):
    return [
        audit_policy(policy, seed=seed, sources=seeded(seed), **(SIZES[policy.unit] | options))
        for seed in range(seeds)
    ]


@pytest.mark.parametrize("z", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("policy", [CLIENT, EXAMPLE], ids=["client", "example"])
def test_bounds_keep_to_the_promise_in_90_of_100_seeds_and_come_to_75_percent_of_it(policy, z):
    found = audits(replace(policy, noise_multiplier=z), 100, adversary="release")
    shares = np.array([each.bound("gaussian").epsilon / each.statement.epsilon for each in found])
    assert (shares <= 1.0).sum() >= 90
    assert shares.mean() >= 0.75
    assert sum(each.verdict == "violated" for each in found) <= 2


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
@pytest.mark.parametrize("policy", [CLIENT, EXAMPLE], ids=["client", "example"])
def test_each_fault_is_found_20_times_of_20(policy, fault):
    partial = replace(policy, corrupt_fraction=0.125, dropout_fraction=0.125)
    assert {each.verdict for each in audits(partial, 20, fault=fault)} == {"violated"}
