import itertools
import math
from collections import Counter
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from securefed.crypto.prg import NoiseGenerator, SeededNoiseGeneratorForTests
from securefed.errors import ConfigError, OverflowBoundError
from securefed.privacy.samplers import (
    MAX_STD,
    STATISTICAL_DISTANCE,
    DiscreteGaussian,
    _cumulative_table,
    poisson_sample,
    stochastic_round,
    uniform_subset,
)

BITS = 191
LOW = 128


class Script(NoiseGenerator):
    """Hands out given words, and refuses to give more than there are."""

    def __init__(self, words):
        super().__init__()
        self.words = list(words)

    def uint64(self, count):
        if count > len(self.words):
            raise AssertionError(f"{count} words asked for, {len(self.words)} left")
        head, self.words = self.words[:count], self.words[count:]
        return np.array(head, dtype=np.uint64)


def table_integers(std):
    """The table as Python integers T_0..T_K."""
    table = _cumulative_table(std)
    return [int(h) << LOW | table.low_bits(k) for k, h in enumerate(table.high)]


def exact_probabilities(std, last):
    """P(|X| = k), k = 0..last, to the working precision of mpmath."""
    scale = 2 * mpmath.mpf(std) ** 2
    # 60 std on each side: the rest is below exp(-1800).
    ends = max(last + 1, math.ceil(60 * std))
    weights = [mpmath.exp(-(mpmath.mpf(k) ** 2) / scale) for k in range(ends + 1)]
    total = weights[0] + 2 * mpmath.fsum(weights[1:])
    return [weights[0] / total] + [2 * weight / total for weight in weights[1 : last + 1]]


# Discrete Gaussian: the table


@pytest.mark.parametrize("std", [0.5, 0.7310585786300049, 1.0, 3.3, 17.0, 123.456])
def test_the_table_is_within_the_proven_bounds_of_mpmath(std):
    with mpmath.workprec(1200):
        table = table_integers(std)
        last = math.ceil(12 * std)
        assert len(table) == last + 1
        probabilities = exact_probabilities(std, last)
        inside = mpmath.fsum(probabilities)
        running = mpmath.mpf(0)
        for entry, probability in zip(table, probabilities, strict=True):
            running += probability / inside
            assert abs(mpmath.mpf(entry) / 2**BITS - running) < mpmath.mpf(2) ** -180
        assert table[-1] == 2**BITS
        assert table == sorted(table)
        # Total variation: half the difference inside, and half of all that lies outside.
        differences = [b - a for a, b in zip([0, *table], table, strict=False)]
        inner = mpmath.fsum(
            abs(mpmath.mpf(d) / 2**BITS - p)
            for d, p in zip(differences, probabilities, strict=True)
        )
        distance = (inner + (1 - inside)) / 2
        assert distance < mpmath.mpf(2) ** -107 + mpmath.mpf(2) ** -156
        assert distance < STATISTICAL_DISTANCE


def test_a_large_table_agrees_with_mpmath_at_points_along_it():
    std = 2000.25
    with mpmath.workprec(1200):
        table = table_integers(std)
        # Poisson summation: the sum of all weights is std sqrt(2 pi) up to exp(-2 pi^2 std^2).
        total = mpmath.mpf(std) * mpmath.sqrt(2 * mpmath.pi)
        scale = 2 * mpmath.mpf(std) ** 2
        running, checked = mpmath.mpf(1), 0
        for k, entry in enumerate(table[:12_000]):
            if k:
                running += 2 * mpmath.exp(-(mpmath.mpf(k) ** 2) / scale)
            if k % 997 == 0:
                # The tail beyond 12 std, below 2^-107, is part of the total here.
                assert abs(mpmath.mpf(entry) / 2**BITS - running / total) < mpmath.mpf(2) ** -106
                checked += 1
    assert checked > 10


def test_the_constants_of_the_proof_hold_up_to_the_largest_std():
    last = math.ceil(12 * MAX_STD)
    assert last + 2 < 2**24
    assert 2 * (last + 2) ** 3 < 2**73
    assert 2 / (12 * mpmath.sqrt(2 * mpmath.pi)) * mpmath.exp(-72) < mpmath.mpf(2) ** -107
    assert (last + 1) * 2.0**-180 < 2.0**-156
    # Before the last entry the table stays below 2^191: its last step outweighs every error.
    last_weight = mpmath.exp(mpmath.mpf(-(12.01**2)) / 2) / (3 * MAX_STD)
    assert last_weight > mpmath.mpf(2) ** -180


