"""The client's half of a pairwise round.

Protocol: Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning", the protocol's figure, in the variant for active adversaries; in cohorts of 200 and more
on a sparse graph, after Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic
Overhead".  Pairwise secrets are hybrid post-quantum and follow from one root
(:mod:`securefed.secagg.round_secrets`); degree and thresholds, with what they guarantee, are in
:mod:`securefed.secagg.parameters`.

======================  =============================  ==========================================
state                   server's message               what the client then knows and sends
======================  =============================  ==========================================
``NEW``                 (``start``)                    own secrets; sends keys and commitments
``ADVERTISED``          hash of nonce commitments      (sparse graph only) that all nonces are
                                                       fixed; sends its nonce and signs the hash
``ADVERTISED`` or       advertisements, and in a       its neighbours and their keys; sends each
``REVEALED``            sparse graph all nonces        of them sealed shares
``SHARED``              bundles for this client        which neighbours shared; sends its **masked
                                                       input**
``MASKED``              survivor list                  who survived; signs that list, once
``CONFIRMED``           signatures on the list         that enough honest clients signed the same;
                                                       sends one share of each neighbour, once, and
                                                       where noise is removed one of each
                                                       survivor's excess layers
``DONE`` / ``FAILED``   nothing is accepted            secrets are forgotten
======================  =============================  ==========================================

A message of the wrong type for the present state is refused and changes nothing.  A message of the
right type with bad content ends the round for this client: it forgets its secrets.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Callable
from typing import Final

import numpy as np

from securefed.crypto.identity import IdentityKey
from securefed.crypto.keys import HybridPrivateKey, HybridPublicKey
from securefed.crypto.prg import RandomBytes, SecretHolder, add_keystreams, draw, system_random
from securefed.crypto.shamir import SHARE_BYTES, share
from securefed.encoding.wire import Reader, pack_ring
from securefed.errors import ConfigError, LocalProtocolError, RemoteProtocolError, ThresholdNotMet
from securefed.secagg import messages as wire_messages
from securefed.secagg import round_secrets as keys
from securefed.secagg.aggregator import Contribution, RoundContext
from securefed.secagg.graph import (
    NONCE_BYTES,
    Graph,
    commitments_hash,
    graph_seed,
    nonce_commitment,
    nonce_commitments,
)
from securefed.secagg.messages import Advertisement, Bundle, Neighbourhood, Reveal
from securefed.secagg.noise_layers import NoiseLayers
from securefed.secagg.signed import Signed, sign, verify


class ClientState(enum.Enum):
    """Where a client stands in a round."""

    NEW = "new"
    ADVERTISED = "advertised"
    REVEALED = "revealed"
    SHARED = "shared"
    MASKED = "masked"
    CONFIRMED = "confirmed"
    DONE = "done"
    FAILED = "failed"


# What is accepted in a state, which method answers it, and the state that follows.
_Transition = tuple[int, str, ClientState]
_COMMON: Final[dict[ClientState, _Transition]] = {
    ClientState.SHARED: (wire_messages.DELIVERY, "_mask", ClientState.MASKED),
    ClientState.MASKED: (wire_messages.SURVIVORS, "_confirm", ClientState.CONFIRMED),
    ClientState.CONFIRMED: (wire_messages.CONFIRMATIONS, "_reveal", ClientState.DONE),
}
COMPLETE: Final[dict[ClientState, _Transition]] = {
    ClientState.ADVERTISED: (wire_messages.ADVERTISED, "_share_with_all", ClientState.SHARED),
    **_COMMON,
}
SPARSE: Final[dict[ClientState, _Transition]] = {
    ClientState.ADVERTISED: (wire_messages.COMMITMENTS, "_reveal_nonce", ClientState.REVEALED),
    ClientState.REVEALED: (
        wire_messages.NEIGHBOURHOOD,
        "_share_with_neighbours",
        ClientState.SHARED,
    ),
    **_COMMON,
}


def message_type(data: bytes) -> int:
    """Type of a message, without looking further; 0 for what is not a message."""
    return data[5] if len(data) > 5 else 0


class PairwiseClient(SecretHolder):
    """One client in one round.

    Args:
        context: what all parties agree on.
        client_id: this client.
        identity: its long-term key; the roster must hold the public half.
        contribution: makes uint32[context.length], values below 2^bits; called once, after cohort
            and shares are checked.  What it raises ends the round for this client.
        min_clients: the client's own floor: it takes no part in a smaller sum, whatever the server
            agreed.
        min_threshold: the client's own floor on the threshold of secret sharing.
        random: source of round secrets; the operating system's generator outside tests.
        layers: the layers of noise inside the contribution that can be removed; just where
            ``context.noise_layers`` says that there are any.

    Guarantees:
        - Nothing that depends on the contribution is sent before the masked input.
        - At most one share of each client is revealed, of one kind, once.  Of a survivor's layers
          of noise one share more, of the seed whose number is the number of clients missing from
          the signed list, plus one; of nobody where the most are missing.
        - No share is revealed unless ``quorum`` of this client's witnesses signed that very
          survivor list, and it holds at least ``survivor_floor`` clients and this one.
        - What is opened in the end is the sum over all honest clients of one such list
          (:mod:`securefed.secagg.parameters`).

    Raises:
        LocalProtocolError: the identity is not the one in the roster, cohort or threshold are
            below the client's own floors, or ``layers`` are missing, not asked for, or not this
            client's.
    """

    def __init__(
        self,
        context: RoundContext,
        client_id: str,
        identity: IdentityKey,
        contribution: Contribution,
        *,
        min_clients: int = 2,
        min_threshold: int = 2,
        random: RandomBytes = system_random,
        layers: NoiseLayers | None = None,
    ) -> None:
        self._context = context
        self._index = context.index(client_id)
        if context.roster[client_id] != identity.public:
            raise LocalProtocolError(
                f"client {client_id!r}: the roster holds another identity key for it"
            )
        parameters = context.parameters
        self._floor = max(min_clients, parameters.survivor_floor)
        if len(context.cohort) < self._floor:
            raise LocalProtocolError(
                f"cohort of {len(context.cohort)} clients: this client takes part from "
                f"{self._floor} on"
            )
        if parameters.threshold < min_threshold:
            raise LocalProtocolError(
                f"threshold = {parameters.threshold}: this client takes part from "
                f"{min_threshold} on"
            )
        if (layers is not None) != bool(context.noise_layers):
            raise LocalProtocolError(
                f"layers: {'none' if layers is None else 'some'} given, and the round has "
                f"{len(context.noise_layers)} layers of noise"
            )
        if layers is not None and not layers.belong_to(context, self._index):
            raise LocalProtocolError("layers: they are another client's or another round's")
        self._layers = layers
        self._identity = identity
        self._contribution: Contribution | None = contribution
        self._random = random
        self._root = b""
        self._self_seed = b""
        self._nonce = b""
        self._mask_key: HybridPrivateKey | None = None
        self._envelope_key: HybridPrivateKey | None = None
        self._advert: Advertisement | None = None
        self._commitments = b""
        self._graph = Graph.complete(len(context.cohort))
        self._view = b""
        self._peers: dict[int, _Peer] = {}
        # Shares of the self-mask seed, of the root, and of the seeds of layers of noise 1..T.
        self._own_shares: tuple[bytes, ...] = ()
        self._shares: dict[int, tuple[bytes, ...]] = {}
        self._alive: set[int] = set()
        self._missing = 0
        self._statement = b""
        self._transitions = SPARSE if parameters.sparse else COMPLETE
        self.state = ClientState.NEW

    def __repr__(self) -> str:
        return f"PairwiseClient(index={self._index}, state={self.state.value})"

    def start(self) -> bytes:
        """Draw this round's secrets and advertise keys and commitments.

        Run by: client.  Pre-conditions: called once.
        """
        if self.state is not ClientState.NEW:
            raise LocalProtocolError(f"start: the round is {self.state.value}, not new")
        digest = self._context.digest
        self._root = draw(self._random, keys.SECRET_BYTES)
        self._self_seed = draw(self._random, keys.SECRET_BYTES)
        self._nonce = draw(self._random, NONCE_BYTES)
        self._mask_key = keys.mask_key_pair(self._root, digest, self._index)
        self._envelope_key = HybridPrivateKey.generate(self._random)
        self._advert = Advertisement(
            mask_key=self._mask_key.public.raw,
            envelope_key=self._envelope_key.public.raw,
            root_commitment=keys.root_commitment(self._root, digest, self._index),
            self_commitment=keys.self_commitment(self._self_seed, digest, self._index),
            nonce_commitment=nonce_commitment(self._nonce, digest, self._index),
            layers_commitment=b"" if self._layers is None else self._layers.commitment(),
        )
        self.state = ClientState.ADVERTISED
        return self._signed("advertise", self._advert.encode())

    def handle(self, message: bytes) -> bytes:
        """Answer the server's message for the present state.

        Raises:
            RemoteProtocolError: out of order (nothing changes), or bad content (the round is over
                for this client).
            ThresholdNotMet: too few clients are left (the round is over).
        """
        if self.state not in self._transitions:
            raise RemoteProtocolError(f"the round is {self.state.value}: no message is accepted")
        expected, method, next_state = self._transitions[self.state]
        found = message_type(message)
        if found != expected:
            raise RemoteProtocolError(
                f"message type {found} while {self.state.value}: only type {expected} is accepted"
            )
        respond: Callable[[bytes], bytes] = getattr(self, method)
        answer = b""
        try:
            answer = respond(message)
            self.state = next_state
        finally:
            if not answer:
                self.state = ClientState.FAILED
            if self.state in (ClientState.DONE, ClientState.FAILED):
                self._forget()
        return answer

    def _reveal_nonce(self, message: bytes) -> bytes:
        """Stage graph.  All nonces are committed to: reveal this client's, and sign the hash."""
        self._commitments = wire_messages.decode_commitments(message)
        return self._signed("graph", self._nonce + self._commitments)

    def _share_with_all(self, message: bytes) -> bytes:
        """Stage share, complete graph.  Everyone who advertised is a neighbour."""
        size = len(self._context.cohort)
        signed = wire_messages.decode_advertised(
            message, size=size, noise_layers=len(self._context.noise_layers)
        )
        adverts = {item.sender: self._checked(item) for item in signed}
        self._check_floor(len(adverts), "advertisements")
        own = adverts.pop(self._index, None)
        if own is None or own != self._advert:
            raise RemoteProtocolError("advertisements: another one stands for this client")
        return self._share(adverts)

    def _share_with_neighbours(self, message: bytes) -> bytes:
        """Stage share, sparse graph.  The ring must follow from the nonces committed to."""
        context, me, parameters = self._context, self._index, self._context.parameters
        size, digest = len(context.cohort), context.digest
        found = Neighbourhood.decode(message, size=size, degree=parameters.degree)
        committed = found.withheld | nonce_commitments(found.nonces, digest)
        if not hmac.compare_digest(commitments_hash(committed), self._commitments):
            raise RemoteProtocolError("nonces: they are not what was committed to")
        if found.nonces.get(me) != self._nonce:
            raise RemoteProtocolError("nonces: this client's own is not among them")
        self._check_floor(len(found.nonces), "nonces")
        self._view = graph_seed(digest, found.nonces)
        self._graph = Graph.from_seed(
            self._view, size=size, degree=parameters.degree, witnesses=parameters.witnesses
        )
        awaited = [index for index in self._graph.neighbours(me) if index in found.nonces]
        if [item.sender for item in found.advertisements] != awaited:
            raise RemoteProtocolError(
                "advertisements: they are not those of the neighbours that revealed a nonce"
            )
        adverts = {item.sender: self._checked(item) for item in found.advertisements}
        for index, advert in adverts.items():
            if advert.nonce_commitment != committed[index]:
                raise RemoteProtocolError(
                    f"advertisement of {context.cohort[index]!r}: another nonce was committed to"
                )
        return self._share(adverts)

    def _checked(self, signed: Signed) -> Advertisement:
        """An advertisement that its sender signed for this round."""
        verify(self._context, signed, "advertise")
        return Advertisement.decode(signed.body, noise_layers=len(self._context.noise_layers))

    def _share(self, adverts: dict[int, Advertisement]) -> bytes:
        """Seal one share of each secret to each neighbour, and one goes to this client itself."""
        context, me = self._context, self._index
        if self._advert is None:
            raise LocalProtocolError("the round's keys are gone")
        everyone = {**adverts, me: self._advert}
        threshold = context.parameters.threshold
        self._check_holders(len(everyone), "advertisements")
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
        roots = share(self._root, threshold=threshold, points=points, random=self._random)
        selves = share(self._self_seed, threshold=threshold, points=points, random=self._random)
        dealt = [selves, roots] + [
            share(seed, threshold=threshold, points=points, random=self._random)
            for seed in ([] if self._layers is None else self._layers.seeds())
        ]
        self._own_shares = tuple(shares[me + 1] for shares in dealt)
        bundles = {}
        for other, advert in adverts.items():
            mask_key, envelope_key = checked_keys(advert, context.cohort[other])
            secret = b""
            if self._graph.gives(me, other):
                secret = keys.edge_secret(self._root, context.digest, me, other, mask_key.raw)
            self._peers[other] = _Peer(
                key_hash=keys.key_hash(envelope_key.raw),
                advert_hash=hashlib.sha256(advert.encode()).digest(),
                edge_secret=secret,
            )
            bundles[other] = self._bundle_for(
                other, b"".join(shares[other + 1] for shares in dealt), mask_key, envelope_key
            )
        return self._signed("share", wire_messages.encode_shares(bundles))

    def _bundle_for(
        self, other: int, shares: bytes, mask_key: HybridPublicKey, envelope_key: HybridPublicKey
    ) -> Bundle:
        digest, me, peer = self._context.digest, self._index, self._peers[other]
        info = keys.envelope_info(digest, me, other, self._own_key_hash(), peer.key_hash)
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

    def _own_key_hash(self) -> bytes:
        if self._envelope_key is None:
            raise LocalProtocolError("the round's keys are gone")
        return keys.key_hash(self._envelope_key.public.raw)

    def _mask(self, message: bytes) -> bytes:
        """Stage masked_input.  Open every bundle; only then make the contribution, and mask it."""
        context, me = self._context, self._index
        bundles = wire_messages.decode_delivery(
            message,
            with_edge={other: self._graph.gives(other, me) for other in self._peers},
            noise_layers=len(context.noise_layers),
        )
        self._check_holders(len(bundles) + 1, "sharers")
        if not context.parameters.sparse:
            self._check_floor(len(bundles) + 1, "sharers")
        edges = {}
        for sender, bundle in bundles.items():
            try:
                edges[sender] = self._open(sender, bundle)
            except RemoteProtocolError as error:
                raise RemoteProtocolError(
                    f"bundle of {context.cohort[sender]!r}: {error}"
                ) from None
        self._shares[me] = self._own_shares
        if not context.parameters.sparse:
            self._view = keys.sharers_hash(self._advert_hashes())
        if self._contribution is None:
            raise LocalProtocolError("the contribution was already made")
        contribution, self._contribution = self._contribution, None
        vector = contribution()
        if vector.dtype != np.uint32 or vector.shape != (context.length,):
            raise LocalProtocolError(
                f"contribution: {vector.dtype}[{vector.shape}], must be uint32[{context.length}]"
            )
        if self._layers is not None and not self._layers.added:
            raise LocalProtocolError("contribution: made without this client's layers of noise")
        masked = vector.copy()
        own_key = keys.self_keystream_key(self._self_seed, context.digest, self._view, me)
        masks = [(own_key, False)]
        for other, secret in edges.items():
            low, high = min(me, other), max(me, other)
            key = keys.pair_keystream_key(secret, context.digest, self._view, low, high)
            masks.append((key, me == high))
        add_keystreams(masked, masks)
        return self._signed("masked_input", self._view, pack_ring(masked, context.bits))

    def _advert_hashes(self) -> dict[int, bytes]:
        if self._advert is None:
            raise LocalProtocolError("the round's keys are gone")
        own = hashlib.sha256(self._advert.encode()).digest()
        return {i: self._peers[i].advert_hash if i in self._peers else own for i in self._shares}

    def _open(self, sender: int, bundle: Bundle) -> bytes:
        """Check a bundle, keep its shares, return the secret of this edge."""
        context, me, own = self._context, self._index, self._advert
        if self._envelope_key is None or self._mask_key is None or own is None:
            raise LocalProtocolError("the round's keys are gone")
        covered = bundle.signed_part(
            sender=sender, receiver=me, mask_key=own.mask_key, envelope_key=own.envelope_key
        )
        context.roster[context.cohort[sender]].verify(
            bundle.signature, context.digest + covered, label=keys.SIGN_BUNDLE
        )
        peer = self._peers[sender]
        info = keys.envelope_info(context.digest, sender, me, peer.key_hash, self._own_key_hash())
        opened = self._envelope_key.open(bundle.envelope, info=info)
        reader = Reader(opened)
        kinds = ["self share", "root share"] + ["layer share"] * len(context.noise_layers)
        self._shares[sender] = tuple(reader.fixed(SHARE_BYTES, field=kind) for kind in kinds)
        reader.finish()
        if peer.edge_secret:
            return peer.edge_secret
        secret = self._mask_key.open(bundle.edge, info=keys.edge_info(context.digest, sender, me))
        if keys.edge_commitment(secret, context.digest, sender, me) != bundle.edge_commitment:
            raise RemoteProtocolError("its edge secret does not match its commitment")
        return secret

    def _confirm(self, message: bytes) -> bytes:
        """Stage consistency.  Sign the survivor list, once."""
        context = self._context
        survivors = wire_messages.decode_survivors(message, size=len(context.cohort))
        if self._index not in survivors:
            raise RemoteProtocolError("survivors: this client sent its input but is not listed")
        listed = set(survivors)
        # Also in a sparse graph, where the argument of parameters.py rests on it.
        strangers = set(self._graph.neighbours(self._index)) & listed - set(self._shares)
        if strangers:
            raise RemoteProtocolError(
                f"survivors: {context.cohort[min(strangers)]!r} did not share"
            )
        self._check_floor(len(survivors), "survivors")
        self._statement = keys.survivors_statement(context.digest, self._view, survivors)
        # Of a long list, a client keeps what it needs: those whose signatures it counts and those
        # whose shares it holds.
        self._alive = listed & (self._graph.witnesses(self._index) | self._shares.keys())
        self._missing = len(context.cohort) - len(survivors)
        return self._signed(
            "consistency", self._identity.sign(self._statement, label=keys.SIGN_SURVIVORS)
        )

    def _reveal(self, message: bytes) -> bytes:
        """Stage unmask.  Check that enough witnesses signed this list; reveal one share each."""
        context, quorum = self._context, self._context.parameters.quorum
        witnesses = self._graph.witnesses(self._index)
        signatures = wire_messages.decode_confirmations(
            message, size=len(context.cohort), limit=len(witnesses)
        )
        alive = self._alive
        outsiders = set(signatures) - (alive & witnesses)
        if outsiders:
            name = context.cohort[min(outsiders)]
            raise RemoteProtocolError(
                f"confirmations: {name!r} is not a survivor whose signature counts here"
            )
        for signer, signature in signatures.items():
            context.roster[context.cohort[signer]].verify(
                signature, self._statement, label=keys.SIGN_SURVIVORS
            )
        if len(signatures) < quorum:
            raise ThresholdNotMet(
                f"confirmations: {len(signatures)} signatures, at least {quorum} are needed"
            )
        reveal = Reveal(
            self_shares={i: held[0] for i, held in self._shares.items() if i in alive},
            root_shares={i: held[1] for i, held in self._shares.items() if i not in alive},
            layer_shares=self._excess_shares(),
        )
        return self._signed("unmask", reveal.encode())

    def _excess_shares(self) -> dict[int, bytes]:
        """Of each survivor the share of the seed of its first layer that is not needed."""
        if self._missing >= len(self._context.noise_layers):
            return {}
        return {i: held[2 + self._missing] for i, held in self._shares.items() if i in self._alive}

    def _check_floor(self, count: int, what: str) -> None:
        if count < self._floor:
            raise ThresholdNotMet(f"{what}: {count} clients, at least {self._floor} are needed")

    def _check_holders(self, count: int, what: str) -> None:
        threshold = self._context.parameters.threshold
        if count < threshold:
            raise ThresholdNotMet(
                f"{what}: {count} holders of this client's shares, at least {threshold} are needed"
            )

    def _signed(self, stage: str, *body: bytes) -> bytes:
        return sign(self._context, self._index, self._identity, stage, *body)

    def _forget(self) -> None:
        self._root = self._self_seed = self._nonce = b""
        self._mask_key = self._envelope_key = None
        self._layers = None
        self._own_shares = ()
        self._shares.clear()
        self._peers.clear()
        self._contribution = None


class _Peer(SecretHolder):
    """What a client keeps of a neighbour once it has shared with it."""

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
