import dataclasses
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sympy import prevprime

from securefed.crypto.prg import SeededNoiseGeneratorForTests, uniform_below
from securefed.encoding.fixed_point import from_ring, to_ring
from securefed.errors import ConfigError, OverflowBoundError
from securefed.federation.update_codec import UpdateCodec
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.rlwe_parameters import PLAIN_MODULUS
from securefed.secagg.slots import SlotPacking, add_slots, bounds_of_plan, mask_slots

T = PLAIN_MODULUS


@st.composite
def packings(draw):
    bits = draw(st.integers(20, 32))
    clients = draw(st.integers(1, 200))
    value_bound = draw(st.integers(1, (1 << (bits - 1)) - 1))
    sum_bound = draw(st.integers(1, clients * value_bound))
    modulus = draw(st.sampled_from([T, prevprime(2**59), prevprime(2**48), prevprime(2**41)]))
    return SlotPacking.of(
        length=draw(st.integers(1, 40)),
        bits=bits,
        clients=clients,
        sum_bound=sum_bound,
        value_bound=value_bound,
        certain=draw(st.booleans()),
        modulus=modulus,
    )


def summed(packing, vectors):
    total = np.zeros(packing.slots, dtype=np.uint64)
    for vector in vectors:
        total = add_slots(total, packing.pack(to_ring(vector)), packing.modulus)
    return packing.unpack(total)


