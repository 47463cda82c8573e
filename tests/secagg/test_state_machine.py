"""One round as a state machine of its own: any order of good, bad, late and lost messages.

The quick suite takes a few examples.  More, and longer ones:

    python -m pytest tests/secagg/test_state_machine.py -m slow
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from secagg_probe import body_of, frozen
from secagg_rounds import Cohort, drive

from securefed.config import STAGES, Stage
from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import RandomBytes
from securefed.encoding.wire import message_type
from securefed.errors import (
    LocalProtocolError,
    ProtocolError,
    RemoteProtocolError,
    SecureFedError,
    ThresholdNotMet,
)
from securefed.secagg.aggregator import RoundContext
from securefed.secagg.client_states import COMPLETE, SPARSE, ClientState
from securefed.secagg.messages import Reveal
from securefed.secagg.pairwise_client import PairwiseClient
from securefed.secagg.pairwise_server import PairwiseServer

SHAPES: tuple[tuple[int, int | None], ...] = (
    *((size, None) for size in range(4, 13)),
    *((10, 4), (11, 4), (12, 6), (12, 8)),
)
SOURCES = ("other session", "other round", "other attempt")
CORRUPTIONS = ("flip", "truncate", "extend", "empty", "type")

WHO = st.integers(0, 11)
WHERE = st.integers(0, 1 << 16)


def drawn(name: str) -> RandomBytes:
    """A client's random bytes: the same in every run, so that an example can be repeated."""
    return np.random.default_rng(list(name.encode())).bytes


IDENTITIES = {f"c{i:03}": IdentityKey.generate(drawn(f"identity {i}")) for i in range(12)}


def clients_of(cohort: Cohort, context: RoundContext, attempt: str) -> dict[str, PairwiseClient]:
    return {
        name: PairwiseClient(
            context,
            name,
            cohort.identities[name],
            lambda name=name: cohort.inputs[name],
            random=drawn(f"{name} {attempt}"),
        )
        for name in cohort.names
    }


def cohort_of(size: int, degree: int | None) -> Cohort:
    return Cohort(
        size=size,
        degree=degree,
        length=4,
        bits=27,
        dropout=0.3,
        identities={name: IDENTITIES[name] for name in list(IDENTITIES)[:size]},
    )


@functools.lru_cache(maxsize=64)
def other_round(
    size: int, degree: int | None, source: str
) -> tuple[dict[Stage, dict[str, bytes]], dict[Stage, dict[str, bytes]]]:
    """All messages, up and down, of another round between the same parties."""
    cohort = cohort_of(size, degree)
    context = cohort.context(
        session=b"o" * 16 if source == "other session" else b"s" * 16,
        number=2 if source == "other round" else 1,
    )
    down: dict[Stage, dict[str, bytes]] = {}

    def keep(stage: Stage, name: str, reply: bytes) -> bytes:
        down.setdefault(stage, {})[name] = reply
        return reply

    clients = clients_of(cohort, context, source)
    outcome = drive(cohort, clients=clients, server=PairwiseServer(context), meddle_down=keep)
    assert not outcome.refused
    return outcome.sent, down


def corrupted(message: bytes, kind: str, where: int) -> bytes:
    at = where % max(len(message), 1)
    return {
        "flip": message[:at] + bytes([message[at] ^ (1 << where % 8)]) + message[at + 1 :],
        "truncate": message[:at],
        "extend": message + bytes([where & 0xFF]) * (1 + where % 5),
        "empty": b"",
        "type": message[:5] + bytes([(message[5] + 1 + where % 255) % 256]) + message[6:],
    }[kind]


