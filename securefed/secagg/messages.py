"""Messages of the pairwise protocol, one dataclass and one codec pair each.

Clients are named by their index in the cohort.  Every client message is signed as a whole
(:class:`Signed`) under the round's digest; what one client says to another through the server (an
advertisement, a bundle of shares) carries its own signature, so that the receiver can check it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from securefed.crypto.keys import HYBRID_PUBLIC_BYTES, SEAL_OVERHEAD
from securefed.crypto.shamir import SHARE_BYTES
from securefed.encoding.wire import Reader, Writer
from securefed.errors import WireError

SIGNATURE_BYTES = 64
HASH_BYTES = 32
EDGE_WRAP_BYTES = 32 + SEAL_OVERHEAD
ENVELOPE_BYTES = 2 * SHARE_BYTES + SEAL_OVERHEAD

# Message types.  A number is never used for two things.
SIGNED = 1
ADVERTISED = 11
DELIVERY = 12
SURVIVORS = 13
CONFIRMATIONS = 14


@dataclass(frozen=True)
class Signed:
    """A client's message: its index, the stage's body, and a signature over both."""

    sender: int
    body: bytes
    signature: bytes

    def encode(self) -> bytes:
        """To bytes."""
        writer = Writer()
        writer.header(SIGNED)
        writer.u32(self.sender)
        writer.fixed(self.signature, SIGNATURE_BYTES)
        writer.blob(self.body, limit=len(self.body))
        return writer.done()

    @classmethod
    def decode(cls, data: bytes, *, limit: int) -> Signed:
        """From bytes; ``limit`` bounds the body."""
        reader = Reader(data)
        reader.header(SIGNED)
        sender = reader.u32(field="sender")
        signature = reader.fixed(SIGNATURE_BYTES, field="signature")
        body = reader.blob(limit, field="body")
        reader.finish()
        return cls(sender, body, signature)


@dataclass(frozen=True)
class Advertisement:
    """Stage 0.  Fresh public keys and commitments to the two secrets that will be shared."""

    mask_key: bytes
    envelope_key: bytes
    root_commitment: bytes
    self_commitment: bytes

    SIZE = 2 * HYBRID_PUBLIC_BYTES + 2 * HASH_BYTES

    def encode(self) -> bytes:
        """To bytes, ``SIZE`` of them."""
        return self.mask_key + self.envelope_key + self.root_commitment + self.self_commitment

    @classmethod
    def decode(cls, data: bytes) -> Advertisement:
        """From exactly ``SIZE`` bytes."""
        if len(data) != cls.SIZE:
            raise WireError(f"advertisement of {len(data)} bytes: must be {cls.SIZE}")
        reader = Reader(data)
        decoded = cls(
            reader.fixed(HYBRID_PUBLIC_BYTES, field="mask_key"),
            reader.fixed(HYBRID_PUBLIC_BYTES, field="envelope_key"),
            reader.fixed(HASH_BYTES, field="root_commitment"),
            reader.fixed(HASH_BYTES, field="self_commitment"),
        )
        reader.finish()
        return decoded


def encode_advertised(messages: dict[int, bytes]) -> bytes:
    """Server to clients: every accepted advertisement, as its sender signed it."""
    writer = Writer()
    writer.header(ADVERTISED)
    writer.u32(len(messages))
    for index in sorted(messages):
        writer.blob(messages[index], limit=len(messages[index]))
    return writer.done()


def decode_advertised(data: bytes, *, size: int) -> list[Signed]:
    """Advertisements in strictly rising order of sender; at most ``size``."""
    reader = Reader(data)
    reader.header(ADVERTISED)
    count = _count(reader, "advertisements", size)
    signed = [
        Signed.decode(
            reader.blob(Advertisement.SIZE + 128, field="advertisement"), limit=Advertisement.SIZE
        )
        for _ in range(count)
    ]
    reader.finish()
    _strictly_rising([item.sender for item in signed], "advertisements", size)
    return signed


@dataclass(frozen=True)
class Bundle:
    """Stage 1, one for each receiver: an envelope with two shares, and maybe an edge secret.

    Attributes:
        envelope: the shares of the sender's root and self-mask seed, sealed to the receiver's
            envelope key.
        edge: the secret of this edge, sealed to the receiver's *mask* key; only from the lower to
            the higher index, else empty.
        edge_commitment: commitment to that secret (32 bytes), or empty.
        signature: the sender's, over the round, both indices, the receiver's keys and the above.
    """

    envelope: bytes
    edge: bytes
    edge_commitment: bytes
    signature: bytes

    LIMIT = 64 + ENVELOPE_BYTES + EDGE_WRAP_BYTES + HASH_BYTES + SIGNATURE_BYTES

    def encode(self) -> bytes:
        """To bytes, at most ``LIMIT``."""
        writer = Writer()
        writer.fixed(self.envelope, ENVELOPE_BYTES)
        writer.u8(1 if self.edge else 0)
        if self.edge:
            writer.fixed(self.edge, EDGE_WRAP_BYTES)
            writer.fixed(self.edge_commitment, HASH_BYTES)
        writer.fixed(self.signature, SIGNATURE_BYTES)
        return writer.done()

    @classmethod
    def read(cls, reader: Reader, *, with_edge: bool) -> Bundle:
        """From a reader; a bundle has an edge exactly when sender < receiver."""
        envelope = reader.fixed(ENVELOPE_BYTES, field="envelope")
        flag = reader.u8(field="has_edge")
        if flag != int(with_edge):
            raise WireError(f"has_edge = {flag}: must be {int(with_edge)} for this pair")
        edge = reader.fixed(EDGE_WRAP_BYTES, field="edge") if with_edge else b""
        commitment = reader.fixed(HASH_BYTES, field="edge_commitment") if with_edge else b""
        return cls(envelope, edge, commitment, reader.fixed(SIGNATURE_BYTES, field="signature"))

    def signed_part(
        self, *, sender: int, receiver: int, mask_key: bytes, envelope_key: bytes
    ) -> bytes:
        """What ``signature`` covers, beside the round's digest that every signature covers."""
        writer = Writer()
        writer.u32(sender)
        writer.u32(receiver)
        writer.fixed(mask_key, HYBRID_PUBLIC_BYTES)
        writer.fixed(envelope_key, HYBRID_PUBLIC_BYTES)
        writer.fixed(self.envelope, ENVELOPE_BYTES)
        writer.blob(self.edge, limit=EDGE_WRAP_BYTES)
        writer.blob(self.edge_commitment, limit=HASH_BYTES)
        return writer.done()


