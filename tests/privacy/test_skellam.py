import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from securefed.crypto.prg import NoiseGenerator, SeededNoiseGeneratorForTests
from securefed.errors import ConfigError
from securefed.privacy.inversion import STATISTICAL_DISTANCE, TABLE_BITS, TIE_BITS
from securefed.privacy.samplers import DiscreteGaussian
from securefed.privacy.skellam import MAX_VARIANCE, Skellam, _first, _rate, _skellam_table


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


def table_integers(variance):
    table = _skellam_table(variance)
    return [int(h) << TIE_BITS | table.low_bits(k) for k, h in enumerate(table.high)]


def bessel_probabilities(variance, last):
    """P(|X| = k), k = 0..last, from mpmath's Bessel function: a series, not a recurrence."""
    scale = mpmath.exp(-mpmath.mpf(variance))
    one_sided = [scale * mpmath.besseli(k, variance) for k in range(last + 1)]
    return [one_sided[0]] + [2 * p for p in one_sided[1:]]


def convolved_probabilities(variance, last):
    """The same from the definition: the difference of two Poisson variables of mean v / 2."""
    mean = mpmath.mpf(variance) / 2
    ends = last + math.ceil(float(mean) + 40 * math.sqrt(float(mean) + 1)) + 60
    poisson = [mpmath.exp(-mean)]
    for j in range(1, ends):
        poisson.append(poisson[-1] * mean / j)
    one_sided = [
        mpmath.fsum(a * b for a, b in zip(poisson[k:], poisson, strict=False))
        for k in range(last + 1)
    ]
    return [one_sided[0]] + [2 * p for p in one_sided[1:]]


# The table


@pytest.mark.parametrize(
    ("variance", "oracle"),
    [
        (0.25, bessel_probabilities),
        (0.25, convolved_probabilities),
        (0.7310585786300049, bessel_probabilities),
        (1.0, convolved_probabilities),
        (10.3, bessel_probabilities),
        (10.3, convolved_probabilities),
        (400.0, bessel_probabilities),
        (2232.5625, bessel_probabilities),
    ],
)
def test_the_table_is_within_the_proven_bounds_of_mpmath(variance, oracle):
    with mpmath.workprec(500):
        table = table_integers(variance)
        probabilities = oracle(variance, len(table) - 1)
        inside = mpmath.fsum(probabilities)
        running = mpmath.mpf(0)
        for entry, probability in zip(table, probabilities, strict=True):
            running += probability / inside
            assert abs(mpmath.mpf(entry) / 2**TABLE_BITS - running) < mpmath.mpf(2) ** -190
        assert table[-1] == 2**TABLE_BITS
        assert table == sorted(table)
        # Total variation: half the difference inside, and half of all that lies outside.
        differences = [b - a for a, b in zip([0, *table], table, strict=False)]
        inner = mpmath.fsum(
            abs(mpmath.mpf(d) / 2**TABLE_BITS - p)
            for d, p in zip(differences, probabilities, strict=True)
        )
        distance = (inner + (1 - inside)) / 2
        assert distance < mpmath.mpf(2) ** -101 + mpmath.mpf(2) ** -169
        assert distance < STATISTICAL_DISTANCE


def fourier_probability(variance, k, points):
    """P(X = k) plus all P(X = k + m points): the trapezoidal rule on the characteristic function.

    Terms below exp(-300) are left out.
    """
    total, j = mpmath.mpf(1), 1
    while True:
        angle = 2 * mpmath.pi * j / points
        exponent = variance * (mpmath.cos(angle) - 1)
        if exponent < -300:
            return total / points
        total += 2 * mpmath.exp(exponent) * mpmath.cos(k * angle)
        j += 1


def test_a_large_table_agrees_with_its_characteristic_function_at_points_along_it():
    std, points = 2000, 100_000  # what is aliased lies beyond 28 std: below exp(-380)
    table = table_integers(float(std**2))
    with mpmath.workprec(600):
        for k in (0, 1, 500, 2000, 7001, 12_000, 20_000, len(table) - 2):
            step = mpmath.mpf(table[k + 1] - table[k]) / 2**TABLE_BITS
            exact = 2 * fourier_probability(std**2, k + 1, points)
            # The tail beyond K, below 2^-101, is part of the exact total; steps err absolutely.
            assert abs(step - exact) < exact * mpmath.mpf(2) ** -101 + mpmath.mpf(2) ** -189


def test_the_constants_of_the_proof_hold_up_to_the_largest_variance():
    assert 2 * mpmath.exp(-71) < mpmath.mpf(2) ** -101
    assert mpmath.exp(-140) < mpmath.mpf(2) ** -201
    last = _first(lambda k: _rate(MAX_VARIANCE, k + 1.0) >= 71)
    start = _first(lambda k: _rate(MAX_VARIANCE, float(k)) >= _rate(MAX_VARIANCE, last) + 140)
    assert last + 1 < 2**21
    assert start < 2**23  # N 2^-320 < 2^-297
    assert (last + 1) * 2.0**-190 < 2.0**-169


