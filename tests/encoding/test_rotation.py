import doctest
import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.crypto.prg import expand_signs
from securefed.encoding import rotation as rotation_module
from securefed.encoding.rotation import Rotation, block_size, padded_dimension
from securefed.errors import ConfigError

SEED = bytes(range(32))


def exact_hadamard(vector: list[int]) -> list[int]:
    """The unscaled Walsh-Hadamard transform, in integers, by its recursive definition."""
    if len(vector) == 1:
        return vector
    half = len(vector) // 2
    top, bottom = exact_hadamard(vector[:half]), exact_hadamard(vector[half:])
    return [a + b for a, b in zip(top, bottom, strict=True)] + [
        a - b for a, b in zip(top, bottom, strict=True)
    ]


def exact_rotation(update: np.ndarray, turn: Rotation) -> list[mpmath.mpf]:
    """``H D P x`` for integer-valued ``x``, to the working precision of mpmath."""
    signed = [int(x) * int(s) for x, s in zip(update, expand_signs(SEED, update.size), strict=True)]
    signed += [0] * (turn.padded - update.size)
    blocks = turn.padded // turn.block
    result = [mpmath.mpf(0)] * turn.padded
    for block in range(blocks):
        values = exact_hadamard(signed[block::blocks])
        result[block::blocks] = [mpmath.mpf(v) / mpmath.sqrt(turn.block) for v in values]
    return result


def relative_distance(computed: np.ndarray, exact: list[mpmath.mpf]) -> float:
    difference = mpmath.fsum((mpmath.mpf(c) - e) ** 2 for c, e in zip(computed, exact, strict=True))
    return float(mpmath.sqrt(difference / mpmath.fsum(e**2 for e in exact)))


@pytest.mark.parametrize(
    ("dimension", "block"),
    [(2, 4096), (64, 4096), (100, 4096), (300, 64), (4096, 4096), (9000, 4096)],
)
def test_the_map_is_the_signed_hadamard_transform_within_the_documented_error(dimension, block):
    update = np.random.default_rng(dimension).integers(-(2**53), 2**53, dimension).astype(float)
    turn = Rotation(dimension, SEED, block)
    with mpmath.workprec(200):
        error = relative_distance(turn.forward(update), exact_rotation(update, turn))
    assert error <= turn.relative_error
    assert turn.relative_error == 4 * math.log2(turn.block) * 2**-53


@pytest.mark.parametrize("dimension", [1, 2, 3, 128, 1000, 4096, 4097, 23_040, 100_003])
def test_norms_and_inner_products_are_kept_and_the_inverse_undoes(dimension):
    generator = np.random.default_rng(dimension)
    left, right = generator.normal(size=(2, dimension))
    turn = Rotation(dimension, SEED)
    turned = turn.forward(left)
    assert turned.shape == (turn.padded,)
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(left), rel=1e-12)
    assert turned @ turn.forward(right) == pytest.approx(left @ right, abs=1e-12 * dimension)
    back = turn.inverse(turned)
    assert back.shape == (dimension,)
    assert np.linalg.norm(back - left) <= 2.1 * turn.relative_error * np.linalg.norm(left)


