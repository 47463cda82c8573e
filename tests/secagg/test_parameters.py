import pytest

from securefed.errors import ConfigError
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.secagg.parameters import PairwiseParameters


def bounds(size: int, corrupt: float, dropout: float) -> CohortBounds:
    policy = PrivacyPolicy(
        clip_norm=1.0, mechanism="none", corrupt_fraction=corrupt, dropout_fraction=dropout
    )
    return CohortBounds.of(policy, size)


@pytest.mark.parametrize("size", range(3, 60))
@pytest.mark.parametrize(("corrupt", "dropout"), [(0.0, 0.3), (0.1, 0.25), (0.3, 0.1), (0.2, 0.2)])
def test_thresholds_are_safe_and_reachable(size, corrupt, dropout):
    try:
        found = PairwiseParameters.of(bounds(size, corrupt, dropout))
    except ConfigError:
        assert size < 12  # rounding can make a small cohort impossible, never a large one
        return
    assert 2 * found.threshold > size + found.corrupt
    assert found.threshold <= found.survivor_floor
    assert found.survivor_floor >= (1 - dropout) * size - 1e-9
    assert found.corrupt <= corrupt * size + 1e-9


def test_fractions_that_leave_no_safe_threshold_are_refused():
    with pytest.raises(ConfigError, match="must stay below 1"):
        PairwiseParameters.of(bounds(100, 0.33, 0.34))


def test_a_cohort_with_fewer_than_two_honest_survivors_is_refused():
    with pytest.raises(ConfigError, match="at least 2 are needed"):
        bounds(3, 0.34, 0.34)