@pytest.mark.parametrize("variance", [0.25, 3.0, 1e3, 1e6, MAX_VARIANCE])
def test_the_exponent_is_chernoffs_to_the_last_digits(variance):
    """The cancellation at large variance is avoided: 71 nats mean 71 nats."""
    for k in (0.0, 1.0, math.sqrt(variance), 12 * math.sqrt(variance)):
        with mpmath.workprec(300):
            v, x = mpmath.mpf(variance), mpmath.mpf(k)
            exact = x * mpmath.asinh(x / v) - mpmath.sqrt(x**2 + v**2) + v
        assert _rate(variance, k) == pytest.approx(float(exact), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("variance", [0.25, 2.0, 40.0, 900.0])
def test_the_ratio_of_bessel_functions_is_below_the_bound_that_the_proof_uses(variance):
    """Amos 1974, at 40 digits."""
    with mpmath.workdps(40):
        for k in range(0, 400, 7):
            ratio = mpmath.besseli(k + 1, variance) / mpmath.besseli(k, variance)
            assert ratio <= mpmath.exp(-mpmath.asinh((k + mpmath.mpf(1) / 2) / variance))


# The draws


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("variance", [0.25, 4.0, 930.25])
def test_draws_have_the_exact_distribution(seed, variance):
    count = 100_000
    draws = Skellam(variance).sample(count, SeededNoiseGeneratorForTests(2000 + seed))
    reach = max(int(3.5 * math.sqrt(variance)), 1)
    expected = stats.skellam.pmf(np.arange(-reach, reach + 1), variance / 2, variance / 2)
    observed = np.array([(draws == k).sum() for k in range(-reach, reach + 1)])
    inside = expected.sum()
    expected = np.append(expected, 1 - inside) * count
    observed = np.append(observed, count - observed.sum())
    statistic = ((observed - expected) ** 2 / expected).sum()
    # 30 tests with fixed seeds: a sound sampler fails one in 10^5 of such files.
    assert stats.chi2.sf(statistic, len(expected) - 1) > 3e-7


def test_scipys_probabilities_which_the_chi_square_uses_are_right():
    for variance in (0.25, 4.0, 930.25):
        reach = max(int(3.5 * math.sqrt(variance)), 1)
        with mpmath.workdps(30):
            exact = [float(p) for p in bessel_probabilities(variance, reach)]
        found = stats.skellam.pmf(np.arange(reach + 1), variance / 2, variance / 2)
        found[1:] *= 2
        assert found == pytest.approx(exact, rel=1e-8)


def test_the_chi_square_would_notice_a_discrete_gaussian():
    """The nearest wrong answer: equal variance, other tails."""
    count, variance = 100_000, 4.0
    draws = DiscreteGaussian(2.0).sample(count, SeededNoiseGeneratorForTests(2000))
    expected = stats.skellam.pmf(np.arange(-7, 8), variance / 2, variance / 2) * count
    observed = np.array([(draws == k).sum() for k in range(-7, 8)])
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert stats.chi2.sf(statistic, 14) < 1e-20


@pytest.mark.parametrize("std", [100.0, 1e4])
def test_large_draws_have_mean_zero_and_the_stated_variance(std):
    count = 200_000
    skellam = Skellam(std**2)
    draws = skellam.sample(count, SeededNoiseGeneratorForTests(7)).astype(float)
    assert skellam.std == pytest.approx(std)
    assert abs(draws.mean()) < 6 * std / math.sqrt(count)
    assert abs(draws.var() / std**2 - 1) < 6 * math.sqrt(2 / count)
    assert abs((draws > 0).mean() - (draws < 0).mean()) < 6 / math.sqrt(count)


def test_a_sum_of_draws_is_skellam_of_the_summed_variance():
    count, clients, variance = 100_000, 5, 0.5
    generator = SeededNoiseGeneratorForTests(11)
    total = sum(Skellam(variance).sample(count, generator) for _ in range(clients))
    whole = clients * variance / 2
    expected = stats.skellam.pmf(np.arange(-6, 7), whole, whole) * count
    observed = np.array([(total == k).sum() for k in range(-6, 7)])
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert stats.chi2.sf(statistic, 12) > 1e-5


@pytest.mark.parametrize("variance", [0.25, 9.0])
@pytest.mark.parametrize("sign", [0, 1])
def test_a_tie_is_settled_by_all_191_bits(variance, sign):
    table = table_integers(variance)
    skellam = Skellam(variance)
    ones = 2**TIE_BITS - 1
    for k in range(len(table) - 1):
        top, low = table[k] >> TIE_BITS, table[k] & ones
        for below in (0, max(low - 1, 0), low, min(low + 1, ones), ones):
            uniform = top << TIE_BITS | below
            magnitude = sum(1 for entry in table if entry <= uniform)
            script = Script([top << 1 | sign, below & (2**64 - 1), below >> 64])
            assert skellam.sample(1, script).tolist() == [-magnitude if sign else magnitude]
            assert script.words == []


def test_the_extreme_words_stay_within_the_bound():
    skellam = Skellam(9.0)
    assert skellam.bound == len(table_integers(9.0)) - 1
    full = 2**64 - 1
    assert skellam.sample(1, Script([full, full, full])).tolist() == [-skellam.bound]
    assert skellam.sample(2, Script([0, 1])).tolist() == [0, 0]


@pytest.mark.parametrize("variance", [0.0, -1.0, 0.24, 2.0**34 + 4, math.inf, math.nan])
def test_a_variance_out_of_range_is_refused(variance):
    with pytest.raises(ConfigError, match="variance ="):
        Skellam(variance)


def test_an_empty_draw_is_empty_and_a_negative_count_is_refused():
    skellam, generator = Skellam(1.0), SeededNoiseGeneratorForTests(0)
    assert skellam.sample(0, generator).shape == (0,)
    assert skellam.sample(3, generator).dtype == np.int64
    with pytest.raises(ConfigError, match="count = -1"):
        skellam.sample(-1, generator)