@given(st.integers(1, 700), st.integers(0, 8), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_every_dimension_and_block_round_trips(dimension, log_block, entropy):
    update = np.random.default_rng(entropy).normal(size=dimension)
    turn = Rotation(dimension, SEED, 1 << log_block)
    assert turn.padded % turn.block == 0
    assert np.allclose(turn.inverse(turn.forward(update)), update, rtol=0, atol=1e-13)


def test_the_rotation_of_a_sum_is_the_sum_of_rotations():
    parts = np.random.default_rng(5).normal(size=(4, 5000))
    turn = Rotation(5000, SEED)
    total = sum(turn.forward(part) for part in parts)
    assert np.allclose(turn.inverse(total), parts.sum(axis=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", ["spike", "constant", "one large layer"])
def test_large_coordinates_are_flattened(shape):
    update = np.zeros(23_040)
    if shape == "spike":
        update[777] = 1.0
    elif shape == "constant":
        update[:] = 1.0
    else:
        update[:500] = 1.0
    update /= np.linalg.norm(update)
    turn = Rotation(update.size, SEED)
    # beta = 2^-40 for all coordinates together; the whole norm is allowed to lie in one block.
    bound = math.sqrt(2 * math.log(2 * turn.padded * 2**40) / turn.block)
    assert np.abs(turn.forward(update)).max() <= bound
    if shape != "spike":
        # Interleaved blocks share such a vector evenly, so each holds a sixth of its energy.
        assert np.abs(turn.forward(update)).max() <= 1.1 * bound / math.sqrt(6)


@pytest.mark.parametrize("dimension", [300, 5000])
def test_another_seed_gives_another_map(dimension):
    update = np.random.default_rng(1).normal(size=dimension)
    one, other = Rotation(dimension, SEED), Rotation(dimension, bytes(32))
    assert not np.allclose(one.forward(update), other.forward(update))
    assert not np.allclose(other.inverse(one.forward(update)), update)


def test_the_result_is_to_the_bit_that_of_scalar_float_arithmetic():
    """A fixed order of additions and one product: no BLAS, thread count or SIMD width shows."""
    update = np.random.default_rng(8).normal(size=9000)
    turn = Rotation(9000, SEED, 2048)
    blocks = turn.padded // turn.block
    expected = [0.0] * turn.padded
    expected[:9000] = [
        float(x) * int(s) for x, s in zip(update, expand_signs(SEED, 9000), strict=True)
    ]
    for block in range(blocks):
        values = expected[block::blocks]
        half = 1
        while half < turn.block:
            for start in range(0, turn.block, 2 * half):
                for low in range(start, start + half):
                    a, b = values[low], values[low + half]
                    values[low], values[low + half] = a + b, a - b
            half *= 2
        expected[block::blocks] = [value * (1.0 / math.sqrt(turn.block)) for value in values]
    assert turn.forward(update).tolist() == expected


def test_inputs_are_not_written_to():
    turn = Rotation(5000, SEED)
    update = np.ones(5000)
    update.flags.writeable = False
    turned = turn.forward(update)
    turned.flags.writeable = False
    turn.inverse(turned)
    assert not np.shares_memory(turn.forward(update), update)


@pytest.mark.parametrize(
    ("dimension", "block", "padded"),
    [
        (1, 1, 1),
        (2, 2, 2),
        (3, 4, 4),
        (4096, 4096, 4096),
        (4097, 512, 4608),
        (5000, 1024, 5120),
        (23_040, 4096, 24_576),
        (1_000_000, 4096, 1_003_520),
    ],
)
def test_the_block_and_padding_are_as_documented(dimension, block, padded):
    assert block_size(dimension) == block
    assert padded_dimension(dimension) == padded
    assert Rotation(dimension, SEED).padded == padded


@given(st.integers(4097, 3_000_000))
def test_padding_above_one_block_stays_within_an_eighth(dimension):
    padded = padded_dimension(dimension)
    assert dimension <= padded <= dimension + dimension // 8
    assert padded % block_size(dimension) == 0
    if dimension >= 1_000_000:
        assert padded <= 1.01 * dimension


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e308])
def test_a_value_that_is_not_finite_or_overflows_is_refused(value):
    update = np.ones(5000)
    update[[0, 4995]] = value  # the same block of 1024, one of five
    turn = Rotation(5000, SEED)
    with pytest.raises(ConfigError, match="update: a value is not finite, or too large"):
        turn.forward(update)
    with pytest.raises(ConfigError, match="rotated: a value is not finite, or too large"):
        turn.inverse(np.concatenate([np.full(turn.padded - 5000, value), update]))


@pytest.mark.parametrize("vector", [np.zeros(9), np.zeros((2, 5)), np.zeros(10, dtype=np.float32)])
def test_another_shape_or_dtype_is_refused(vector):
    turn = Rotation(10, SEED)
    with pytest.raises(ConfigError, match=r"update: .* float64\[10\] allowed"):
        turn.forward(vector)
    with pytest.raises(ConfigError, match=r"rotated: .* float64\[16\] allowed"):
        turn.inverse(vector)


@pytest.mark.parametrize("dimension", [0, -1])
def test_a_dimension_below_one_is_refused(dimension):
    with pytest.raises(ConfigError, match=f"dimension: {dimension}"):
        Rotation(dimension, SEED)


@pytest.mark.parametrize("block", [0, -4, 3, 4095])
def test_a_block_that_is_no_power_of_two_is_refused(block):
    with pytest.raises(ConfigError, match=f"block: {block}"):
        padded_dimension(100, block)


def test_the_documented_example_holds():
    result = doctest.testmod(rotation_module)
    assert result.attempted > 0
    assert result.failed == 0
