"""Runs of four agents that are processes, over Flower's own grid and messages between."""

import signal
from pathlib import Path

from agent_processes import Agents
from deployed import write_deployment
from deployment import until
from fault_matrix import check_kept
from flower_grid import Grid
from forked import prints_into, started

from securefed.engines.events import Silent
from securefed.engines.flower import GridCourier, client_app, packed, unpacked
from securefed.engines.remote_federation import Deployment, federate
from securefed.errors import RemoteProtocolError
from securefed.evidence.ledger import read_ledger
from securefed.federation.invitations import Invitation, Step, answered

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
