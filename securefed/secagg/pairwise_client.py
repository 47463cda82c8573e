"""The client's half of a pairwise round.

Protocol: Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning", the protocol's figure, in the variant for active adversaries; in cohorts of 200 and more
on a sparse graph, after Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic
Overhead".  Pairwise secrets are hybrid post-quantum and follow from one root
(:mod:`securefed.secagg.round_secrets`); degree and thresholds, with what they guarantee, are in
:mod:`securefed.secagg.parameters`.

What it accepts when, and answers with, is the table of :mod:`securefed.secagg.client_states`; where
contributions are encrypted beneath their masks too, how that changes things is told in
:mod:`securefed.secagg.carriers`.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

import numpy as np

from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import RandomBytes, SecretHolder, system_random
from securefed.encoding.wire import message_type
from securefed.errors import LocalProtocolError, RemoteProtocolError, ThresholdNotMet
from securefed.secagg import messages as wire_messages
from securefed.secagg import round_secrets as keys
from securefed.secagg.aggregator import Contribution, RoundContext
from securefed.secagg.carriers import InputCarrier, RingInput, check_masked
from securefed.secagg.client_secrets import ClientSecrets
from securefed.secagg.client_states import ClientState, transitions
from securefed.secagg.encrypting import EncryptedInput, OnEncrypted
from securefed.secagg.graph import Graph, commitments_hash, graph_seed, nonce_commitments
from securefed.secagg.key_offer import Offer, agreed, offer_limit
from securefed.secagg.messages import Advertisement, Bundle, Neighbourhood, Reveal
from securefed.secagg.noise_layers import NoiseLayers
from securefed.secagg.signed import Signed, sign, verify


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
        on_encrypted: in an encrypted round, told of progress.

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
            below the client's own floors, ``layers`` are missing, not asked for, or not this
            client's, or contributions are encrypted without masks.
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
        on_encrypted: OnEncrypted | None = None,
    ) -> None:
        check_masked(context)
        self._context = context
        self._index, self._floor = context.seat(client_id, identity.public, min_clients)
        parameters = context.parameters
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
        self._on_encrypted = on_encrypted
        self._secrets: ClientSecrets | None = None
        self._commitments = b""
        self._graph = Graph.complete(len(context.cohort))
        self._view = b""
        self._alive: set[int] = set()
        self._missing = 0
        self._statement = b""
        self._transitions = transitions(context)
        self.state = ClientState.NEW

    def __repr__(self) -> str:
        return f"PairwiseClient(index={self._index}, state={self.state.value})"

    def start(self) -> bytes:
        """Draw this round's secrets and advertise keys and commitments.

        Run by: client.  Pre-conditions: called once.
        """
        if self.state is not ClientState.NEW:
            raise LocalProtocolError(f"start: the round is {self.state.value}, not new")
        promised = b"" if self._layers is None else self._layers.commitment()
        self._secrets = ClientSecrets(
            self._context, self._index, self._identity, self._random, promised
        )
        self.state = ClientState.ADVERTISED
        return self._signed("advertise", self._secrets.advert.encode())

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
        return self._signed("graph", self._held.nonce + self._commitments)

    def _share_with_all(self, message: bytes) -> bytes:
        """Stage share, complete graph.  Everyone who advertised is a neighbour."""
        size = len(self._context.cohort)
        signed = wire_messages.decode_advertised(
            message, size=size, noise_layers=len(self._context.noise_layers)
        )
        adverts = {item.sender: self._checked(item) for item in signed}
        self._check_floor(len(adverts), "advertisements")
        own = adverts.pop(self._index, None)
        if own is None or own != self._held.advert:
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
        if found.nonces.get(me) != self._held.nonce:
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
        self._check_holders(len(adverts) + 1, "advertisements")
        seeds = [] if self._layers is None else self._layers.seeds()
        bundles = self._held.deal(adverts, self._graph, seeds)
        return self._signed("share", wire_messages.encode_shares(bundles))

    def _mask(self, message: bytes) -> bytes:
        """Stage masked_input.  Open every bundle; only then make the contribution, and mask it."""
        context, secrets = self._context, self._held
        bundles, offer = self._delivered(message)
        self._check_holders(len(bundles) + 1, "sharers")
        if not context.parameters.sparse:
            self._check_floor(len(bundles) + 1, "sharers")
        edges = {}
        for sender, bundle in bundles.items():
            try:
                edges[sender] = secrets.open(sender, bundle)
            except RemoteProtocolError as error:
                raise RemoteProtocolError(
                    f"bundle of {context.cohort[sender]!r}: {error}"
                ) from None
        if not context.parameters.sparse:
            self._view = secrets.sharers_hash()
        carrier: InputCarrier = RingInput(context.bits)
        if offer is not None:
            self._view = offer.view(self._view)
            carrier = EncryptedInput(agreed(context), offer.public_key, self._on_encrypted)
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
        masks = secrets.masks(edges, self._view)
        return self._signed("masked_input", self._view, *carrier.protect(vector, masks))

    def _delivered(self, message: bytes) -> tuple[dict[int, Bundle], Offer | None]:
        """The bundles for this client, and in an encrypted round the decryptor's own offer."""
        context, layers = self._context, len(self._context.noise_layers)
        given = {other: self._graph.gives(other, self._index) for other in self._held.peers}
        if context.encryption is None:
            decoded = wire_messages.decode_delivery(message, with_edge=given, noise_layers=layers)
            return decoded, None
        encoded, bundles = wire_messages.decode_keyed_delivery(
            message, offer_limit=offer_limit(context), with_edge=given, noise_layers=layers
        )
        return bundles, Offer.read(context, encoded)

    def _confirm(self, message: bytes) -> bytes:
        """Stage consistency.  Sign the survivor list, once."""
        context = self._context
        survivors = wire_messages.decode_survivors(message, size=len(context.cohort))
        if self._index not in survivors:
            raise RemoteProtocolError("survivors: this client sent its input but is not listed")
        listed = set(survivors)
        # Also in a sparse graph, where the argument of parameters.py rests on it.
        strangers = set(self._graph.neighbours(self._index)) & listed - set(self._held.shares)
        if strangers:
            raise RemoteProtocolError(
                f"survivors: {context.cohort[min(strangers)]!r} did not share"
            )
        self._check_floor(len(survivors), "survivors")
        self._statement = keys.survivors_statement(context.digest, self._view, survivors)
        # Of a long list, a client keeps what it needs: those whose signatures it counts and those
        # whose shares it holds.
        self._alive = listed & (self._graph.witnesses(self._index) | self._held.shares.keys())
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
        shares = self._held.shares
        reveal = Reveal(
            self_shares={i: held[0] for i, held in shares.items() if i in alive},
            root_shares={i: held[1] for i, held in shares.items() if i not in alive},
            layer_shares=self._excess_shares(),
        )
        return self._signed("unmask", reveal.encode())

    def _excess_shares(self) -> dict[int, bytes]:
        """Of each survivor the share of the seed of its first layer that is not needed."""
        if self._missing >= len(self._context.noise_layers):
            return {}
        shares = self._held.shares
        return {i: held[2 + self._missing] for i, held in shares.items() if i in self._alive}

    @property
    def _held(self) -> ClientSecrets:
        if self._secrets is None:
            raise LocalProtocolError("the round's secrets are gone")
        return self._secrets

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
        self._secrets = None
        self._layers = None
        self._contribution = None