class RoundMachine(RuleBasedStateMachine):
    """The network between honest clients and an honest server is in the hands of an enemy."""

    def __init__(self) -> None:
        super().__init__()
        self.over = False

    @initialize(
        shape=st.sampled_from(SHAPES),
        reckless=st.sampled_from([False, False, False, True]),
        quiet=st.integers(0, 5),
    )
    def start_round(self, shape, reckless, quiet):
        """Some stages pass quietly; an enemy who is not reckless spares what the round needs."""
        self.shape = shape
        self.reckless = reckless
        self.victims: set[str] = set()
        self.cohort = cohort_of(*shape)
        self.context = self.cohort.context()
        self.server = PairwiseServer(self.context)
        self.clients = clients_of(self.cohort, self.context, "this attempt")
        self.table = SPARSE if shape[1] else COMPLETE
        # What a client has to answer: b"" for the start, a reply, or None.
        self.inbox: dict[str, bytes | None] = dict.fromkeys(self.cohort.names, b"")
        self.outbox: dict[str, bytes] = {}
        self.sent: dict[str, list[bytes]] = {name: [] for name in self.cohort.names}
        self.spent: dict[str, list[bytes]] = {name: [] for name in self.cohort.names}
        self.told: dict[str, list[bytes]] = {name: [] for name in self.cohort.names}
        # Clients that the enemy made say or believe something that is not of this round.
        self.deceived: set[str] = set()
        self.accepted: set[str] = set()
        self.reveals: dict[str, Reveal] = {}
        self.stages: list[Stage | None] = [self.server.stage]
        for _ in range(min(quiet, len(self.table) - 1)):
            self.most_answers_arrive(range(12), 12)
            self.advance()

    def name(self, who: int) -> str:
        return self.cohort.names[who % self.cohort.size]

    def may_lose(self, name: str) -> bool:
        """Whether the enemy goes for a client of which the round may then lose the rest."""
        parameters = self.context.parameters
        needed = max(parameters.survivor_floor, parameters.threshold, parameters.quorum)
        if self.reckless or len(self.victims | {name}) <= self.cohort.size - needed:
            self.victims.add(name)
            return True
        return False

    # -- an honest network -------------------------------------------------------------------

    def answer(self, name: str, reply: bytes | None = None) -> None:
        """Let a client answer what is in its inbox, or what the enemy puts in its place."""
        client = self.clients[name]
        pending = self.inbox[name]
        if pending is None:
            return
        state = client.state
        if state is ClientState.NEW:
            message = client.start()
        else:
            message = self.handled(name, pending if reply is None else reply)
        if message is not None:
            if reply is None and pending:
                self.told[name].append(pending)
            self.inbox[name] = None
            self.sent[name].append(message)
            self.outbox[name] = message

    def handled(self, name: str, reply: bytes) -> bytes | None:
        """Hand a reply over; check what an answer or a refusal does to the client."""
        client = self.clients[name]
        state, before = client.state, frozen(client)
        expected = self.table.get(state)
        try:
            message = client.handle(reply)
        except ProtocolError:
            if expected is None or message_type(reply) != expected[0]:
                assert frozen(client) == before
            else:
                assert client.state is ClientState.FAILED
                self.inbox[name] = None
            return None
        assert expected is not None
        assert message_type(reply) == expected[0]
        assert client.state is expected[2]
        if client.state is ClientState.DONE:
            assert name not in self.reveals
            size = self.cohort.size
            self.reveals[name] = Reveal.decode(body_of(message), size=size, limit=size)
        return message

    def receive(self, name: str, message: bytes) -> bool:
        """Whether the server took it; a refusal leaves the server as it was."""
        before, stage = frozen(self.server), self.server.stage
        try:
            self.server.receive(name, message)
        except RemoteProtocolError:
            assert frozen(self.server) == before
            return False
        except LocalProtocolError:
            assert stage is None
            assert frozen(self.server) == before
            return False
        if stage == "masked_input":
            self.accepted.add(name)
        return True

    def deliver(self, name: str) -> None:
        message = self.outbox.pop(name, None)
        if message is not None:
            # An honest client that was told the truth is never refused.
            assert self.receive(name, message) or name in self.deceived
            self.spent[name].append(message)

    @rule(who=WHO)
    @precondition(lambda self: not self.over)
    def a_client_answers(self, who):
        self.answer(self.name(who))

    @rule(who=WHO)
    @precondition(lambda self: not self.over)
    def a_message_arrives(self, who):
        self.answer(self.name(who))
        self.deliver(self.name(who))

    @rule(order=st.permutations(range(12)), copies=st.integers(1, 4))
    @precondition(lambda self: not self.over)
    def messages_arrive_more_than_once(self, order, copies):
        for name in dict.fromkeys(self.name(who) for who in order[:copies]):
            message = self.outbox.get(name)
            self.deliver(name)
            if message is not None:
                assert not self.receive(name, message)

    @rule(order=st.permutations(range(12)), most=st.integers(9, 12))
    @precondition(lambda self: not self.over)
    def most_answers_arrive(self, order, most):
        names = dict.fromkeys(self.name(who) for who in order[:most])
        for name in self.cohort.names:
            if name in names:
                self.answer(name)
        for name in names:
            self.deliver(name)

    @rule()
    @precondition(lambda self: not self.over)
    def the_stage_ends(self):
        if not self.reckless:
            for name in self.cohort.names:
                if name not in self.victims:
                    self.answer(name)
                    self.deliver(name)
        self.advance()

    def advance(self) -> None:
        stage = self.server.stage
        try:
            replies = self.server.advance()
        except ThresholdNotMet:
            self.over = True
            return
        except RemoteProtocolError:
            # Only a client whose messages are of two rounds makes a secret impossible to open.
            assert self.deceived
            self.over = True
            return
        self.outbox.clear()  # too late
        self.spent = {name: list(messages) for name, messages in self.sent.items()}
        for name in self.cohort.names:
            self.inbox[name] = replies.get(name)
        self.stages.append(self.server.stage)
        if stage == "unmask":
            self.over = True

    # -- the enemy ---------------------------------------------------------------------------

    @rule(who=WHO)
    @precondition(lambda self: not self.over)
    def a_client_is_lost(self, who):
        name = self.name(who)
        if self.may_lose(name):
            self.inbox[name] = None
            self.outbox.pop(name, None)

    @rule(who=WHO, which=st.integers(0, 5))
    @precondition(lambda self: not self.over)
    def an_old_message_arrives_again(self, who, which):
        name = self.name(who)
        old = self.spent[name]
        if old:
            assert not self.receive(name, old[-1 - which % len(old)])

    @rule(who=WHO, source=st.sampled_from(SOURCES), stage=st.sampled_from(STAGES))
    @precondition(lambda self: not self.over)
    def a_message_of_another_round_arrives(self, who, source, stage):
        name = self.name(who)
        message = other_round(*self.shape, source)[0].get(stage, {}).get(name)
        if message is None or (source == "other attempt" and not self.may_lose(name)):
            return
        if self.receive(name, message):
            # Only the same session, named twice, has signatures that are good here.
            assert source == "other attempt"
            assert stage in ("advertise", "unmask")
            self.deceived.add(name)
            self.outbox.pop(name, None)

    @rule(who=WHO, kind=st.sampled_from(CORRUPTIONS), where=WHERE)
    @precondition(lambda self: not self.over)
    def a_corrupted_message_arrives(self, who, kind, where):
        name = self.name(who)
        if name in self.outbox:
            assert not self.receive(name, corrupted(self.outbox[name], kind, where))

    @rule(who=WHO, other=WHO)
    @precondition(lambda self: not self.over)
    def two_messages_are_swapped(self, who, other):
        one, two = self.name(who), self.name(other)
        if one != two and one in self.outbox and two in self.outbox:
            assert not self.receive(one, self.outbox[two])
            assert not self.receive(two, self.outbox[one])

    @rule(who=WHO, which=st.integers(0, 5))
    def an_old_reply_comes_again(self, who, which):
        name = self.name(who)
        client, before = self.clients[name], frozen(self.clients[name])
        old = self.told[name]
        if old:
            with pytest.raises((RemoteProtocolError, LocalProtocolError)):
                client.handle(old[which % len(old)])
            assert frozen(client) == before

    @rule(who=WHO, other=WHO)
    @precondition(lambda self: not self.over)
    def a_reply_goes_to_the_wrong_client(self, who, other):
        name, reply = self.name(who), self.inbox[self.name(other)]
        if reply and self.inbox[name] and reply != self.inbox[name] and self.may_lose(name):
            self.deceived.add(name)
            self.answer(name, reply)

    @rule(who=WHO, kind=st.sampled_from(CORRUPTIONS), where=WHERE)
    @precondition(lambda self: not self.over)
    def a_corrupted_reply_comes(self, who, kind, where):
        name = self.name(who)
        if self.inbox[name] and self.may_lose(name):
            self.deceived.add(name)
            self.answer(name, corrupted(self.inbox[name], kind, where))

    @rule(who=WHO, source=st.sampled_from(SOURCES), stage=st.sampled_from(STAGES))
    @precondition(lambda self: not self.over)
    def a_reply_of_another_round_comes(self, who, source, stage):
        name = self.name(who)
        reply = other_round(*self.shape, source)[1].get(stage, {}).get(name)
        if self.inbox[name] and reply is not None and self.may_lose(name):
            self.deceived.add(name)
            self.answer(name, reply)

    # -- what holds at every step --------------------------------------------------------------

    @invariant()
    def stages_follow_the_table(self):
        if not hasattr(self, "stages"):
            return
        order = [stage for stage in STAGES if self.shape[1] or stage != "graph"]
        assert self.stages == [*order, None][: len(self.stages)]

    @invariant()
    def no_client_reveals_both_kinds_and_no_two_thresholds_are_revealed(self):
        if not hasattr(self, "reveals"):
            return
        threshold = self.context.parameters.threshold
        for index in range(self.cohort.size):
            selves = sum(index in reveal.self_shares for reveal in self.reveals.values())
            roots = sum(index in reveal.root_shares for reveal in self.reveals.values())
            assert min(selves, roots) < threshold
        for reveal in self.reveals.values():
            assert not reveal.self_shares.keys() & reveal.root_shares.keys()

    @invariant()
    def a_client_that_is_done_keeps_no_secret(self):
        for client in getattr(self, "clients", {}).values():
            if client.state in (ClientState.DONE, ClientState.FAILED):
                assert client._secrets is None
                assert client._contribution is None

    @invariant()
    def a_result_is_the_exact_sum_of_those_whose_inputs_were_taken(self):
        if not hasattr(self, "server"):
            return
        try:
            result = self.server.result
        except LocalProtocolError:
            return
        assert self.over
        assert set(result.survivors) == self.accepted
        assert len(result.survivors) >= self.context.parameters.survivor_floor
        np.testing.assert_array_equal(result.total, self.cohort.plain_sum(result.survivors))

    def teardown(self):
        """From here on the network is honest; the round ends with a sum or a named error."""
        if not hasattr(self, "server"):
            return
        while not self.over:
            for name in self.cohort.names:
                self.answer(name)
                self.deliver(name)
            self.advance()
        assert self.server.stage is None
        self.a_result_is_the_exact_sum_of_those_whose_inputs_were_taken()
        self.no_client_reveals_both_kinds_and_no_two_thresholds_are_revealed()
        with pytest.raises(SecureFedError):
            self.server.receive(self.cohort.names[0], b"")


COMMON = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def test_any_sequence_of_events_keeps_the_rounds_invariants():
    run_state_machine_as_test(
        RoundMachine, settings=settings(max_examples=25, stateful_step_count=25, **COMMON)
    )


@pytest.mark.slow
def test_many_long_sequences_of_events_keep_the_rounds_invariants():
    run_state_machine_as_test(
        RoundMachine, settings=settings(max_examples=600, stateful_step_count=60, **COMMON)
    )
