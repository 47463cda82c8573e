import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.errors import ConfigError
from securefed.federation.deadlines import DeadlineRule, StageDeadline, invitations
from securefed.privacy.policy import CohortBounds, PrivacyPolicy

RULE = DeadlineRule(seconds=10.0, patience=60.0)


def stage(rule=RULE, *, asked=5, floor=3, began=0.0):
    return StageDeadline(rule, asked=asked, floor=floor, began=began)


def test_a_stage_waits_for_all_until_its_deadline_and_for_its_floor_beyond():
    one = stage()
    assert [one.answered(at) for at in (1, 2, 3)] == ["wait"] * 3
    assert one.wake == 10.0
    assert one.decision(9.999) == "wait"
    assert one.decision(10.0) == "close"
    short = stage()
    assert [short.answered(at) for at in (1, 2)] == ["wait"] * 2
    assert short.decision(10.0) == "wait"
    assert short.wake == 60.0
    assert short.answered(40.0) == "close"
    assert stage().decision(60.0) == "fail"


def test_a_stage_closes_when_all_or_enough_have_answered():
    one = stage()
    assert [one.answered(1.0) for _ in range(5)] == [*["wait"] * 4, "close"]
    early = stage(DeadlineRule(seconds=10, patience=60, enough=0.8))
    assert [early.answered(1.0) for _ in range(4)] == [*["wait"] * 3, "close"]


def test_enough_is_never_below_the_floor_and_no_time_closes_without_it():
    eager = DeadlineRule(seconds=0.0, patience=5.0, enough=0.01)
    for floor, answers in itertools.product(range(1, 6), range(6)):
        one = stage(eager, floor=floor)
        decisions = [one.answered(0.0) for _ in range(answers)] + [
            one.decision(at) for at in (0.0, 5.0, 1e9)
        ]
        assert ("close" in decisions) == (answers >= floor)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"seconds": -1.0, "patience": 1.0}, "seconds = -1"),
        ({"seconds": 2.0, "patience": 1.0}, "patience = 1"),
        ({"seconds": 2.0, "patience": float("inf")}, "patience = inf"),
        ({"seconds": 2.0, "patience": 3.0, "enough": 0.0}, "enough = 0"),
    ],
)
def test_a_rule_out_of_range_is_refused(values, named):
    with pytest.raises(ConfigError, match=named):
        DeadlineRule(**values)


def test_a_floor_beyond_those_asked_is_refused():
    with pytest.raises(ConfigError, match=r"floor = 6: must be in 1\.\.5"):
        stage(floor=6)


def test_whoever_may_draw_much_must_prepare_first():
    def policy(**values):
        return PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0, **values)

    for hidden in (
        policy(unit="example"),
        policy(unit="user"),
        policy(unit="client", rounding="conditional"),
        policy(unit="example", mechanism="local"),
    ):
        with pytest.raises(ConfigError, match=r"prepared = true"):
            RULE.check(hidden, prepared=False)
        RULE.check(hidden, prepared=True)
    RULE.check(policy(unit="client"), prepared=False)
    RULE.check(policy(unit="example", sample_is_secret=False), prepared=False)


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.25, 1 / 3])
def test_invitations_are_the_least_whose_floor_is_wanted(dropout):
    for wanted in range(2, 120):
        invited = invitations(wanted, dropout)
        floors = [
            CohortBounds.of(
                PrivacyPolicy(
                    clip_norm=1.0,
                    mechanism="none",
                    corrupt_fraction=0.0,
                    dropout_fraction=dropout,
                ),
                size,
            ).survivor_floor
            for size in (invited, max(2, invited - 1))
        ]
        assert floors[0] == wanted
        assert floors[1] < wanted or invited == 2


@given(
    began=st.floats(min_value=0.0, max_value=1e6), seconds=st.floats(min_value=1e-3, max_value=1e4)
)
def test_whoever_asks_again_when_it_was_told_to_is_not_told_to_wait(began, seconds):
    """Also where ``began + seconds - began`` rounds to less than ``seconds``."""
    rule = DeadlineRule(seconds=seconds, patience=2 * seconds)
    stage = StageDeadline(rule, asked=3, floor=1, began=began)
    assert stage.decision(stage.wake) == "fail"
    stage.answered(began)
    assert stage.decision(stage.wake) == "close"
