"""A slice that too few survive in stays closed, whatever the server does with what it received.

The server here ignores every floor of its own, relays what it likes, and at the end computes with
all bytes that it was ever sent.  The same attack with the same bytes opens the slice where clients
ask for one survivor less: so what keeps it closed is that clients send no share.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import numpy as np
import pytest
from sliced import QUIET, SilentInSlices, play, session_of, set_up

from securefed.encoding.wire import unpack_ring
from securefed.engines.in_process import carry
from securefed.errors import RemoteProtocolError, ThresholdNotMet
from securefed.federation.sliced_rounds import decode_parts
from securefed.secagg import messages as wire_messages
from securefed.secagg import round_secrets as keys
from securefed.secagg.messages import Reveal
from securefed.secagg.pairwise_server import PairwiseServer
from securefed.secagg.recovery import Holders
from securefed.secagg.signed import Signed

TIERS, WIDTHS = (1, 1, 1, 2, 2, 2), (4, 40)
LOST = {("c05", 2): "masked_input"}  # 2 of the 3 members of slice 2 survive


def lax(context):
    """A server for the clients' own round (the digest is theirs) that asks for one survivor."""
    parameters = copy(context.parameters)
    object.__setattr__(parameters, "survivor_floor", 1)
    shown = copy(context)
    object.__setattr__(shown, "parameters", parameters)
    return shown


class Lax(PairwiseServer):
    """Goes on with whoever is left, and keeps every share that it is sent."""

    def __init__(self, context):
        super().__init__(lax(context))


class Liar(Lax):
    """Lists all sharers as survivors, so that clients' floors are met: one of them sent nothing."""

    def _list_survivors(self, present):
        super()._list_survivors(present)
        self._survivors = self._sharers
        listed = sorted(self._sharers)
        self._statement = keys.survivors_statement(self._context.digest, self._view, listed)
        return self._same_for(
            present, wire_messages.encode_survivors(listed, size=len(self._context.cohort))
        )


def attack(kind, *, least_contributors):
    """Play a round with such a server for slice 2; the round, and every part of slice 2 it got."""
    session = session_of(
        TIERS,
        WIDTHS,
        least_contributors=least_contributors,
        policy=replace(QUIET, dropout_fraction=0.34),  # one of slice 2's three, but for its floor
    )
    played = set_up(session)
    half = kind(session.sessions[1].context)
    played.server._live[2]._half = half
    wrapped = {
        name: SilentInSlices(client, played.server, name, LOST, 2)
        for name, client in played.clients.items()
    }
    played.carried = carry(played.server, wrapped)
    received = {
        stage: {
            name: parts[2]
            for name, message in sent.items()
            if 2 in (parts := decode_parts(message, slices=2))
        }
        for stage, sent in played.carried.transcript.items()
    }
    return played, half, received


def computed(half, received, session):
    """All vectors that follow from the bytes: masked inputs added, every mask removed that can be.

    Shares are taken from the bytes themselves.  Where they do not suffice for a client, its mask
    stays in the sum.
    """
    one = session.sessions[1]
    size = len(one.cohort)
    bits, length = one.plan.bits, one.plan.padded
    total = np.zeros(length, dtype=np.uint32)
    for message in received["masked_input"].values():
        body = Signed.decode(message, limit=len(message)).body
        total += unpack_ring(body[32:], length, bits)
    bare = total.copy()
    half._survivors = frozenset(one.context.index(n) for n in received["masked_input"])
    half._reveals = {}
    for name, message in received.get("unmask", {}).items():
        body = Signed.decode(message, limit=len(message)).body
        half._reveals[one.context.index(name)] = Reveal.decode(body, size=size, limit=size)
    found = [bare]
    masks = []
    stream = half._left_masks(Holders(one.context.parameters.threshold))
    try:
        for mask in stream:
            masks.append(mask)
            partial = total.copy()
            half._remove_masks(partial, masks)
            found.append(partial)
    except (ThresholdNotMet, RemoteProtocolError):
        pass
    mask = np.uint32((1 << bits) - 1)
    return [one.codec.decode(vector & mask) for vector in found], len(received.get("unmask", {}))


def test_the_slice_stays_closed_and_the_other_is_opened():
    played, half, received = attack(Lax, least_contributors=3)
    assert 2 in played.server.dropped
    np.testing.assert_array_equal(
        played.server.sums[1], played.plain_sum(1, tuple(played.session.tiers))
    )
    for name in ("c03", "c04"):
        assert "survivors: 2 clients, at least 3 are needed" in played.clients[name].refusals[2]
    vectors, shares = computed(half, received, played.session)
    assert shares == 0  # not one share was ever sent
    wanted = played.plain_sum(2, ("c03", "c04"))
    assert len(vectors) == 1  # masked inputs added: no mask could be removed
    assert not _near(vectors[0], wanted)


def test_the_same_attack_opens_the_slice_where_clients_ask_for_one_survivor_less():
    played, half, received = attack(Lax, least_contributors=2)
    vectors, shares = computed(half, received, played.session)
    assert shares == 2
    wanted = played.plain_sum(2, ("c03", "c04"))
    np.testing.assert_array_equal(vectors[-1], wanted)


def test_a_list_with_a_client_that_sent_nothing_leaves_its_pairwise_masks_in_the_sum():
    """Clients then reveal shares of self-masks, and the sum is of no use without the third."""
    played, half, received = attack(Liar, least_contributors=3)
    wanted = played.plain_sum(2, ("c03", "c04"))
    vectors, shares = computed(half, received, played.session)
    assert shares >= 2
    assert not any(_near(vector, wanted) for vector in vectors)


def _near(found, wanted):
    # A coordinate that is right by chance is off by less than a step in 2^20 of the ring.
    return bool((np.abs(found - wanted) < 1e-3 * (1 + np.abs(wanted))).mean() > 0.1)


@pytest.mark.parametrize("stage", ["advertise", "share", "masked_input"])
def test_an_honest_server_drops_the_slice_too_and_its_clients_send_no_share(stage):
    played = play(session_of(TIERS, WIDTHS), {("c05", 2): stage})
    assert list(played.server.dropped) == [2]
    assert set(played.server.sums) == {1}
    unmasking = played.carried.transcript["unmask"]
    assert all(set(decode_parts(message, slices=2)) == {1} for message in unmasking.values())
