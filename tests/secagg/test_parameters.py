from dataclasses import replace
from math import comb

import numpy as np
import pytest

from securefed.errors import ConfigError
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.secagg.parameters import PairwiseParameters, least_present, most_in_a_run


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


# (corrupt fraction, dropout fraction): (n, k, t, w, q), at sigma = 40 and eta = 30.
DERIVED = {
    (0.05, 0.1): [
        (200, 62, 43, 82, 63),
        (256, 72, 50, 98, 74),
        (1000, 124, 86, 198, 149),
        (10_000, 156, 107, 266, 198),
    ],
    (0.1, 0.1): [
        (200, 80, 61, 100, 81),
        (256, 94, 70, 122, 98),
        (1000, 156, 113, 256, 199),
        (10_000, 200, 143, 358, 275),
    ],
    (0.05, 0.3): [
        (200, 142, 83, 199, 106),
        (256, 172, 100, 250, 175),
        (1000, 448, 263, 852, 564),
        (10_000, 798, 464, 2188, 1389),
    ],
    (0.2, 0.2): [
        (200, 154, 115, 198, 159),
        (256, 190, 140, 248, 198),
        (1000, 454, 319, 810, 618),
        (10_000, 770, 533, 1902, 1402),
    ],
}


@pytest.mark.parametrize(
    ("fractions", "row"),
    [(fractions, row) for fractions, rows in DERIVED.items() for row in rows],
    ids=str,
)
def test_degree_and_thresholds_are_those_of_the_table(fractions, row):
    """A change here changes what every party of a round must agree on."""
    found = PairwiseParameters.of(bounds(row[0], *fractions))
    assert (found.size, found.degree, found.threshold, found.witnesses, found.quorum) == row


def exact_run(n: int, c: int, length: int, sigma: int) -> int:
    """most_in_a_run in whole numbers: counts of subsets, no logarithms."""
    above = 0
    for x in range(min(length, c), -1, -1):
        above += comb(c, x) * comb(n - c, length - x)
        if n * above * 2 ** (sigma + 1) > comb(n, length):
            return x
    raise AssertionError("every run holds at least none")


def exact_present(n: int, floor: int, count: int, eta: int) -> int:
    below, there = 0, min(floor, n - 1)
    for x in range(count + 1):
        below += comb(there, x) * comb(n - 1 - there, count - x)
        if n * below * 2 ** (eta + 1) > comb(n - 1, count):
            return x
    raise AssertionError("at most all are there")


@pytest.mark.parametrize("exponent", [40, 80, 128, 300, 512])
@pytest.mark.parametrize(
    ("n", "marked"), [(200, 0), (200, 20), (256, 12), (1000, 333), (10_000, 500), (10_000, 2000)]
)
def test_tails_are_the_exact_ones(n, marked, exponent):
    for length in (0, 1, 5, 20, 61, 199):
        found = most_in_a_run(n, marked, length, exponent)
        assert found == exact_run(n, marked, length, exponent)
        there = least_present(n, n - marked, length, exponent)
        assert there == exact_present(n, n - marked, length, exponent)


def test_an_exponent_beyond_what_a_double_holds_is_refused():
    """At sigma = 1100 the bound was rounded to zero.

    For 10^4 corrupt of 10^5 and runs of 1500 that gave a = 729, where 742 are due.
    """
    for changes in ({"sigma": 513}, {"sigma": 1100}, {"eta": 513}, {"sigma": 39}, {"eta": 29}):
        with pytest.raises(ConfigError, match=r"must be (40|30)\.\.512"):
            PairwiseParameters.of(bounds(200, 0.05, 0.1), **changes)


def places(n: int, marked: int, draws: int, seed: int) -> np.ndarray:
    """bool[draws, n]: uniformly placed marks."""
    rng = np.random.default_rng(seed)
    return rng.random((draws, n)).argsort(axis=1) < marked


@pytest.mark.parametrize(("n", "c", "length"), [(60, 12, 10), (200, 30, 31), (120, 40, 21)])
def test_runs_fail_as_often_as_derived(n, c, length):
    """At sigma = 2 failures are seen: the mean number of runs above a, and a round's failure rate.

    Both agree with the exact tail within five standard errors (a false alarm in 10^6 runs).
    """
    sigma, draws = 2, 20_000
    a = most_in_a_run(n, c, length, sigma)
    sums = np.cumsum(np.pad(places(n, c, draws, n), ((0, 0), (1, length)), "wrap"), axis=1)
    window = sums[:, length : length + n] - sums[:, :n]
    for limit, derived in ((a, True), (a - 1, False)):
        tail = sum(comb(c, x) * comb(n - c, length - x) for x in range(limit + 1, length + 1))
        expected = n * tail / comb(n, length)
        over = (window > limit).sum(axis=1)
        error = over.std() / np.sqrt(draws)
        assert abs(over.mean() - expected) <= 5 * error
        assert (expected <= 2.0 ** -(sigma + 1)) is derived
        if derived:
            failing = (over > 0).mean()
            assert failing <= 2.0 ** -(sigma + 1)
            assert failing > 0


