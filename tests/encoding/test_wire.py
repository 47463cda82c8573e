import doctest
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from securefed.encoding import wire
from securefed.encoding.wire import Reader, Writer, pack_ring, packed_size, unpack_ring
from securefed.errors import LocalProtocolError, WireError

WIDTHS = {"u8": 8, "u16": 16, "u32": 32, "u64": 64}
ALL_BITS = range(20, 33)

FIELDS = st.lists(
    st.one_of(
        *[
            st.tuples(st.just(verb), st.integers(0, 2**bits - 1), st.just(0))
            for verb, bits in WIDTHS.items()
        ],
        st.binary(max_size=40).map(lambda value: ("fixed", value, len(value))),
        st.binary(max_size=40).map(lambda value: ("blob", value, 40)),
    ),
    max_size=12,
)


def written(fields: list[tuple[str, int | bytes, int]]) -> bytes:
    writer = Writer()
    writer.header(9)
    for verb, value, size in fields:
        arguments = (value,) if verb in WIDTHS else (value, size)
        getattr(writer, verb)(*arguments, field="f")
    return writer.done()


def read_back(data: bytes, fields: list[tuple[str, int | bytes, int]]) -> list[int | bytes]:
    reader = Reader(data)
    reader.header(9)
    values = []
    for verb, _, size in fields:
        arguments = () if verb in WIDTHS else (size,)
        values.append(getattr(reader, verb)(*arguments, field="f"))
    reader.finish()
    return values


