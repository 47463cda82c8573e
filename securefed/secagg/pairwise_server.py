"""The server's half of a pairwise round.

It relays what clients say to each other, adds masked inputs as they arrive, and removes the masks
that do not cancel.  It never holds two masked inputs at once, and learns the sum of the survivors.

==================  =============================  ================================================
stage               messages                       what the server then knows and sends
==================  =============================  ================================================
``advertise``       keys and commitments; the      public keys; relays them, or in a sparse graph
                    decryptor's offer              the hash of all nonce commitments
``graph``           nonces (sparse graph only)     the ring's order; sends each client the nonces
                                                   and its neighbours' keys
``share``           sealed shares                  who shared; relays the envelopes, and the offer
``masked_input``    masked inputs                  their sum; sends the list of survivors
``consistency``     signatures on that list        who agrees; relays signatures, to the decryptor
                                                   with the encrypted sum
``unmask``          one share of each client, and  each survivor's self-mask seed and each dropped
                    of each survivor's excess      client's root, hence the sum; the noise that is
                    noise where it is removed;     more than the number of survivors asks for, which
                    the opened slots               it subtracts; sends nothing
==================  =============================  ================================================

There are an offer and slots, and a decryptor, where contributions are encrypted beneath their masks
(:mod:`securefed.secagg.carriers`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from securefed.config import STAGES, Stage
from securefed.crypto.identity import MAX_SIGNATURE_BYTES
from securefed.crypto.shamir import SHARE_BYTES
from securefed.encoding.fixed_point import to_ring
from securefed.errors import LocalProtocolError, RemoteProtocolError, ThresholdNotMet
from securefed.secagg import messages as wire_messages
from securefed.secagg import round_secrets as keys
from securefed.secagg.aggregator import Aggregate, Outgoing, RoundContext
from securefed.secagg.carriers import (
    MaskRemoval,
    RingSum,
    SlotSum,
    SumCarrier,
    apply_masks,
    check_masked,
)
from securefed.secagg.encryption import DECRYPTOR
from securefed.secagg.graph import (
    HASH_BYTES,
    NONCE_BYTES,
)
from securefed.secagg.key_holder import list_quorum
from securefed.secagg.messages import Advertisement, Bundle, Reveal
from securefed.secagg.relay import Relay
from securefed.secagg.signed import Signed, party_number, verify
from securefed.secagg.unmasking import Unmasking

_NEXT: Final[dict[Stage, Stage | None]] = {
    "advertise": "graph",
    "graph": "share",
    "share": "masked_input",
    "masked_input": "consistency",
    "consistency": "unmask",
    "unmask": None,
}


class PairwiseServer:
    """The server in one round.

    Args:
        context: what all parties agree on.
        remove_masks: applies the masks that do not cancel, where nothing is encrypted; on one core
            by default.

    Guarantees:
        - A message that is malformed, wrongly signed, out of turn or a second one is refused and
          changes nothing.
        - The result is the exact sum of the survivors' contributions mod 2^bits, or there is none:
          every reconstructed secret is checked against its owner's signed commitment.  In an
          encrypted round the decryptor is taken at its word for what the ciphertexts open to.
        - With layers of noise, and D clients missing, layers D + 1 and later of every survivor are
          subtracted from it, as drawn from the seeds that they committed to.
    """

    def __init__(self, context: RoundContext, *, remove_masks: MaskRemoval = apply_masks) -> None:
        check_masked(context)
        self._context = context
        self._stage: Stage | None = STAGES[0]
        self._awaited: set[int] = set(range(len(context.cohort) + context.has_decryptor))
        self._seen: set[int] = set()
        self._relay = Relay(context)
        self._view = b""
        self._sharers: frozenset[int] = frozenset()
        self._survivors: frozenset[int] = frozenset()
        self._statement = b""
        self._confirmations: dict[int, bytes] = {}
        self._reveals: dict[int, Reveal] = {}
        self._slots = None if context.encryption is None else SlotSum(context)
        self._sum: SumCarrier = self._slots or RingSum(context.length, context.bits, remove_masks)
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
        """Take the message of one client, or of the decryptor, for the present stage.

        Run by: server.

        Raises:
            RemoteProtocolError: the message is refused, and why; the sender may be named.
            LocalProtocolError: the round is over.
        """
        stage = self._stage
        if stage is None:
            raise LocalProtocolError("receive: the round is over")
        sender = party_number(self._context, client_id)
        if self._slots is not None and client_id == DECRYPTOR:
            self._check_turn(stage, sender, client_id)
            if stage == "advertise":
                self._slots.take_offer(message)
            else:
                self._slots.take_opened(message)
            self._seen.add(sender)
            return
        signed = Signed.decode(message, limit=self._limit(stage))
        if signed.sender != sender:
            raise RemoteProtocolError(f"{client_id!r} speaks as client number {signed.sender}")
        self._check_turn(stage, sender, client_id)
        verify(self._context, signed, stage)
        if stage == "advertise":
            self._relay.add_advertisement(signed)
        elif stage == "graph":
            self._relay.add_nonce(signed)
        elif stage == "share":
            self._relay.add_bundles(signed)
        elif stage == "masked_input":
            self._add_input(signed.body)
        elif stage == "consistency":
            self._add_confirmation(sender, client_id, signed.body)
        else:
            self._add_reveal(sender, client_id, signed.body)
        self._seen.add(sender)

    def _check_turn(self, stage: Stage, sender: int, name: str) -> None:
        if sender in self._seen:
            raise RemoteProtocolError(f"{name!r} has already sent its {stage} message")
        if sender not in self._awaited:
            raise RemoteProtocolError(f"{name!r} is not awaited in {stage}, or dropped out before")

    def advance(self) -> Mapping[str, bytes]:
        """End the present stage.

        Run by: server.  Pre-conditions: all messages that will be waited for were received.

        Returns:
            What to send to whom; empty after the last stage, when ``result`` is ready.

        Raises:
            ThresholdNotMet: too few clients are left, or the decryptor is silent; the round is over
                without a result.
            RemoteProtocolError: a reconstructed secret does not match its owner's commitment.
        """
        stage = self._stage
        if stage is None:
            raise LocalProtocolError("advance: the round is over")
        decryptor = len(self._context.cohort)
        silent, present = self._awaited - self._seen, sorted(self._seen - {decryptor})
        self._seen = set()
        floor = self._floor(stage)
        self._stage = None  # stays so unless this stage ends well
        if len(present) < floor:
            raise ThresholdNotMet(
                f"{stage}: {len(present)} clients answered, at least {floor} are needed "
                "(dropout_fraction says how many may fall silent); no sum was opened"
            )
        if decryptor in silent:
            raise ThresholdNotMet(f"{stage}: {DECRYPTOR!r} did not answer, and it alone has a key")
        next_stage = _NEXT[stage]
        if stage == "advertise":
            if self._context.parameters.sparse:
                outgoing = self._same_for(present, self._relay.commit_to_nonces(present))
            else:
                next_stage = "share"
                outgoing = self._same_for(present, self._relay.advertised(present))
        elif stage == "graph":
            outgoing = Outgoing(self._names(present), self._relay.draw_graph())
        elif stage == "share":
            outgoing = self._deliver(present)
        elif stage == "masked_input":
            outgoing = self._list_survivors(present)
        elif stage == "consistency":
            outgoing = self._confirm(present)
        else:
            self._unmask()
            return {}
        self._awaited = {party_number(self._context, name) for name in outgoing}
        self._stage = next_stage
        return outgoing

    def _floor(self, stage: Stage) -> int:
        """How many clients must answer."""
        parameters = self._context.parameters
        if stage == "unmask":
            return parameters.threshold
        if stage != "consistency":
            return parameters.survivor_floor
        if self._slots is None:
            return parameters.quorum
        return max(parameters.quorum, list_quorum(self._context))

    # -- what is sent ----------------------------------------------------------------------

    def _names(self, indices: Iterable[int]) -> list[str]:
        return [self._context.cohort[index] for index in indices]

    def _same_for(self, present: list[int], message: bytes) -> Outgoing:
        return Outgoing(self._names(present), lambda name: message)

    def _deliver(self, present: list[int]) -> Outgoing:
        self._sharers = frozenset(present)
        addressed = self._relay.deliver(present)
        if self._slots is None:
            self._view = self._relay.view
            return Outgoing(
                self._names(present), lambda name: wire_messages.encode_delivery(addressed(name))
            )
        offer = self._slots.offer
        self._view = offer.view(self._relay.view)
        return Outgoing(
            self._names(present),
            lambda name: wire_messages.encode_keyed_delivery(offer.encoded, addressed(name)),
        )

    def _list_survivors(self, present: list[int]) -> Outgoing:
        self._survivors = frozenset(present)
        self._statement = keys.survivors_statement(self._context.digest, self._view, present)
        listed = wire_messages.encode_survivors(present, size=len(self._context.cohort))
        return self._same_for(present, listed)

    def _confirm(self, present: list[int]) -> Outgoing:
        """Just the signatures that a client asks for; nothing to one that would not be content."""
        quorum = self._context.parameters.quorum

        def enough(index: int) -> list[int]:
            return sorted(self._relay.graph.witnesses(index) & self._confirmations.keys())[:quorum]

        content = [index for index in present if len(enough(index)) == quorum]
        names = self._names(content) + ([] if self._slots is None else [DECRYPTOR])

        def encode(name: str) -> bytes:
            if self._slots is not None and name == DECRYPTOR:
                survivors = tuple(sorted(self._survivors))
                return self._slots.request(self._relay.view, survivors, self._confirmations)
            return wire_messages.encode_confirmations(
                {i: self._confirmations[i] for i in enough(self._context.index(name))}
            )

        return Outgoing(names, encode)

    # -- what is received ------------------------------------------------------------------

    def _limit(self, stage: Stage) -> int:
        around = self._context.parameters.degree + 1
        layers = len(self._context.noise_layers)
        return {
            "advertise": Advertisement.size(layers),
            "graph": NONCE_BYTES + HASH_BYTES,
            "share": 4 + around * (4 + Bundle.limit(layers)),
            "masked_input": 32 + self._sum.size,
            "consistency": MAX_SIGNATURE_BYTES,
            "unmask": 8 + around * (64 + (SHARE_BYTES if layers else 0)),
        }[stage]

    def _add_input(self, body: bytes) -> None:
        if body[:32] != self._view:
            raise RemoteProtocolError("masked_input: made for other sharers or another key")
        self._sum.add(body[32:])

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
        held = {sender, *self._relay.graph.neighbours(sender)} & self._sharers
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
        """Reconstruct one secret of each sharer and remove what it explains."""
        left = self._unmasking()
        total = self._sum.unmasked(left.masks())
        for noise in left.excess(self._missing):
            total -= to_ring(noise)
        total &= np.uint32((1 << self._context.bits) - 1)
        cohort = self._context.cohort
        self.wrong_shares = tuple((cohort[i], cohort[j]) for i, j in left.holders.wrong)
        self._result = Aggregate(total, tuple(self._names(sorted(self._survivors))))

    def _unmasking(self) -> Unmasking:
        return Unmasking(
            context=self._context,
            graph=self._relay.graph,
            view=self._view,
            adverts=self._relay.adverts,
            edges=self._relay.edges,
            sharers=self._sharers,
            survivors=self._survivors,
            reveals=self._reveals,
        )
