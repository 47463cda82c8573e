import copy
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.crypto.prg import (
    KEY_BYTES,
    NoiseGenerator,
    SeededNoiseGeneratorForTests,
    add_keystream,
    add_keystreams,
    draw,
    expand_signs,
    system_random,
    uniform_below,
)
from securefed.errors import ConfigError, LocalProtocolError

CHUNK = 1 << 16
keys = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)


# The zero-plaintext cases of NIST's AESAVS (KeySbox, 256 bits): with a zero nonce the first
# keystream block is the encryption of the zero block.
@pytest.mark.parametrize(
    ("key", "block"),
    [
        (
            "c47b0294dbbbee0fec4757f22ffeee3587ca4730c3d33b691df38bab076bc558",
            "46f2fb342d6f0ab477476fc501242c5f",
        ),
        (
            "28d46cffa158533194214a91e712fc2b45b518076675affd910edeca5f41ac64",
            "4bf3b0a69aeb6657794f2901b1440ad4",
        ),
    ],
)
def test_the_first_keystream_block_is_the_nist_vector(key, block):
    vector = np.zeros(4, dtype=np.uint32)
    add_keystream(vector, bytes.fromhex(key))
    assert vector.astype("<u4").tobytes().hex() == block


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 7])
def test_the_keystream_is_aes_of_the_counters_across_chunk_borders(size, oracle):
    key = os.urandom(32)
    vector = np.zeros(size, dtype=np.uint32)
    add_keystream(vector, key)
    assert vector.astype("<u4").tobytes() == oracle.keystream(key, 4 * size)


@given(keys, st.lists(st.integers(0, 2**32 - 1), max_size=50))
@settings(max_examples=50)
def test_adding_wraps_and_subtracting_undoes_it(key, values):
    vector = np.array(values, dtype=np.uint32)
    stream = np.zeros_like(vector)
    add_keystream(stream, key)
    add_keystream(vector, key)
    assert [int(v) for v in vector] == [
        (v + int(s)) % 2**32 for v, s in zip(values, stream, strict=True)
    ]
    add_keystream(vector, key, subtract=True)
    assert vector.tolist() == values


@pytest.mark.parametrize("size", [0, 5, CHUNK + 9])
@pytest.mark.parametrize("count", [0, 1, 3, 64, 65, 130])
def test_many_keystreams_are_the_same_as_one_after_the_other(size, count):
    masks = [(os.urandom(32), bool(number % 3)) for number in range(count)]
    wanted = np.arange(size, dtype=np.uint32)
    found = wanted.copy()
    for key, subtract in masks:
        add_keystream(wanted, key, subtract=subtract)
    add_keystreams(found, iter(masks))
    np.testing.assert_array_equal(found, wanted)


def test_a_bad_key_among_many_leaves_the_vector_unchanged():
    vector = np.arange(9, dtype=np.uint32)
    with pytest.raises(ConfigError, match="key has 31 bytes"):
        add_keystreams(vector, [(bytes(32), False), (bytes(31), False)])
    assert vector.tolist() == list(range(9))


def test_pairwise_masks_cancel_in_the_sum():
    rng = np.random.default_rng(1)
    updates = rng.integers(0, 2**32, (3, CHUNK + 9), dtype=np.uint32)
    masked = updates.copy()
    for low, high in ((0, 1), (0, 2), (1, 2)):
        key = os.urandom(32)
        add_keystream(masked[low], key)
        add_keystream(masked[high], key, subtract=True)
    assert not np.array_equal(masked[0], updates[0])
    np.testing.assert_array_equal(
        masked.sum(axis=0, dtype=np.uint32), updates.sum(axis=0, dtype=np.uint32)
    )


def test_a_vector_of_another_form_is_refused():
    key = bytes(32)
    read_only = np.zeros(4, dtype=np.uint32)
    read_only.flags.writeable = False
    for vector in (
        np.zeros(4, dtype=np.int32),
        np.zeros(4, dtype=np.uint64),
        np.zeros((2, 2), dtype=np.uint32),
        np.zeros(8, dtype=np.uint32)[::2],
        np.zeros(4, dtype=">u4"),
        read_only,
        [0, 0],
    ):
        with pytest.raises(ConfigError, match="vector"):
            add_keystream(vector, key)


@pytest.mark.parametrize("size", [0, 16, 24, 31, 33, 64])
def test_a_key_of_another_length_is_refused_and_nothing_is_changed(size):
    vector = np.arange(4, dtype=np.uint32)
    with pytest.raises(ConfigError, match=f"key has {size} bytes"):
        add_keystream(vector, bytes(size))
    assert vector.tolist() == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match=f"seed has {size} bytes"):
        expand_signs(bytes(size), 4)


