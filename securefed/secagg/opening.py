"""What the server asks a key holder to open, and how it is answered."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
from securefed.secagg.sum_check import check_bytes

SIGN_ENTRY = b"securefed/1/round/sign-entry"


def entry_statement(digest: bytes, view: bytes, index: int) -> bytes:
    """What a client signs beside its contribution: that it is in this attempt, under this key."""
    return digest + view + index.to_bytes(4, "big")


@dataclass(frozen=True)
class OpenRequest:
    """Server to key holder, once a round.

    Attributes:
        inner_view: the view of the masking beneath the encryption; empty without masks.
        survivors: indices of the clients in the sum, rising.
        signatures: of survivors on the list, by index; none where a decryptor opens a sum without
            masks.
        entries: of every survivor, its signature on ``entry_statement``, by index; none in masked
            rounds.
        check: the sum of the survivors' padded checks (:mod:`securefed.secagg.sum_check`); empty in
            masked rounds.
        ciphertexts: of the sum.
    """

    inner_view: bytes
    survivors: tuple[int, ...]
    signatures: Mapping[int, bytes]
    entries: Mapping[int, bytes]
    check: bytes
    ciphertexts: Sequence[bytes] = field(repr=False)

    def encode(self, context: RoundContext) -> bytes:
        """To bytes."""
        writer = Writer()
        writer.header(OPEN_REQUEST)
        writer.blob(self.inner_view, limit=32)
        write_bitmap(writer, self.survivors, len(context.cohort))
        write_signatures(writer, self.signatures)
        write_signatures(writer, self.entries)
        writer.blob(self.check, limit=len(self.check))
        for data in self.ciphertexts:
            writer.fixed(data, len(data))
        return writer.done()

    @classmethod
    def decode(cls, data: bytes, context: RoundContext) -> OpenRequest:
        """From bytes; without masks an entry for every survivor, in a masked round none."""
        encryption, size = agreed(context), len(context.cohort)
        parameters = encryption.parameters
        reader = Reader(data)
        reader.header(OPEN_REQUEST)
        inner = reader.blob(32, field="inner_view")
        survivors = tuple(read_bitmap(reader, "survivors", size))
        signatures = read_signatures(reader, size=size, limit=size)
        entries = read_signatures(reader, size=size, limit=size)
        check = reader.blob(check_bytes(parameters), field="check of the sum")
        each = ciphertext_size(parameters)
        ciphertexts = [reader.fixed(each, field="ciphertext") for _ in range(encryption.count)]
        reader.finish()
        for name, found, expected in (
            ("inner_view", len(inner), 32 if encryption.masked else 0),
            ("check of the sum", len(check), 0 if encryption.masked else check_bytes(parameters)),
        ):
            if found != expected:
                raise WireError(f"{name}: {found} bytes found, {expected} expected")
        if set(entries) != (set() if encryption.masked else set(survivors)):
            raise WireError("entries: they are not those of the survivors")
        return cls(inner, survivors, signatures, entries, check, ciphertexts)


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
