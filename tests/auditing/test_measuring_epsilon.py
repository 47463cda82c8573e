"""What a matrix shows of an audit of epsilon, by real rounds of the demo's policy."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from securefed.auditing import audit
from securefed.auditing.cells import BOTH
from securefed.auditing.measuring_epsilon import HEADLINE, _metric, canaries
from securefed.config import load_config
from securefed.engines.settings import Settings
from securefed.privacy.policy import PrivacyPolicy

DEMO = Path(__file__).parents[2] / "examples" / "demo.toml"
CELL = SimpleNamespace(seeds=(0,), defence=BOTH)
CLOCK = SimpleNamespace(trial=lambda done, total: None)


@pytest.mark.slow
def test_a_promise_that_could_not_be_broken_is_named_and_not_counted_as_kept(monkeypatch):
    monkeypatch.setattr(audit, "OBSERVATIONS", 100)
    config = load_config(DEMO)
    settings = Settings(config, sizes=dict.fromkeys(config.data.clients, 400), dimension=256)
    found = canaries(SimpleNamespace(settings=settings), CELL, None, CLOCK)
    rounds = {f"{HEADLINE}_{who}_round" for who in ("server", "release", "fellow_client")}
    assert set(found.metrics) == {HEADLINE} | rounds
    assert set(found.predicted) == rounds
    assert "more is promised than so few canaries can test" in found.reason
    assert "epsilon lower server run" in found.reason


def test_the_excess_is_that_of_the_bound_that_decides():
    policy = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0, dropout_fraction=0.0)
    result = audit.audit_policy(policy, clients=32, dimension=256, rounds=4)
    shown, promised = _metric(result), result.statement.epsilon
    assert shown.value == result.bound("gaussian").epsilon > result.judged.epsilon
    assert shown.lift == pytest.approx(result.judged.epsilon - promised)
    assert shown.lift_interval[0] == shown.lift