@pytest.mark.parametrize(("n", "floor", "count"), [(60, 45, 20), (200, 170, 40)])
def test_rounds_complete_as_often_as_derived(n, floor, count):
    """At eta = 2: a client with fewer than x of its neighbours there; it may be absent itself."""
    eta, draws = 2, 20_000
    x = least_present(n, floor, count, eta)
    there = places(n, floor, draws, n)
    half = count // 2
    around = sum(np.roll(there, s, axis=1).astype(int) for s in range(-half, half + 1)) - there
    # For a client that is there, itself is one more; for an absent one, all its k neighbours count.
    short = (around + there < x).sum(axis=1)
    assert 0 < short.mean() <= 2.0 ** -(eta + 1) + 5 * short.std() / np.sqrt(draws)
    one_more = (around + there < x + 1).sum(axis=1)
    assert one_more.mean() > short.mean()


def test_the_conditions_of_the_argument_hold_for_every_derived_round():
    """(S1), (S2) and completion, from the exact tails."""
    for fractions, rows in DERIVED.items():
        for n, k, t, w, q in rows[:3]:
            cohort = bounds(n, *fractions)
            h = k // 2
            assert t >= h + exact_run(n, cohort.corrupt, h, 40) + 2
            if w < n - 1:
                assert 2 * q >= w + exact_run(n, cohort.corrupt, w + 1, 40) + h + 2
            else:
                assert 2 * q > n + cohort.corrupt
            assert t <= exact_present(n, cohort.survivor_floor, k, 30)


def test_a_larger_degree_completes_too_or_is_refused():
    """At 454 the threshold is met; at 456 one more is asked for than are sure to be there."""
    cohort = bounds(1000, 0.2, 0.2)
    asked = 0
    for degree in range(454, 480, 2):
        try:
            found = PairwiseParameters.of(cohort, degree=degree)
        except ConfigError:
            continue
        asked += 1
        assert found.threshold <= exact_present(1000, cohort.survivor_floor, degree, 30)
    assert 2 <= asked < 13
    with pytest.raises(ConfigError, match=r"degree = 456: .* is 458"):
        PairwiseParameters.of(cohort, degree=456)


@pytest.mark.parametrize(
    ("size", "corrupt", "changes", "named"),
    [
        (20, 0.1, {"threshold": 1}, r"threshold = 1: must be 12\.\.20"),
        (20, 0.1, {"threshold": 11}, r"threshold = 11: must be 12\.\.20"),
        (20, 0.1, {"quorum": 11}, r"quorum = 11: must be 12\.\.20"),
        (1000, 0.05, {"threshold": 63}, r"threshold = 63: must be 64\.\."),
        (1000, 0.05, {"quorum": 99}, r"quorum = 99: must be 100\.\."),
        (1000, 0.05, {"degree": 60}, "threshold|quorum"),
        (1000, 0.05, {"degree": 87}, "degree = 87: must be even"),
        (1000, 0.05, {"sigma": 39}, r"sigma = 39: must be 40\.\."),
        (1000, 0.05, {"eta": 29}, r"eta = 29: must be 30\.\."),
        (1000, 0.05, {"survivor_floor": 50}, "0 <= corrupt < floor <= size"),
    ],
)
def test_weaker_numbers_are_refused_however_they_were_come_by(size, corrupt, changes, named):
    found = PairwiseParameters.of(bounds(size, corrupt, 0.05))
    with pytest.raises(ConfigError, match=named):
        replace(found, **changes)


def test_less_than_the_derived_degree_is_refused_and_more_is_not():
    cohort = bounds(1000, 0.05, 0.05)
    assert PairwiseParameters.of(cohort, degree=90).degree == 90
    assert not PairwiseParameters.of(cohort, degree=999).sparse
    with pytest.raises(ConfigError, match=r"degree = 84: must be 86\.\.999"):
        PairwiseParameters.of(cohort, degree=84)


@pytest.mark.slow
def test_a_cohort_that_no_ring_of_4096_neighbours_serves_is_complete_or_refused_at_once():
    with pytest.raises(ConfigError, match="must stay below 1"):
        PairwiseParameters.of(bounds(20_000, 0.33, 0.34))
    assert not PairwiseParameters.of(bounds(20_000, 0.3, 0.34)).sparse
