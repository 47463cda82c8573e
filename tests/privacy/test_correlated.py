import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.errors import ConfigError
from securefed.privacy.correlated import (
    COEFFICIENT_BITS,
    MAX_BANDS,
    BandedToeplitz,
    banded_square_root,
    best_bands,
)

ONE = 1 << COEFFICIENT_BITS


def dense(coefficients, rounds):
    """The matrix itself, float64[rounds, rounds], and nothing clever."""
    matrix = np.zeros((rounds, rounds))
    for i, c in enumerate(coefficients[:rounds]):
        matrix += c * np.eye(rounds, k=-i)
    return matrix


def patterns(rounds, separation):
    """Every set of rounds in which a unit may take part: any two at least ``separation`` apart."""
    for size in range(rounds + 1):
        for chosen in itertools.combinations(range(rounds), size):
            if all(b - a >= separation for a, b in itertools.pairwise(chosen)):
                yield chosen


def worst_change(coefficients, rounds, separation):
    """The largest |C D| over all patterns and all signs of unit changes."""
    matrix = dense(coefficients, rounds)
    return max(
        np.linalg.norm(matrix[:, list(chosen)] @ np.array(signs))
        for chosen in patterns(rounds, separation)
        if chosen
        for signs in itertools.product((1.0, -1.0), repeat=len(chosen))
    )


@pytest.mark.parametrize("separation", [1, 2, 3, 4])
@pytest.mark.parametrize("rounds", [1, 2, 5, 8, 9])
def test_the_sensitivity_is_the_worst_over_all_participations_and_signs(rounds, separation):
    for bands in range(1, separation + 1):
        strategy = banded_square_root(bands, separation)
        worst = worst_change(strategy.coefficients, rounds, separation)
        assert strategy.sensitivity(rounds) == pytest.approx(worst, rel=1e-12)


def test_no_vectors_of_unit_norm_change_more_and_aligned_ones_change_as_much():
    strategy, rounds = banded_square_root(3, 4), 11
    matrix = dense(strategy.coefficients, rounds)
    rng = np.random.default_rng(1)
    for chosen in patterns(rounds, 4):
        for _ in range(5):
            change = np.zeros((rounds, 6))
            change[list(chosen)] = rng.normal(size=(len(chosen), 6))
            change /= np.maximum(np.linalg.norm(change, axis=1, keepdims=True), 1.0)
            assert np.linalg.norm(matrix @ change) <= strategy.sensitivity(rounds)


def test_with_more_bands_than_rounds_apart_the_formula_would_not_hold():
    """Why the class refuses it: participations then overlap, and their changes add up."""
    coefficients = banded_square_root(4, 4).coefficients
    formula = math.sqrt(sum((coefficients[: 8 - start] ** 2).sum() for start in range(0, 8, 2)))
    assert worst_change(coefficients, 8, 2) > 1.2 * formula
    with pytest.raises(ConfigError, match="would add up"):
        BandedToeplitz(banded_square_root(4, 4).numerators, separation=2)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 300))
def test_the_sensitivity_does_not_fall_with_rounds_and_is_rounded_up(bands, more, rounds):
    strategy = banded_square_root(bands, bands + more - 1)
    exact = [Fraction(m, ONE) ** 2 for m in strategy.numerators]
    now = sum(
        sum(exact[: rounds - start], Fraction(0)) for start in range(0, rounds, strategy.separation)
    )
    found = strategy.sensitivity(rounds)
    assert now <= Fraction(found) ** 2 <= now * (1 + Fraction(1, 2**50))
    assert strategy.sensitivity(rounds + 1) >= found >= strategy.sensitivity(rounds - 1)
    assert strategy.participations(rounds) == len(range(0, rounds, strategy.separation))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 60))
def test_settled_is_when_nothing_more_comes_of_the_participations_so_far(bands, more, rounds):
    strategy = banded_square_root(bands, bands + more - 1)
    settled = strategy.settled(rounds)
    count = strategy.participations(rounds)
    assert settled >= rounds
    assert strategy.participations(settled) == count
    whole = math.sqrt(count) * banded_square_root(bands, 100).sensitivity(100)
    assert strategy.sensitivity(settled) == pytest.approx(whole)


def test_the_coefficients_square_to_prefix_sums_and_are_exact_multiples():
    c = banded_square_root(30, 30)
    squared = np.convolve(c.coefficients, c.coefficients)[:30]
    assert squared == pytest.approx(np.ones(30), abs=30 / ONE)
    for i, m in enumerate(c.numerators):
        exact = Fraction(math.comb(2 * i, i), 4**i) * ONE
        assert m == math.floor(exact)


