"""Messages that their sender signed as a whole, under the round's digest.

Parties are numbered: a client by its index in the cohort, the decryptor of an encrypted round by
the number after the last.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from securefed.crypto.identity import MAX_SIGNATURE_BYTES, IdentityKey
from securefed.encoding.wire import Reader, Writer
from securefed.errors import RemoteProtocolError
from securefed.secagg.aggregator import RoundContext
from securefed.secagg.encryption import DECRYPTOR
from securefed.secagg.round_secrets import stage_label

SIGNED = 1


@dataclass(frozen=True)
class Signed:
    """A client's message: its index, the stage's body, and a signature over both."""

    sender: int
    body: bytes
    signature: bytes

    def encode(self) -> bytes:
        """To bytes."""
        return encode_signed(self.sender, self.signature, self.body)

    @classmethod
    def decode(cls, data: bytes, *, limit: int) -> Signed:
        """From bytes; ``limit`` bounds the body."""
        reader = Reader(data)
        reader.header(SIGNED)
        sender = reader.u32(field="sender")
        signature = reader.blob(MAX_SIGNATURE_BYTES, field="signature")
        body = reader.blob(limit, field="body")
        reader.finish()
        return cls(sender, body, signature)


def encode_signed(sender: int, signature: bytes, *body: bytes) -> bytes:
    """A :class:`Signed` of a body in parts: a long one is not put together twice."""
    writer = Writer()
    writer.header(SIGNED)
    writer.u32(sender)
    writer.blob(signature, limit=MAX_SIGNATURE_BYTES)
    writer.u32(sum(map(len, body)))
    for part in body:
        writer.fixed(part, len(part))
    return writer.done()


def signing_input(digest: bytes, sender: int, *body: bytes) -> bytes:
    """What a client's signature on a whole message covers; the body, in parts, by its hash."""
    hashed = hashlib.sha256()
    for part in body:
        hashed.update(part)
    writer = Writer()
    writer.fixed(digest, 32)
    writer.u32(sender)
    writer.fixed(hashed.digest(), 32)
    return writer.done()


def party_number(context: RoundContext, name: str) -> int:
    """Number of a client or of the decryptor.

    Raises:
        ConfigError: there is no such party in this round.
    """
    if name == DECRYPTOR and context.has_decryptor:
        return len(context.cohort)
    return context.index(name)


def party_name(context: RoundContext, number: int) -> str:
    """The inverse of :func:`party_number`.

    Raises:
        RemoteProtocolError: there is no such party in this round.
    """
    if number == len(context.cohort) and context.has_decryptor:
        return DECRYPTOR
    if number >= len(context.cohort):
        raise RemoteProtocolError(
            f"party number {number}: there are {len(context.cohort)} clients in this round"
        )
    return context.cohort[number]


def sign(
    context: RoundContext, number: int, identity: IdentityKey, stage: str, *body: bytes
) -> bytes:
    """An encoded :class:`Signed` for one stage of this round."""
    covered = signing_input(context.digest, number, *body)
    return encode_signed(number, identity.sign(covered, label=stage_label(stage)), *body)


def verify(context: RoundContext, signed: Signed, stage: str) -> None:
    """Whether its sender signed it for this stage of this round.

    Raises:
        RemoteProtocolError: there is no such party, or the signature is not its own.
    """
    identity = context.roster[party_name(context, signed.sender)]
    covered = signing_input(context.digest, signed.sender, signed.body)
    identity.verify(signed.signature, covered, label=stage_label(stage))
