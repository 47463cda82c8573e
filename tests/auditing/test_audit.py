import json
from dataclasses import replace
from pathlib import Path

import pytest
from audited import seeded

from securefed.auditing.audit import audit_policy, audit_settings, self_test
from securefed.auditing.faults import FAULTS
from securefed.config import RunConfig, load_config
from securefed.engines.settings import Settings
from securefed.errors import ConfigError
from securefed.privacy.adaptive_clip import AdaptiveClip
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import PlaintextAggregation

FULL = PrivacyPolicy(
    clip_norm=0.5, noise_multiplier=1.0, corrupt_fraction=0.0, dropout_fraction=0.0
)
PARTIAL = replace(FULL, corrupt_fraction=0.125, dropout_fraction=0.125)
EXAMPLES = replace(PARTIAL, unit="example", max_examples=32)
DEMO = Path(__file__).parents[2] / "examples" / "demo.toml"


def audit(policy, seed=0, **options):
    values = {
        "clients": 32 if policy.unit == "client" else 8,
        "dimension": 256,
        "canaries": None if policy.unit == "client" else 100,
        "rounds": 12 if policy.unit == "client" else 4,
        "sources": seeded(seed),
    }
    return audit_policy(policy, seed=seed, **(values | options))


@pytest.mark.parametrize("who", ["server", "release", "fellow_client"])
@pytest.mark.parametrize("policy", [PARTIAL, EXAMPLES], ids=["client", "example"])
def test_what_is_promised_is_kept_and_nearly_used_up(policy, who):
    found = audit(policy, adversary=who)
    assert found.verdict == "consistent"
    assert found.statement.against == who
    assert 0.5 * found.statement.epsilon < found.bound("gaussian").epsilon
    assert found.bound("gaussian").epsilon < 1.15 * found.statement.epsilon


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
@pytest.mark.parametrize("policy", [PARTIAL, EXAMPLES], ids=["client", "example"])
def test_each_planted_fault_is_found(policy, fault):
    found = audit(policy, fault=fault)
    assert (found.verdict, found.fault) == ("violated", fault.name)
    assert found.judged.epsilon > 1.4 * found.statement.epsilon


def test_unclipped_units_do_not_show_as_long_as_none_is_too_long():
    (fault,) = (fault for fault in FAULTS if fault.name == "no clipping")
    assert audit(PARTIAL, fault=fault, scale=1.0).verdict == "consistent"


def test_a_shared_seed_does_not_show_to_who_does_not_know_it():
    (fault,) = (fault for fault in FAULTS if fault.name == "shared noise seed")
    blind = replace(fault, adversary="release")
    # The release sees n times one client's noise: more than is promised, not less.
    assert audit(PARTIAL, fault=blind).verdict == "consistent"


@pytest.mark.parametrize(
    "policy",
    [
        replace(FULL, noise="skellam"),
        replace(PARTIAL, mechanism="central"),
        replace(FULL, rounding="conditional"),
    ],
    ids=["skellam", "central", "conditional"],
)
def test_other_noise_and_rounding_keep_what_they_promise(policy):
    found = audit(policy)
    assert found.verdict == "consistent"
    assert found.bound("gaussian").epsilon > 0.5 * found.statement.epsilon


def test_adaptive_clipping_keeps_what_it_promises():
    rule = AdaptiveClip(
        target_quantile=0.5,
        learning_rate=0.2,
        count_weight=0.2,
        min_clip_norm=0.1,
        max_clip_norm=1.0,
    )
    found = audit(replace(FULL, adaptive_clip=rule))
    assert found.verdict == "consistent"
    with pytest.raises(ConfigError, match="composed"):
        audit(replace(FULL, adaptive_clip=rule), composed=2)


def test_masked_rounds_with_dropouts_or_removed_noise_are_carried_as_they_are():
    few = {"clients": 5, "dimension": 64, "rounds": 10, "adversary": "release"}
    fifth = replace(FULL, dropout_fraction=0.2)
    dropped = audit(fifth, masked=True, **few)
    removed = audit(replace(fifth, remove_excess_noise=True), dropouts=0, **few)
    for found, dropouts in ((dropped, 1), (removed, 0)):
        assert (found.dropouts, found.inside + found.outside) == (dropouts, 50 - 10 * dropouts)
        assert found.masked
        assert found.verdict == "consistent"


