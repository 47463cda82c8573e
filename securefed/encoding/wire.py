"""The bounded, canonical, versioned binary codec under every protocol message.

A message is a header, then fields in a fixed order, with nothing between or after them::

    "SFED" | u8 version | u8 message type | field | field | ...

Integers are unsigned, little-endian and of fixed width; a blob is a u32 length and that many
bytes; a ring vector is bit-packed (:func:`pack_ring`).  Every value has exactly one encoding, so
two parties that sign or hash a message mean the same thing.  A reader checks a length against
what is allowed and against what is there before it takes anything, and a message with bytes to
spare is refused.
"""

from __future__ import annotations

import operator

import numpy as np
import numpy.typing as npt

from securefed.errors import LocalProtocolError, WireError

MAGIC = b"SFED"
VERSION = 1
MIN_RING_BITS = 20
MAX_RING_BITS = 32

_LENGTH_MAX = 2**32 - 1
# 32 values of any width fill whole 32-bit words; a chunk's scratch (under 1 MiB) stays in cache.
_GROUP = 32
_GROUPS_PER_CHUNK = 2048


class Writer:
    """Builds one message.

    Each verb appends one field.  ``field`` names it in errors.  A value that does not fit is a
    mistake of this side: ``LocalProtocolError``, and nothing is appended.

    Example:
        >>> writer = Writer()
        >>> writer.header(7)
        >>> writer.u16(513, field="cohort")
        >>> writer.blob(b"ab", limit=16, field="note")
        >>> writer.done().hex()
        '5346454401070102020000006162'
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def header(self, message_type: int) -> None:
        """Append the magic, the version and the message type (0..255)."""
        kind = self._encoded(message_type, 1, "message type")
        self._parts.append(MAGIC + bytes([VERSION]) + kind)

    def u8(self, value: int, *, field: str = "value") -> None:
        """Append an integer in 0..2^8 - 1."""
        self._parts.append(self._encoded(value, 1, field))

    def u16(self, value: int, *, field: str = "value") -> None:
        """Append an integer in 0..2^16 - 1."""
        self._parts.append(self._encoded(value, 2, field))

    def u32(self, value: int, *, field: str = "value") -> None:
        """Append an integer in 0..2^32 - 1."""
        self._parts.append(self._encoded(value, 4, field))

    def u64(self, value: int, *, field: str = "value") -> None:
        """Append an integer in 0..2^64 - 1."""
        self._parts.append(self._encoded(value, 8, field))

    def fixed(self, value: bytes, length: int, *, field: str = "value") -> None:
        """Append exactly ``length`` bytes, without a length prefix."""
        if len(value) != length:
            raise LocalProtocolError(f"{field}: {len(value)} bytes given, exactly {length} allowed")
        self._parts.append(bytes(value))

    def blob(self, value: bytes, limit: int, *, field: str = "value") -> None:
        """Append a u32 length and at most ``limit`` bytes."""
        if len(value) > min(limit, _LENGTH_MAX):
            raise LocalProtocolError(f"{field}: {len(value)} bytes given, at most {limit} allowed")
        self._parts.append(len(value).to_bytes(4, "little") + value)

    def done(self) -> bytes:
        """The message."""
        return b"".join(self._parts)

    @staticmethod
    def _encoded(value: int, width: int, field: str) -> bytes:
        number = operator.index(value)
        if not 0 <= number < 1 << (8 * width):
            raise LocalProtocolError(f"{field}: {number} is not in 0..2^{8 * width} - 1")
        return number.to_bytes(width, "little")


class Reader:
    """Takes one message apart, field by field, in the order in which it was written.

    Every failure is a ``WireError`` that names the field, and leaves the position unchanged.  No
    verb takes or allocates more than the message holds.  End with :meth:`finish`.

    Args:
        data: the whole message.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def header(self, expected_type: int) -> None:
        """Refuse a message of another protocol, version or type.

        Raises:
            WireError: says which of the three differs, with both values.
        """
        size = len(MAGIC) + 2
        found = self._peek(size, "header")
        if found[: len(MAGIC)] != MAGIC:
            raise WireError(f"magic: {found[: len(MAGIC)].hex()} found, {MAGIC.hex()} expected")
        if found[-2] != VERSION:
            raise WireError(f"version: {found[-2]} found, only {VERSION} is understood")
        if found[-1] != expected_type:
            raise WireError(f"message type: {found[-1]} found, {expected_type} expected")
        self._position += size

    def u8(self, *, field: str) -> int:
        """Take an integer in 0..2^8 - 1."""
        return int.from_bytes(self._take(1, field), "little")

    def u16(self, *, field: str) -> int:
        """Take an integer in 0..2^16 - 1."""
        return int.from_bytes(self._take(2, field), "little")

    def u32(self, *, field: str) -> int:
        """Take an integer in 0..2^32 - 1."""
        return int.from_bytes(self._take(4, field), "little")

    def u64(self, *, field: str) -> int:
        """Take an integer in 0..2^64 - 1."""
        return int.from_bytes(self._take(8, field), "little")

    def fixed(self, length: int, *, field: str) -> bytes:
        """Take exactly ``length`` bytes."""
        return self._take(length, field)

    def blob(self, limit: int, *, field: str) -> bytes:
        """Take a u32 length, which must not exceed ``limit``, and that many bytes."""
        length = int.from_bytes(self._peek(4, f"{field} (its length)"), "little")
        if length > limit:
            raise WireError(f"{field}: {length} bytes announced, at most {limit} allowed")
        left = len(self._data) - self._position - 4
        if length > left:
            raise WireError(f"{field}: {length} bytes announced, {left} are left")
        self._position += 4
        return self._take(length, field)

    def finish(self) -> None:
        """Refuse bytes after the last field."""
        spare = len(self._data) - self._position
        if spare:
            raise WireError(f"end of message: {spare} bytes too many")

    def _peek(self, length: int, field: str) -> bytes:
        left = len(self._data) - self._position
        if not 0 <= length <= left:
            raise WireError(f"{field}: {length} bytes needed, {left} are left")
        return self._data[self._position : self._position + length]

    def _take(self, length: int, field: str) -> bytes:
        taken = self._peek(length, field)
        self._position += length
        return taken


