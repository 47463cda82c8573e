"""The client's half of a pairwise round.

Protocol: Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning", the protocol's figure, in the variant for active adversaries, on a complete graph;
pairwise secrets are
hybrid post-quantum and follow from one root (:mod:`securefed.secagg.round_secrets`).

======================  =============================  ==========================================
state                   server's message               what the client then knows and sends
======================  =============================  ==========================================
``NEW``                 (``start``)                    own secrets; sends keys and commitments
``ADVERTISED``          advertisements                 everyone's keys; sends sealed shares
``SHARED``              bundles for this client        who shared; sends its **masked input**
``MASKED``              survivor list                  who survived; signs that list, once
``CONFIRMED``           signatures on the list         that enough honest clients signed the same;
                                                       sends one share of each sharer, once
``DONE`` / ``FAILED``   nothing is accepted            secrets are forgotten
======================  =============================  ==========================================

A message of the wrong type for the present state is refused and changes nothing.  A message of the
right type with bad content ends the round for this client: it forgets its secrets.
"""

from __future__ import annotations

import enum
import hashlib
from typing import Final

import numpy as np

from securefed.crypto.identity import IdentityKey
from securefed.crypto.keys import HybridPrivateKey, HybridPublicKey
from securefed.crypto.prg import RandomBytes, SecretHolder, add_keystream, draw, system_random
from securefed.crypto.shamir import SHARE_BYTES, share
from securefed.encoding.wire import Reader, Writer, pack_ring
from securefed.errors import ConfigError, LocalProtocolError, RemoteProtocolError, ThresholdNotMet
from securefed.secagg import messages as wire_messages
from securefed.secagg import round_secrets as keys
from securefed.secagg.aggregator import Contribution, RoundContext
from securefed.secagg.messages import Advertisement, Bundle, Reveal, Signed


class ClientState(enum.Enum):
    """Where a client stands in a round."""

    NEW = "new"
    ADVERTISED = "advertised"
    SHARED = "shared"
    MASKED = "masked"
    CONFIRMED = "confirmed"
    DONE = "done"
    FAILED = "failed"


