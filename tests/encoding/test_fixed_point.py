import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.encoding import fixed_point
from securefed.encoding.fixed_point import bits_needed, fold_ring, from_ring, to_ring
from securefed.errors import ConfigError, OverflowBoundError


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=50))
def test_to_ring_is_reduction_modulo_2_to_the_32(values):
    ring = to_ring(np.array(values, dtype=np.int64))
    assert ring.dtype == np.uint32
    assert ring.tolist() == [value % 2**32 for value in values]


@given(st.integers(20, 32), st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_from_ring_gives_the_centred_representative(bits, values):
    centred = from_ring(np.array(values, dtype=np.uint32), bits)
    assert centred.dtype == np.int64
    half = 2 ** (bits - 1)
    assert centred.tolist() == [(value + half) % 2**bits - half for value in values]


@given(
    st.lists(
        st.lists(st.integers(-(2**40), 2**40), min_size=3, max_size=3), min_size=1, max_size=8
    ),
    st.integers(20, 32),
)
def test_a_sum_that_stays_in_bounds_comes_back_exactly(updates, bits):
    """Single terms may lie far outside the ring (a mask does); only the sum is bounded."""
    rows = np.array(updates, dtype=np.int64)
    wanted = np.array([2 ** (bits - 1) - 1, -(2 ** (bits - 1)), 17], dtype=np.int64)
    rows = np.vstack([rows, wanted - rows.sum(axis=0)])
    total = np.zeros(3, dtype=np.uint32)
    for row in rows:
        total += to_ring(row)
    assert np.array_equal(from_ring(total, bits), wanted)


def test_one_past_the_range_wraps_to_the_other_end():
    assert from_ring(to_ring(np.array([2**19], dtype=np.int64)), 20).tolist() == [-(2**19)]


@given(st.integers(0, 2**31 - 1))
def test_bits_needed_is_the_fewest_that_hold_the_bound(bound):
    bits = bits_needed(bound)
    assert 20 <= bits <= 32
    assert 2 * bound < 2**bits
    assert bits == 20 or 2 * bound >= 2 ** (bits - 1)
    extremes = np.array([bound, -bound], dtype=np.int64)
    assert np.array_equal(from_ring(to_ring(extremes), bits), extremes)


@pytest.mark.parametrize(
    ("bound", "bits"), [(0, 20), (2**19 - 1, 20), (2**19, 21), (2**31 - 1, 32)]
)
def test_bits_needed_at_the_edges(bound, bits):
    assert bits_needed(bound) == bits
    assert bits_needed(np.int64(bound)) == bits


@pytest.mark.parametrize("bound", [2**31, 2**31 + 1, 10**30])
def test_a_bound_that_no_width_holds_is_refused_with_both_numbers(bound):
    with pytest.raises(OverflowBoundError, match=rf"{bound}.*2\^31 = 2147483648"):
        bits_needed(bound)


def test_a_negative_bound_is_refused():
    with pytest.raises(ConfigError, match="bound: -1"):
        bits_needed(-1)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint64])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ConfigError, match="int64 allowed"):
        to_ring(np.zeros(2, dtype=dtype))
    with pytest.raises(ConfigError, match="uint32 allowed"):
        from_ring(np.zeros(2, dtype=dtype), 20)


@pytest.mark.parametrize("bits", [19, 33])
def test_a_width_outside_20_to_32_is_refused(bits):
    with pytest.raises(ConfigError, match=r"20\.\.32"):
        from_ring(np.zeros(1, dtype=np.uint32), bits)


def test_the_documented_example_holds():
    result = doctest.testmod(fixed_point)
    assert result.attempted > 0
    assert result.failed == 0


@given(st.integers(20, 32), st.integers(0, 2**32 - 1), st.integers(-(2**33), 2**33))
def test_folding_never_stretches_a_difference_and_centring_does_at_the_edge(bits, value, change):
    pair = np.array([value, (value + change) % 2**32], dtype=np.uint32)
    folded = fold_ring(pair, bits)
    assert abs(int(folded[1] - folded[0])) <= abs(change)
    assert np.abs(folded).max() <= 2 ** (bits - 2)
    edge = np.array([2 ** (bits - 1) - 1, 2 ** (bits - 1)], dtype=np.uint32)
    assert np.ptp(fold_ring(edge, bits)) == 1
    assert np.ptp(from_ring(edge, bits)) == 2**bits - 1


@given(st.integers(20, 32), st.data())
def test_folding_keeps_what_is_within_a_quarter_of_the_ring(bits, data):
    quarter = 2 ** (bits - 2)
    value = data.draw(st.integers(-quarter, quarter))
    ring = to_ring(np.array([value], dtype=np.int64))
    assert fold_ring(ring, bits).tolist() == [value]