def test_composed_rounds_are_held_against_what_is_promised_of_all_of_them():
    one, four = (audit(FULL, rounds=6, composed=count) for count in (1, 4))
    assert four.statement.rounds == 4
    assert four.statement.epsilon > 2.0 * one.statement.epsilon
    assert four.bound("gaussian").epsilon > 0.5 * four.statement.epsilon
    assert four.verdict == "consistent"


def test_a_secret_sample_is_judged_by_the_method_that_assumes_nothing():
    found = audit(replace(EXAMPLES, sampling_probability=0.1))
    assert found.primary == found.judged.method == "clopper_pearson"
    assert found.verdict == "consistent"


def test_a_promise_that_so_few_canaries_cannot_break_is_not_called_consistent():
    loose = replace(EXAMPLES, sampling_probability=0.5, noise_multiplier=0.7)
    (fault,) = (fault for fault in FAULTS if fault.name == "noise quartered")
    found = audit(loose, fault=fault)
    assert found.judged.epsilon <= found.reach < found.statement.epsilon
    assert found.verdict == "out_of_reach"
    assert audit(replace(loose, sampling_probability=1.0), fault=fault).verdict == "violated"


def test_without_noise_nothing_is_promised_and_everything_seen():
    found = audit(PrivacyPolicy(clip_norm=0.5, mechanism="none"))
    assert found.verdict == "unprotected"
    assert found.judged.epsilon > 1e3
    plain = audit(FULL, aggregation=PlaintextAggregation())
    assert plain.verdict == "unprotected"


def test_the_same_seeds_give_the_same_measurement():
    first, second, other = (audit(FULL, seed, rounds=3).as_json() for seed in (1, 1, 2))
    for found in (first, second, other):
        del found["seconds"]
    assert first == second
    assert first["bounds"] != other["bounds"]


def test_a_result_says_what_it_is_about_and_is_json():
    told = []
    found = audit(FULL, rounds=3, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    values = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert values["statement"]["unit"] == "one client's whole contribution"
    assert [bound["method"] for bound in values["bounds"]] == [b.method for b in found.bounds]
    assert {bound["confidence"] for bound in values["bounds"]} == {0.95}
    assert values["judged"]["confidence"] == 0.999
    for word in ("at 95 %", "delta = 1e-05", "against server", "promised"):
        assert word in str(found)


def test_few_canaries_and_faults_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="rounds"):
        audit(FULL, rounds=1)
    with pytest.raises(ConfigError, match="fault"):
        audit(replace(FULL, mechanism="central"), fault=FAULTS[0])


def test_a_run_file_is_audited_given_the_sample_and_with_it_over_all_rounds():
    config = load_config(DEMO)
    settings = Settings(config, sizes=dict.fromkeys(config.data.clients, 400), dimension=256)
    found = audit_settings(
        settings,
        adversaries=["release"],
        dimension=256,
        canaries=50,
        rounds=2,
        sources=seeded(0),
    )
    seen = [(each.statement.against, each.primary, each.composed) for each in found]
    assert seen == [("release", "gaussian", 1), ("release", "clopper_pearson", 6)]
    # 100 canaries cannot break what is promised of six rounds with a secret sample.
    assert [each.verdict for each in found] == ["consistent", "out_of_reach"]
    assert found[1].statement.epsilon == settings.guarantee("release", 6).epsilon


@pytest.mark.slow
def test_a_run_file_that_removes_noise_is_audited_with_all_of_it_removed_too():
    values = load_config(DEMO).model_dump(exclude_none=True)
    values["privacy"] |= {"unit": "client", "remove_excess_noise": True}
    config = RunConfig.model_validate(values)
    settings = Settings(config, sizes=dict.fromkeys(config.data.clients, 400), dimension=64)
    found = audit_settings(settings, dimension=64, rounds=8, sources=seeded(0))
    assert [(each.statement.against, each.dropouts) for each in found] == [
        ("server", 1),
        ("release", 1),
        ("release", 0),
        ("fellow_client", 1),
    ]
    assert {each.verdict for each in found} == {"consistent"}


def test_a_self_test_plants_what_the_policy_can_have():
    found = self_test(
        PARTIAL, clients=32, faults=FAULTS[-2:], dimension=256, rounds=4, sources=seeded(0)
    )
    assert [each.fault for each in found] == [fault.name for fault in FAULTS[-2:]]
    assert {each.verdict for each in found} == {"violated"}
    with pytest.raises(ConfigError, match="none of them"):  # nothing tested is no test passed
        self_test(replace(FULL, mechanism="central"), clients=32)
