import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.encoding.sparsification import KeptCoordinates, kept_dimension
from securefed.errors import ConfigError

KNOWN = [1, 19, 20, 22, 27, 30, 31, 33]


def kept(dimension=1000, fraction=0.1, seed=7, round=3) -> KeptCoordinates:
    return KeptCoordinates(dimension, fraction, seed=seed, round=round)


@given(st.integers(1, 300), st.floats(0.001, 1.0), st.integers(0, 2**64), st.integers(1, 2**31))
def test_a_subset_has_its_size_and_expand_undoes_select(dimension, fraction, seed, round):
    ours = KeptCoordinates(dimension, fraction, seed=seed, round=round)
    assert len(ours.indices) == kept_dimension(dimension, fraction) <= dimension
    assert (np.diff(ours.indices) > 0).all()
    whole = np.arange(1.0, dimension + 1)
    back = ours.expand(ours.select(whole))
    assert np.count_nonzero(back) == len(ours.indices)
    np.testing.assert_array_equal(back[ours.indices], whole[ours.indices])


def test_all_parties_find_the_same_subset_on_every_machine():
    """A known answer: integers alone decide, so it holds everywhere and in later versions."""
    np.testing.assert_array_equal(kept().indices, kept().indices)
    assert kept(dimension=40, fraction=0.2, seed=1, round=1).indices.tolist() == KNOWN


@pytest.mark.parametrize("change", [{"seed": 8}, {"round": 4}])
def test_another_seed_or_round_keeps_others(change):
    assert not np.array_equal(kept().indices, kept(**change).indices)


def test_every_coordinate_is_kept_as_often_as_another():
    rounds, fraction = 4000, 0.25
    counts = np.zeros(20)
    pairs = 0
    for number in range(1, rounds + 1):
        indices = kept(dimension=20, fraction=fraction, round=number).indices
        counts[indices] += 1
        pairs += {3, 4} <= set(indices.tolist())
    deviation = np.sqrt(rounds * fraction * (1 - fraction))
    assert np.abs(counts - rounds * fraction).max() < 5 * deviation
    both = 5 * 4 / (20 * 19)  # k (k - 1) / (m (m - 1)), without replacement
    assert abs(pairs - rounds * both) < 5 * np.sqrt(rounds * both * (1 - both))


def test_the_mean_over_rounds_is_the_vector_times_the_fraction():
    vector = np.random.default_rng(0).normal(size=20)
    rounds = 4000
    total = np.zeros(20)
    for number in range(1, rounds + 1):
        ours = kept(dimension=20, fraction=0.25, round=number)
        total += ours.expand(ours.select(vector))
    np.testing.assert_allclose(total / rounds, 0.25 * vector, atol=0.1 * np.abs(vector).max())


def test_the_whole_is_kept_as_it_is():
    whole = np.random.default_rng(0).normal(size=50)
    np.testing.assert_array_equal(kept(dimension=50, fraction=1.0).select(whole), whole)


@pytest.mark.parametrize(
    "wrong", [{"fraction": 0.0}, {"fraction": 1.5}, {"dimension": 0}, {"round": 0}, {"seed": -1}]
)
def test_arguments_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError):
        kept(**wrong)


def test_vectors_of_another_length_are_refused():
    with pytest.raises(ConfigError, match=r"\(999,\)"):
        kept().select(np.zeros(999))
    with pytest.raises(ConfigError, match=r"\(99,\)"):
        kept().expand(np.zeros(99))
