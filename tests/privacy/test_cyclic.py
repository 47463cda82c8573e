import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.errors import ConfigError
from securefed.privacy.cyclic import cyclic_batch, largest_batch


def batches(client, count, separation, first=1, seed=0):
    return [
        cyclic_batch(client, count, separation=separation, round=first + i, seed=seed)
        for i in range(separation)
    ]


@given(st.text(max_size=8), st.integers(0, 60), st.integers(1, 20), st.integers(1, 50))
def test_any_b_rounds_in_a_row_use_each_unit_once(client, count, separation, first):
    found = batches(client, count, separation, first)
    assert sorted(np.concatenate(found).tolist()) == list(range(count))
    sizes = {len(batch) for batch in found}
    assert sizes <= {count // separation, largest_batch(count, separation)}


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 50))
def test_a_unit_comes_back_after_exactly_b_rounds(count, separation, first):
    now = cyclic_batch("a", count, separation=separation, round=first)
    again = cyclic_batch("a", count, separation=separation, round=first + separation)
    assert now.tolist() == again.tolist()


def test_clients_and_seeds_have_orders_and_beginnings_of_their_own():
    found = {
        tuple(map(tuple, batches(client, 40, 5, seed=seed)))
        for client in ("a", "b", "c")
        for seed in (0, 1)
    }
    assert len(found) == 6
    # Small clients do not all come in the same rounds.
    sizes = sum(
        np.array([len(batch) for batch in batches(f"client-{i}", 3, 10)]) for i in range(200)
    )
    assert sizes.sum() == 600
    assert sizes.min() > 30
    assert sizes.max() < 90


@pytest.mark.parametrize(
    ("name", "value"), [("count", -1), ("separation", 0), ("round", 0), ("seed", -1)]
)
def test_other_arguments_are_refused(name, value):
    arguments = {"count": 3, "separation": 2, "round": 1, "seed": 0} | {name: value}
    with pytest.raises(ConfigError, match=f"{name} = {value}"):
        cyclic_batch("a", **arguments)
