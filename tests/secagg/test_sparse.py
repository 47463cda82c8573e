"""Rounds on a sparse graph: small ones, built by hand within the conditions of parameters.py."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secagg_rounds import Cohort, drive

from securefed.config import STAGES
from securefed.errors import ProtocolError, RemoteProtocolError, ThresholdNotMet
from securefed.secagg import messages as wire_messages
from securefed.secagg.carriers import apply_masks
from securefed.secagg.client_states import ClientState
from securefed.secagg.graph import Graph, nonce_commitment, nonce_commitments
from securefed.secagg.messages import Neighbourhood
from securefed.secagg.pairwise_server import PairwiseServer


def sparse(**changes) -> Cohort:
    return Cohort(**({"size": 16, "degree": 8, "length": 9} | changes))


def test_the_sum_is_exact_when_nobody_drops():
    cohort = sparse()
    outcome = drive(cohort)
    assert not outcome.refused
    assert set(outcome.sent) == set(STAGES)
    assert outcome.server.result.survivors == cohort.names
    np.testing.assert_array_equal(outcome.server.result.total, cohort.plain_sum(cohort.names))


@pytest.mark.parametrize("stage", STAGES)
def test_one_client_may_fall_silent_from_any_stage_on(stage):
    cohort = sparse()
    outcome = drive(cohort, drop={"c002": stage})
    inside = STAGES.index(stage) > STAGES.index("masked_input")
    survivors = tuple(name for name in cohort.names if inside or name != "c002")
    assert outcome.server.result.survivors == survivors
    np.testing.assert_array_equal(outcome.server.result.total, cohort.plain_sum(survivors))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), bits=st.sampled_from([20, 27, 32]), data=st.data())
def test_any_dropout_pattern_gives_the_exact_sum_or_no_sum(seed, bits, data):
    cohort = sparse(seed=seed, bits=bits, dropout=0.3)
    drop = {
        name: stage
        for name in cohort.names
        if (stage := data.draw(st.sampled_from([None] * 9 + list(STAGES)))) is not None
    }
    outcome = drive(cohort, drop=drop)
    if outcome.ended is None:
        result = outcome.server.result
        assert len(result.survivors) >= cohort.context().parameters.survivor_floor
        np.testing.assert_array_equal(result.total, cohort.plain_sum(result.survivors))
    else:
        assert isinstance(outcome.ended, ThresholdNotMet)


def test_a_client_knows_the_keys_of_its_neighbours_only():
    cohort = sparse()
    outcome = drive(cohort, until="graph")
    replies = outcome.server.advance()
    seen = set()
    for name, reply in replies.items():
        found = Neighbourhood.decode(reply, size=16, degree=8)
        assert len(found.advertisements) == 8
        assert cohort.names.index(name) not in {item.sender for item in found.advertisements}
        seen.add(tuple(item.sender for item in found.advertisements))
    assert len(seen) > 8  # on a ring no two clients have the same neighbours


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        ("another nonce", "not what was committed to"),
        ("a nonce left out", "not what was committed to"),
        ("own nonce withheld", "own is not among them"),
        ("a neighbour left out", "not those of the neighbours"),
        ("a stranger's keys", "not those of the neighbours"),
        ("too few nonces", "at least 12 are needed"),
    ],
)
def test_a_ring_that_does_not_follow_from_the_nonces_is_refused(lie, error):
    cohort = sparse()
    me = cohort.names.index("c003")

    def meddle(stage, name, reply):
        if stage != "share" or name != "c003":
            return reply
        found = Neighbourhood.decode(reply, size=16, degree=8)
        nonces, withheld = dict(found.nonces), dict(found.withheld)
        adverts = list(found.advertisements)
        all_adverts = outcome_adverts

        def withhold(index: int) -> None:
            withheld[index] = wire_messages.Advertisement.decode(
                all_adverts[index].body
            ).nonce_commitment
            del nonces[index]

        if lie == "another nonce":
            nonces[(me + 1) % 16] = bytes(16)
        elif lie == "a nonce left out":
            del nonces[(me + 1) % 16]
        elif lie == "own nonce withheld":
            withhold(me)
        elif lie == "a neighbour left out":
            adverts.pop()
        elif lie == "a stranger's keys":
            around = {item.sender for item in adverts}
            stranger = next(i for i in range(16) if i not in around and i != me)
            adverts = sorted([*adverts[1:], all_adverts[stranger]], key=lambda item: item.sender)
        else:
            for index in [i for i in range(16) if i != me][:5]:
                withhold(index)
        return Neighbourhood(nonces, withheld, adverts).encode(size=16)

    outcome_adverts: dict[int, wire_messages.Signed] = {}

    def watch(stage, name, message):
        if stage == "advertise":
            signed = wire_messages.Signed.decode(message, limit=len(message))
            outcome_adverts[signed.sender] = signed
        return message

    outcome = drive(cohort, meddle_down=meddle, meddle_up=watch)
    assert error in str(outcome.refused["c003"])
    assert outcome.clients["c003"].state is ClientState.FAILED
    assert "c003" not in outcome.sent["share"]
    result = outcome.server.result
    np.testing.assert_array_equal(result.total, cohort.plain_sum(result.survivors))


def test_a_nonce_that_was_not_committed_to_is_refused_by_the_server():
    cohort = sparse()
    clients = {name: cohort.client(name) for name in cohort.names}

    def other(stage, name, message):
        return message

    original = clients["c001"]._reveal_nonce

    def lie(message):
        clients["c001"]._secrets.nonce = bytes(16)
        return original(message)

    clients["c001"]._reveal_nonce = lie
    outcome = drive(cohort, clients=clients, meddle_up=other)
    assert "committed to another one" in str(outcome.refused["c001"])
    assert "c001" not in outcome.server.result.survivors


def test_a_list_with_a_neighbour_that_did_not_share_is_not_signed():
    """The server hides a neighbour's bundle from one client and lists it all the same."""
    cohort = sparse()
    hidden: dict[str, int] = {}

    def hide(stage, name, reply):
        if stage != "masked_input" or name != "c003":
            return reply
        client = outcome_clients["c003"]
        me = cohort.names.index(name)
        with_edge = {other: client._graph.gives(other, me) for other in client._secrets.peers}
        bundles = wire_messages.decode_delivery(reply, with_edge=with_edge)
        hidden["who"] = min(bundles)
        del bundles[hidden["who"]]
        return wire_messages.encode_delivery(bundles)

    outcome_clients = {name: cohort.client(name) for name in cohort.names}
    outcome = drive(cohort, clients=outcome_clients, meddle_down=hide)
    assert f"'{cohort.names[hidden['who']]}' did not share" in str(outcome.refused["c003"])
    # Its mask towards the hidden neighbour is missing: whatever comes out is no sum.
    assert outcome.ended is None
    wrong = outcome.server.result.total != cohort.plain_sum(outcome.server.result.survivors)
    assert wrong.all()


