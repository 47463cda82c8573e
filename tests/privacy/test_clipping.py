import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from securefed.errors import ConfigError
from securefed.privacy.clipping import L2Clip


def exact_square(vector: np.ndarray) -> Fraction:
    """The squared L2 norm, without any rounding."""
    # Every float64 is a whole multiple of 2^-1074.
    whole = [n * ((1 << 1074) // d) for n, d in (float(x).as_integer_ratio() for x in vector)]
    return Fraction(sum(n * n for n in whole), 1 << 2148)


def is_inside(vector: np.ndarray, clip_norm: float) -> bool:
    return exact_square(vector) <= Fraction(clip_norm) ** 2


NASTY = {
    "zeros": np.zeros(5),
    "negative zero": np.array([-0.0, 0.0]),
    "empty": np.zeros(0),
    "one value": np.array([3.0]),
    "largest floats": np.full(1000, np.finfo(np.float64).max),
    "one largest float": np.array([0.0, -np.finfo(np.float64).max, 1e-300]),
    "smallest floats": np.full(1000, 5e-324),
    "largest and smallest": np.array([np.finfo(np.float64).max, 5e-324, -5e-324]),
    "squares overflow": np.full(7, 1e200),
    "squares underflow": np.full(7, 1e-200),
    "just over": np.full(3, np.nextafter(1.0, 2.0)) / math.sqrt(3.0),
    "just one": np.full(4, 0.5),
    "a third each": np.full(3, 1.0 / math.sqrt(3.0)),
    "seven hundred": np.full(700, 1.0 / math.sqrt(700.0)),
    "many small behind one large": np.concatenate([[1.0], np.full(5000, 1e-9)]),
    "float32 largest": np.full(9, np.finfo(np.float32).max, dtype=np.float32),
    "float32 noise": np.random.default_rng(0).normal(size=5000).astype(np.float32),
    "float16": np.random.default_rng(1).normal(0, 100, 300).astype(np.float16),
    "heavy tails": np.random.default_rng(2).standard_cauchy(2000) ** 5,
}
NORMS = (1e-100, 1e-12, 0.1, 1.0, math.pi, 1e12, 1e100)


@pytest.mark.parametrize("clip_norm", NORMS)
@pytest.mark.parametrize("name", NASTY)
def test_the_exact_norm_of_a_clipped_vector_is_at_most_the_bound(name, clip_norm):
    vector = NASTY[name]
    clipped = L2Clip(clip_norm).clip(vector)
    assert clipped.dtype == np.float64
    assert clipped.shape == vector.shape
    assert is_inside(clipped, clip_norm)


@pytest.mark.parametrize("clip_norm", NORMS)
@pytest.mark.parametrize("name", NASTY)
def test_clipping_takes_off_no_more_than_it_must(name, clip_norm):
    vector = NASTY[name]
    clipped = L2Clip(clip_norm).clip(vector)
    bound = Fraction(clip_norm) * (1 - Fraction(1, 2**24))
    if exact_square(vector) < bound**2:
        np.testing.assert_array_equal(clipped, vector)
    else:
        assert exact_square(clipped) > bound**2


def test_a_clipped_vector_keeps_its_direction():
    vector = np.random.default_rng(3).normal(size=400) * 1e305
    clipped = L2Clip(0.5).clip(vector)
    unit = vector / 1e305
    np.testing.assert_allclose(clipped, unit * (0.5 / np.linalg.norm(unit)), rtol=1e-7)


@settings(max_examples=300, deadline=None)
@given(
    vector=arrays(
        np.float64, st.integers(0, 12), elements=st.floats(allow_nan=False, allow_infinity=False)
    ),
    clip_norm=st.floats(1e-100, 1e100),
)
@example(vector=np.array([1.0, 1e-17]), clip_norm=1.0)
def test_no_finite_vector_leaves_the_ball(vector, clip_norm):
    before = vector.copy()
    assert is_inside(L2Clip(clip_norm).clip(vector), clip_norm)
    np.testing.assert_array_equal(vector, before)


def test_aiming_at_the_bound_itself_would_leave_the_ball():
    """What the small distance that is kept from the bound is for."""
    rng = np.random.default_rng(4)
    outside = 0
    for _ in range(200):
        vector = rng.normal(size=50)
        outside += not is_inside(vector * (1.0 / np.linalg.norm(vector)), 1.0)
    assert outside > 20


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused_without_being_shown(value):
    vector = np.array([1.0, value, 0.123456789])
    with pytest.raises(ConfigError, match="NaN or infinity") as refusal:
        L2Clip(1.0).clip(vector)
    assert "0.123456789" not in str(refusal.value)


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_bound_that_bounds_nothing_is_refused(clip_norm):
    with pytest.raises(ConfigError, match="clip_norm"):
        L2Clip(clip_norm)


def test_rows_are_clipped_one_by_one():
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(9, 30)) * np.geomspace(1e-3, 1e3, 9)[:, None]
    clip = L2Clip(0.7)
    total = clip.clip_rows(rows.astype(np.float32))
    expected = sum(clip.clip(row) for row in rows.astype(np.float32))
    np.testing.assert_array_equal(total, expected)
    # Every row but the short ones pulls with the same strength.
    alone = [np.linalg.norm(clip.clip_rows(rows[i : i + 1])) for i in range(9)]
    assert max(alone) <= 0.7
    assert alone[-1] == pytest.approx(0.7, rel=1e-6)
    assert alone[0] == pytest.approx(np.linalg.norm(rows[0]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_row_that_is_not_finite_contributes_nothing_and_stops_nobody(value, dtype):
    rows = np.ones((3, 4), dtype=dtype)
    rows[1, 2] = value
    total = L2Clip(1.0).clip_rows(rows)
    np.testing.assert_array_equal(total, L2Clip(1.0).clip_rows(rows[[0, 2]]))
    assert np.isfinite(total).all()


def test_one_row_moves_the_sum_by_at_most_the_bound():
    """Exactly, for the same order of the other rows, up to the slack that is stated."""
    rng = np.random.default_rng(6)
    clip = L2Clip(1.0)
    slack = Fraction(clip.float_slack(40, 4096))
    for trial in range(20):
        rows = rng.normal(size=(40, 25)) * 10.0 ** rng.integers(-3, 12, (40, 1))
        without = rows.copy()
        without[trial] = 0.0
        moved = clip.clip_rows(rows) - clip.clip_rows(without)
        assert exact_square(moved) <= (1 + slack) ** 2


def test_no_rows_sum_to_zeros():
    np.testing.assert_array_equal(L2Clip(1.0).clip_rows(np.zeros((0, 6))), np.zeros(6))


def test_the_stated_slack_is_small_and_grows_with_the_sum():
    slacks = [L2Clip(1.0).float_slack(b, 4096) for b in (1, 10, 1000, 100_000)]
    assert slacks == sorted(slacks)
    assert 0 < slacks[0] < 1e-13
    assert slacks[-1] < 1e-5
