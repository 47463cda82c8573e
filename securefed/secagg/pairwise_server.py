"""The server's half of a pairwise round.

It relays what clients say to each other, adds masked inputs as they arrive, and removes the masks
that do not cancel.  It never holds two masked inputs at once, and learns the sum of the survivors.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from securefed.config import STAGES, Stage
from securefed.crypto.prg import add_keystream
from securefed.encoding.wire import packed_size, unpack_ring
from securefed.errors import LocalProtocolError, RemoteProtocolError, ThresholdNotMet
from securefed.secagg import messages as wire_messages
from securefed.secagg import round_secrets as keys
from securefed.secagg.aggregator import Aggregate, RoundContext
from securefed.secagg.messages import Advertisement, Bundle, Reveal, Signed
from securefed.secagg.pairwise_client import check_keys, signing_input
from securefed.secagg.recovery import Holders, check_commitment

_NEXT: Final[dict[Stage, Stage | None]] = {
    "advertise": "share",
    "share": "masked_input",
    "masked_input": "consistency",
    "consistency": "unmask",
    "unmask": None,
}


class PairwiseServer:
    """The server in one round.

    Args:
        context: what all parties agree on.

    Guarantees:
        - A message that is malformed, wrongly signed, out of turn or a second one is refused and
          changes nothing.
        - The result is the exact sum of the survivors' contributions mod 2^bits, or there is none:
          every reconstructed secret is checked against its owner's signed commitment.
    """

    def __init__(self, context: RoundContext) -> None:
        self._context = context
        self._stage: Stage | None = STAGES[0]
        self._seen: set[int] = set()
        self._adverts: dict[int, Signed] = {}
        self._bundles: dict[int, dict[int, Bundle]] = {}
        self._survivors: list[int] = []
        self._confirmations: dict[int, bytes] = {}
        self._reveals: dict[int, Reveal] = {}
        self._total: NDArray[np.uint32] = np.zeros(context.length, dtype=np.uint32)
        self._result: Aggregate | None = None
        self.wrong_shares: tuple[str, ...] = ()
        """Clients whose revealed shares were wrong and were left out, once the round is over."""

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
        if sender not in self._awaited(stage):
            raise RemoteProtocolError(f"{client_id!r} dropped out before {stage}")
        self._context.roster[client_id].verify(
            signed.signature,
            signing_input(self._context.digest, sender, signed.body),
            label=keys.stage_label(stage),
        )
        if stage == "advertise":
            self._add_advertisement(sender, client_id, signed)
        elif stage == "share":
            self._add_bundles(sender, client_id, signed.body)
        elif stage == "masked_input":
            self._add_input(signed.body)
        elif stage == "consistency":
            self._add_confirmation(sender, client_id, signed.body)
        else:
            self._add_reveal(sender, client_id, signed.body)
        self._seen.add(sender)

    def advance(self) -> dict[str, bytes]:
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
        floor = (
            parameters.threshold
            if stage in ("consistency", "unmask")
            else parameters.survivor_floor
        )
        self._stage = None  # stays so unless this stage ends well
        if len(present) < floor:
            raise ThresholdNotMet(
                f"{stage}: {len(present)} clients answered, at least {floor} are needed"
            )
        if stage == "advertise":
            everyone = wire_messages.encode_advertised(
                {index: self._adverts[index].encode() for index in present}
            )
            outgoing = dict.fromkeys(present, everyone)
        elif stage == "share":
            outgoing = {
                receiver: wire_messages.encode_delivery(
                    {s: self._bundles[s][receiver] for s in present if s != receiver}
                )
                for receiver in present
            }
        elif stage == "masked_input":
            self._survivors = present
            listed = wire_messages.encode_survivors(wire_messages.SURVIVORS, present)
            outgoing = dict.fromkeys(present, listed)
        elif stage == "consistency":
            confirmed = wire_messages.encode_confirmations(self._confirmations)
            outgoing = dict.fromkeys(present, confirmed)
        else:
            self._unmask()
            return {}
        self._stage = _NEXT[stage]
        return {self._context.cohort[index]: message for index, message in outgoing.items()}

    def _awaited(self, stage: Stage) -> set[int]:
        if stage == "advertise":
            return set(range(len(self._context.cohort)))
        if stage == "share":
            return set(self._adverts)
        if stage == "masked_input":
            return set(self._bundles)
        return set(self._survivors) if stage == "consistency" else set(self._confirmations)

    def _limit(self, stage: Stage) -> int:
        size = len(self._context.cohort)
        return {
            "advertise": Advertisement.SIZE,
            "share": 4 + size * (4 + Bundle.LIMIT),
            "masked_input": 32 + packed_size(self._context.length, self._context.bits),
            "consistency": wire_messages.SIGNATURE_BYTES,
            "unmask": 8 + size * 64,
        }[stage]

    def _sharers(self) -> list[int]:
        return sorted(self._bundles)

    def _view(self) -> bytes:
        return keys.sharers_hash({index: self._adverts[index].body for index in self._bundles})

    def _add_advertisement(self, sender: int, client_id: str, signed: Signed) -> None:
        advert = Advertisement.decode(signed.body)
        check_keys(advert, client_id)
        taken = {key for i in self._adverts for key in self._public_keys(i)}
        if advert.mask_key == advert.envelope_key or taken & {advert.mask_key, advert.envelope_key}:
            raise RemoteProtocolError(f"advertisement of {client_id!r}: a public key appears twice")
        self._adverts[sender] = signed

    def _public_keys(self, index: int) -> tuple[bytes, bytes]:
        advert = self._advert(index)
        return advert.mask_key, advert.envelope_key

    def _add_bundles(self, sender: int, client_id: str, body: bytes) -> None:
        """Keep bundles that every receiver will find rightly signed; one bad one refuses all."""
        receivers = [index for index in self._adverts if index != sender]
        bundles = wire_messages.decode_shares(body, sender=sender, receivers=receivers)
        for receiver, bundle in bundles.items():
            mask_key, envelope_key = self._public_keys(receiver)
            covered = bundle.signed_part(
                sender=sender, receiver=receiver, mask_key=mask_key, envelope_key=envelope_key
            )
            self._context.roster[client_id].verify(
                bundle.signature, self._context.digest + covered, label=keys.SIGN_BUNDLE
            )
        self._bundles[sender] = bundles

    def _add_input(self, body: bytes) -> None:
        sharers, packed = body[:32], body[32:]
        if sharers != self._view():
            raise RemoteProtocolError("masked_input: made for another list of sharers")
        self._total += unpack_ring(packed, self._context.length, self._context.bits)

    def _add_confirmation(self, sender: int, client_id: str, body: bytes) -> None:
        statement = keys.survivors_statement(self._context.digest, self._view(), self._survivors)
        self._context.roster[client_id].verify(body, statement, label=keys.SIGN_SURVIVORS)
        self._confirmations[sender] = body

    def _add_reveal(self, sender: int, client_id: str, body: bytes) -> None:
        reveal = Reveal.decode(body, size=len(self._context.cohort))
        survivors = set(self._survivors)
        if set(reveal.self_shares) != survivors or set(reveal.root_shares) != (
            set(self._sharers()) - survivors
        ):
            raise RemoteProtocolError(f"unmask: {client_id!r} revealed shares of the wrong clients")
        self._reveals[sender] = reveal

    def _unmask(self) -> None:
        """Reconstruct one secret of each sharer and remove the masks it explains."""
        digest, cohort = self._context.digest, self._context.cohort
        holders = Holders(list(self._reveals), self._context.parameters.threshold)
        sharers = self._view()
        for index in self._survivors:
            seed = holders.secret(
                {i: reveal.self_shares[index] for i, reveal in self._reveals.items()},
                partial(keys.self_commitment, digest=digest, index=index),
                self._advert(index).self_commitment,
                cohort[index],
            )
            add_keystream(
                self._total, keys.self_keystream_key(seed, digest, sharers, index), subtract=True
            )
        for index in sorted(set(self._bundles) - set(self._survivors)):
            root = holders.secret(
                {i: reveal.root_shares[index] for i, reveal in self._reveals.items()},
                partial(keys.root_commitment, digest=digest, index=index),
                self._advert(index).root_commitment,
                cohort[index],
            )
            self._remove_pair_masks(index, root, sharers)
        self._total &= np.uint32((1 << self._context.bits) - 1)
        self.wrong_shares = tuple(cohort[index] for index in sorted(holders.liars))
        self._result = Aggregate(self._total, tuple(cohort[index] for index in self._survivors))

    def _remove_pair_masks(self, dropped: int, root: bytes, sharers: bytes) -> None:
        """Remove what the survivors masked towards a client that then dropped out."""
        digest = self._context.digest
        mask_key = keys.mask_key_pair(root, digest, dropped)
        for survivor in self._survivors:
            low, high = min(dropped, survivor), max(dropped, survivor)
            bundle = self._bundles[low][high]
            if dropped == low:
                promised = self._advert(high).mask_key
                secret = keys.edge_secret(root, digest, low, high, promised)
            else:
                secret = mask_key.open(bundle.edge, info=keys.edge_info(digest, low, high))
            check_commitment(
                keys.edge_commitment(secret, digest, low, high),
                bundle.edge_commitment,
                self._context.cohort[low],
            )
            # The survivor added this keystream if it is the lower one, and subtracted it if higher.
            add_keystream(
                self._total,
                keys.pair_keystream_key(secret, digest, sharers, low, high),
                subtract=survivor == low,
            )

    def _advert(self, index: int) -> Advertisement:
        return Advertisement.decode(self._adverts[index].body)