def message_type(data: bytes) -> int:
    """Type of a message, without looking further; 0 for what is not a message."""
    return data[5] if len(data) > 5 else 0


def packed_size(count: int, bits: int) -> int:
    """Bytes of ``count`` packed values: ``ceil(count * bits / 8)``.

    Args:
        count: number of values, >= 0.
        bits: bits of a value, 20..32.
    """
    if not MIN_RING_BITS <= bits <= MAX_RING_BITS:
        raise LocalProtocolError(f"bits: {bits} is not in {MIN_RING_BITS}..{MAX_RING_BITS}")
    if count < 0:
        raise LocalProtocolError(f"count: {count} is negative")
    return (count * bits + 7) // 8


def pack_ring(vector: npt.NDArray[np.uint32], bits: int) -> bytes:
    """Pack the low ``bits`` bits of each value, little-endian, without gaps.

    Bit ``j`` of value ``i`` is bit ``(i * bits + j) % 8`` of byte ``(i * bits + j) // 8``; spare
    bits of the last byte are zero.  High bits of a value are dropped: in Z_{2^bits} they carry
    nothing, and sent along they would.

    Args:
        vector: uint32[d].
        bits: bits of a value, 20..32.

    Returns:
        ``packed_size(d, bits)`` bytes.  Scratch memory beyond the result is under 1 MiB.

    Raises:
        LocalProtocolError: wrong dtype, shape or width.
    """
    if vector.dtype != np.uint32 or vector.ndim != 1:
        raise LocalProtocolError(
            f"vector: {vector.dtype}[{vector.ndim} axes] given, uint32[d] allowed"
        )
    size = packed_size(vector.size, bits)
    if bits == MAX_RING_BITS:
        return vector.astype("<u4", copy=False).tobytes()
    groups = -(-vector.size // _GROUP)
    packed = np.empty((groups, bits), dtype="<u4")
    mask = np.uint32((1 << bits) - 1)
    for start in range(0, groups, _GROUPS_PER_CHUNK):
        stop = min(start + _GROUPS_PER_CHUNK, groups)
        part = vector[start * _GROUP : stop * _GROUP]
        # lanes[j, g] is value j of group g: one shift then serves a whole row.
        flat = np.zeros((stop - start) * _GROUP, dtype=np.uint32)
        np.bitwise_and(part, mask, out=flat[: part.size])
        lanes = np.ascontiguousarray(flat.reshape(-1, _GROUP).T)
        words = np.zeros((bits, stop - start), dtype=np.uint32)
        for lane in range(_GROUP):
            word, shift = divmod(lane * bits, 32)
            words[word] |= lanes[lane] << np.uint32(shift)
            if shift + bits > 32:
                words[word + 1] |= lanes[lane] >> np.uint32(32 - shift)
        packed[start:stop] = words.T
    return packed.reshape(-1).view(np.uint8)[:size].tobytes()


def unpack_ring(data: bytes, count: int, bits: int) -> npt.NDArray[np.uint32]:
    """The inverse of :func:`pack_ring`.

    Args:
        data: exactly ``packed_size(count, bits)`` bytes.
        count: number of values that must be there; fixed by the session, never by the sender.
        bits: bits of a value, 20..32.

    Returns:
        uint32[count], each in 0..2^bits - 1.

    Raises:
        WireError: the length is another, or a spare bit is set (a second encoding of the same
            vector).
        LocalProtocolError: ``count`` or ``bits`` is out of range.
    """
    size = packed_size(count, bits)
    if len(data) != size:
        raise WireError(
            f"ring vector: {len(data)} bytes found, {count} values of {bits} bits are {size}"
        )
    used = count * bits % 8
    if used and data[-1] >> used:
        raise WireError(f"ring vector: the {8 - used} spare bits of the last byte are not zero")
    if bits == MAX_RING_BITS:
        return np.frombuffer(data, dtype="<u4").astype(np.uint32)
    groups = -(-count // _GROUP)
    values = np.empty((groups, _GROUP), dtype=np.uint32)
    mask = np.uint32((1 << bits) - 1)
    width = bits * 4
    for start in range(0, groups, _GROUPS_PER_CHUNK):
        stop = min(start + _GROUPS_PER_CHUNK, groups)
        part = data[start * width : stop * width].ljust((stop - start) * width, b"\0")
        packed = np.frombuffer(part, dtype="<u4").astype(np.uint32)
        words = np.ascontiguousarray(packed.reshape(-1, bits).T)
        lanes = np.empty((_GROUP, stop - start), dtype=np.uint32)
        for lane in range(_GROUP):
            word, shift = divmod(lane * bits, 32)
            np.right_shift(words[word], np.uint32(shift), out=lanes[lane])
            if shift + bits > 32:
                lanes[lane] |= words[word + 1] << np.uint32(32 - shift)
        lanes &= mask
        values[start:stop] = lanes.T
    return values.reshape(-1)[:count]
