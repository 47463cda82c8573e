"""A server that lies: each lie ends in a named error at an honest client; nothing is opened."""

from functools import partial

import numpy as np
import pytest
from secagg_rounds import Cohort, Outcome, drive

from securefed.crypto.identity import IdentityKey
from securefed.crypto.keys import HybridPrivateKey
from securefed.crypto.prg import system_random
from securefed.encoding.wire import unpack_ring
from securefed.errors import (
    ConfigError,
    LocalProtocolError,
    RemoteProtocolError,
    ThresholdNotMet,
    WireError,
)
from securefed.secagg import messages as wire_messages
from securefed.secagg import round_secrets
from securefed.secagg.aggregator import Outgoing, RoundContext
from securefed.secagg.carriers import apply_masks
from securefed.secagg.client_states import ClientState
from securefed.secagg.graph import Graph
from securefed.secagg.messages import Advertisement, Reveal
from securefed.secagg.pairwise_client import PairwiseClient
from securefed.secagg.pairwise_server import PairwiseServer
from securefed.secagg.signed import Signed


def adverts_of(reply: bytes, size: int) -> dict[int, Signed]:
    return {s.sender: s for s in wire_messages.decode_advertised(reply, size=size)}


def readvertise(signed: dict[int, Signed]) -> bytes:
    return wire_messages.encode_advertised({i: s.encode() for i, s in signed.items()})


def test_a_substituted_key_is_refused():
    cohort = Cohort(size=5)

    def swap(stage, name, reply):
        if stage != "share" or name != "c000":
            return reply
        signed = adverts_of(reply, 5)
        own = Advertisement.decode(signed[1].body)
        planted = HybridPrivateKey.generate(system_random).public.raw
        body = Advertisement(
            planted,
            own.envelope_key,
            own.root_commitment,
            own.self_commitment,
            own.nonce_commitment,
        ).encode()
        signed[1] = Signed(1, body, signed[1].signature)
        return readvertise(signed)

    outcome = drive(cohort, meddle_down=swap)
    assert isinstance(outcome.refused["c000"], RemoteProtocolError)
    assert outcome.clients["c000"].state is ClientState.FAILED
    assert "c000" not in outcome.sent["share"]


def test_a_key_signed_by_a_stranger_is_refused():
    cohort = Cohort(size=5)
    stranger = IdentityKey.generate()

    def resign(stage, name, reply):
        if stage != "share" or name != "c000":
            return reply
        signed = adverts_of(reply, 5)
        signature = stranger.sign(b"anything", label=b"securefed/1/round/sign-stage/advertise")
        signed[1] = Signed(1, signed[1].body, signature)
        return readvertise(signed)

    assert "c000" in drive(cohort, meddle_down=resign).refused


def test_a_smaller_cohort_than_agreed_is_refused():
    cohort = Cohort(size=8)

    def shrink(stage, name, reply):
        if stage != "share" or name != "c000":
            return reply
        signed = adverts_of(reply, 8)
        return readvertise({i: signed[i] for i in (0, 1, 2)})

    outcome = drive(cohort, meddle_down=shrink)
    assert isinstance(outcome.refused["c000"], ThresholdNotMet)


def test_different_sharer_lists_give_masks_that_do_not_cancel():
    """The server hides c004 from c000 only; whatever comes out is not the sum of those inputs."""
    cohort = Cohort(size=5, dropout=0.2, length=2000)

    def hide(stage, name, reply):
        if stage != "masked_input" or name != "c000":
            return reply
        graph = Graph.complete(5)
        with_edge = {other: graph.gives(other, 0) for other in range(1, 5)}
        bundles = wire_messages.decode_delivery(reply, with_edge=with_edge)
        del bundles[4]
        return wire_messages.encode_delivery(bundles)

    # An honest server notices, since the input says which list it was made for ...
    assert isinstance(drive(cohort, meddle_down=hide).refused["c000"], RemoteProtocolError)

    # ... and a server that adds it all the same gets noise, not a sum.
    class Careless(PairwiseServer):
        def _add_input(self, body: bytes) -> None:
            self._sum.total += unpack_ring(body[32:], 2000, 32)

    outcome = drive(cohort, meddle_down=hide, server=Careless(cohort.context()))
    found = outcome.server.result
    assert found.survivors == cohort.names
    wrong = found.total - cohort.plain_sum(cohort.names)
    assert np.count_nonzero(wrong) > 1990

    # Told the truth, the same careless server does get the sum: the difference is the lie.
    honest = drive(cohort, server=Careless(cohort.context()))
    np.testing.assert_array_equal(honest.server.result.total, cohort.plain_sum(cohort.names))