# Discrete Gaussian: the draws


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("std", [0.5, 2.0, 30.5])
def test_draws_have_the_exact_distribution(seed, std):
    count = 100_000
    draws = DiscreteGaussian(std).sample(count, SeededNoiseGeneratorForTests(1000 + seed))
    reach = max(int(3.5 * std), 1)
    magnitude = [float(p) for p in exact_probabilities(std, reach)]
    expected = np.array(
        [p / 2 for p in magnitude[:0:-1]] + [magnitude[0]] + [p / 2 for p in magnitude[1:]]
    )
    observed = np.array([(draws == k).sum() for k in range(-reach, reach + 1)])
    inside = expected.sum()
    expected = np.append(expected, 1 - inside) * count
    observed = np.append(observed, count - observed.sum())
    statistic = ((observed - expected) ** 2 / expected).sum()
    # 30 tests with fixed seeds: a sound sampler fails one in 10^5 of such files.
    assert stats.chi2.sf(statistic, len(expected) - 1) > 3e-7


@pytest.mark.parametrize("std", [100.0, 1e4])
def test_large_draws_have_mean_zero_and_the_stated_variance(std):
    count = 200_000
    draws = DiscreteGaussian(std).sample(count, SeededNoiseGeneratorForTests(7)).astype(float)
    assert abs(draws.mean()) < 6 * std / math.sqrt(count)
    assert abs(draws.var() / std**2 - 1) < 6 * math.sqrt(2 / count)
    assert abs((draws > 0).mean() - (draws < 0).mean()) < 6 / math.sqrt(count)


def naive_draw(table, top, sign, low):
    """Inversion as the definition says it, at full precision."""
    uniform = top << LOW | low
    magnitude = sum(1 for entry in table if entry <= uniform)
    return -magnitude if sign else magnitude


def split(low):
    return [low & (2**64 - 1), low >> 64]


@pytest.mark.parametrize("std", [0.5, 3.0, 40.0])
@pytest.mark.parametrize("sign", [0, 1])
def test_a_tie_is_settled_by_all_191_bits(std, sign):
    table = table_integers(std)
    gaussian = DiscreteGaussian(std)
    shared = 0
    for k in range(len(table) - 1):
        top, low = table[k] >> LOW, table[k] & (2**LOW - 1)
        shared += sum(1 for entry in table if entry >> LOW == top) > 1
        for below in (0, max(low - 1, 0), low, min(low + 1, 2**LOW - 1), 2**LOW - 1):
            script = Script([top << 1 | sign, *split(below)])
            drawn = gaussian.sample(1, script).tolist()
            assert drawn == [naive_draw(table, top, sign, below)]
            assert script.words == []
        exactly = gaussian.sample(1, Script([top << 1, *split(low)]))[0]
        if low:
            before = gaussian.sample(1, Script([top << 1, *split(low - 1)]))[0]
            assert exactly - before >= 1
    # In the far tail several entries have equal top words, so that case was met as well.
    assert shared >= 2


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
@settings(max_examples=30)
def test_a_draw_without_a_tie_is_plain_inversion_of_one_word(words):
    table = table_integers(5.5)
    tops = {entry >> LOW for entry in table}
    free = [word for word in words if word >> 1 not in tops]
    drawn = DiscreteGaussian(5.5).sample(len(free), Script(free)).tolist()
    assert drawn == [naive_draw(table, word >> 1, word & 1, 0) for word in free]


def test_words_next_to_a_table_entry_fall_on_the_right_side_without_extra_bits():
    table = table_integers(3.0)
    gaussian = DiscreteGaussian(3.0)
    for k in range(20):
        top = table[k] >> LOW
        assert gaussian.sample(1, Script([(top - 1) << 1])).tolist() == [k]
        assert gaussian.sample(1, Script([(top + 1) << 1])).tolist() == [k + 1]


def test_ties_among_many_draws_leave_the_others_alone():
    table = table_integers(3.0)
    tie, low = table[2] >> LOW, table[2] & (2**LOW - 1)
    words = [0, tie << 1, (1 << 63) | 1, tie << 1 | 1]
    script = Script([*words, *split(low), *split(low - 1)])
    expected = [0, 3, naive_draw(table, 1 << 62, 1, 0), -2]
    assert DiscreteGaussian(3.0).sample(4, script).tolist() == expected