def packed_bit_by_bit(vector: np.ndarray, bits: int) -> bytes:
    number = 0
    for index, value in enumerate(vector.tolist()):
        number |= (value % 2**bits) << (index * bits)
    return number.to_bytes(-(-len(vector) * bits // 8), "little")


@given(FIELDS)
def test_what_is_written_is_read_back(fields):
    assert read_back(written(fields), fields) == [value for _, value, _ in fields]


@given(FIELDS, st.data())
def test_every_truncation_is_refused(fields, data):
    message = written(fields)
    cut = data.draw(st.integers(0, len(message) - 1))
    with pytest.raises(WireError):
        read_back(message[:cut], fields)


@given(FIELDS, st.binary(min_size=1, max_size=4))
def test_trailing_bytes_are_refused(fields, tail):
    with pytest.raises(WireError, match=f"end of message: {len(tail)} bytes too many"):
        read_back(written(fields) + tail, fields)


@given(FIELDS, st.binary(max_size=200))
def test_arbitrary_bytes_decode_to_themselves_or_are_refused(fields, data):
    """Canonical: whatever is accepted has exactly this one encoding."""
    data = b"SFED\x01\x09" + data
    try:
        values = read_back(data, fields)
    except WireError:
        return
    again = [(verb, value, size) for (verb, _, size), value in zip(fields, values, strict=True)]
    assert written(again) == data


def test_the_bytes_of_a_message_are_fixed():
    writer = Writer()
    writer.header(2)
    writer.u8(1)
    writer.u16(0x0203)
    writer.u32(0x04050607)
    writer.u64(0x08090A0B0C0D0E0F)
    writer.fixed(b"\xaa\xbb", 2)
    writer.blob(b"\xcc", 8)
    assert writer.done().hex() == ("534645440102010302070605040f0e0d0c0b0a0908aabb01000000cc")


def test_the_documented_example_holds():
    result = doctest.testmod(wire)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize(
    ("position", "byte", "complaint"),
    [
        (0, 0x00, "magic: 00464544 found, 53464544 expected"),
        (4, 0x02, "version: 2 found, only 1 is understood"),
        (5, 0x08, "message type: 8 found, 9 expected"),
    ],
)
def test_another_header_is_refused_by_name(position, byte, complaint):
    message = bytearray(written([]))
    message[position] = byte
    with pytest.raises(WireError, match=complaint):
        Reader(bytes(message)).header(9)


@pytest.mark.parametrize(("verb", "bits"), WIDTHS.items())
@pytest.mark.parametrize("off", [-1, 0])
def test_an_integer_that_does_not_fit_is_refused_and_nothing_is_written(verb, bits, off):
    value = -1 if off else 2**bits
    writer = Writer()
    with pytest.raises(LocalProtocolError, match="cohort"):
        getattr(writer, verb)(value, field="cohort")
    assert writer.done() == b""


def test_numpy_integers_are_written_and_floats_are_not():
    writer = Writer()
    writer.u16(np.int64(5))
    assert writer.done() == b"\x05\x00"
    with pytest.raises(TypeError):
        writer.u16(5.0)


def test_a_fixed_field_of_another_length_is_refused():
    with pytest.raises(LocalProtocolError, match="key: 31 bytes given, exactly 32 allowed"):
        Writer().fixed(bytes(31), 32, field="key")


def test_a_blob_over_its_limit_is_refused_on_both_sides():
    with pytest.raises(LocalProtocolError, match="note: 5 bytes given, at most 4 allowed"):
        Writer().blob(b"12345", 4, field="note")
    writer = Writer()
    writer.blob(b"12345", 5, field="note")
    with pytest.raises(WireError, match="note: 5 bytes announced, at most 4 allowed"):
        Reader(writer.done()).blob(4, field="note")


def test_a_huge_announced_length_takes_no_memory():
    data = (2**32 - 1).to_bytes(4, "little") + b"x"
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="shares: 4294967295 bytes announced, 1 are left"):
            Reader(data).blob(2**32, field="shares")
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_refused_field_leaves_the_reader_where_it_was():
    writer = Writer()
    writer.blob(b"abc", 8)
    reader = Reader(writer.done())
    with pytest.raises(WireError):
        reader.blob(2, field="a")
    with pytest.raises(WireError):
        reader.fixed(100, field="b")
    with pytest.raises(WireError):
        reader.fixed(-1, field="c")
    assert reader.blob(8, field="d") == b"abc"
    reader.finish()


@pytest.mark.parametrize("verb", WIDTHS)
def test_a_missing_integer_names_its_field(verb):
    with pytest.raises(WireError, match=r"threshold: \d bytes needed, 0 are left"):
        getattr(Reader(b""), verb)(field="threshold")


@given(st.integers(20, 32), st.lists(st.integers(0, 2**32 - 1), max_size=150))
def test_packing_matches_bit_by_bit_packing(bits, values):
    vector = np.array(values, dtype=np.uint32)
    data = pack_ring(vector, bits)
    assert data == packed_bit_by_bit(vector, bits)
    assert len(data) == packed_size(len(values), bits)
    back = unpack_ring(data, len(values), bits)
    assert back.dtype == np.uint32
    assert back.tolist() == [value % 2**bits for value in values]


@pytest.mark.parametrize("bits", ALL_BITS)
def test_vectors_longer_than_a_chunk_survive(bits):
    vector = np.random.default_rng(bits).integers(0, 2**32, 150_001, dtype=np.uint32)
    vector[-1] = 2**32 - 1
    data = pack_ring(vector, bits)
    expected = vector & np.uint32(2**bits - 1)
    assert np.array_equal(unpack_ring(data, vector.size, bits), expected)
    edge = 2048 * 32  # where the first chunk ends, on a byte boundary
    assert data[: edge * bits // 8] == pack_ring(vector[:edge], bits)
    assert data[edge * bits // 8 :] == pack_ring(vector[edge:], bits)


def test_a_strided_vector_is_packed_like_its_copy():
    vector = np.arange(2000, dtype=np.uint32)[::3]
    assert pack_ring(vector, 32) == pack_ring(vector.copy(), 32)
    assert pack_ring(vector, 21) == pack_ring(vector.copy(), 21)


def test_an_unpacked_vector_can_be_written_to():
    for bits in (20, 32):
        unpack_ring(pack_ring(np.ones(3, dtype=np.uint32), bits), 3, bits)[0] = 7


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize(("count", "off"), [(0, 1), (1, -1), (1, 1), (7, -1), (33, -1), (33, 1)])
def test_another_length_than_the_session_fixes_is_refused(bits, count, off):
    size = packed_size(count, bits) + off
    with pytest.raises(WireError, match=f"{count} values of {bits} bits"):
        unpack_ring(bytes(size), count, bits)


@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_every_spare_bit_must_be_zero(bits, count):
    used = count * bits % 8
    clean = pack_ring(np.full(count, 2**32 - 1, dtype=np.uint32), bits)
    unpack_ring(clean, count, bits)
    for bit in range(used, 8) if used else ():
        with pytest.raises(WireError, match=f"{8 - used} spare bits"):
            unpack_ring(clean[:-1] + bytes([clean[-1] | 1 << bit]), count, bits)


@pytest.mark.parametrize("bits", [-1, 0, 19, 33])
def test_a_width_outside_20_to_32_is_refused(bits):
    for call in (
        lambda: packed_size(1, bits),
        lambda: pack_ring(np.zeros(1, dtype=np.uint32), bits),
        lambda: unpack_ring(b"", 0, bits),
    ):
        with pytest.raises(LocalProtocolError, match=r"20\.\.32"):
            call()


@pytest.mark.parametrize(
    "vector", [np.zeros(3), np.zeros(3, dtype=np.int64), np.zeros((2, 2), dtype=np.uint32)]
)
def test_only_a_flat_uint32_vector_is_packed(vector):
    with pytest.raises(LocalProtocolError, match=r"uint32\[d\] allowed"):
        pack_ring(vector, 24)


def test_packing_uses_little_memory_beyond_its_result():
    vector = np.arange(1_000_000, dtype=np.uint32)
    tracemalloc.start()
    try:
        data = pack_ring(vector, 23)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(data) + 2**20
