"""Two survivor lists in one attempt: the sum with the victim, and the sum without it.

The server has everybody's masked input.  It first asks for what opens the sum of all, with a list
of all; then it says that the victim dropped out, and asks for what opens the sum of the others.
The difference is the victim's contribution.  A client that answered both would reveal a share of
the victim's self-mask seed and one of its root.
"""

from __future__ import annotations

import copy

import numpy as np
from numpy.typing import NDArray

from securefed.attacks import views
from securefed.auditing.games.parties import BARE, Parties, drive, encoding
from securefed.auditing.games.results import GameResult, one_trial
from securefed.crypto.prg import NoiseGenerator
from securefed.encoding.wire import message_type
from securefed.errors import LocalProtocolError
from securefed.federation.session import RoundSession
from securefed.secagg import messages as wire_messages
from securefed.secagg.aggregator import AggregationClient
from securefed.secagg.carriers import RingSum, apply_masks
from securefed.secagg.client_states import ClientState
from securefed.secagg.pairwise_client import PairwiseClient
from securefed.secagg.pairwise_server import PairwiseServer

BONAWITZ = "Bonawitz et al. 2017 (the part on active adversaries)"


class Forking(PairwiseServer):
    """Keeps the victim's masked input apart, to end the round twice.

    Args:
        session: the round.
        victim: whose contribution it is after.
    """

    def __init__(self, session: RoundSession, victim: str) -> None:
        super().__init__(session.context)
        self._victim = session.context.index(victim)
        self._ring = RingSum(session.context.length, session.context.bits, apply_masks)
        self._sum = self._ring

    def receive(self, client_id: str, message: bytes) -> None:
        """See :class:`PairwiseServer`."""
        before = self._ring.total.copy()
        stage = self.stage
        super().receive(client_id, message)
        if stage == "masked_input" and self._context.index(client_id) == self._victim:
            self._kept = self._ring.total - before

    def without_victim(self) -> Forking:
        """The server as it would be if the victim's input had not come."""
        other = copy.copy(self)
        other._ring = RingSum(self._context.length, self._context.bits, apply_masks)
        other._ring.total = self._ring.total - self._kept
        other._sum = other._ring
        other._seen = self._seen - {self._victim}
        other._confirmations, other._reveals = {}, {}
        return other


class AnswersTwice(PairwiseClient):
    """A client of a weakened protocol: a second survivor list is answered as the first one was."""

    def handle(self, message: bytes) -> bytes:
        """See :class:`PairwiseClient`."""
        if self.state is ClientState.DONE and message_type(message) == wire_messages.SURVIVORS:
            self.state = ClientState.MASKED
        return super().handle(message)

    def _forget(self) -> None:
        """Round secrets are kept for the second answer."""


def two_lists(parties: Parties, seed: int, *, weakened: bool) -> GameResult:
    """Both sums are asked for in one attempt.

    As it is, a client answers one list and forgets its secrets.  The check removed: clients answer
    twice.

    Raises:
        LocalProtocolError: the cohort is so small that no client may be missing.
    """
    session = parties.session(policy=BARE)
    if session.context.parameters.survivor_floor == len(parties.names):
        raise LocalProtocolError(
            f"cohort of {len(parties.names)} clients: two-lists needs one that may be missing"
        )
    updates, victim = parties.updates(), parties.victim
    clients: dict[str, AggregationClient] = {
        name: _twice(parties, session, name, updates[name]) if weakened
        else parties.client(name, session, updates[name])
        for name in parties.names
    }  # fmt: skip
    server = Forking(session, victim)
    drive(server, clients, until="masked_input")
    other = server.without_victim()
    first = drive(server, clients, replies=server.advance())
    if first.ended is not None:
        raise first.ended
    second = drive(other, clients, replies=other.advance())
    read = 0.0, 0.0
    if second.ended is None:
        codec = session.codec
        rest = codec.decode(server.result.total) - codec.decode(other.result.total)
        read = parties.read(views.OpenedSum("server", (victim,), rest), session)
    return one_trial(
        "two-lists",
        source=BONAWITZ,
        removed="one answer an attempt",
        weakened=weakened,
        seed=seed,
        refusal=next(iter(second.refused.values()), None),
        read=read,
        figures={"clients": float(len(parties.names)), "sums": 1.0 + (second.ended is None)},
    )


def _twice(
    parties: Parties, session: RoundSession, name: str, update: NDArray[np.float32]
) -> AnswersTwice:
    noise, send = NoiseGenerator(), encoding(update)
    return AnswersTwice(
        session.context, name, parties.identity(name), lambda: send(session.codec, noise)
    )