class Cutting(PairwiseServer):
    """Declares two blocks of h clients dropped, knowing the ring, and tries to open each arc."""

    def __init__(self, context):
        super().__init__(context)
        self.inputs: dict[int, np.ndarray] = {}
        self.opened: dict[tuple[int, ...], np.ndarray] = {}
        self.failures: list[str] = []

    def receive(self, client_id, message):
        before = self._sum.total.copy()
        stage = self.stage
        super().receive(client_id, message)
        if stage == "masked_input":
            self.inputs[self._context.index(client_id)] = self._sum.total - before

    def advance(self):
        if self.stage == "masked_input":
            size, half = self._context.parameters.size, self._context.parameters.degree // 2
            order = [int(index) for index in self._relay.graph._order]
            middle = size // 2
            self.cut = [*order[:half], *order[middle : middle + half]]
            self.arcs = [sorted(order[half:middle]), sorted(order[middle + half :])]
            self._seen -= set(self.cut)
        return super().advance()

    def _unmask(self):
        for arc in self.arcs:
            self._survivors, self._sharers = frozenset(arc), frozenset([*arc, *self.cut])
            total = np.zeros_like(self._sum.total)
            for index in arc:
                total += self.inputs[index]
            try:
                apply_masks(total, self._unmasking().masks())
            except ProtocolError as error:
                self.failures.append(str(error))
            else:
                self.opened[tuple(arc)] = total


@pytest.mark.parametrize("threshold", ["as derived", "one less"])
def test_a_cut_of_the_ring_opens_nothing(threshold):
    """Two arcs without an edge between them: with t = h + 1 the server reads the sum of each.

    With t = h + 2, as derived for no corrupt client, whoever stands next to a block has too few
    holders left to be unmasked, and its arc stays closed.
    """
    cohort = Cohort(size=24, degree=4, length=9, dropout=0.25)
    context = cohort.context()
    if threshold == "one less":  # the class refuses it, so it has to be forced
        object.__setattr__(context.parameters, "threshold", 3)
    clients = {name: cohort.client(name, context) for name in cohort.names}
    server = Cutting(context)
    drive(cohort, clients=clients, server=server)
    assert len(server._reveals) == 20  # every survivor is content with list and signatures
    if threshold == "as derived":
        assert server.opened == {}
        assert all("3 holders revealed a share" in failure for failure in server.failures)
        assert len(server.failures) == 2
    else:
        assert len(server.opened) == 2
        for arc, total in server.opened.items():
            wanted = cohort.plain_sum(tuple(cohort.names[index] for index in arc))
            np.testing.assert_array_equal(total, wanted)


def test_messages_of_the_other_kind_of_graph_are_refused():
    complete, ring = Cohort(size=16), sparse()
    reply = drive(complete, until="advertise").server.advance()["c000"]
    client = ring.client("c000")
    client.start()
    with pytest.raises(RemoteProtocolError, match="only type"):
        client.handle(reply)
    assert client.state is ClientState.ADVERTISED


def test_the_order_is_uniform():
    rng = np.random.default_rng(0)
    places = np.zeros((8, 8))
    for _ in range(4000):
        graph = Graph.from_seed(rng.bytes(32), size=8, degree=4, witnesses=4)
        places[np.arange(8), graph._order] += 1
    assert ((places - 500) ** 2 / 500).sum() < 49 + 5 * np.sqrt(2 * 49)


@pytest.mark.parametrize(("size", "degree"), [(9, 4), (16, 8), (201, 40), (10, 9)])
def test_every_edge_has_two_ends_and_one_giver(size, degree):
    graph = Graph.from_seed(bytes(32), size=size, degree=degree, witnesses=degree)
    for index in range(size):
        around = graph.neighbours(index)
        assert len(around) == degree
        gives = 0
        for other in around:
            assert index in graph.neighbours(other)
            assert graph.gives(index, other) != graph.gives(other, index)
            gives += graph.gives(index, other)
        assert abs(gives - degree / 2) <= (0.5 if degree == size - 1 else 0)


def test_commitments_of_a_cohort_are_those_of_its_clients():
    digest = bytes(range(32))
    nonces = {index: bytes([index % 251]) * 16 for index in (0, 1, 255, 256, 2**20, 2**32 - 1)}
    assert nonce_commitments(nonces, digest) == {
        index: nonce_commitment(nonce, digest, index) for index, nonce in nonces.items()
    }
