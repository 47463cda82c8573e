"""Messages of the pairwise protocol, one dataclass and one codec pair each.

Clients are named by their index in the cohort.  Every client message is signed as a whole
(:mod:`securefed.secagg.signed`) under the round's digest; what one client says to another through
the server (an advertisement, a bundle of shares) carries its own signature, so that the receiver
can check it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from securefed.crypto.identity import MAX_SIGNATURE_BYTES
from securefed.crypto.keys import HYBRID_PUBLIC_BYTES, SEAL_OVERHEAD
from securefed.crypto.shamir import SHARE_BYTES
from securefed.encoding.wire import Reader, Writer
from securefed.errors import WireError
from securefed.secagg.graph import HASH_BYTES, NONCE_BYTES
from securefed.secagg.signed import Signed

EDGE_WRAP_BYTES = 32 + SEAL_OVERHEAD
ENVELOPE_BYTES = 2 * SHARE_BYTES + SEAL_OVERHEAD
"""Without layers of noise; each adds a share (:func:`envelope_bytes`)."""

# Message types.  A number is never used for two things; 1 is a signed message, 21 a
# contribution in the clear.
ADVERTISED = 11
DELIVERY = 12
SURVIVORS = 13
CONFIRMATIONS = 14
COMMITMENTS = 15
NEIGHBOURHOOD = 16
KEYED_DELIVERY = 17
OPEN_REQUEST = 18
KEY_REQUEST = 19
KEYS = 20


def envelope_bytes(noise_layers: int) -> int:
    """Size of a share envelope in a round with that many layers of noise that can be removed."""
    return ENVELOPE_BYTES + noise_layers * SHARE_BYTES


@dataclass(frozen=True)
class Advertisement:
    """Stage advertise.  Fresh public keys, and commitments to what is shared or revealed later.

    Attributes:
        mask_key: where edge secrets are sealed to.
        envelope_key: where share envelopes are sealed to.
        root_commitment: to the root, and ``self_commitment``: to the self-mask seed.
        nonce_commitment: to this client's part in the order of a sparse graph.
        layers_commitment: to the seeds of its layers of noise; empty in a round without them.
    """

    mask_key: bytes
    envelope_key: bytes
    root_commitment: bytes
    self_commitment: bytes
    nonce_commitment: bytes
    layers_commitment: bytes = b""

    SIZE = 2 * HYBRID_PUBLIC_BYTES + 3 * HASH_BYTES

    @classmethod
    def size(cls, noise_layers: int) -> int:
        """Bytes in a round with that many layers of noise that can be removed."""
        return cls.SIZE + (HASH_BYTES if noise_layers else 0)

    def encode(self) -> bytes:
        """To bytes, ``SIZE`` of them and what the layers add."""
        return (
            self.mask_key
            + self.envelope_key
            + self.root_commitment
            + self.self_commitment
            + self.nonce_commitment
            + self.layers_commitment
        )

    @classmethod
    def decode(cls, data: bytes, *, noise_layers: int = 0) -> Advertisement:
        """From exactly as many bytes as it must have."""
        if len(data) != cls.size(noise_layers):
            raise WireError(f"advertisement of {len(data)} bytes: must be {cls.size(noise_layers)}")
        reader = Reader(data)
        decoded = cls(
            reader.fixed(HYBRID_PUBLIC_BYTES, field="mask_key"),
            reader.fixed(HYBRID_PUBLIC_BYTES, field="envelope_key"),
            reader.fixed(HASH_BYTES, field="root_commitment"),
            reader.fixed(HASH_BYTES, field="self_commitment"),
            reader.fixed(HASH_BYTES, field="nonce_commitment"),
            reader.fixed(HASH_BYTES, field="layers_commitment") if noise_layers else b"",
        )
        reader.finish()
        return decoded


def encode_advertised(messages: dict[int, bytes]) -> bytes:
    """Server to clients of a complete graph: every advertisement, as its sender signed it."""
    writer = Writer()
    writer.header(ADVERTISED)
    _write_signed(writer, messages)
    return writer.done()


def decode_advertised(data: bytes, *, size: int, noise_layers: int = 0) -> list[Signed]:
    """Advertisements in strictly rising order of sender; at most ``size``."""
    reader = Reader(data)
    reader.header(ADVERTISED)
    longest = Advertisement.size(noise_layers)
    signed = _read_advertisements(reader, limit=size, size=size, longest=longest)
    reader.finish()
    return signed


def _write_signed(writer: Writer, messages: dict[int, bytes]) -> None:
    writer.u32(len(messages))
    for index in sorted(messages):
        writer.blob(messages[index], limit=len(messages[index]))


def _read_advertisements(
    reader: Reader, *, limit: int, size: int, longest: int = Advertisement.SIZE
) -> list[Signed]:
    framed = longest + MAX_SIGNATURE_BYTES + 64
    signed = [
        Signed.decode(reader.blob(framed, field="advertisement"), limit=longest)
        for _ in range(read_count(reader, "advertisements", limit))
    ]
    strictly_rising([item.sender for item in signed], "advertisements", size)
    return signed


def encode_commitments(hashed: bytes) -> bytes:
    """Server to clients of a sparse graph: the hash of all nonce commitments."""
    writer = Writer()
    writer.header(COMMITMENTS)
    writer.fixed(hashed, HASH_BYTES)
    return writer.done()


def decode_commitments(data: bytes) -> bytes:
    """The hash, 32 bytes."""
    reader = Reader(data)
    reader.header(COMMITMENTS)
    hashed = reader.fixed(HASH_BYTES, field="commitments")
    reader.finish()
    return hashed


@dataclass(frozen=True)
class Neighbourhood:
    """Server to one client of a sparse graph: how the ring came about, and its neighbours' keys.

    Attributes:
        nonces: by index, of every client that revealed one.
        withheld: by index, the commitment of every client that advertised and revealed no nonce.
        advertisements: of this client's neighbours that revealed, as their senders signed them.
    """

    nonces: dict[int, bytes]
    withheld: dict[int, bytes]
    advertisements: list[Signed]

    def encode(self, *, size: int) -> bytes:
        """To bytes; ``size`` is the cohort's."""
        signed = {item.sender: item.encode() for item in self.advertisements}
        return self.encode_ring(self.nonces, self.withheld, size=size) + self.encode_keys(signed)

    @staticmethod
    def encode_ring(nonces: dict[int, bytes], withheld: dict[int, bytes], *, size: int) -> bytes:
        """The first part, which is the same for every receiver."""
        writer = Writer()
        writer.header(NEIGHBOURHOOD)
        write_bitmap(writer, nonces, size)
        for index in sorted(nonces):
            writer.fixed(nonces[index], NONCE_BYTES)
        writer.u32(len(withheld))
        for index in sorted(withheld):
            writer.u32(index)
            writer.fixed(withheld[index], HASH_BYTES)
        return writer.done()

    @staticmethod
    def encode_keys(messages: dict[int, bytes]) -> bytes:
        """The second part: neighbours' advertisements, as their senders signed them."""
        writer = Writer()
        _write_signed(writer, messages)
        return writer.done()

    @classmethod
    def decode(cls, data: bytes, *, size: int, degree: int) -> Neighbourhood:
        """From bytes; at most ``degree`` advertisements."""
        reader = Reader(data)
        reader.header(NEIGHBOURHOOD)
        revealed = read_bitmap(reader, "nonces", size)
        block = reader.fixed(NONCE_BYTES * len(revealed), field="nonces")
        nonces = {
            index: block[place : place + NONCE_BYTES]
            for index, place in zip(revealed, range(0, len(block), NONCE_BYTES), strict=True)
        }
        order: list[int] = []
        withheld: dict[int, bytes] = {}
        for _ in range(read_count(reader, "withheld nonces", size)):
            order.append(reader.u32(field="withheld nonce"))
            withheld[order[-1]] = reader.fixed(HASH_BYTES, field="nonce commitment")
        strictly_rising(order, "withheld nonces", size)
        if nonces.keys() & withheld.keys():
            raise WireError("withheld nonces: one of them is revealed too")
        advertisements = _read_advertisements(reader, limit=degree, size=size)
        reader.finish()
        return cls(nonces, withheld, advertisements)


