"""The server's half of a pairwise round.

It relays what clients say to each other, adds masked inputs as they arrive, and removes the masks
that do not cancel.  It never holds two masked inputs at once, and learns the sum of the survivors.

==================  =============================  ================================================
stage               clients' messages              what the server then knows and sends
==================  =============================  ================================================
``advertise``       keys and commitments           public keys; relays them, or in a sparse graph
                                                   the hash of all nonce commitments
``graph``           nonces (sparse graph only)     the ring's order; sends each client the nonces
                                                   and its neighbours' keys
``share``           sealed shares                  who shared; relays the envelopes
``masked_input``    masked inputs                  their sum; sends the list of survivors
``consistency``     signatures on that list        who agrees; relays signatures
``unmask``          one share of each client, and  each survivor's self-mask seed and each dropped
                    of each survivor's excess      client's root, hence the sum; the noise that is
                    noise where it is removed      more than the number of survivors asks for, which
                                                   it subtracts; sends nothing
==================  =============================  ================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from securefed.config import STAGES, Stage
from securefed.crypto.identity import MAX_SIGNATURE_BYTES
from securefed.crypto.prg import add_keystreams
from securefed.crypto.shamir import SHARE_BYTES
from securefed.encoding.fixed_point import to_ring
from securefed.encoding.wire import packed_size, unpack_ring
from securefed.errors import LocalProtocolError, RemoteProtocolError, ThresholdNotMet
from securefed.secagg import messages as wire_messages
from securefed.secagg import round_secrets as keys
from securefed.secagg.aggregator import Aggregate, RoundContext
from securefed.secagg.graph import (
    HASH_BYTES,
    NONCE_BYTES,
    Graph,
    commitments_hash,
    graph_seed,
    nonce_commitment,
)
from securefed.secagg.messages import Advertisement, Bundle, Neighbourhood, Reveal
from securefed.secagg.noise_layers import layers_commitment, noise_of
from securefed.secagg.pairwise_client import checked_keys
from securefed.secagg.recovery import Holders, check_commitment
from securefed.secagg.signed import Signed, verify

Mask = tuple[bytes, bool]
"""A keystream key, and whether the keystream is subtracted."""
MaskRemoval = Callable[[NDArray[np.uint32], Iterable[Mask]], None]
"""Applies masks to a vector in place; an engine may spread them over several cores."""

_NEXT: Final[dict[Stage, Stage | None]] = {
    "advertise": "graph",
    "graph": "share",
    "share": "masked_input",
    "masked_input": "consistency",
    "consistency": "unmask",
    "unmask": None,
}


def apply_masks(vector: NDArray[np.uint32], masks: Iterable[Mask]) -> None:
    """Apply the masks on one core."""
    add_keystreams(vector, masks)


class Outgoing(Mapping[str, bytes]):
    """Messages by client id, each encoded when it is asked for: never all in memory at once."""

    def __init__(self, names: Iterable[str], encode: Callable[[str], bytes]) -> None:
        self._names = dict.fromkeys(names)
        self._encode = encode

    def __getitem__(self, name: str) -> bytes:
        if name not in self._names:
            raise KeyError(name)
        return self._encode(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class PairwiseServer:
    """The server in one round.

    Args:
        context: what all parties agree on.
        remove_masks: applies the masks that do not cancel; on one core by default.

    Guarantees:
        - A message that is malformed, wrongly signed, out of turn or a second one is refused and
          changes nothing.
        - The result is the exact sum of the survivors' contributions mod 2^bits, or there is none:
          every reconstructed secret is checked against its owner's signed commitment.
        - With layers of noise, and D clients missing, layers D + 1 and later of every survivor are
          subtracted from it, as drawn from the seeds that they committed to.
    """

    def __init__(self, context: RoundContext, *, remove_masks: MaskRemoval = apply_masks) -> None:
        self._context = context
        self._remove_masks = remove_masks
        self._stage: Stage | None = STAGES[0]
        self._awaited: set[int] = set(range(len(context.cohort)))
        self._seen: set[int] = set()
        self._adverts: dict[int, Signed] = {}
        self._decoded: dict[int, Advertisement] = {}
        self._public_keys: set[bytes] = set()
        self._nonces: dict[int, bytes] = {}
        self._commitments = b""
        self._graph = Graph.complete(len(context.cohort))
        self._view = b""
        self._bundles: dict[int, dict[int, Bundle]] = {}
        self._edges: dict[tuple[int, int], tuple[bytes, bytes]] = {}
        self._sharers: frozenset[int] = frozenset()
        self._survivors: frozenset[int] = frozenset()
        self._statement = b""
        self._confirmations: dict[int, bytes] = {}
        self._reveals: dict[int, Reveal] = {}
        self._total: NDArray[np.uint32] = np.zeros(context.length, dtype=np.uint32)
        self._result: Aggregate | None = None
        self.wrong_shares: tuple[tuple[str, str], ...] = ()
        """Shares that were wrong and could be spared, once the round is over: who revealed one, and
        whose secret it was of.  Either may be at fault: the one who revealed it, or the one who
        dealt it."""

    @property
    def stage(self) -> Stage | None:
        """The stage whose messages are awaited; None once the round is over."""
        return self._stage

    @property
    def result(self) -> Aggregate:
        """The sum over the survivors.

        Raises:
            LocalProtocolError: the round is not over, or ended without a result.
        """
        if self._result is None:
            raise LocalProtocolError("the round has no result (yet)")
        return self._result

    def receive(self, client_id: str, message: bytes) -> None:
        """Take one client's message for the present stage.

        Run by: server.

        Raises:
            RemoteProtocolError: the message is refused, and why; the sender may be named.
            LocalProtocolError: the round is over.
        """
        stage = self._stage
        if stage is None:
            raise LocalProtocolError("receive: the round is over")
        sender = self._context.index(client_id)
        signed = Signed.decode(message, limit=self._limit(stage))
        if signed.sender != sender:
            raise RemoteProtocolError(f"{client_id!r} speaks as client number {signed.sender}")
        if sender in self._seen:
            raise RemoteProtocolError(f"{client_id!r} has already sent its {stage} message")
        if sender not in self._awaited:
            raise RemoteProtocolError(f"{client_id!r} dropped out before {stage}")
        verify(self._context, signed, stage)
        if stage == "advertise":
            self._add_advertisement(sender, client_id, signed)
        elif stage == "graph":
            self._add_nonce(sender, client_id, signed.body)
        elif stage == "share":
            self._add_bundles(sender, client_id, signed.body)
        elif stage == "masked_input":
            self._add_input(signed.body)
        elif stage == "consistency":
            self._add_confirmation(sender, client_id, signed.body)
        else:
            self._add_reveal(sender, client_id, signed.body)
        self._seen.add(sender)

    def advance(self) -> Mapping[str, bytes]:
        """End the present stage.

        Run by: server.  Pre-conditions: all messages that will be waited for were received.

        Returns:
            What to send to whom; empty after the last stage, when ``result`` is ready.

        Raises:
            ThresholdNotMet: too few clients are left; the round is over without a result.
            RemoteProtocolError: a reconstructed secret does not match its owner's commitment.
        """
        stage = self._stage
        if stage is None:
            raise LocalProtocolError("advance: the round is over")
        present, self._seen = sorted(self._seen), set()
        parameters = self._context.parameters
        floor = {"consistency": parameters.quorum, "unmask": parameters.threshold}.get(
            stage, parameters.survivor_floor
        )
        self._stage = None  # stays so unless this stage ends well
        if len(present) < floor:
            raise ThresholdNotMet(
                f"{stage}: {len(present)} clients answered, at least {floor} are needed"
            )
        next_stage = _NEXT[stage]
        if stage == "advertise":
            if parameters.sparse:
                outgoing = self._commit_to_nonces(present)
            else:
                next_stage = "share"
                everyone = wire_messages.encode_advertised(
                    {index: self._adverts[index].encode() for index in present}
                )
                outgoing = self._same_for(present, everyone)
        elif stage == "graph":
            outgoing = self._draw_graph(present)
        elif stage == "share":
            outgoing = self._deliver(present)
        elif stage == "masked_input":
            outgoing = self._list_survivors(present)
        elif stage == "consistency":
            outgoing = self._confirm(present)
        else:
            self._unmask()
            return {}
        self._awaited = {self._context.index(name) for name in outgoing}
        self._stage = next_stage
        return outgoing

    # -- what is sent ----------------------------------------------------------------------

    def _names(self, indices: Iterable[int]) -> list[str]:
        return [self._context.cohort[index] for index in indices]

    def _same_for(self, present: list[int], message: bytes) -> Outgoing:
        return Outgoing(self._names(present), lambda name: message)

    def _commit_to_nonces(self, present: list[int]) -> Outgoing:
        committed = {index: self._advert(index).nonce_commitment for index in present}
        self._commitments = commitments_hash(committed)
        return self._same_for(present, wire_messages.encode_commitments(self._commitments))

    def _draw_graph(self, present: list[int]) -> Outgoing:
        parameters, size = self._context.parameters, len(self._context.cohort)
        self._view = graph_seed(self._context.digest, self._nonces)
        self._graph = Graph.from_seed(
            self._view, size=size, degree=parameters.degree, witnesses=parameters.witnesses
        )
        withheld = {
            index: self._advert(index).nonce_commitment
            for index in self._adverts
            if index not in self._nonces
        }
        ring = Neighbourhood.encode_ring(self._nonces, withheld, size=size)
        signed = {index: self._adverts[index].encode() for index in self._nonces}

        def encode(name: str) -> bytes:
            around = self._graph.neighbours(self._context.index(name))
            messages = {index: signed[index] for index in around if index in signed}
            return ring + Neighbourhood.encode_keys(messages)

        return Outgoing(self._names(present), encode)

    def _deliver(self, present: list[int]) -> Outgoing:
        self._sharers = frozenset(present)
        bundles, self._bundles = self._bundles, {}  # the envelopes live as long as the messages
        if not self._context.parameters.sparse:
            self._view = keys.sharers_hash(
                {i: hashlib.sha256(self._adverts[i].body).digest() for i in present}
            )

        def encode(name: str) -> bytes:
            receiver = self._context.index(name)
            around = self._graph.neighbours(receiver)
            return wire_messages.encode_delivery(
                {sender: bundles[sender][receiver] for sender in around if sender in bundles}
            )

        return Outgoing(self._names(present), encode)

    def _list_survivors(self, present: list[int]) -> Outgoing:
        self._survivors = frozenset(present)
        self._statement = keys.survivors_statement(self._context.digest, self._view, present)
        listed = wire_messages.encode_survivors(present, size=len(self._context.cohort))
        return self._same_for(present, listed)

    def _confirm(self, present: list[int]) -> Outgoing:
        """Just the signatures that a client asks for; nothing to one that would not be content."""
        quorum = self._context.parameters.quorum

        def enough(index: int) -> list[int]:
            return sorted(self._graph.witnesses(index) & self._confirmations.keys())[:quorum]

        content = [index for index in present if len(enough(index)) == quorum]
        return Outgoing(
            self._names(content),
            lambda name: wire_messages.encode_confirmations(
                {i: self._confirmations[i] for i in enough(self._context.index(name))}
            ),
        )

    # -- what is received ------------------------------------------------------------------

    def _limit(self, stage: Stage) -> int:
        around = self._context.parameters.degree + 1
        layers = len(self._context.noise_layers)
        return {
            "advertise": Advertisement.size(layers),
            "graph": NONCE_BYTES + HASH_BYTES,
            "share": 4 + around * (4 + Bundle.limit(layers)),
            "masked_input": 32 + packed_size(self._context.length, self._context.bits),
            "consistency": MAX_SIGNATURE_BYTES,
            "unmask": 8 + around * (64 + (SHARE_BYTES if layers else 0)),
        }[stage]

    def _add_advertisement(self, sender: int, client_id: str, signed: Signed) -> None:
        advert = Advertisement.decode(signed.body, noise_layers=len(self._context.noise_layers))
        checked_keys(advert, client_id)
        fresh = {advert.mask_key, advert.envelope_key}
        if len(fresh) != 2 or fresh & self._public_keys:
            raise RemoteProtocolError(f"advertisement of {client_id!r}: a public key appears twice")
        self._public_keys |= fresh
        self._adverts[sender] = signed
        self._decoded[sender] = advert

    def _add_nonce(self, sender: int, client_id: str, body: bytes) -> None:
        nonce, commitments = body[:NONCE_BYTES], body[NONCE_BYTES:]
        if commitments != self._commitments:
            raise RemoteProtocolError(f"nonce of {client_id!r}: revealed for other commitments")
        promised = self._advert(sender).nonce_commitment
        if nonce_commitment(nonce, self._context.digest, sender) != promised:
            raise RemoteProtocolError(f"nonce of {client_id!r}: it committed to another one")
        self._nonces[sender] = nonce

    def _add_bundles(self, sender: int, client_id: str, body: bytes) -> None:
        """Keep bundles that every receiver will find rightly signed; one bad one refuses all."""
        there = self._nonces if self._context.parameters.sparse else self._adverts
        with_edge = {
            other: self._graph.gives(sender, other)
            for other in self._graph.neighbours(sender)
            if other in there
        }
        bundles = wire_messages.decode_shares(
            body, with_edge=with_edge, noise_layers=len(self._context.noise_layers)
        )
        for receiver, bundle in bundles.items():
            advert = self._advert(receiver)
            covered = bundle.signed_part(
                sender=sender,
                receiver=receiver,
                mask_key=advert.mask_key,
                envelope_key=advert.envelope_key,
            )
            self._context.roster[client_id].verify(
                bundle.signature, self._context.digest + covered, label=keys.SIGN_BUNDLE
            )
        self._bundles[sender] = bundles
        for receiver, bundle in bundles.items():
            if bundle.edge:
                self._edges[sender, receiver] = bundle.edge, bundle.edge_commitment

    def _add_input(self, body: bytes) -> None:
        view, packed = body[:32], body[32:]
        if view != self._view:
            raise RemoteProtocolError("masked_input: made for another list of sharers")
        self._total += unpack_ring(packed, self._context.length, self._context.bits)

    def _add_confirmation(self, sender: int, client_id: str, body: bytes) -> None:
        self._context.roster[client_id].verify(body, self._statement, label=keys.SIGN_SURVIVORS)
        self._confirmations[sender] = body

    def _add_reveal(self, sender: int, client_id: str, body: bytes) -> None:
        parameters = self._context.parameters
        reveal = Reveal.decode(
            body,
            size=len(self._context.cohort),
            limit=parameters.degree + 1,
            excess=self._missing < len(self._context.noise_layers),
        )
        held = {sender, *self._graph.neighbours(sender)} & self._sharers
        survivors = held & self._survivors
        if reveal.self_shares.keys() != survivors or reveal.root_shares.keys() != held - survivors:
            raise RemoteProtocolError(f"unmask: {client_id!r} revealed shares of the wrong clients")
        self._reveals[sender] = reveal

    @property
    def _missing(self) -> int:
        """Clients of the cohort that are not in the sum."""
        return len(self._context.cohort) - len(self._survivors)

    # -- the sum ---------------------------------------------------------------------------

    def _unmask(self) -> None:
        """Reconstruct one secret of each sharer and remove the masks it explains."""
        holders = Holders(self._context.parameters.threshold)
        self._remove_masks(self._total, self._left_masks(holders))
        self._remove_excess(holders)
        self._total &= np.uint32((1 << self._context.bits) - 1)
        cohort = self._context.cohort
        self.wrong_shares = tuple((cohort[i], cohort[j]) for i, j in holders.wrong)
        self._result = Aggregate(self._total, tuple(self._names(sorted(self._survivors))))

    def _left_masks(self, holders: Holders) -> Iterator[Mask]:
        """Every mask that is in the sum, as what takes it out again."""
        digest, cohort = self._context.digest, self._context.cohort
        shares: dict[int, dict[int, bytes]] = {}
        for holder, reveal in self._reveals.items():
            for revealed in (reveal.self_shares, reveal.root_shares):
                for owner, share in revealed.items():
                    shares.setdefault(owner, {})[holder] = share
        for index in sorted(self._survivors):
            seed = holders.secret(
                shares.get(index, {}),
                partial(keys.self_commitment, digest=digest, index=index),
                self._advert(index).self_commitment,
                index,
                cohort[index],
            )
            yield keys.self_keystream_key(seed, digest, self._view, index), True
        for index in sorted(self._sharers - self._survivors):
            root = holders.secret(
                shares.get(index, {}),
                partial(keys.root_commitment, digest=digest, index=index),
                self._advert(index).root_commitment,
                index,
                cohort[index],
            )
            yield from self._pair_masks(index, root)

    def _remove_excess(self, holders: Holders) -> None:
        """Subtract the layers of every survivor that as many survivors do not need."""
        missing, layers = self._missing, len(self._context.noise_layers)
        if missing >= layers:
            return
        digest, cohort = self._context.digest, self._context.cohort
        for index in sorted(self._survivors):
            seed = holders.secret(
                {holder: reveal.layer_shares[index] for holder, reveal in self._reveals.items()},
                partial(layers_commitment, digest=digest, index=index, count=layers - missing),
                self._advert(index).layers_commitment,
                index,
                cohort[index],
            )
            self._total -= to_ring(noise_of(seed, self._context, index, missing))

    def _pair_masks(self, dropped: int, root: bytes) -> Iterator[Mask]:
        """What the survivors masked towards a client that then dropped out."""
        digest = self._context.digest
        mask_key = keys.mask_key_pair(root, digest, dropped)
        if mask_key.public.raw != self._advert(dropped).mask_key:
            raise RemoteProtocolError(
                f"{self._context.cohort[dropped]!r} advertised a mask key that does not follow "
                "from its root"
            )
        for survivor in sorted(self._survivors.intersection(self._graph.neighbours(dropped))):
            if self._graph.gives(dropped, survivor):
                giver, taker = dropped, survivor
                edge, promised = self._edges[giver, taker]
                secret = keys.edge_secret(root, digest, giver, taker, self._advert(taker).mask_key)
            else:
                giver, taker = survivor, dropped
                edge, promised = self._edges[giver, taker]
                try:
                    secret = mask_key.open(edge, info=keys.edge_info(digest, giver, taker))
                except RemoteProtocolError as error:
                    name = self._context.cohort[giver]
                    raise RemoteProtocolError(f"an edge secret of {name!r}: {error}") from None
            check_commitment(
                keys.edge_commitment(secret, digest, giver, taker),
                promised,
                self._context.cohort[giver],
            )
            # The survivor added this keystream if it is the lower one, and subtracted it if higher.
            low, high = min(dropped, survivor), max(dropped, survivor)
            yield keys.pair_keystream_key(secret, digest, self._view, low, high), survivor == low

    def _advert(self, index: int) -> Advertisement:
        return self._decoded[index]