def encode_shares(bundles: dict[int, Bundle]) -> bytes:
    """Body of stage 1: one bundle a receiver."""
    writer = Writer()
    writer.u32(len(bundles))
    for receiver in sorted(bundles):
        writer.u32(receiver)
        writer.fixed(encoded := bundles[receiver].encode(), len(encoded))
    return writer.done()


def decode_shares(body: bytes, *, sender: int, receivers: list[int]) -> dict[int, Bundle]:
    """Bundles for exactly the ``receivers``."""
    reader = Reader(body)
    bundles = _read_bundles(reader, len(receivers), lambda other: sender < other)
    reader.finish()
    if sorted(bundles) != sorted(receivers):
        raise WireError("shares: receivers are not the clients that advertised")
    return bundles


def encode_delivery(bundles: dict[int, Bundle]) -> bytes:
    """Server to one client: the bundles for it, by sender."""
    writer = Writer()
    writer.header(DELIVERY)
    writer.u32(len(bundles))
    for sender in sorted(bundles):
        writer.u32(sender)
        writer.fixed(encoded := bundles[sender].encode(), len(encoded))
    return writer.done()


def decode_delivery(data: bytes, *, receiver: int, size: int) -> dict[int, Bundle]:
    """Bundles by sender; the receiver itself is not among them."""
    reader = Reader(data)
    reader.header(DELIVERY)
    bundles = _read_bundles(reader, size, lambda other: other < receiver)
    reader.finish()
    if receiver in bundles or any(sender >= size for sender in bundles):
        raise WireError("delivery: a sender is outside the cohort, or the receiver itself")
    return bundles


