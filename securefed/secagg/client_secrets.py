"""What one client draws, deals to its neighbours and is dealt by them in one round."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from securefed.crypto.identity import IdentityKey
from securefed.crypto.keys import HybridPrivateKey, HybridPublicKey
from securefed.crypto.prg import RandomBytes, SecretHolder, draw
from securefed.crypto.shamir import SHARE_BYTES, share
from securefed.encoding.wire import Reader
from securefed.errors import ConfigError, RemoteProtocolError
from securefed.secagg import round_secrets as keys
from securefed.secagg.aggregator import RoundContext
from securefed.secagg.carriers import Mask
from securefed.secagg.graph import NONCE_BYTES, Graph, nonce_commitment
from securefed.secagg.messages import Advertisement, Bundle


class ClientSecrets(SecretHolder):
    """Two fresh secrets with all that follows from them, and shares of those of others.

    Args:
        context: the round.
        index: whose secrets.
        identity: its long-term key, which signs what it deals.
        random: source of the secrets.
        layers_commitment: to its layers of noise; empty in a round without them.

    Attributes:
        advert: what it advertises.
        shares: by owner, those that this client holds: of the self-mask seed, of the root, and of
            the seeds of layers of noise 1..T.
        peers: by index, what is kept of each neighbour that it dealt to.
    """

    def __init__(
        self,
        context: RoundContext,
        index: int,
        identity: IdentityKey,
        random: RandomBytes,
        layers_commitment: bytes,
    ) -> None:
        self._context, self._index, self._identity = context, index, identity
        self._random = random
        self.root = draw(random, keys.SECRET_BYTES)
        self.self_seed = draw(random, keys.SECRET_BYTES)
        self.nonce = draw(random, NONCE_BYTES)
        self.mask_key = keys.mask_key_pair(self.root, context.digest, index)
        self.envelope_key = HybridPrivateKey.generate(random)
        self.advert = Advertisement(
            mask_key=self.mask_key.public.raw,
            envelope_key=self.envelope_key.public.raw,
            root_commitment=keys.root_commitment(self.root, context.digest, index),
            self_commitment=keys.self_commitment(self.self_seed, context.digest, index),
            nonce_commitment=nonce_commitment(self.nonce, context.digest, index),
            layers_commitment=layers_commitment,
        )
        self._own_key_hash = keys.key_hash(self.envelope_key.public.raw)
        self.peers: dict[int, Peer] = {}
        self.shares: dict[int, tuple[bytes, ...]] = {}

    def deal(
        self, adverts: Mapping[int, Advertisement], graph: Graph, seeds: Sequence[bytes]
    ) -> dict[int, Bundle]:
        """Seal one share of each secret to each neighbour, and keep one.

        Args:
            adverts: of the neighbours, checked to be theirs.
            graph: which edge secrets this client gives.
            seeds: of its layers of noise.

        Raises:
            RemoteProtocolError: a key is not valid, or appears twice.
        """
        context, me = self._context, self._index
        everyone = {**adverts, me: self.advert}
        taken: dict[bytes, int] = {}
        for index, advert in everyone.items():
            for key in (advert.mask_key, advert.envelope_key):
                if key in taken:
                    names = f"{context.cohort[taken[key]]!r} and {context.cohort[index]!r}"
                    raise RemoteProtocolError(
                        f"advertisements: {names}: a public key appears twice"
                    )
                taken[key] = index
        points = [index + 1 for index in everyone]
        threshold = context.parameters.threshold
        roots, selves, *layers = [
            share(secret, threshold=threshold, points=points, random=self._random)
            for secret in (self.root, self.self_seed, *seeds)
        ]
        dealt = [selves, roots, *layers]
        self.shares[me] = tuple(shares[me + 1] for shares in dealt)
        bundles = {}
        for other, advert in adverts.items():
            mask_key, envelope_key = checked_keys(advert, context.cohort[other])
            secret = b""
            if graph.gives(me, other):
                secret = keys.edge_secret(self.root, context.digest, me, other, mask_key.raw)
            self.peers[other] = Peer(
                key_hash=keys.key_hash(envelope_key.raw),
                advert_hash=hashlib.sha256(advert.encode()).digest(),
                edge_secret=secret,
            )
            bundles[other] = self.bundle_for(
                other, b"".join(shares[other + 1] for shares in dealt), mask_key, envelope_key
            )
        return bundles

    def bundle_for(
        self, other: int, shares: bytes, mask_key: HybridPublicKey, envelope_key: HybridPublicKey
    ) -> Bundle:
        """One neighbour's shares and, where this client gives it, the secret of the edge."""
        digest, me, peer = self._context.digest, self._index, self.peers[other]
        info = keys.envelope_info(digest, me, other, self._own_key_hash, peer.key_hash)
        edge = commitment = b""
        if peer.edge_secret:
            edge = mask_key.seal(peer.edge_secret, info=keys.edge_info(digest, me, other))
            commitment = keys.edge_commitment(peer.edge_secret, digest, me, other)
        unsigned = Bundle(envelope_key.seal(shares, info=info), edge, commitment, b"")
        covered = unsigned.signed_part(
            sender=me, receiver=other, mask_key=mask_key.raw, envelope_key=envelope_key.raw
        )
        signature = self._identity.sign(digest + covered, label=keys.SIGN_BUNDLE)
        return Bundle(unsigned.envelope, edge, commitment, signature)

    def open(self, sender: int, bundle: Bundle) -> bytes:
        """Check a neighbour's bundle, keep its shares, return the secret of this edge.

        Raises:
            RemoteProtocolError: it is not signed by ``sender`` for this client and these keys, does
                not open, or the edge secret is not what was committed to.
        """
        context, me, own = self._context, self._index, self.advert
        covered = bundle.signed_part(
            sender=sender, receiver=me, mask_key=own.mask_key, envelope_key=own.envelope_key
        )
        context.roster[context.cohort[sender]].verify(
            bundle.signature, context.digest + covered, label=keys.SIGN_BUNDLE
        )
        peer = self.peers[sender]
        info = keys.envelope_info(context.digest, sender, me, peer.key_hash, self._own_key_hash)
        reader = Reader(self.envelope_key.open(bundle.envelope, info=info))
        kinds = ["self share", "root share"] + ["layer share"] * len(context.noise_layers)
        self.shares[sender] = tuple(reader.fixed(SHARE_BYTES, field=kind) for kind in kinds)
        reader.finish()
        if peer.edge_secret:
            return peer.edge_secret
        secret = self.mask_key.open(bundle.edge, info=keys.edge_info(context.digest, sender, me))
        if keys.edge_commitment(secret, context.digest, sender, me) != bundle.edge_commitment:
            raise RemoteProtocolError("its edge secret does not match its commitment")
        return secret

    def sharers_hash(self) -> bytes:
        """View of a complete graph: whose shares this client holds, and what they advertised."""
        own = hashlib.sha256(self.advert.encode()).digest()
        return keys.sharers_hash(
            {i: self.peers[i].advert_hash if i in self.peers else own for i in self.shares}
        )

    def masks(self, edges: Mapping[int, bytes], view: bytes) -> list[Mask]:
        """This client's own mask and one towards each neighbour.

        Args:
            edges: by neighbour, the secret of the edge.
            view: the attempt's.
        """
        digest, me = self._context.digest, self._index
        masks = [(keys.self_keystream_key(self.self_seed, digest, view, me), False)]
        for other, secret in edges.items():
            low, high = min(me, other), max(me, other)
            masks.append((keys.pair_keystream_key(secret, digest, view, low, high), me == high))
        return masks


class Peer(SecretHolder):
    """What a client keeps of a neighbour once it has dealt to it."""

    __slots__ = ("advert_hash", "edge_secret", "key_hash")

    def __init__(self, *, key_hash: bytes, advert_hash: bytes, edge_secret: bytes) -> None:
        self.key_hash = key_hash
        self.advert_hash = advert_hash
        self.edge_secret = edge_secret  # empty where the neighbour gives it


def checked_keys(advert: Advertisement, owner: str) -> tuple[HybridPublicKey, HybridPublicKey]:
    """Mask key and envelope key, both valid.

    Raises:
        RemoteProtocolError: names the owner.
    """
    try:
        return (
            HybridPublicKey.from_bytes(advert.mask_key),
            HybridPublicKey.from_bytes(advert.envelope_key),
        )
    except (RemoteProtocolError, ConfigError) as error:
        raise RemoteProtocolError(f"advertisement of {owner!r}: {error}") from None
