"""What the server asks a key holder to open, and how it is answered."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.identity import MAX_SIGNATURE_BYTES
from securefed.encoding.wire import Reader, Writer, pack_ring, packed_size, unpack_ring
from securefed.errors import WireError
from securefed.secagg.aggregator import RoundContext
from securefed.secagg.ciphertexts import ciphertext_size
from securefed.secagg.encryption import RoundEncryption
from securefed.secagg.key_offer import agreed
from securefed.secagg.messages import (
    OPEN_REQUEST,
    read_bitmap,
    read_signatures,
    write_bitmap,
    write_signatures,
)
from securefed.secagg.sum_check import check_bytes, read_padded

SIGN_ENTRY = b"securefed/1/round/sign-check-of-sum"


@dataclass(frozen=True, slots=True)
class Entry:
    """One client's check of the sum, padded, and its signature on it."""

    check: bytes = field(repr=False)
    signature: bytes

    @staticmethod
    def statement(digest: bytes, view: bytes, index: int, check: bytes) -> bytes:
        """What the client signs: that it is in this attempt, with this check."""
        return digest + view + index.to_bytes(4, "big") + check

    def encode(self) -> bytes:
        """To bytes."""
        writer = Writer()
        self.write(writer)
        return writer.done()

    def write(self, writer: Writer) -> None:
        """Append."""
        writer.fixed(self.check, len(self.check))
        writer.blob(self.signature, limit=MAX_SIGNATURE_BYTES)

    @classmethod
    def take(cls, reader: Reader, encryption: RoundEncryption) -> Entry:
        """Read what :meth:`write` wrote; a value of the check must be below its prime."""
        check = reader.fixed(check_bytes(encryption.parameters), field="check of the sum")
        read_padded(encryption.parameters, check)
        return cls(check, reader.blob(MAX_SIGNATURE_BYTES, field="signature"))


@dataclass(frozen=True)
class OpenRequest:
    """Server to key holder, once a round.

    Attributes:
        inner_view: the view of the masking beneath the encryption; empty without masks.
        survivors: indices of the clients in the sum, rising.
        signatures: of survivors on the list, by index; none where a decryptor opens a sum without
            masks: there the entries are signed.
        entries: of every survivor, by index; none in masked rounds.
        ciphertexts: of the sum.
    """

    inner_view: bytes
    survivors: tuple[int, ...]
    signatures: Mapping[int, bytes]
    entries: Mapping[int, Entry]
    ciphertexts: Sequence[bytes] = field(repr=False)

    def encode(self, context: RoundContext) -> bytes:
        """To bytes."""
        writer = Writer()
        writer.header(OPEN_REQUEST)
        writer.blob(self.inner_view, limit=32)
        write_bitmap(writer, self.survivors, len(context.cohort))
        write_signatures(writer, self.signatures)
        writer.u8(int(bool(self.entries)))
        for index in sorted(self.entries):
            self.entries[index].write(writer)
        for data in self.ciphertexts:
            writer.fixed(data, len(data))
        return writer.done()

    @classmethod
    def decode(cls, data: bytes, context: RoundContext) -> OpenRequest:
        """From bytes; an entry for every survivor, or none in a masked round."""
        encryption, size = agreed(context), len(context.cohort)
        reader = Reader(data)
        reader.header(OPEN_REQUEST)
        inner = reader.blob(32, field="inner_view")
        survivors = tuple(read_bitmap(reader, "survivors", size))
        signatures = read_signatures(reader, size=size, limit=size)
        flag = reader.u8(field="has_entries")
        if flag != int(not encryption.masked):
            raise WireError(f"has_entries = {flag}: must be {int(not encryption.masked)}")
        entries = {index: Entry.take(reader, encryption) for index in survivors if flag}
        each = ciphertext_size(encryption.parameters)
        ciphertexts = [reader.fixed(each, field="ciphertext") for _ in range(encryption.count)]
        reader.finish()
        return cls(inner, survivors, signatures, entries, ciphertexts)


@dataclass(frozen=True)
class Opening:
    """What a key holder opens, for its own record: nothing of the sum itself.

    Attributes:
        digest: of the round's context, 32 bytes; ``round`` and ``session``, its name.
        survivors: ids of the clients in the sum.
        ciphertexts_hash: SHA-256 of the sum's ciphertexts.
    """

    digest: bytes
    round: int
    session: bytes
    survivors: tuple[str, ...]
    ciphertexts_hash: bytes

    @classmethod
    def of(cls, context: RoundContext, request: OpenRequest) -> Opening:
        """The record of one request."""
        hashed = hashlib.sha256()
        for data in request.ciphertexts:
            hashed.update(data)
        return cls(
            digest=context.digest,
            round=context.round,
            session=context.session,
            survivors=tuple(context.cohort[index] for index in request.survivors),
            ciphertexts_hash=hashed.digest(),
        )


def opened_size(encryption: RoundEncryption) -> int:
    """Bytes of an answer."""
    if encryption.masked:
        return 8 * encryption.slots
    return packed_size(encryption.length, encryption.bits)


def encode_opened_ring(encryption: RoundEncryption, total: NDArray[np.uint32]) -> bytes:
    """A sum without masks, uint32[length]."""
    return pack_ring(total, encryption.bits)


def decode_opened_ring(encryption: RoundEncryption, body: bytes) -> NDArray[np.uint32]:
    """The inverse of :func:`encode_opened_ring`."""
    return unpack_ring(body, encryption.length, encryption.bits)


def encode_opened_slots(slots: NDArray[np.uint64]) -> bytes:
    """A sum with masks, uint64[slots] below t."""
    return slots.astype("<u8").tobytes()


def decode_opened_slots(encryption: RoundEncryption, body: bytes) -> NDArray[np.uint64]:
    """The inverse of :func:`encode_opened_slots`.

    Raises:
        WireError: another length, or a value that is not below t.
    """
    packing = encryption.packing
    if len(body) != 8 * encryption.slots or packing is None:
        raise WireError(f"opened slots: {len(body)} bytes found, {8 * encryption.slots} expected")
    slots = np.frombuffer(body, dtype="<u8").astype(np.uint64)
    if int(slots.max()) >= packing.modulus:
        raise WireError("opened slots: a value is not below t")
    return slots