def _read_bundles(
    reader: Reader, limit: int, with_edge: Callable[[int], bool]
) -> dict[int, Bundle]:
    count = _count(reader, "bundles", limit)
    bundles: dict[int, Bundle] = {}
    last = -1
    for _ in range(count):
        other = reader.u32(field="client")
        if other <= last:
            raise WireError("bundles: clients must be in strictly rising order")
        last = other
        bundles[other] = Bundle.read(reader, with_edge=with_edge(other))
    return bundles


def encode_survivors(message_type: int, survivors: list[int]) -> bytes:
    """A list of client indices, rising."""
    writer = Writer()
    writer.header(message_type)
    writer.u32(len(survivors))
    for index in survivors:
        writer.u32(index)
    return writer.done()


def decode_survivors(message_type: int, data: bytes, *, size: int) -> list[int]:
    """Client indices in strictly rising order, each below ``size``."""
    reader = Reader(data)
    reader.header(message_type)
    survivors = [reader.u32(field="survivor") for _ in range(_count(reader, "survivors", size))]
    reader.finish()
    _strictly_rising(survivors, "survivors", size)
    return survivors


def encode_confirmations(signatures: dict[int, bytes]) -> bytes:
    """Server to survivors: who signed the survivor list."""
    writer = Writer()
    writer.header(CONFIRMATIONS)
    writer.u32(len(signatures))
    for index in sorted(signatures):
        writer.u32(index)
        writer.fixed(signatures[index], SIGNATURE_BYTES)
    return writer.done()


def decode_confirmations(data: bytes, *, size: int) -> dict[int, bytes]:
    """Signatures by client index."""
    reader = Reader(data)
    reader.header(CONFIRMATIONS)
    signatures: dict[int, bytes] = {}
    order: list[int] = []
    for _ in range(_count(reader, "confirmations", size)):
        order.append(reader.u32(field="signer"))
        signatures[order[-1]] = reader.fixed(SIGNATURE_BYTES, field="signature")
    reader.finish()
    _strictly_rising(order, "confirmations", size)
    return signatures


@dataclass(frozen=True)
class Reveal:
    """Stage 4.  One share for each client that shared, never of both kinds.

    Of its self-mask seed if it survived, of its root if it dropped.
    """

    self_shares: dict[int, bytes]
    root_shares: dict[int, bytes]

    def encode(self) -> bytes:
        """To bytes."""
        writer = Writer()
        for shares in (self.self_shares, self.root_shares):
            writer.u32(len(shares))
            for index in sorted(shares):
                writer.u32(index)
                writer.fixed(shares[index], SHARE_BYTES)
        return writer.done()

    @classmethod
    def decode(cls, body: bytes, *, size: int) -> Reveal:
        """From bytes; a client in both lists is refused."""
        reader = Reader(body)
        groups: list[dict[int, bytes]] = []
        for name in ("self_shares", "root_shares"):
            order: list[int] = []
            shares: dict[int, bytes] = {}
            for _ in range(_count(reader, name, size)):
                order.append(reader.u32(field=name))
                shares[order[-1]] = reader.fixed(SHARE_BYTES, field=name)
            _strictly_rising(order, name, size)
            groups.append(shares)
        reader.finish()
        if set(groups[0]) & set(groups[1]):
            raise WireError("reveal: both kinds of share of one client")
        return cls(groups[0], groups[1])


def _count(reader: Reader, field: str, limit: int) -> int:
    count = reader.u32(field=field)
    if count > limit:
        raise WireError(f"{field}: {count} entries, at most {limit} are possible")
    return count


def _strictly_rising(values: list[int], field: str, size: int) -> None:
    if any(b <= a for a, b in itertools.pairwise(values)) or any(value >= size for value in values):
        raise WireError(f"{field}: indices must rise strictly and stay below {size}")