def test_the_extreme_words_stay_within_the_bound():
    gaussian = DiscreteGaussian(3.0)
    assert gaussian.bound == 36
    full = 2**64 - 1
    assert gaussian.sample(1, Script([full, full, full])).tolist() == [-36]
    assert gaussian.sample(2, Script([0, 1])).tolist() == [0, 0]


def test_one_word_a_draw_is_used_across_block_borders():
    count = 2 * (1 << 16) + 5
    left, right = SeededNoiseGeneratorForTests(3), SeededNoiseGeneratorForTests(3)
    draws = DiscreteGaussian(50.0).sample(count, left)
    assert draws.dtype == np.int64
    assert draws.shape == (count,)
    words = right.uint64(count)
    assert left.uint64(2).tolist() == right.uint64(2).tolist()
    table = table_integers(50.0)
    for i in (0, 65_535, 65_536, count - 1):
        word = int(words[i])
        assert draws[i] == naive_draw(table, word >> 1, word & 1, 0)


@pytest.mark.parametrize("std", [0.0, -1.0, 0.49, 2.0**20 + 1, math.inf, math.nan])
def test_a_std_out_of_range_is_refused(std):
    with pytest.raises(ConfigError, match="std ="):
        DiscreteGaussian(std)


def test_an_empty_draw_is_empty_and_a_negative_count_is_refused():
    gaussian, generator = DiscreteGaussian(1.0), SeededNoiseGeneratorForTests(0)
    assert gaussian.sample(0, generator).shape == (0,)
    for call in (
        lambda: gaussian.sample(-1, generator),
        lambda: poisson_sample(-1, 0.5, generator),
    ):
        with pytest.raises(ConfigError, match="count = -1"):
            call()


def test_equal_stds_share_one_read_only_table():
    assert _cumulative_table(4.0) is _cumulative_table(4.0)
    for array in _cumulative_table(4.0):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


# Stochastic rounding

ordinary = st.floats(-(2.0**40), 2.0**40).filter(lambda v: v == 0 or abs(v) >= 1)
uniforms = st.integers(0, 2**53 - 1)


def round_at(values, numerators):
    words = [numerator << 11 for numerator in numerators]
    return stochastic_round(np.array(values), Script(words)).tolist()


@given(st.lists(st.tuples(st.floats(-1e15, 1e15), uniforms), min_size=1, max_size=30))
@settings(max_examples=60)
def test_rounding_goes_up_exactly_when_the_uniform_is_below_the_fraction(pairs):
    values, numerators = zip(*pairs, strict=True)
    for value, numerator, rounded in zip(
        values, numerators, round_at(values, numerators), strict=True
    ):
        # The one inexact step: for -1 < v < 0 the fraction 1 - abs(v) is a rounded difference.
        fraction = Fraction(value - math.floor(value))
        assert rounded == math.floor(value) + (Fraction(numerator, 2**53) < fraction)
        assert abs(rounded - Fraction(value)) <= 1
        assert abs(fraction - (Fraction(value) - math.floor(value))) <= Fraction(1, 2**54)


@given(ordinary, uniforms)
def test_rounding_is_the_floor_of_a_uniform_shift(value, numerator):
    shift = 1 - Fraction(1, 2**53) - Fraction(numerator, 2**53)
    assert round_at([value], [numerator]) == [math.floor(Fraction(value) + shift)]


@given(ordinary, st.integers(-(2**45), 2**45), uniforms)
def test_at_common_coins_a_difference_is_a_rounding_of_the_difference(value, step, numerator):
    other = value + step / 2**20
    if 0 < abs(other) < 1:
        other = 0.0
    first, second = round_at([value, other], [numerator, numerator])
    difference = Fraction(other) - Fraction(value)
    assert second - first in (math.floor(difference), math.ceil(difference))


def test_integers_are_never_moved():
    values = np.array([0.0, -0.0, 1.0, -1.0, 7.0, -(2.0**51), 2.0**52 - 1, 1 - 2.0**52])
    for seed in range(20):
        rounded = stochastic_round(values, SeededNoiseGeneratorForTests(seed))
        assert rounded.dtype == np.int64
        assert rounded.tolist() == values.astype(np.int64).tolist()


@pytest.mark.parametrize("value", [0.25, -0.25, 3.9, -1e-3])
def test_rounding_is_unbiased(value):
    count = 200_000
    rounded = stochastic_round(np.full(count, value), SeededNoiseGeneratorForTests(11))
    fraction = value - math.floor(value)
    deviation = math.sqrt(fraction * (1 - fraction) / count)
    assert abs(rounded.mean() - value) < 6 * deviation
    assert set(rounded.tolist()) == {math.floor(value), math.ceil(value)}


