"""Faults in real runs: agents that are processes, Flower's own grid and messages between.

Each test is a row of the table that is printed at the end (``tests/fault_matrix.py``).  Whatever
goes wrong, what ``check_kept`` looks at must hold: budgets, adapter, ledger and verdict.
"""

import secrets
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from agent_processes import Agents
from deployed import write_deployment
from deployment import until
from fault_matrix import check_kept
from flower_grid import Grid
from forked import limit_files, prints_into, started

from securefed.engines.events import Silent
from securefed.engines.flower import GridCourier, client_app, packed, unpacked
from securefed.engines.remote_federation import Deployment, federate
from securefed.errors import RemoteProtocolError
from securefed.evidence.ledger import read_ledger
from securefed.federation.invitations import Invitation, Step, answered

pytestmark = pytest.mark.deployment

STAGES = ["advertise", "share", "masked_input", "consistency", "unmask"]
FAULTY = "site-2"
GRID = "agents as processes, Flower's in-memory grid"
SERVER = "server as a process, with its in-memory grid"


class Told(Silent):
    def __init__(self):
        self.lines = []

    def message(self, text):
        self.lines.append(text)


class Federated:
    """A run of two rounds with four agents, and what is done to the messages of one of them.

    ``at(stage, number, answer)`` is called with each message to site-2: the round's number, 0 in a
    greeting and for held-out figures; ``answer`` gives its request, or another one, to the
    ClientApp as often as it is called.  What it returns is the reply; None for none.
    """

    def __init__(self, folder, held, *, seconds=120.0, accounts=None):
        folder.mkdir(exist_ok=True)
        self.world = write_deployment(folder)
        own = Agents(self.world, accounts, floors={"exact_figures": False})
        self.agents = held.enter_context(own)
        self.agents.start(*self.world.identities)
        self.seconds, self.sent, self.number = seconds, set(), {}
        self.at = lambda stage, number, answer: answer()
        self.told = Told()

    @property
    def run(self):
        return Path(self.world.deployment.out)

    @property
    def ledger(self):
        return self.run / "ledger.jsonl"

    def sockets(self):
        return [self.agents.socket(name) for name in sorted(self.world.identities)]

    def go(self):
        grid = Grid(client_app, self.sockets())
        named = {
            node: path.parent.name.removesuffix("-socket") for node, path in grid.sockets.items()
        }

        def deliver(node, message, answer):
            name, stage = named[node], message.metadata.group_id
            request = unpacked(message.content)
            if stage == "advertise":
                invitation = Invitation.decode(request, self.world.server.public)
                self.number[name] = 0 if invitation.figures else invitation.round

            def asked(other=None):
                message.content = packed(request if other is None else other)
                reply = answer(message)
                self.note(name, stage, request, reply)
                return reply

            asked.request = request
            if name != FAULTY:
                return asked()
            return self.at(stage, self.number.get(name, 0), asked)

        grid.deliver = deliver
        with grid.running() as running:
            return federate(
                self.world.deployment, courier(running, self.seconds), observer=self.told
            )

    def note(self, name, stage, request, reply):
        """Remember each masked input that left an agent, whether it arrived or not."""
        if stage != "masked_input" or reply.has_error():
            return
        try:
            answered(unpacked(reply.content))
        except RemoteProtocolError:  # a refusal
            return
        self.sent.add((Step.decode(request).session.hex(), name))

    def kept(self):
        roster = self.world.folder / "roster.public.json"
        roster.write_text(self.world.roster.to_text())
        accounts = {name: self.agents.accounts(name) for name in self.world.identities}
        return check_kept(self.run, accounts, roster=roster, sent=self.sent)

    def survivors(self):
        records = read_ledger(self.ledger)
        return [len(r.body["survivors"]) for r in records if r.kind == "round_summed"]


def courier(grid, seconds):
    return GridCourier(grid, stage_seconds=seconds, wait_seconds=60.0, poll_seconds=0.01)


def serve(values, sockets, seconds, out):
    """The server's part in a process of its own."""
    prints_into(out)
    with Grid(client_app, sockets).running() as running:
        federate(Deployment(**values), courier(running, seconds))


@pytest.fixture
def federated(tmp_path):
    with ExitStack() as held:
        yield lambda **more: Federated(tmp_path, held, **more)


def with_it(stage):
    """How many are in the sum if site-2's reply to a stage, and all after it, are missing."""
    return 4 if STAGES.index(stage) > STAGES.index("masked_input") else 3