@dataclass(frozen=True, slots=True)
class Bundle:
    """Stage 1, one for each receiver: an envelope with two shares, and maybe an edge secret.

    Attributes:
        envelope: the shares of the sender's self-mask seed, root and seeds of layers of noise,
            sealed to the receiver's envelope key.
        edge: the secret of this edge, sealed to the receiver's *mask* key; only from the end of
            the edge that gives it (``Graph.gives``), else empty.
        edge_commitment: commitment to that secret (32 bytes), or empty.
        signature: the sender's, over the round, both indices, the receiver's keys and the above.
    """

    envelope: bytes
    edge: bytes
    edge_commitment: bytes
    signature: bytes

    @staticmethod
    def limit(noise_layers: int) -> int:
        """Most bytes of one."""
        envelope = envelope_bytes(noise_layers)
        return 64 + envelope + EDGE_WRAP_BYTES + HASH_BYTES + MAX_SIGNATURE_BYTES

    def encode(self) -> bytes:
        """To bytes, at most :meth:`limit`."""
        writer = Writer()
        writer.fixed(self.envelope, len(self.envelope))
        writer.u8(1 if self.edge else 0)
        if self.edge:
            writer.fixed(self.edge, EDGE_WRAP_BYTES)
            writer.fixed(self.edge_commitment, HASH_BYTES)
        writer.blob(self.signature, limit=MAX_SIGNATURE_BYTES)
        return writer.done()

    @classmethod
    def read(cls, reader: Reader, *, with_edge: bool, noise_layers: int = 0) -> Bundle:
        """From a reader; whether there must be an edge follows from the graph."""
        envelope = reader.fixed(envelope_bytes(noise_layers), field="envelope")
        flag = reader.u8(field="has_edge")
        if flag != int(with_edge):
            raise WireError(f"has_edge = {flag}: must be {int(with_edge)} for this pair")
        edge = reader.fixed(EDGE_WRAP_BYTES, field="edge") if with_edge else b""
        commitment = reader.fixed(HASH_BYTES, field="edge_commitment") if with_edge else b""
        signature = reader.blob(MAX_SIGNATURE_BYTES, field="signature")
        return cls(envelope, edge, commitment, signature)

    def signed_part(
        self, *, sender: int, receiver: int, mask_key: bytes, envelope_key: bytes
    ) -> bytes:
        """What ``signature`` covers, beside the round's digest that every signature covers."""
        writer = Writer()
        writer.u32(sender)
        writer.u32(receiver)
        writer.fixed(mask_key, HYBRID_PUBLIC_BYTES)
        writer.fixed(envelope_key, HYBRID_PUBLIC_BYTES)
        writer.fixed(self.envelope, len(self.envelope))
        writer.blob(self.edge, limit=EDGE_WRAP_BYTES)
        writer.blob(self.edge_commitment, limit=HASH_BYTES)
        return writer.done()