def test_rounding_keeps_the_shape_and_the_order():
    values = np.arange(24, dtype=np.float64).reshape(2, 3, 4)[:, ::2, ::-1]
    rounded = stochastic_round(values, SeededNoiseGeneratorForTests(0))
    assert rounded.tolist() == values.astype(np.int64).tolist()
    assert stochastic_round(np.float64(2.0) * np.ones(()), SeededNoiseGeneratorForTests(0)) == 2
    assert stochastic_round(np.empty(0), SeededNoiseGeneratorForTests(0)).shape == (0,)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2.0**52, -(2.0**52), 1e300])
@pytest.mark.parametrize("position", [0, 70_000])
def test_a_value_that_carries_no_fraction_is_refused(value, position):
    values = np.zeros(70_001)
    values[position] = value
    with pytest.raises(OverflowBoundError, match=r"2\^52"):
        stochastic_round(values, SeededNoiseGeneratorForTests(0))


def test_single_precision_is_refused_rather_than_widened():
    with pytest.raises(ConfigError, match="float32"):
        stochastic_round(np.zeros(3, dtype=np.float32), SeededNoiseGeneratorForTests(0))


# Poisson sampling


@given(st.floats(0, 1), st.integers(-2, 2))
def test_an_index_is_kept_exactly_below_the_rounded_down_probability(probability, offset):
    limit = math.floor(Fraction(probability) * 2**53)
    numerator = min(max(limit + offset, 0), 2**53 - 1)
    for filling in (0, 2**11 - 1):
        kept = poisson_sample(1, probability, Script([numerator << 11 | filling]))
        assert kept.tolist() == ([0] if numerator < limit else [])


def test_probability_zero_keeps_nothing_and_one_keeps_all():
    generator = SeededNoiseGeneratorForTests(1)
    assert poisson_sample(1000, 0.0, generator).size == 0
    kept = poisson_sample(1000, 1.0, generator)
    assert kept.dtype == np.int64
    assert kept.tolist() == list(range(1000))
    assert poisson_sample(1, 1.0, Script([2**64 - 1])).tolist() == [0]
    assert poisson_sample(0, 0.5, generator).size == 0


def test_the_subset_is_binomial_and_its_members_independent():
    count, probability, runs = 64, 0.3, 3000
    generator = SeededNoiseGeneratorForTests(2)
    member = np.zeros((runs, count))
    for run in range(runs):
        member[run, poisson_sample(count, probability, generator)] = 1
    sizes = member.sum(axis=1)
    variance = count * probability * (1 - probability)
    assert abs(sizes.mean() - count * probability) < 6 * math.sqrt(variance / runs)
    assert abs(sizes.var() / variance - 1) < 6 * math.sqrt(2 / runs)
    correlation = np.corrcoef(member.T) - np.eye(count)
    assert np.abs(correlation).max() < 6 / math.sqrt(runs)


@pytest.mark.parametrize("probability", [-0.1, 1.0000001, math.nan, math.inf])
def test_a_probability_out_of_range_is_refused(probability):
    with pytest.raises(ConfigError, match="probability"):
        poisson_sample(3, probability, SeededNoiseGeneratorForTests(0))


# --- subsets of a fixed size -----------------------------------------------------------------


def test_all_subsets_of_a_size_come_up_equally_often():
    generator = SeededNoiseGeneratorForTests(3)
    counts = Counter(tuple(uniform_subset(5, 2, generator).tolist()) for _ in range(5000))
    assert sorted(counts) == sorted(itertools.combinations(range(5), 2))
    assert stats.chisquare(list(counts.values())).pvalue > 1e-6
    biased = [sorted(counts.values())[0] / 2, *sorted(counts.values())[1:]]
    assert stats.chisquare(biased, np.full(10, np.mean(biased))).pvalue < 1e-6


@pytest.mark.parametrize(("count", "size"), [(0, 0), (4, 0), (4, 4)])
def test_the_whole_and_the_empty_subset(count, size):
    found = uniform_subset(count, size, NoiseGenerator())
    assert found.dtype == np.int64
    assert found.tolist() == list(range(size))


@pytest.mark.parametrize(("count", "size"), [(3, 4), (3, -1)])
def test_a_subset_larger_than_the_population_is_refused(count, size):
    with pytest.raises(ConfigError, match="size"):
        uniform_subset(count, size, NoiseGenerator())