@pytest.mark.parametrize("stage", STAGES)
def test_an_agent_that_is_killed_in_a_stage_is_back_in_the_next_round(federated, fault, stage):
    row = fault(
        f"agent killed in `{stage}`, started again",
        where=GRID,
        expected=f"{with_it(stage)} of 4 in the sum, then 4 of 4",
    )
    run, killed = federated(), []

    def at(found, number, answer):
        if (found, number) == (stage, 1) and not killed:
            run.agents.kill(FAULTY)
            killed.append(answer())  # Flower's error message: nobody answers on the socket
            run.agents.start(FAULTY)
            return killed[0]
        return answer()

    run.at = at
    run.go()
    assert killed[0].has_error()
    assert run.survivors() == [with_it(stage), 4]
    row.seen = run.kept()


def test_an_agent_that_is_killed_for_good_right_after_its_masked_input_left(federated, fault):
    row = fault(
        "agent killed when its masked input has left, for good",
        where=GRID,
        expected="4 of 4 in the sum, then 3 of 4",
    )
    run = federated()

    def at(stage, number, answer):
        reply = answer()
        if (stage, number) == ("masked_input", 1):
            run.agents.kill(FAULTY)
        return reply

    run.at = at
    run.go()
    assert run.survivors() == [4, 3]
    row.seen = run.kept()


def paused_at_the_masked_input(run, took, seconds):
    """The agent stands still for so many seconds of round 1, with the request on its socket."""

    def at(stage, number, answer):
        if (stage, number) != ("masked_input", 1):
            return answer()
        run.agents.pause(FAULTY)
        waker = threading.Timer(seconds, run.agents.go_on, [FAULTY])
        waker.start()
        begun = time.monotonic()
        reply = answer()
        took.append(time.monotonic() - begun)
        waker.join()
        return reply

    return at


def test_a_client_that_is_slow_and_in_time(federated, fault):
    row = fault(
        "agent stands still (SIGSTOP) for 5 s of a stage of 120 s", where=GRID,
        expected="4 of 4 in both sums",
    )  # fmt: skip
    run, took = federated(), []
    run.at = paused_at_the_masked_input(run, took, 5.0)
    run.go()
    assert took[0] > 4.5
    assert run.survivors() == [4, 4]
    row.seen = run.kept()


def test_a_client_that_is_too_slow(federated, fault):
    row = fault(
        "agent stands still (SIGSTOP) for 25 s, a stage takes 20 s", where=GRID,
        expected="3 of 4 in the sum, then 4 of 4; it charged itself for what came too late",
    )  # fmt: skip
    run, took = federated(seconds=20.0), []
    run.at = paused_at_the_masked_input(run, took, 25.0)
    run.go()
    assert took[0] > 19.0
    assert run.survivors() == [3, 4]
    charged = [line["round"] for line in run.agents.said(FAULTY) if line["event"] == "charged"]
    assert charged == [1, 2]
    row.seen = run.kept()


@pytest.mark.parametrize("stage", ["advertise", "masked_input", "unmask"])
def test_a_client_that_is_silent_in_a_stage(federated, fault, stage):
    row = fault(
        f"node takes the message of `{stage}` and never replies", where=GRID,
        expected=f"{with_it(stage)} of 4 in the sum, then 4 of 4",
    )  # fmt: skip
    run = federated(seconds=20.0)
    run.at = lambda found, number, answer: None if (found, number) == (stage, 1) else answer()
    run.go()
    assert run.survivors() == [with_it(stage), 4]
    row.seen = run.kept()


def test_messages_that_come_twice(federated, fault):
    row = fault(
        "every message of a round delivered twice", where=GRID,
        expected="4 of 4 in both sums; each round charged once",
    )  # fmt: skip
    run, twice = federated(), []

    def at(stage, number, answer):
        first = answer()
        if number == 1 and stage in STAGES:
            twice.append(stage)
            answer()
        return first

    run.at = at
    run.go()
    assert twice == STAGES
    assert run.survivors() == [4, 4]
    charged = [line["round"] for line in run.agents.said(FAULTY) if line["event"] == "charged"]
    assert charged == [1, 2]
    row.seen = run.kept()


def test_old_messages_that_come_before_the_right_ones(federated, fault):
    row = fault(
        "before each message of round 2, one of round 1 and one of an earlier stage again",
        where=GRID,
        expected="4 of 4 in both sums; the old ones refused, each round charged once",
    )
    run, kept, old = federated(), {}, []

    def at(stage, number, answer):
        if stage not in STAGES or not number:
            return answer()
        kept[number, stage] = answer.request
        if number == 2:
            before = STAGES[: STAGES.index(stage)]
            for request in [kept[1, stage], *(kept[2, each] for each in before)]:
                old.append(unpacked(answer(request).content))
        return answer()

    run.at = at
    run.go()
    assert len(old) == 5 + 0 + 1 + 2 + 3 + 4
    for reply in old:
        with pytest.raises(RemoteProtocolError):
            answered(reply)
    assert run.survivors() == [4, 4]
    row.seen = run.kept()


