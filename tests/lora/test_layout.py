from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from securefed.errors import ConfigError
from securefed.lora.layout import AdapterLayout

shapes = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6),
    st.lists(st.integers(1, 4), max_size=3).map(tuple),
    min_size=1,
    max_size=5,
)


@given(shapes, st.integers(0, 2**32 - 1))
def test_flatten_and_unflatten_are_inverse_bit_for_bit(shapes, seed):
    layout = AdapterLayout(shapes)
    vector = np.random.default_rng(seed).normal(size=layout.size).astype(np.float32)
    tensors = layout.unflatten(vector)
    assert {name: tuple(t.shape) for name, t in tensors.items()} == shapes
    assert np.array_equal(layout.flatten(tensors), vector)


@given(shapes)
def test_order_and_fingerprint_do_not_depend_on_the_order_given(shapes):
    backwards = dict(reversed(shapes.items()))
    assert AdapterLayout(shapes).names == AdapterLayout(backwards).names
    assert AdapterLayout(shapes).fingerprint() == AdapterLayout(backwards).fingerprint()


def test_the_vector_holds_the_parameters_by_name():
    layout = AdapterLayout({"b": (1,), "a": (2, 2)})
    flat = layout.flatten({"b": torch.tensor([9.0]), "a": torch.arange(4.0).view(2, 2)})
    assert flat.dtype == np.float32
    assert flat.tolist() == [0.0, 1.0, 2.0, 3.0, 9.0]


def test_another_name_or_shape_is_another_fingerprint():
    prints = {
        AdapterLayout(s).fingerprint()
        for s in ({"a": (2, 3)}, {"a": (3, 2)}, {"b": (2, 3)}, {"a": (6,)})
    }
    assert len(prints) == 4


def test_unflattened_tensors_share_no_memory_with_the_vector():
    layout = AdapterLayout({"a": (2,)})
    vector = np.zeros(2, dtype=np.float32)
    tensors = layout.unflatten(vector)
    vector[:] = 1.0
    assert tensors["a"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("length", [0, 4, 6])
def test_a_vector_of_another_length_is_refused(length):
    with pytest.raises(ConfigError, match=r"needs \(5,\)"):
        AdapterLayout({"a": (5,)}).unflatten(np.zeros(length))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_value_that_is_not_finite_in_float32_is_refused_by_name(value):
    layout = AdapterLayout({"first": (2,), "second": (2,)})
    with pytest.raises(ConfigError, match="second holds NaN or infinity"):
        layout.unflatten(np.array([0.0, 0.0, value, 0.0]))


def test_a_nan_in_a_tensor_is_refused_by_name():
    layout = AdapterLayout({"first": (2,), "second": (1,)})
    with pytest.raises(ConfigError, match="first holds NaN"):
        layout.flatten({"first": torch.tensor([0.0, torch.nan]), "second": torch.zeros(1)})


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({}, "missing: \\['a'\\]"),
        ({"a": torch.zeros(2), "x": torch.zeros(1)}, "unknown: \\['x'\\]"),
        ({"a": torch.zeros(3)}, "must be \\(2,\\)"),
    ],
)
def test_other_names_or_shapes_are_refused(tensors, complaint):
    with pytest.raises(ConfigError, match=complaint):
        AdapterLayout({"a": (2,)}).flatten(tensors)


@pytest.mark.parametrize("shapes", [{}, {"a": (0,)}, {"a": (2, -1)}])
def test_an_empty_layout_is_refused(shapes):
    with pytest.raises(ConfigError, match="layout"):
        AdapterLayout(shapes)