@pytest.mark.parametrize("lie", ["too few", "without me", "a stranger"])
def test_a_lying_survivor_list_is_not_signed(lie):
    cohort = Cohort(size=8)

    def rewrite(stage, name, reply):
        if stage != "consistency" or name != "c001":
            return reply
        lists = {
            "too few": [0, 1, 2],
            "without me": [0, 2, 3, 4, 5, 6],
            "a stranger": [0, 1, 2, 3, 4, 5, 7],
        }
        return wire_messages.encode_survivors(lists[lie], size=8)

    outcome = drive(cohort, drop={"c007": "share"}, meddle_down=rewrite)
    assert isinstance(outcome.refused["c001"], (RemoteProtocolError, ThresholdNotMet))
    assert "c001" not in outcome.sent["consistency"]


class Gathering(PairwiseServer):
    """Takes whatever clients sign, and passes on what helps most.

    Args:
        context: the round's.
        groups: clients told the same list, by index; each is given its own group's signatures.
            None: everyone is given everyone's, but for the last client's.
    """

    def __init__(self, context, groups: list[set[int]] | None) -> None:
        super().__init__(context)
        self.groups = groups

    def _add_confirmation(self, sender: int, client_id: str, body: bytes) -> None:
        self._confirmations[sender] = body

    def _confirm(self, present):
        last = self._context.parameters.size - 1
        everyone = self._confirmations.keys() - {last}

        def encode(name: str) -> bytes:
            index = self._context.index(name)
            own = [group for group in self.groups or [everyone] if index in group]
            shown = (own[0] if own else everyone) & self._relay.graph.witnesses(index)
            return wire_messages.encode_confirmations({i: self._confirmations[i] for i in shown})

        return Outgoing(self._names(present), encode)

    def _add_reveal(self, sender: int, client_id: str, body: bytes) -> None:
        size = self._context.parameters.size
        self._reveals[sender] = Reveal.decode(body, size=size, limit=size)

    def _unmask(self) -> None:
        """Only the answers are of interest."""


def both_lists(cohort: Cohort, short_count: int, *, grouped: bool) -> tuple[set[str], Outcome]:
    """Which kinds of share of the last client are revealed when two lists are told."""
    last = cohort.size - 1
    told_short = set(cohort.names[:short_count])
    groups = [set(range(short_count)), set(range(short_count, cohort.size))]
    short = wire_messages.encode_survivors(list(range(last)), size=cohort.size)

    def split(stage, name, reply):
        return short if stage == "consistency" and name in told_short else reply

    server = Gathering(cohort.context(), groups if grouped else None)
    outcome = drive(cohort, meddle_down=split, server=server)
    kinds = set()
    for reveal in server._reveals.values():
        kinds |= {"self"} if last in reveal.self_shares else set()
        kinds |= {"root"} if last in reveal.root_shares else set()
    return kinds, outcome


@pytest.mark.parametrize("grouped", [True, False], ids=["own group's", "everyone's"])
@pytest.mark.parametrize("told_short", [1, 3, 6, 9])
@pytest.mark.parametrize("degree", [None, 8])
def test_two_survivor_lists_cannot_both_be_confirmed(degree, told_short, grouped):
    """Some clients are told that the last one dropped, the others that it survived."""
    cohort = Cohort(size=12, degree=degree, dropout=0.25)
    kinds, outcome = both_lists(cohort, told_short, grouped=grouped)
    assert len(kinds) <= 1
    if not grouped:  # a signature on another list ends the round for whoever is shown it
        assert kinds == set()
        assert all("does not verify" in str(error) for error in outcome.refused.values())


@pytest.mark.parametrize("degree", [None, 8])
def test_without_the_list_in_the_statement_both_kinds_of_share_would_be_revealed(
    degree, monkeypatch
):
    monkeypatch.setattr(
        round_secrets, "survivors_statement", lambda digest, view, survivors: digest + view
    )
    cohort = Cohort(size=12, degree=degree, dropout=0.25)
    kinds, _ = both_lists(cohort, 6, grouped=False)
    assert kinds == {"self", "root"}