def encode_shares(bundles: dict[int, Bundle]) -> bytes:
    """Body of stage share: one bundle a receiver."""
    writer = Writer()
    _write_bundles(writer, bundles)
    return writer.done()


def decode_shares(
    body: bytes, *, with_edge: dict[int, bool], noise_layers: int = 0
) -> dict[int, Bundle]:
    """Bundles for exactly the receivers that ``with_edge`` names.

    Args:
        body: the body of a client's message.
        with_edge: by receiver, whether the sender gives the secret of that edge.
        noise_layers: how many layers of noise can be removed in this round.
    """
    reader = Reader(body)
    bundles = _read_bundles(reader, with_edge, noise_layers)
    reader.finish()
    if bundles.keys() != with_edge.keys():
        raise WireError("shares: the receivers are not the neighbours that advertised")
    return bundles


def encode_delivery(bundles: dict[int, Bundle]) -> bytes:
    """Server to one client: the bundles for it, by sender."""
    writer = Writer()
    writer.header(DELIVERY)
    _write_bundles(writer, bundles)
    return writer.done()


def decode_delivery(
    data: bytes, *, with_edge: dict[int, bool], noise_layers: int = 0
) -> dict[int, Bundle]:
    """Bundles by sender, of some of the senders that ``with_edge`` names."""
    reader = Reader(data)
    reader.header(DELIVERY)
    bundles = _read_bundles(reader, with_edge, noise_layers)
    reader.finish()
    return bundles


