"""What goes wrong between machines: the sum is of those left, and nobody is charged twice."""

import secrets

import numpy as np
import pytest
from deployed import DirectCourier
from owners import DIMENSION, NAMES, ROSTER, SERVER, Owner, invitation
from recorded_site import CONFIG, session_of

from securefed.engines.couriers import greet, over_agents
from securefed.engines.events import Silent
from securefed.engines.in_process import carry_by
from securefed.errors import ThresholdNotMet
from securefed.federation.invitations import encode_answer
from securefed.federation.server import ServerRound

STAGES = ("advertise", "share", "masked_input", "consistency", "unmask")
NODES = {name: 100 + place for place, name in enumerate(NAMES)}


class Faulty(DirectCourier):
    """A courier to four owners; ``fault`` may change or take away what site-2 replies."""

    def __init__(self, folder):
        self.folder, self.owners = folder, {name: Owner(folder, name) for name in NAMES}
        super().__init__({NODES[name]: self.answering(name) for name in NAMES})
        self.fault = lambda stage, request, reply: reply
        self.stage = ""

    def answering(self, name):
        return lambda request: self.owners[name].agent.handle(request)

    def restart(self, name):
        self.owners[name].stop()
        self.owners[name] = Owner(self.folder, name)

    def exchange(self, requests, *, what):
        self.stage, replies = what, {}
        for node, request in requests.items():
            reply = self.agents[node](request)
            if node == NODES["site-2"]:
                reply = self.fault(what, request, reply)
            if reply is not None:
                replies[node] = reply
        return replies


def one_round(courier):
    session = session_of(secrets.token_bytes(16), NAMES, ROSTER.clients, DIMENSION)
    server, charged = ServerRound(session), []
    exchange = over_agents(
        courier,
        NODES,
        invitation(session.session),
        session,
        charge=charged.append,
        observer=Silent(),
    )
    carried = carry_by(exchange, server, NAMES)
    return server, carried, charged


def check(courier, server, *, with_it):
    names = NAMES if with_it else tuple(name for name in NAMES if name != "site-2")
    assert server.survivors == names
    vector = courier.owners["site-0"].site.vector
    assert np.array_equal(server._half.result.total, len(names) * vector)


@pytest.mark.parametrize("killed", STAGES)
def test_a_client_that_is_killed_in_a_stage_is_missing_from_then_on(tmp_path, killed):
    courier, gone = Faulty(tmp_path), []

    def fault(stage, request, reply):
        if stage == killed:
            gone.append(stage)
        return None if gone else reply

    courier.fault = fault
    server, carried, charged = one_round(courier)
    # once its masked input is there it is in the sum, whatever happens to it
    check(courier, server, with_it=STAGES.index(killed) > STAGES.index("masked_input"))
    assert ("site-2" in charged) == (STAGES.index(killed) > STAGES.index("share"))
    assert "site-2" in carried.unanswered


@pytest.mark.parametrize("restarted", STAGES[1:])
def test_an_agent_that_is_restarted_drops_out_of_the_round_and_is_in_the_next(tmp_path, restarted):
    courier, done = Faulty(tmp_path), []
    plain = courier.agents[NODES["site-2"]]

    def answering(request):
        if courier.stage == restarted and not done:
            done.append(restarted)
            courier.restart("site-2")
        return plain(request)

    courier.agents[NODES["site-2"]] = answering
    server, carried, _ = one_round(courier)
    check(courier, server, with_it=STAGES.index(restarted) > STAGES.index("masked_input"))
    assert carried.refusals["site-2"] == "refused: LocalProtocolError"
    again, _, charged = one_round(courier)
    check(courier, again, with_it=True)
    assert charged == list(NAMES)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "garbage",
    [b"", b"garbage", bytes(4000), encode_answer(b""), encode_answer(b"SFED" + bytes(99))],
    ids=["nothing", "text", "zeros", "empty answer", "answer of zeros"],
)
def test_a_client_that_answers_with_garbage_is_refused_and_the_round_ends_well(
    tmp_path, stage, garbage
):
    courier = Faulty(tmp_path)
    courier.fault = lambda at, request, reply: garbage if at == stage else reply
    server, carried, _ = one_round(courier)
    check(courier, server, with_it=STAGES.index(stage) > STAGES.index("masked_input"))
    assert "site-2" in carried.refusals


@pytest.mark.parametrize("stage", STAGES)
def test_a_message_that_comes_twice_is_answered_once_and_charged_once(tmp_path, stage):
    courier, second = Faulty(tmp_path), []

    def fault(at, request, reply):
        if at == stage:
            second.append(courier.owners["site-2"].agent.handle(request))
        return reply

    courier.fault = fault
    server, _, _ = one_round(courier)
    check(courier, server, with_it=True)
    assert len(second) == 1
    events = [line for line in courier.owners["site-2"].said if line["event"] == "charged"]
    assert len(events) == 1
    assert courier.owners["site-2"].said[-1]["event"] in ("refused", "charged")


def test_an_old_message_instead_of_the_new_one_is_refused(tmp_path):
    courier, kept = Faulty(tmp_path), {}

    def fault(stage, request, reply):
        kept[stage] = reply
        return kept["share"] if stage == "masked_input" else reply

    courier.fault = fault
    server, carried, _ = one_round(courier)
    check(courier, server, with_it=False)
    assert "site-2" in carried.refusals


def test_a_client_that_speaks_as_another_is_refused(tmp_path):
    courier = Faulty(tmp_path)
    courier.agents[NODES["site-2"]] = courier.answering("site-1")
    server, carried, _ = one_round(courier)
    assert "site-2" not in server.survivors
    assert "site-2" in carried.refusals


def test_too_few_left_ends_the_round_with_nothing_opened(tmp_path):
    courier = Faulty(tmp_path)
    courier.agents[NODES["site-1"]] = lambda request: b""
    courier.fault = lambda stage, request, reply: None
    with pytest.raises(ThresholdNotMet):
        one_round(courier)


def test_a_node_that_is_no_client_of_the_roster_is_not_taken(tmp_path):
    courier = Faulty(tmp_path)
    courier.agents[7] = lambda request: b"garbage"
    courier.agents[8] = courier.answering("site-0")  # a node that has site-0's agent too
    found = greet(courier, CONFIG, ROSTER, SERVER, Silent(), min_clients=3)
    assert sorted(found.nodes) == list(NAMES)
    assert len(set(found.nodes.values())) == 4
    assert 7 not in found.nodes.values()


def test_a_client_that_answers_at_two_nodes_is_at_the_first(tmp_path):
    handle = Owner(tmp_path).agent.handle
    courier = DirectCourier({1: handle, 2: handle})
    greeted = greet(courier, CONFIG, ROSTER, SERVER, Silent(), min_clients=1)
    assert greeted.nodes == {"site-0": 1}
    with pytest.raises(ThresholdNotMet, match="1 clients are there"):
        greet(courier, CONFIG, ROSTER, SERVER, Silent(), min_clients=2)