@pytest.mark.parametrize("seed", ["independent", "equal to the root"])
def test_a_root_does_not_open_an_input_that_came_late(seed):
    """The server keeps the last client's input, declares it dropped and recovers its root."""
    cohort = Cohort(size=8, length=50)
    context = cohort.context()
    constant = iter([b"r" * 32, b"r" * 32])

    def careless(count: int) -> bytes:
        return next(constant, None) or system_random(count)

    clients = {name: cohort.client(name) for name in cohort.names}
    if seed == "equal to the root":
        clients["c007"] = PairwiseClient(
            context,
            "c007",
            cohort.identities["c007"],
            lambda: cohort.inputs["c007"],
            random=careless,
        )

    class Keeping(PairwiseServer):
        def _add_input(self, body: bytes) -> None:
            before = self._sum.total.copy()
            super()._add_input(body)
            self.last = self._sum.total - before

        def advance(self):
            if self.stage == "masked_input":
                self._seen.discard(7)
                self._sum.total -= self.last
            return super().advance()

        def _unmasking(self):
            left = super()._unmasking()
            found = partial(self.opened_with, left.pair_masks)
            object.__setattr__(left, "pair_masks", found)
            return left

        def opened_with(self, pair_masks, dropped, root):
            masks = list(pair_masks(dropped, root))
            # Of the last client's own input the same keystreams come off with the other sign.
            opened = self.last.copy()
            apply_masks(opened, [(key, not subtract) for key, subtract in masks])
            own = round_secrets.self_keystream_key(root, context.digest, self._view, 7)
            apply_masks(opened, [(own, True)])
            self.opened = opened
            return iter(masks)

    server = Keeping(context)
    drive(cohort, clients=clients, server=server)
    assert server.result.survivors == cohort.names[:7]
    found = np.count_nonzero(server.opened == cohort.inputs["c007"])
    assert found == (50 if seed == "equal to the root" else 0)


def test_a_bundle_of_an_earlier_attempt_is_refused_by_its_signature():
    """A session named twice: what was sealed to the first attempt's keys is not taken again."""
    cohort = Cohort(size=5)
    first: dict[int, wire_messages.Bundle] = {}
    graph = Graph.complete(5)
    with_edge = {other: graph.gives(other, 0) for other in range(1, 5)}

    def keep(stage, name, reply):
        if stage == "masked_input" and name == "c000":
            first.update(wire_messages.decode_delivery(reply, with_edge=with_edge))
        return reply

    drive(cohort, meddle_down=keep)

    def replay(stage, name, reply):
        if stage != "masked_input" or name != "c000":
            return reply
        bundles = wire_messages.decode_delivery(reply, with_edge=with_edge)
        return wire_messages.encode_delivery(bundles | {3: first[3]})

    refused = drive(cohort, meddle_down=replay).refused["c000"]
    assert "bundle of 'c003': signature of identity" in str(refused)


def test_too_few_confirmations_reveal_nothing():
    cohort = Cohort(size=6)

    def thin(stage, name, reply):
        if stage != "unmask":
            return reply
        signatures = wire_messages.decode_confirmations(reply, size=6, limit=6)
        return wire_messages.encode_confirmations({i: signatures[i] for i in (0, 1)})

    outcome = drive(cohort, meddle_down=thin)
    assert all(isinstance(error, ThresholdNotMet) for error in outcome.refused.values())
    assert len(outcome.refused) == 6
    assert outcome.sent["unmask"] == {}


def test_a_forged_confirmation_is_refused():
    cohort = Cohort(size=6)

    def forge(stage, name, reply):
        if stage != "unmask":
            return reply
        signatures = wire_messages.decode_confirmations(reply, size=6, limit=6)
        signatures[3] = bytes(64)
        return wire_messages.encode_confirmations(signatures)

    outcome = drive(cohort, meddle_down=forge)
    assert outcome.sent["unmask"] == {}


@pytest.mark.parametrize("defended", [True, False], ids=["as built", "views not bound"])
def test_signatures_of_an_earlier_attempt_confirm_nothing_in_a_session_named_twice(
    defended, monkeypatch
):
    """The server names one session twice and brings the first attempt's list and signatures.

    In the first attempt c007 was dropped; in the second it sent its input, and the server claims
    that it did not.  Honest clients would reveal c007's root beside the self-mask seeds of others,
    on a list that in this attempt nobody but the victim of the lie has signed.
    """
    if not defended:
        # What a statement without the attempt's fresh keys would be.
        monkeypatch.setattr(
            round_secrets,
            "survivors_statement",
            lambda digest, sharers, survivors: digest + bytes(survivors),
        )
    cohort = Cohort(size=8)
    first = drive(cohort, drop={"c007": "masked_input"})
    old = {
        cohort.names.index(name): Signed.decode(message, limit=200).body
        for name, message in first.sent["consistency"].items()
    }
    seven = wire_messages.encode_survivors(list(range(7)), size=8)

    def replay(stage, name, reply):
        if name != "c000" or stage not in ("consistency", "unmask"):
            return reply
        return seven if stage == "consistency" else wire_messages.encode_confirmations(old)

    # The server does not check what c000 signs: it only wants its answer.
    class Indifferent(PairwiseServer):
        def _add_confirmation(self, sender: int, client_id: str, body: bytes) -> None:
            self._confirmations[sender] = body

    second = drive(cohort, meddle_down=replay, server=Indifferent(cohort.context()))
    revealed = second.sent["unmask"].get("c000")
    if defended:
        assert revealed is None
        assert isinstance(second.refused["c000"], RemoteProtocolError)
    else:
        body = Signed.decode(revealed, limit=10_000).body
        assert 7 in Reveal.decode(body, size=8, limit=8).root_shares