@given(packings(), st.data())
@settings(max_examples=150, deadline=None)
def test_sums_of_slots_are_the_ring_sums_of_what_was_packed(packing, data):
    """Any integers whose sums a field holds, up to the last one, in any cohort."""
    clients = data.draw(st.integers(1, min(packing.clients, 12)))
    most = min(packing.value_bound, packing.half // clients)
    ends = st.sampled_from([-most, most, 0])
    value = st.one_of(ends, st.integers(-most, most))
    row = st.lists(value, min_size=packing.length, max_size=packing.length)
    vectors = [np.array(data.draw(row), dtype=np.int64) for _ in range(clients)]
    ring = np.zeros(packing.length, dtype=np.uint32)
    for vector in vectors:
        ring += to_ring(vector)
    mask = np.uint32((1 << packing.bits) - 1)
    assert np.array_equal(summed(packing, vectors), ring & mask)


@given(packings())
@settings(max_examples=100, deadline=None)
def test_fields_hold_what_was_asked_and_no_field_more_would_fit(packing):
    assert packing.radix % 2 == 1
    assert packing.radix**packing.fields <= packing.modulus
    # The largest digits in every field stay within the representatives of t.
    top = sum(packing.half * packing.radix**j for j in range(packing.fields))
    assert top <= (packing.modulus - 1) // 2


@pytest.mark.parametrize("sign", [-1, 1])
def test_every_field_at_its_end_neither_carries_nor_passes_t(sign):
    packing = SlotPacking.of(
        length=3, bits=20, clients=2, sum_bound=2**19 - 1, value_bound=2**19 - 1
    )
    assert packing.fields == 3
    assert packing.half == 2**19 - 1
    ends = sign * np.array([2**19 - 1, 2**19 - 1, 2**19 - 1], dtype=np.int64)
    assert np.array_equal(from_ring(summed(packing, [ends]), 20), ends)
    # One more in the lowest field does carry: the bound is not loose.
    more = sign * np.array([1, 0, 0], dtype=np.int64)
    assert not np.array_equal(from_ring(summed(packing, [ends, more]), 20)[1:], ends[1:])


def test_the_target_of_the_issue_has_three_fields():
    packing = SlotPacking.of(
        length=10**6, bits=20, clients=100, sum_bound=2**19 - 1, value_bound=2**19 - 1
    )
    assert (packing.fields, packing.slots) == (3, 333_334)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"modulus": 2**20 - 3, "sum_bound": 2**20}, OverflowBoundError, "sum_bound = 1048576"),
        ({"certain": True, "value_bound": 2**31 - 1, "clients": 2**20 - 1, "modulus": 2**50}, *(
            OverflowBoundError, "clients, value_bound = 2147483647")),
        ({"bits": 19}, ConfigError, "bits = 19"),
        ({"bits": 33}, ConfigError, "bits = 33"),
        ({"clients": 0}, ConfigError, "clients = 0"),
        ({"length": 0}, ConfigError, "length = 0"),
        ({"bits": 20, "value_bound": 2**19}, ConfigError, "value_bound = 524288"),
        ({"modulus": 2**61}, ConfigError, "modulus"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name_before_anything_is_packed(changes, error, named):
    good = {"length": 5, "bits": 32, "clients": 4, "sum_bound": 2**22, "value_bound": 2**21}
    SlotPacking.of(**good)
    with pytest.raises(error, match=named):
        SlotPacking.of(**good | changes)


def test_a_radix_that_does_not_fit_is_refused_even_if_made_by_hand():
    good = SlotPacking.of(length=5, bits=20, clients=4, sum_bound=2**19 - 1, value_bound=1000)
    for changes in (
        {"radix": good.radix + 1},
        {"radix": good.radix + 2},
        {"fields": good.fields + 1},
    ):
        with pytest.raises(OverflowBoundError, match="radix"):
            dataclasses.replace(good, **changes)


def test_values_beyond_the_bound_are_cut_and_others_are_not():
    packing = SlotPacking.of(length=4, bits=20, clients=3, sum_bound=3000, value_bound=1000)
    values = np.array([1000, 1001, -1001, -(2**19)], dtype=np.int64)
    found = from_ring(packing.unpack(packing.pack(to_ring(values))), 20)
    assert found.tolist() == [1000, 1000, -1000, -1000]


def test_a_certain_packing_holds_the_largest_contributions_of_all_clients():
    packing = SlotPacking.of(
        length=3, bits=20, clients=100, sum_bound=2**19 - 1, value_bound=5242, certain=True
    )
    assert packing.overflow_impossible
    assert packing.fields == 3
    largest = np.full(3, 2**19 - 1, dtype=np.int64)
    assert from_ring(summed(packing, [largest] * 100), 20).tolist() == [100 * 5242] * 3


@given(st.integers(2, 100), st.sampled_from([0.5, 1.0, 5.0]), st.sampled_from([20, 22, "auto"]))
@settings(max_examples=25, deadline=None)
def test_what_the_codec_encodes_is_never_cut(clients, z, bits):
    """The largest update, in one coordinate, with its noise: the masked path's ring elements."""
    policy = PrivacyPolicy(clip_norm=1.0, noise_multiplier=z)
    try:
        plan = plan_round(policy, cohort_size=clients, dimension=64, bits=bits)
    except OverflowBoundError:
        return
    codec = UpdateCodec(policy, plan, rotation_seed=bytes(32))
    ring = codec.encode_update(np.full(64, 1.0), SeededNoiseGeneratorForTests(clients))
    sum_bound, value_bound = bounds_of_plan(plan)
    packing = SlotPacking.of(
        length=plan.padded,
        bits=plan.bits,
        clients=clients,
        sum_bound=sum_bound,
        value_bound=value_bound,
    )
    assert np.array_equal(packing.unpack(packing.pack(ring)), ring)


def test_cutting_at_an_equal_part_of_the_field_would_cut_noise():
    """Why value_bound is not H / clients: the codec's own values would not pass unchanged."""
    policy = PrivacyPolicy(clip_norm=1.0, noise_multiplier=5.0)
    plan = plan_round(policy, cohort_size=100, dimension=4096, bits=20)
    assert plan.sum_bound // 100 < 3 * plan.local_std
    assert bounds_of_plan(plan)[1] > 12 * plan.local_std


# -- modulo t ----------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, T - 1), st.integers(0, T - 1)), min_size=1, max_size=30))
def test_addition_modulo_t_is_exact(pairs):
    left, right = (np.array(side, dtype=np.uint64) for side in zip(*pairs, strict=True))
    assert add_slots(left, right, T).tolist() == [(a + b) % T for a, b in pairs]


@pytest.mark.parametrize("left", [0, 1, T - 1])
@pytest.mark.parametrize("right", [0, 1, T - 1])
def test_addition_at_the_ends(left, right):
    both = (np.array([value], dtype=np.uint64) for value in (left, right))
    assert add_slots(*both, T).tolist() == [(left + right) % T]


def test_pairwise_and_self_masks_cancel_after_one_client_is_lost():
    clients, packing = 4, SlotPacking.of(
        length=50, bits=20, clients=4, sum_bound=2**19 - 1, value_bound=2**17 - 1
    )  # fmt: skip
    rng = np.random.default_rng(3)
    vectors = rng.integers(-(2**17) + 1, 2**17, (clients, 50))
    pair = {(i, j): os.urandom(32) for i in range(clients) for j in range(i + 1, clients)}
    own = [os.urandom(32) for _ in range(clients)]
    masked = []
    for i in range(clients):
        masks = [(key, i == b) for (a, b), key in pair.items() if i in (a, b)]
        slots = packing.pack(to_ring(vectors[i]))
        masked.append(mask_slots(slots, [*masks, (own[i], False)], T))
        assert not np.any(masked[i] == slots)
    total = np.zeros(packing.slots, dtype=np.uint64)
    for slots in masked[:3]:  # the last one fell silent
        total = add_slots(total, slots, T)
    left_over = [(pair[i, 3], True) for i in range(3)] + [(own[i], True) for i in range(3)]
    opened = packing.unpack(mask_slots(total, left_over, T))
    assert np.array_equal(from_ring(opened, 20), vectors[:3].sum(axis=0))
    # Any one mask missing and nothing is opened.
    half_open = packing.unpack(mask_slots(total, left_over[:-1], T))
    assert (from_ring(half_open, 20) == vectors[:3].sum(axis=0)).mean() < 0.1


def test_a_mask_is_the_stream_below_t_and_nothing_is_reduced():
    key = os.urandom(32)
    zeros = np.zeros(1000, dtype=np.uint64)
    masked = mask_slots(zeros, [(key, False)], T)
    assert np.array_equal(masked, uniform_below(key, T, 1000))
    assert np.array_equal(mask_slots(masked, [(key, True)], T), zeros)


def test_slots_of_another_form_are_refused():
    packing = SlotPacking.of(length=9, bits=20, clients=4, sum_bound=2**19 - 1, value_bound=1000)
    for wrong in (
        np.zeros(packing.slots, dtype=np.int64),
        np.zeros(packing.slots + 1, dtype=np.uint64),
        np.full(packing.slots, T, dtype=np.uint64),
    ):
        with pytest.raises(ConfigError, match="slots"):
            packing.unpack(wrong)
    with pytest.raises(ConfigError, match="slots"):
        mask_slots(np.full(3, T, dtype=np.uint64), [], T)
    with pytest.raises(ConfigError, match="ring"):
        packing.pack(np.zeros(8, dtype=np.uint32))
    with pytest.raises(ConfigError, match="dtype int64"):
        packing.pack(np.zeros(9, dtype=np.int64))