def encode_keyed_delivery(offer: bytes, bundles: dict[int, Bundle]) -> bytes:
    """Server to one client of an encrypted round: whose key it is, and the bundles for it."""
    writer = Writer()
    writer.header(KEYED_DELIVERY)
    writer.blob(offer, limit=len(offer))
    _write_bundles(writer, bundles)
    return writer.done()


def decode_keyed_delivery(
    data: bytes, *, offer_limit: int, with_edge: dict[int, bool], noise_layers: int = 0
) -> tuple[bytes, dict[int, Bundle]]:
    """The encoded offer, of at most ``offer_limit`` bytes, and what ``decode_delivery`` gives."""
    reader = Reader(data)
    reader.header(KEYED_DELIVERY)
    offer = reader.blob(offer_limit, field="offer")
    bundles = _read_bundles(reader, with_edge, noise_layers)
    reader.finish()
    return offer, bundles


def _write_bundles(writer: Writer, bundles: dict[int, Bundle]) -> None:
    writer.u32(len(bundles))
    for other in sorted(bundles):
        writer.u32(other)
        writer.fixed(encoded := bundles[other].encode(), len(encoded))


def _read_bundles(
    reader: Reader, with_edge: dict[int, bool], noise_layers: int
) -> dict[int, Bundle]:
    bundles: dict[int, Bundle] = {}
    last = -1
    for _ in range(read_count(reader, "bundles", len(with_edge))):
        other = reader.u32(field="client")
        if other <= last:
            raise WireError("bundles: clients must be in strictly rising order")
        if other not in with_edge:
            raise WireError(f"bundles: client number {other} is no neighbour with keys")
        last = other
        bundles[other] = Bundle.read(reader, with_edge=with_edge[other], noise_layers=noise_layers)
    return bundles


def encode_survivors(survivors: list[int], *, size: int) -> bytes:
    """Server to clients: who survived, a bit a client of the cohort."""
    writer = Writer()
    writer.header(SURVIVORS)
    write_bitmap(writer, survivors, size)
    return writer.done()


def decode_survivors(data: bytes, *, size: int) -> list[int]:
    """Client indices, rising."""
    reader = Reader(data)
    reader.header(SURVIVORS)
    survivors = read_bitmap(reader, "survivors", size)
    reader.finish()
    return survivors


def encode_confirmations(signatures: dict[int, bytes]) -> bytes:
    """Server to survivors: who signed the survivor list."""
    writer = Writer()
    writer.header(CONFIRMATIONS)
    write_signatures(writer, signatures)
    return writer.done()


def decode_confirmations(data: bytes, *, size: int, limit: int) -> dict[int, bytes]:
    """Signatures by client index, at most ``limit``."""
    reader = Reader(data)
    reader.header(CONFIRMATIONS)
    signatures = read_signatures(reader, size=size, limit=limit)
    reader.finish()
    return signatures


def write_signatures(writer: Writer, signatures: Mapping[int, bytes]) -> None:
    """Signatures by client index."""
    writer.u32(len(signatures))
    for index in sorted(signatures):
        writer.u32(index)
        writer.blob(signatures[index], limit=MAX_SIGNATURE_BYTES)