def test_signs_are_the_bits_of_the_keystream_and_do_not_depend_on_the_count(oracle):
    seed = os.urandom(32)
    signs = expand_signs(seed, 1000)
    assert signs.dtype == np.int8
    bits = int.from_bytes(oracle.keystream(seed, 125), "little")
    assert signs.tolist() == [1 - 2 * (bits >> i & 1) for i in range(1000)]
    for count in (0, 1, 7, 8, 9, 999):
        assert expand_signs(seed, count).tolist() == signs[:count].tolist()


def test_signs_are_balanced():
    # Mean of n fair signs: standard deviation 1/sqrt(n); 6 of them.
    signs = expand_signs(bytes(range(32)), 1 << 20)
    assert abs(signs.mean()) < 6 / 1024


def test_the_noise_stream_is_the_same_however_it_is_cut(oracle):
    whole = SeededNoiseGeneratorForTests(5)
    cut = SeededNoiseGeneratorForTests(5)
    count = 2 * CHUNK + 3
    stream = oracle.keystream((5).to_bytes(32, "big"), 8 * count)
    words = whole.uint64(count)
    assert words.dtype == np.uint64
    assert words.astype("<u8").tobytes() == stream
    parts = [cut.bytes(3), cut.bytes(0), cut.bytes(5), cut.uint64(0).tobytes()]
    parts.append(cut.uint64(count - 1).astype("<u8").tobytes())
    assert b"".join(parts) == stream


def test_two_generators_do_not_repeat_each_other():
    assert NoiseGenerator().bytes(32) != NoiseGenerator().bytes(32)
    generator = NoiseGenerator()
    assert generator.bytes(32) != generator.bytes(32)
    assert SeededNoiseGeneratorForTests(1).bytes(32) != SeededNoiseGeneratorForTests(2).bytes(32)


@pytest.mark.parametrize("make", [NoiseGenerator, lambda: SeededNoiseGeneratorForTests(3)])
def test_a_generator_is_neither_copied_nor_pickled_nor_shown(make):
    generator = make()
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="holds a secret"):
            duplicate(generator)
    assert repr(generator) == f"<{type(generator).__name__}>"
    assert not hasattr(generator, "__dict__")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_cannot_repeat_the_parents_noise():
    generator = NoiseGenerator()
    child = os.fork()
    if child == 0:
        refused = 0
        for method in (generator.uint64, generator.bytes):
            try:
                method(1)
            except LocalProtocolError:
                refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert len(generator.bytes(8)) == 8


def test_negative_counts_and_seeds_out_of_range_are_refused():
    generator = SeededNoiseGeneratorForTests(0)
    for call in (generator.uint64, generator.bytes, lambda n: expand_signs(bytes(32), n)):
        with pytest.raises(ConfigError, match="count = -1"):
            call(-1)
    for seed in (-1, 2**256):
        with pytest.raises(ConfigError, match="seed"):
            SeededNoiseGeneratorForTests(seed)
    SeededNoiseGeneratorForTests(2**256 - 1)


def test_a_random_source_that_returns_too_little_is_refused():
    with pytest.raises(LocalProtocolError, match="returned 3 bytes; 32 are needed"):
        draw(lambda count: b"abc", 32)
    assert len(draw(system_random, 32)) == 32


@pytest.mark.parametrize("bound", [2, 3, 2**16 + 1, 2**60 - 2**14 + 1, 2**62 + 1, 2**63])
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_values_below_a_bound_are_the_accepted_words_of_the_keystream(bound, count, oracle):
    key = os.urandom(KEY_BYTES)
    words = np.frombuffer(oracle.keystream(key, 8 * 4096), dtype="<u8")
    mask = (1 << (bound - 1).bit_length()) - 1
    accepted = [word & mask for word in words.tolist() if word & mask < bound]
    assert uniform_below(key, bound, count).tolist() == accepted[:count]


def test_values_below_a_bound_do_not_depend_on_how_many_are_asked_for():
    key, bound = os.urandom(KEY_BYTES), 2**20 + 1  # half of the words are skipped
    long = uniform_below(key, bound, 70_000)
    assert np.array_equal(long[:333], uniform_below(key, bound, 333))
    # Uniform: the mean of 70,000 values has a std of 0.0011 bounds.
    assert abs(long.mean() / bound - 0.5) < 0.01
    assert int(long.max()) < bound


@pytest.mark.parametrize("bound", [0, 1, 2**63 + 1])
def test_a_bound_out_of_range_is_refused(bound):
    with pytest.raises(ConfigError, match="bound"):
        uniform_below(os.urandom(KEY_BYTES), bound, 1)
