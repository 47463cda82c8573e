"""What a minority of wrong groups can do to a combination of means."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.errors import ConfigError, ThresholdNotMet
from securefed.federation.robust_mean import largest_deviation, robust_mean

ROBUST = ("median", "trimmed", "geometric")


@st.composite
def groups(draw):
    """Means of honest groups, and of fewer wrong ones, near or far."""
    wrong = draw(st.integers(1, 3))
    honest = draw(st.integers(wrong + 1, 6))
    size = draw(st.integers(1, 5))
    seed, far = draw(st.integers(0, 10**6)), draw(st.sampled_from([0.1, 1.0, 1e3, 1e9]))
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=size)
    return rng.normal(size=(honest, size)), far * (direction + rng.normal(size=(wrong, size)) / 10)


@given(groups())
@settings(max_examples=30, deadline=None)
def test_each_coordinate_stays_between_those_of_honest_groups(drawn):
    honest, wrong = drawn
    for rule in ("median", "trimmed"):
        found = robust_mean([*honest, *wrong], rule=rule, tolerated=len(wrong))
        assert (found >= honest.min(axis=0) - 1e-12).all()
        assert (found <= honest.max(axis=0) + 1e-12).all()


@given(groups())
@settings(max_examples=30, deadline=None)
def test_the_geometric_median_is_no_further_from_honest_groups_than_its_bound(drawn):
    honest, wrong = drawn
    found = robust_mean([*honest, *wrong], rule="geometric", tolerated=len(wrong))
    centre = honest.mean(axis=0)
    radius = np.linalg.norm(honest - centre, axis=1).max()
    factor = largest_deviation(len(honest) + len(wrong), len(wrong))
    assert np.linalg.norm(found - centre) <= factor * radius * (1.0 + 1e-6)


@given(groups())
@settings(max_examples=20, deadline=None)
def test_the_geometric_median_has_the_least_sum_of_distances(drawn):
    points = np.concatenate(drawn)
    found = robust_mean(list(points), rule="geometric")

    def total(place):
        return np.linalg.norm(points - place, axis=1).sum()

    others = [*points, np.median(points, axis=0), points.mean(axis=0)]
    assert all(total(found) <= total(other) * (1.0 + 1e-6) for other in others)


def test_a_mean_follows_a_single_wrong_group_as_far_as_it_goes():
    means = [np.zeros(3)] * 6 + [np.full(3, 7e6)]
    assert robust_mean(means, rule="mean") == pytest.approx(np.full(3, 1e6))
    for rule in ROBUST:
        np.testing.assert_allclose(robust_mean(means, rule=rule, tolerated=1), 0.0, atol=1e-6)


def test_with_half_of_the_groups_wrong_every_rule_can_be_carried_away_and_refuses():
    means = [np.zeros(2)] * 2 + [np.full(2, 1e6)] * 3
    for rule in ROBUST:
        assert np.abs(robust_mean(means, rule=rule, tolerated=0)).max() > 1e5
        with pytest.raises(ThresholdNotMet, match="at least 7 are needed"):
            robust_mean(means, rule=rule, tolerated=3)


def test_groups_that_agree_are_combined_to_what_they_say():
    means = [np.array([1.0, -2.0])] * 5
    for rule in ("mean", *ROBUST):
        np.testing.assert_array_equal(robust_mean(means, rule=rule), means[0])


@pytest.mark.parametrize(
    ("means", "arguments", "message"),
    [
        ([np.zeros(2)] * 3, {"rule": "krum"}, "rule = 'krum'"),
        ([np.zeros(2)] * 3, {"rule": "mean", "tolerated": 1}, "tolerated = 1"),
        ([np.zeros(2)] * 3, {"rule": "median", "tolerated": -1}, "tolerated = -1"),
        ([np.zeros(2), np.zeros(3)], {"rule": "median"}, "one length"),
        ([np.array([0.0, np.nan])] * 3, {"rule": "median"}, "NaN or infinity"),
    ],
)
def test_what_cannot_be_combined_is_refused(means, arguments, message):
    with pytest.raises(ConfigError, match=message):
        robust_mean(means, **arguments)


def test_no_group_at_all_is_refused():
    with pytest.raises(ThresholdNotMet):
        robust_mean([], rule="mean")


def test_a_bound_is_there_for_a_minority_only():
    assert largest_deviation(7, 0) == 1.0
    with pytest.raises(ConfigError, match="tolerated = 2"):
        largest_deviation(4, 2)