def test_replies_in_the_wrong_order(federated, fault):
    row = fault(
        "reply of `share` handed over in place of that of `masked_input`", where=GRID,
        expected="3 of 4 in the sum, then 4 of 4; it charged itself",
    )  # fmt: skip
    run, kept = federated(), {}

    def at(stage, number, answer):
        reply = answer()
        if number == 1 and stage == "share":
            kept[stage] = unpacked(reply.content)
        if number == 1 and stage == "masked_input":
            reply.content = packed(kept["share"])
        return reply

    run.at = at
    run.go()
    assert run.survivors() == [3, 4]
    row.seen = run.kept()


@pytest.mark.parametrize("stage", STAGES)
def test_a_client_that_answers_with_garbage(federated, fault, stage):
    row = fault(
        f"4,000 random bytes in place of the reply of `{stage}`", where=GRID,
        expected=f"{with_it(stage)} of 4 in the sum, then 4 of 4",
    )  # fmt: skip
    run = federated()

    def at(found, number, answer):
        reply = answer()
        if (found, number) == (stage, 1):
            reply.content = packed(secrets.token_bytes(4000))
        return reply

    run.at = at
    run.go()
    assert run.survivors() == [with_it(stage), 4]
    row.seen = run.kept()


def test_an_agent_whose_disk_is_full(federated, fault):
    row = fault(
        "no file at the agent can grow, accounts and log, in `masked_input` (RLIMIT_FSIZE)",
        where=GRID,
        expected="nothing leaves uncharged: 3 of 4 in the sum; then room again, and 4 of 4",
    )
    run = federated()

    def at(stage, number, answer):
        if (stage, number) != ("masked_input", 1):
            return answer()
        run.agents.limit_files(FAULTY, 10)
        reply = answer()
        run.agents.limit_files(FAULTY, None)
        return reply

    run.at = at
    run.go()
    assert run.agents.alive(FAULTY)
    assert run.survivors() == [3, 4]
    assert sorted(name for _, name in run.sent).count(FAULTY) == 1  # of round 2
    assert any(line["event"] == "log not writable" for line in run.agents.said(FAULTY))
    row.seen = run.kept()


def run_as_a_process(run, **changed):
    values = run.world.deployment.model_copy(update=changed).model_dump()
    return started(serve, values, run.sockets(), run.seconds, run.world.folder / "server.out")


def server_is_killed(run, when, what):
    server = run_as_a_process(run)
    until(lambda: when() or not server.is_alive(), what, 300)
    assert server.is_alive()
    server.kill()
    server.join()
    assert server.exitcode == -signal.SIGKILL


def goes_on(run):
    server = run_as_a_process(run, resume=True)
    server.join(600)
    assert server.exitcode == 0, (run.world.folder / "server.out").read_text()


def said(run, name, **values):
    return any(values.items() <= line.items() for line in run.agents.said(name))


def in_ledger(run, kind):
    return run.ledger.exists() and f'"kind":"{kind}"' in run.ledger.read_text()


MOMENTS = {
    "after `advertise`": lambda run: said(run, "site-0", event="invited", round=1, of="updates"),
    "in `masked_input`": lambda run: said(run, "site-3", event="charged", round=1),
    "when the sum is in the ledger": lambda run: in_ledger(run, "round_summed"),
    "when the round is applied": lambda run: in_ledger(run, "round_applied"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_server_that_is_killed_goes_on_from_checkpoint_and_ledger(federated, fault, moment):
    row = fault(
        f"server killed (SIGKILL) in round 1, {moment}; `resume`", where=SERVER,
        expected="both rounds applied once; what was charged before stays charged",
    )  # fmt: skip
    run = federated()
    server_is_killed(run, lambda: MOMENTS[moment](run), moment)
    goes_on(run)
    row.seen = run.kept()


def test_a_server_whose_disk_is_full(federated, fault):
    row = fault(
        "the ledger at the server cannot grow from round 1 on (RLIMIT_FSIZE); room; `resume`",
        where=SERVER,
        expected="the run stops by itself with nothing used that is not on record, then goes on",
    )
    run = federated()
    server = run_as_a_process(run)
    until(lambda: MOMENTS["after `advertise`"](run) or not server.is_alive(), "round 1", 300)
    limit_files(server.pid, run.ledger.stat().st_size)
    server.join(300)
    assert server.exitcode == 1
    assert "LedgerError" in (run.world.folder / "server.out").read_text()
    assert not in_ledger(run, "round_applied")
    goes_on(run)
    row.seen = run.kept()