def read_signatures(reader: Reader, *, size: int, limit: int) -> dict[int, bytes]:
    """What :func:`write_signatures` wrote, at most ``limit`` of them."""
    signatures: dict[int, bytes] = {}
    order: list[int] = []
    for _ in range(read_count(reader, "confirmations", limit)):
        order.append(reader.u32(field="signer"))
        signatures[order[-1]] = reader.blob(MAX_SIGNATURE_BYTES, field="signature")
    strictly_rising(order, "confirmations", size)
    return signatures


@dataclass(frozen=True)
class Reveal:
    """Stage 4.  For each client that shared, a share of its self-mask seed or of its root.

    Of the self-mask seed if it survived, of the root if it dropped, never of both.  Where excess
    noise is to be removed, also one of one seed of each survivor's layers.
    """

    self_shares: dict[int, bytes] = field(repr=False)
    root_shares: dict[int, bytes] = field(repr=False)
    layer_shares: dict[int, bytes] = field(repr=False, default_factory=dict)

    def encode(self) -> bytes:
        """To bytes."""
        writer = Writer()
        for shares in (self.self_shares, self.root_shares):
            writer.u32(len(shares))
            for index in sorted(shares):
                writer.u32(index)
                writer.fixed(shares[index], SHARE_BYTES)
        for index in sorted(self.layer_shares):  # of those with self shares: not said again
            writer.fixed(self.layer_shares[index], SHARE_BYTES)
        return writer.done()

    @classmethod
    def decode(cls, body: bytes, *, size: int, limit: int, excess: bool = False) -> Reveal:
        """From bytes, at most ``limit`` shares of a kind; a client in both lists is refused.

        Args:
            body: the body of a client's message.
            size: clients in the cohort.
            limit: most shares of a kind.
            excess: whether layers of noise are to be removed.
        """
        reader = Reader(body)
        groups: list[dict[int, bytes]] = []
        for name in ("self_shares", "root_shares"):
            order: list[int] = []
            shares: dict[int, bytes] = {}
            for _ in range(read_count(reader, name, limit)):
                order.append(reader.u32(field=name))
                shares[order[-1]] = reader.fixed(SHARE_BYTES, field=name)
            strictly_rising(order, name, size)
            groups.append(shares)
        layers = {
            index: reader.fixed(SHARE_BYTES, field="layer_shares")
            for index in (groups[0] if excess else ())
        }
        reader.finish()
        if set(groups[0]) & set(groups[1]):
            raise WireError("reveal: both kinds of share of one client")
        return cls(groups[0], groups[1], layers)


def read_count(reader: Reader, field: str, limit: int) -> int:
    """A number of entries, at most ``limit``."""
    count = reader.u32(field=field)
    if count > limit:
        raise WireError(f"{field}: {count} entries, at most {limit} are possible")
    return count


def write_bitmap(writer: Writer, indices: Iterable[int], size: int) -> None:
    """Who is meant: client i is bit i % 8 of byte i // 8; spare bits are zero."""
    bits = np.zeros(size, dtype=np.uint8)
    bits[list(indices)] = 1
    packed = np.packbits(bits, bitorder="little").tobytes()
    writer.fixed(packed, len(packed))


def read_bitmap(reader: Reader, field: str, size: int) -> list[int]:
    """What :func:`write_bitmap` wrote, as rising indices."""
    packed = np.frombuffer(reader.fixed((size + 7) // 8, field=field), dtype=np.uint8)
    found = np.flatnonzero(np.unpackbits(packed, bitorder="little"))
    if found.size and found[-1] >= size:
        raise WireError(f"{field}: a bit beyond client number {size - 1} is set")
    indices: list[int] = found.tolist()
    return indices


def strictly_rising(values: list[int], field: str, size: int) -> None:
    """Refuse indices that do not rise strictly and stay below ``size``."""
    if any(b <= a for a, b in itertools.pairwise(values)) or any(value >= size for value in values):
        raise WireError(f"{field}: indices must rise strictly and stay below {size}")