_EXPECTED: Final = {
    ClientState.ADVERTISED: (wire_messages.ADVERTISED, ClientState.SHARED),
    ClientState.SHARED: (wire_messages.DELIVERY, ClientState.MASKED),
    ClientState.MASKED: (wire_messages.SURVIVORS, ClientState.CONFIRMED),
    ClientState.CONFIRMED: (wire_messages.CONFIRMATIONS, ClientState.DONE),
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
        random: source of round secrets; the operating system's generator outside tests.

    Guarantees:
        - Nothing that depends on the contribution is sent before the masked input.
        - At most one share of each client is revealed, of one kind, once.
        - No share is revealed unless ``threshold`` clients of the survivor list signed that very
          list, and it holds at least ``survivor_floor`` clients and this one.

    Raises:
        LocalProtocolError: the identity is not the one in the roster, or the cohort is smaller
            than ``min_clients``.
    """

    def __init__(
        self,
        context: RoundContext,
        client_id: str,
        identity: IdentityKey,
        contribution: Contribution,
        *,
        min_clients: int = 2,
        random: RandomBytes = system_random,
    ) -> None:
        self._context = context
        self._index = context.index(client_id)
        if context.roster[client_id] != identity.public:
            raise LocalProtocolError(
                f"client {client_id!r}: the roster holds another identity key for it"
            )
        self._floor = max(min_clients, context.parameters.survivor_floor)
        if len(context.cohort) < self._floor:
            raise LocalProtocolError(
                f"cohort of {len(context.cohort)} clients: this client takes part from "
                f"{self._floor} on"
            )
        self._identity = identity
        self._contribution: Contribution | None = contribution
        self._random = random
        self._root = b""
        self._self_seed = b""
        self._mask_key: HybridPrivateKey | None = None
        self._envelope_key: HybridPrivateKey | None = None
        self._adverts: dict[int, Advertisement] = {}
        self._own_shares: tuple[bytes, bytes] = (b"", b"")
        self._shares: dict[int, tuple[bytes, bytes]] = {}
        self._sharers: list[int] = []
        self._survivors: list[int] = []
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
        self._mask_key = keys.mask_key_pair(self._root, digest, self._index)
        self._envelope_key = HybridPrivateKey.generate(self._random)
        advertisement = Advertisement(
            mask_key=self._mask_key.public.raw,
            envelope_key=self._envelope_key.public.raw,
            root_commitment=keys.root_commitment(self._root, digest, self._index),
            self_commitment=keys.self_commitment(self._self_seed, digest, self._index),
        )
        self._adverts[self._index] = advertisement
        self.state = ClientState.ADVERTISED
        return self._signed("advertise", advertisement.encode())

    def handle(self, message: bytes) -> bytes:
        """Answer the server's message for the present state.

        Raises:
            RemoteProtocolError: out of order (nothing changes), or bad content (the round is over
                for this client).
            ThresholdNotMet: too few clients are left (the round is over).
        """
        if self.state not in _EXPECTED:
            raise RemoteProtocolError(f"the round is {self.state.value}: no message is accepted")
        expected, next_state = _EXPECTED[self.state]
        found = message_type(message)
        if found != expected:
            raise RemoteProtocolError(
                f"message type {found} while {self.state.value}: only type {expected} is accepted"
            )
        answer = b""
        try:
            if self.state is ClientState.ADVERTISED:
                answer = self._share(message)
            elif self.state is ClientState.SHARED:
                answer = self._mask(message)
            elif self.state is ClientState.MASKED:
                answer = self._confirm(message)
            else:
                answer = self._reveal(message)
            self.state = next_state
        finally:
            if not answer:
                self.state = ClientState.FAILED
            if self.state in (ClientState.DONE, ClientState.FAILED):
                self._forget()
        return answer

    def _share(self, message: bytes) -> bytes:
        """Stage 1.  Check everyone's keys; seal one share of each secret to each of them."""
        context, me = self._context, self._index
        for signed in wire_messages.decode_advertised(message, size=len(context.cohort)):
            self._verify(signed, "advertise")
            advert = Advertisement.decode(signed.body)
            check_keys(advert, context.cohort[signed.sender])
            if signed.sender == me:
                if advert != self._adverts[me]:
                    raise RemoteProtocolError("advertisements: another one stands for this client")
                continue
            self._adverts[signed.sender] = advert
        self._check_floor(len(self._adverts), "advertisements")
        public = [key for a in self._adverts.values() for key in (a.mask_key, a.envelope_key)]
        if len(set(public)) != len(public):
            raise RemoteProtocolError("advertisements: a public key appears twice")
        points = [index + 1 for index in self._adverts]
        threshold = context.parameters.threshold
        roots = share(self._root, threshold=threshold, points=points, random=self._random)
        selves = share(self._self_seed, threshold=threshold, points=points, random=self._random)
        self._own_shares = (selves[me + 1], roots[me + 1])
        bundles = {
            other: self._bundle_for(other, selves[other + 1], roots[other + 1])
            for other in self._adverts
            if other != me
        }
        return self._signed("share", wire_messages.encode_shares(bundles))

    def _bundle_for(self, other: int, self_share: bytes, root_share: bytes) -> Bundle:
        digest, me, advert = self._context.digest, self._index, self._adverts[other]
        receiver = HybridPublicKey.from_bytes(advert.envelope_key)
        info = keys.envelope_info(digest, me, other, self._adverts[me].envelope_key, receiver)
        edge = commitment = b""
        if me < other:
            secret = keys.edge_secret(self._root, digest, me, other, advert.mask_key)
            edge = HybridPublicKey.from_bytes(advert.mask_key).seal(
                secret, info=keys.edge_info(digest, me, other)
            )
            commitment = keys.edge_commitment(secret, digest, me, other)
        unsigned = Bundle(receiver.seal(self_share + root_share, info=info), edge, commitment, b"")
        covered = unsigned.signed_part(
            sender=me, receiver=other, mask_key=advert.mask_key, envelope_key=advert.envelope_key
        )
        signature = self._identity.sign(digest + covered, label=keys.SIGN_BUNDLE)
        return Bundle(unsigned.envelope, edge, commitment, signature)

    def _mask(self, message: bytes) -> bytes:
        """Stage 2.  Open every bundle; only then make the contribution, and mask it."""
        context, me = self._context, self._index
        bundles = wire_messages.decode_delivery(message, receiver=me, size=len(context.cohort))
        strangers = [sender for sender in bundles if sender not in self._adverts]
        if strangers:
            raise RemoteProtocolError(
                f"delivery: {context.cohort[strangers[0]]!r} did not advertise keys"
            )
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
        self._sharers = sorted([*bundles, me])
        if self._contribution is None:
            raise LocalProtocolError("the contribution was already made")
        contribution, self._contribution = self._contribution, None
        vector = contribution()
        if vector.dtype != np.uint32 or vector.shape != (context.length,):
            raise LocalProtocolError(
                f"contribution: {vector.dtype}[{vector.shape}], must be uint32[{context.length}]"
            )
        masked = vector.copy()
        sharers = self._view()
        add_keystream(masked, keys.self_keystream_key(self._self_seed, context.digest, sharers, me))
        for other, secret in edges.items():
            low, high = min(me, other), max(me, other)
            key = keys.pair_keystream_key(secret, context.digest, sharers, low, high)
            add_keystream(masked, key, subtract=me == high)
        packed = pack_ring(masked, context.bits)
        return self._signed("masked_input", sharers + packed)

    def _open(self, sender: int, bundle: Bundle) -> bytes:
        """Check a bundle, keep its shares, return the secret of this edge."""
        context, me, own = self._context, self._index, self._adverts[self._index]
        name = context.cohort[sender]
        covered = bundle.signed_part(
            sender=sender, receiver=me, mask_key=own.mask_key, envelope_key=own.envelope_key
        )
        context.roster[name].verify(
            bundle.signature, context.digest + covered, label=keys.SIGN_BUNDLE
        )
        if self._envelope_key is None or self._mask_key is None:
            raise LocalProtocolError("the round's keys are gone")
        info = keys.envelope_info(
            context.digest,
            sender,
            me,
            self._adverts[sender].envelope_key,
            self._envelope_key.public,
        )
        opened = self._envelope_key.open(bundle.envelope, info=info)
        reader = Reader(opened)
        self._shares[sender] = (
            reader.fixed(SHARE_BYTES, field="self share"),
            reader.fixed(SHARE_BYTES, field="root share"),
        )
        reader.finish()
        if me < sender:
            return keys.edge_secret(
                self._root, context.digest, me, sender, self._adverts[sender].mask_key
            )
        secret = self._mask_key.open(bundle.edge, info=keys.edge_info(context.digest, sender, me))
        if keys.edge_commitment(secret, context.digest, sender, me) != bundle.edge_commitment:
            raise RemoteProtocolError("its edge secret does not match its commitment")
        return secret

    def _confirm(self, message: bytes) -> bytes:
        """Stage 3.  Sign the survivor list, once."""
        survivors = wire_messages.decode_survivors(
            wire_messages.SURVIVORS, message, size=len(self._context.cohort)
        )
        if self._index not in survivors:
            raise RemoteProtocolError("survivors: this client sent its input but is not listed")
        strangers = set(survivors) - set(self._sharers)
        if strangers:
            name = self._context.cohort[min(strangers)]
            raise RemoteProtocolError(f"survivors: {name!r} did not share")
        self._check_floor(len(survivors), "survivors")
        self._survivors = survivors
        return self._signed(
            "consistency", self._identity.sign(self._statement(), label=keys.SIGN_SURVIVORS)
        )

    def _view(self) -> bytes:
        return keys.sharers_hash({i: self._adverts[i].encode() for i in self._sharers})

    def _statement(self) -> bytes:
        return keys.survivors_statement(self._context.digest, self._view(), self._survivors)

    def _reveal(self, message: bytes) -> bytes:
        """Stage 4.  Check that enough survivors signed the same list; reveal one share each."""
        context = self._context
        signatures = wire_messages.decode_confirmations(message, size=len(context.cohort))
        outsiders = set(signatures) - set(self._survivors)
        if outsiders:
            name = context.cohort[min(outsiders)]
            raise RemoteProtocolError(f"confirmations: {name!r} is not a survivor")
        for signer, signature in signatures.items():
            context.roster[context.cohort[signer]].verify(
                signature, self._statement(), label=keys.SIGN_SURVIVORS
            )
        threshold = context.parameters.threshold
        if len(signatures) < threshold:
            raise ThresholdNotMet(
                f"confirmations: {len(signatures)} signatures, at least {threshold} are needed"
            )
        alive = set(self._survivors)
        reveal = Reveal(
            self_shares={i: self._shares[i][0] for i in self._sharers if i in alive},
            root_shares={i: self._shares[i][1] for i in self._sharers if i not in alive},
        )
        return self._signed("unmask", reveal.encode())

    def _check_floor(self, count: int, what: str) -> None:
        if count < self._floor:
            raise ThresholdNotMet(f"{what}: {count} clients, at least {self._floor} are needed")

    def _verify(self, signed: Signed, stage: str) -> None:
        name = self._context.cohort[signed.sender]
        self._context.roster[name].verify(
            signed.signature,
            signing_input(self._context.digest, signed.sender, signed.body),
            label=keys.stage_label(stage),
        )

    def _signed(self, stage: str, body: bytes) -> bytes:
        signature = self._identity.sign(
            signing_input(self._context.digest, self._index, body), label=keys.stage_label(stage)
        )
        return Signed(self._index, body, signature).encode()

    def _forget(self) -> None:
        self._root = self._self_seed = b""
        self._mask_key = self._envelope_key = None
        self._own_shares = (b"", b"")
        self._shares.clear()
        self._contribution = None


def check_keys(advert: Advertisement, owner: str) -> None:
    """Both public keys must be valid.

    Raises:
        RemoteProtocolError: names the owner.
    """
    try:
        HybridPublicKey.from_bytes(advert.mask_key)
        HybridPublicKey.from_bytes(advert.envelope_key)
    except (RemoteProtocolError, ConfigError) as error:
        raise RemoteProtocolError(f"advertisement of {owner!r}: {error}") from None


def signing_input(digest: bytes, sender: int, body: bytes) -> bytes:
    """What a client's signature on a whole message covers; the body by its hash."""
    writer = Writer()
    writer.fixed(digest, 32)
    writer.u32(sender)
    writer.fixed(hashlib.sha256(body).digest(), 32)
    return writer.done()