def test_a_second_unmask_is_never_answered():
    cohort = Cohort(size=5)
    kept: dict[str, bytes] = {}

    def keep(stage, name, reply):
        if stage == "unmask":
            kept[name] = reply
        return reply

    outcome = drive(cohort, meddle_down=keep)
    with pytest.raises(RemoteProtocolError, match="no message is accepted"):
        outcome.clients["c000"].handle(kept["c000"])


def test_messages_of_another_session_are_refused():
    cohort = Cohort(size=5)
    other = cohort.context(session=b"t" * 16)
    clients = {name: cohort.client(name) for name in cohort.names}
    clients["c000"] = cohort.client("c000", other)
    outcome = drive(cohort, clients=clients)
    assert "c000" in outcome.refused
    assert "c000" not in outcome.server.result.survivors


@pytest.mark.parametrize(
    "change",
    [{"binding": b"\1" * 32}, {"bits": 30}, {"length": 41}, {"dropout": 0.0}],
    ids=lambda change: next(iter(change)),
)
def test_a_client_told_other_terms_takes_no_part(change):
    cohort = Cohort(size=5)
    other = Cohort(size=5, identities=cohort.identities, **change)
    clients = {name: cohort.client(name) for name in cohort.names}
    clients["c000"] = other.client("c000")
    outcome = drive(cohort, clients=clients)
    assert "c000" in outcome.refused


def test_a_message_of_the_wrong_type_changes_nothing():
    cohort = Cohort(size=5)
    outcome = drive(cohort, until="share")
    replies = outcome.server.advance()
    client = outcome.clients["c000"]
    early = wire_messages.encode_survivors([0, 1, 2, 3, 4], size=5)
    with pytest.raises(RemoteProtocolError, match="only type"):
        client.handle(early)
    assert client.state is ClientState.SHARED
    outcome.server.receive("c000", client.handle(replies["c000"]))


@pytest.mark.parametrize("stage", ["share", "masked_input", "consistency", "unmask"])
@pytest.mark.parametrize("corruption", ["flip", "truncate", "extend", "empty"])
def test_a_corrupted_message_of_the_server_is_refused(stage, corruption):
    cohort = Cohort(size=5)

    def corrupt(at, name, reply):
        if at != stage or name != "c002":
            return reply
        middle = len(reply) // 2
        return {
            "flip": reply[:middle] + bytes([reply[middle] ^ 1]) + reply[middle + 1 :],
            "truncate": reply[:-1],
            "extend": reply + b"\0",
            "empty": b"",
        }[corruption]

    outcome = drive(cohort, meddle_down=corrupt)
    assert "c002" in outcome.refused
    assert "c002" not in outcome.sent[stage]


def test_a_huge_count_is_refused_before_anything_is_allocated():
    client = Cohort().client("c000")
    client.start()
    lie = wire_messages.encode_advertised({})[:-4] + b"\xff\xff\xff\xff"
    with pytest.raises((WireError, LocalProtocolError)):
        client.handle(lie)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("a stranger invited", "no identity key for"),
        ("one identity under two names", "two parties have the same identity key"),
        ("another key for this client", "another identity key"),
    ],
)
def test_a_cohort_that_the_clients_own_roster_does_not_hold_is_refused(change, message):
    """The roster is the client's: the server may only say whom it invites."""
    cohort = Cohort(size=5)
    context = cohort.context()
    names, roster = context.cohort, dict(context.roster)
    if change == "a stranger invited":
        del roster["c004"]
    elif change == "one identity under two names":
        roster["c004"] = roster["c003"]
    else:
        roster["c000"] = IdentityKey.generate().public

    def take_part():
        told = RoundContext(
            session=context.session,
            round=1,
            cohort=names,
            roster=roster,
            length=context.length,
            bits=context.bits,
            parameters=context.parameters,
            binding=context.binding,
        )
        cohort.client("c000", told)

    with pytest.raises((ConfigError, LocalProtocolError), match=message):
        take_part()