@pytest.mark.parametrize(("bands", "separation", "rounds"), [(1, 1, 6), (3, 5, 17), (8, 8, 30)])
def test_the_error_is_that_of_dense_algebra(bands, separation, rounds):
    strategy = banded_square_root(bands, separation)
    sums = np.tril(np.ones((rounds, rounds)))
    noise = sums @ np.linalg.inv(dense(strategy.coefficients, rounds))
    expected = math.sqrt((noise**2).sum() / rounds)
    assert strategy.prefix_error(rounds) == pytest.approx(expected, rel=1e-10)


# rounds, separation, bands, sensitivity, RMS error of prefix sums: printed by jax_privacy 2.0.0
# (matrix_factorization.toeplitz: minsep_sensitivity_squared and per_query_error, float64), given
# this package's coefficients.
JAX_PRIVACY = [
    (20, 5, 1, 2.0, 3.24037034920393),
    (20, 5, 3, 2.358495283014151, 1.9034452092766099),
    (23, 5, 5, 2.764565475011399, 1.6799940264574336),
    (100, 10, 10, 4.232427130602596, 2.2708008931013683),
    (100, 25, 16, 2.788453281340402, 1.9406953531629392),
    (37, 8, 8, 2.9045767941034435, 1.713329297256646),
    (1000, 100, 64, 4.887494257908476, 2.805474114584383),
    (12, 20, 8, 1.310869657559247, 1.290132858204203),
]


@pytest.mark.parametrize(("rounds", "separation", "bands", "sensitivity", "error"), JAX_PRIVACY)
def test_figures_are_those_of_jax_privacy(rounds, separation, bands, sensitivity, error):
    strategy = banded_square_root(bands, separation)
    assert strategy.sensitivity(rounds) == pytest.approx(sensitivity, rel=1e-12)
    assert strategy.prefix_error(rounds) == pytest.approx(error, rel=1e-12)


# The same, at coefficients that jax_privacy 2.0.0 optimised itself (optimize_banded_toeplitz).
JAX_OPTIMUM = [(100, 10, 10, 9.317657), (100, 25, 25, 4.976499), (1000, 50, 50, 19.234373),
               (1000, 100, 64, 12.759372)]  # fmt: skip


@pytest.mark.parametrize(("rounds", "separation", "bands", "optimum"), JAX_OPTIMUM)
def test_the_closed_form_is_within_a_tenth_of_the_optimum(rounds, separation, bands, optimum):
    strategy = banded_square_root(bands, separation)
    found = strategy.sensitivity(rounds) * strategy.prefix_error(rounds)
    assert optimum < found < 1.1 * optimum


@pytest.mark.parametrize(("separation", "rounds"), [(10, 100), (25, 100), (100, 1000)])
def test_the_bands_chosen_beat_independent_noise_by_more_than_half(separation, rounds):
    def error(bands):
        strategy = banded_square_root(bands, separation)
        return strategy.sensitivity(rounds) * strategy.prefix_error(rounds)

    best = best_bands(separation, rounds)
    assert error(best) < 0.45 * error(1)
    assert error(best) <= min(error(bands) for bands in (1, 2, 4, 8))


def test_more_bands_than_are_chosen_still_help_in_a_long_cycle():
    errors = [
        strategy.sensitivity(1000) * strategy.prefix_error(1000)
        for strategy in (banded_square_root(64, 1000), banded_square_root(512, 1000))
    ]
    assert errors[1] == pytest.approx((1 - 0.29) * errors[0], rel=0.01)


def test_one_round_apart_noise_is_independent():
    assert best_bands(1, 50) == 1
    assert banded_square_root(1, 1).sensitivity(49) == 7.0


@pytest.mark.parametrize(
    ("numerators", "separation", "named"),
    [
        ((ONE, ONE), 1, "bands = 2: must be in 1..1"),
        ((ONE // 2,), 1, "must begin with"),
        ((ONE, -1), 2, "never below 0"),
        ((ONE, 5, 6), 3, "and fall"),
        ((), 3, "bands = 0"),
        ((ONE,), 0, "separation = 0"),
        ((ONE,), True, "separation = True"),
        ((ONE,) * (MAX_BANDS + 1), MAX_BANDS + 1, "bands = 1025"),
    ],
)
def test_other_matrices_are_refused(numerators, separation, named):
    with pytest.raises(ConfigError, match=named):
        BandedToeplitz(numerators, separation)


@pytest.mark.parametrize("bands", [0, True, MAX_BANDS + 1, 1.5])
def test_other_band_counts_are_refused(bands):
    with pytest.raises(ConfigError, match="bands = "):
        banded_square_root(bands, 5000)


@pytest.mark.parametrize("rounds", [-1, True, 1.5])
def test_other_round_counts_are_refused(rounds):
    with pytest.raises(ConfigError, match="rounds = "):
        banded_square_root(2, 3).sensitivity(rounds)
