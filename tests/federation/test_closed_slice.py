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

from securefed.crypto.prg import add_keystream
from securefed.crypto.shamir import Reconstructor
from securefed.encoding.wire import unpack_ring
from securefed.engines.in_process import carry
from securefed.federation.sliced_rounds import decode_parts
from securefed.secagg import messages as wire_messages
from securefed.secagg import round_secrets as keys
from securefed.secagg.messages import Reveal
from securefed.secagg.pairwise_server import PairwiseServer
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


def attack(kind, *, least_contributors, lost=LOST):
    """A round with such a server for slice 2; the round, and every part of slice 2 it received."""
    session = session_of(
        TIERS,
        WIDTHS,
        least_contributors=least_contributors,
        policy=replace(QUIET, dropout_fraction=0.34),  # one of slice 2's three, but for its floor
    )
    played = set_up(session)
    played.server._live[2]._half = kind(session.sessions[1].context)
    wrapped = {
        name: SilentInSlices(client, played.server, name, lost, 2)
        for name, client in played.clients.items()
    }
    played.carried = carry(played.server, wrapped)
    received = {
        stage: {
            name: Signed.decode(parts[2], limit=len(message)).body
            for name, message in sent.items()
            if 2 in (parts := decode_parts(message, slices=2))
        }
        for stage, sent in played.carried.transcript.items()
    }
    return played, received


def computed(received, session):
    """What follows from the bytes alone: the masked inputs added, less every self-mask whose seed
    the shares that were sent give; and how many clients sent shares.
    """
    one = session.sessions[1]
    size, threshold = len(one.cohort), one.context.parameters.threshold
    bits, length, digest = one.plan.bits, one.plan.padded, one.context.digest
    inputs = received["masked_input"]
    total = np.zeros(length, dtype=np.uint32)
    for body in inputs.values():
        total += unpack_ring(body[32:], length, bits)
    view = next(iter(inputs.values()))[:32]
    reveals = {
        one.context.index(name): Reveal.decode(body, size=size, limit=size)
        for name, body in received.get("unmask", {}).items()
    }
    for index in (one.context.index(name) for name in inputs):
        held = {
            holder + 1: reveal.self_shares[index]
            for holder, reveal in reveals.items()
            if index in reveal.self_shares
        }
        if len(held) >= threshold:
            points = tuple(sorted(held))[:threshold]
            seed = Reconstructor(points, threshold).reconstruct({p: held[p] for p in points})
            key = keys.self_keystream_key(seed, digest, view, index)
            add_keystream(total, key, subtract=True)
    return one.codec.decode(total & np.uint32((1 << bits) - 1)), len(reveals)


def near(found, wanted):
    """Whether a tenth of the coordinates is right; by chance hardly one is."""
    return bool((np.abs(found - wanted) < 1e-3).mean() > 0.1)


SURVIVORS = ("c03", "c04")


def test_the_slice_stays_closed_and_the_other_is_opened():
    played, received = attack(Lax, least_contributors=3)
    assert 2 in played.server.dropped
    np.testing.assert_array_equal(
        played.server.sums[1], played.plain_sum(1, tuple(played.session.tiers))
    )
    for name in SURVIVORS:
        assert "survivors: 2 clients, at least 3 are needed" in played.clients[name].refusals[2]
    found, revealed = computed(received, played.session)
    assert revealed == 0  # of that slice not one share was ever sent
    assert not near(found, played.plain_sum(2, SURVIVORS))


def test_the_same_server_opens_the_slice_where_clients_ask_for_one_survivor_less():
    played, received = attack(Lax, least_contributors=2)
    assert played.server.survivors[2] == SURVIVORS
    np.testing.assert_array_equal(played.server.sums[2], played.plain_sum(2, SURVIVORS))
    assert computed(received, played.session)[1] == 2


def test_the_same_computation_opens_the_slice_where_enough_survive():
    played, received = attack(Lax, least_contributors=3, lost={})
    found, revealed = computed(received, played.session)
    assert revealed == 3
    np.testing.assert_array_equal(found, played.plain_sum(2, (*SURVIVORS, "c05")))


def test_a_list_with_a_client_that_sent_nothing_leaves_its_pairwise_masks_in_the_sum():
    """Clients then reveal shares of self-masks, of no use without the third one's input."""
    played, received = attack(Liar, least_contributors=3)
    wanted = played.plain_sum(2, SURVIVORS)
    found, revealed = computed(received, played.session)
    assert revealed == 2
    assert not near(found, wanted)
    assert not near(played.server.sums[2], wanted)  # what the lie opens is noise


@pytest.mark.parametrize("stage", ["advertise", "share", "masked_input"])
def test_an_honest_server_drops_the_slice_too_and_its_clients_send_no_share(stage):
    played = play(session_of(TIERS, WIDTHS), {("c05", 2): stage})
    assert list(played.server.dropped) == [2]
    assert set(played.server.sums) == {1}
    unmasking = played.carried.transcript["unmask"]
    assert all(set(decode_parts(message, slices=2)) == {1} for message in unmasking.values())
