"""What one round between machines costs the server and its agents, by cohort and vector length.

Run by hand::

    python tests/bench/bench_deployment_load.py [--cell CLIENTSxVALUES ...] [--drop 0.05] \
        [--echo] [--out FILE.jsonl]

Every cell is a server in a process of its own, which sends and takes what it would over Flower:
the greeting and the five stages of :func:`~securefed.engines.couriers.over_agents`.  The agents are
real, with their keys, policies and accounts on disk, and hold a recorded vector in place of model
and data: training is not measured.  One agent has a process for itself, whose memory is told; the
others share one.  Bytes go over pipes, one request at a time, so that a second spent by the server
is not one spent by an agent.  ``--drop`` of the clients fall silent before their masked input, at
least one.  The sum is compared with the plain sum of the survivors to the bit.

``--echo`` sends as many messages of the same sizes through Flower's in-memory grid to a ClientApp
that does nothing but answer: what Flower itself costs the server without network or processes.

Seconds are CPU seconds of the process named; wall seconds stand beside them.  The signatures under
the ledger's head after a round are not in it.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy.typing import NDArray
from recorded_agents import one_round, recorded_agent, total
from recorded_site import RecordedSite

from securefed import PrivacyPolicy
from securefed.crypto.identity import IdentityKey
from securefed.evidence.roster import Roster, read_roster

POLICY = PrivacyPolicy(
    clip_norm=1.0, noise_multiplier=1.0, corrupt_fraction=0.05, dropout_fraction=0.1
)
FLOORS = {"mechanisms": ["distributed"], "allow_ring": True}
CELLS = ("10x10000", "30x10000", "100x10000", "300x10000", "1000x10000",
         "100x1000", "100x100000", "100x1000000", "1000x100000")  # fmt: skip
_NUMBER_BYTES = 8


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def vector_of(number: int, bits: int, length: int) -> NDArray[np.uint32]:
    """Uniform in the ring; the same in every process."""
    drawn = np.random.default_rng(number).integers(0, 1 << bits, length, dtype=np.uint64)
    return drawn.astype(np.uint32)


class SeededSite(RecordedSite):
    """Its vector is made when it is asked for, as training would make it, and not kept."""

    def __init__(self, number: int, dimension: int) -> None:
        super().__init__(None, dimension, policy=POLICY)
        self.number = number

    def round(self, invitation: Any, roster: Any) -> Any:
        session, _ = super().round(invitation, roster)
        bits, length = session.plan.bits, session.context.length
        return session, lambda codec, generator: vector_of(self.number, bits, length)


def name_of(number: int) -> str:
    return f"site-{number:05}"


def host_agents(pipe: Connection, folder: Path, numbers: range, dimension: int) -> None:
    """Process: agents that answer one request after the other."""
    everybody = read_roster(folder / "roster.json")
    agents = {}
    for number in numbers:
        name = name_of(number)
        key, site = IdentityKey.load(folder / f"{name}.pem"), SeededSite(number, dimension)
        agents[number], _ = recorded_agent(folder, name, key, everybody, site, **FLOORS)
    base = peak_bytes()
    pipe.send_bytes(b"ready")
    while request := pipe.recv_bytes():
        number = int.from_bytes(request[:_NUMBER_BYTES], "little")
        started = time.process_time_ns()
        reply = agents[number].handle(request[_NUMBER_BYTES:])
        took = time.process_time_ns() - started
        pipe.send_bytes(took.to_bytes(_NUMBER_BYTES, "little") + reply)
    pipe.send((base, peak_bytes()))


@dataclass
class Exchanged:
    """One exchange, as the server's process saw it."""

    what: str
    began: tuple[float, float]
    ended: tuple[float, float]
    agent_seconds: list[float] = field(default_factory=list)
    up: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)


def now() -> tuple[float, float]:
    """CPU seconds of this process, and wall seconds."""
    return time.process_time(), time.perf_counter()


class PipeCourier:
    """Hands requests to agents in other processes, unless a node is silent from a stage on."""

    def __init__(self, pipes: Sequence[Connection], count: int, silent: int) -> None:
        self._pipes, self._count, self._silent = pipes, count, silent
        self.exchanges: list[Exchanged] = []

    def nodes(self, wanted: int) -> list[int]:
        return list(range(self._count))

    def exchange(self, requests: Mapping[int, bytes], *, what: str) -> Mapping[int, bytes]:
        made = Exchanged(what, now(), (0.0, 0.0))
        replies = {}
        for node, request in requests.items():
            # The first node has a process for itself; the last ones fall silent.
            if what == "masked_input" and node >= self._count - self._silent:
                continue
            pipe = self._pipes[min(node, 1)]
            pipe.send_bytes(node.to_bytes(_NUMBER_BYTES, "little") + request)
            answer = pipe.recv_bytes()
            made.agent_seconds.append(int.from_bytes(answer[:_NUMBER_BYTES], "little") / 1e9)
            replies[node] = answer[_NUMBER_BYTES:]
            made.up.append(len(replies[node]))
            made.down.append(len(request))
        made.ended = now()
        self.exchanges.append(made)
        return replies


def stage_figures(exchanges: list[Exchanged], over: tuple[float, float]) -> list[dict[str, Any]]:
    """The server's work of each stage: taking its answers, ending it, making the next requests."""
    begins = [each.began for each in exchanges[1:]] + [over]
    return [
        {
            "stage": each.what,
            "messages": len(each.up),
            "server_cpu": begin[0] - each.ended[0],
            "server_wall": begin[1] - each.ended[1],
            "agent_cpu": statistics.mean(each.agent_seconds),
            "agent_cpu_most": max(each.agent_seconds),
            "up": statistics.mean(each.up),
            "down": statistics.mean(each.down),
            "carrying_cpu": each.ended[0] - each.began[0],
            "wall": each.ended[1] - each.began[1],
        }
        for each, begin in zip(exchanges, begins, strict=True)
    ]


def run_cell(clients: int, values: int, drop: float) -> dict[str, Any]:
    """One greeting and one round, in this process and two of agents."""
    silent = max(1, math.ceil(drop * clients))
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="load-") as place:
        folder = Path(place)
        keys = {name_of(number): IdentityKey.generate() for number in range(clients)}
        server = IdentityKey.generate()
        roster = Roster(server.public, {name: key.public for name, key in keys.items()})
        (folder / "roster.json").write_text(roster.to_text())
        for name, key in keys.items():
            key.save(folder / f"{name}.pem")
        pipes, processes = [], []
        for numbers in (range(1), range(1, clients)):
            ours, theirs = context.Pipe()
            process = context.Process(target=host_agents, args=(theirs, folder, numbers, values))
            process.start()
            pipes.append(ours)
            processes.append(process)
        for pipe in pipes:
            pipe.recv_bytes()
        base = peak_bytes()
        courier = PipeCourier(pipes, clients, silent)
        half, carried = one_round(courier, server, roster, values, policy=POLICY)
        over = now()
        peak = peak_bytes()
        memory = []
        for pipe, process in zip(pipes, processes, strict=True):
            pipe.send_bytes(b"")
            memory.append(pipe.recv())
            process.join()
    session = half._session
    parameters, bits = session.context.parameters, session.plan.bits
    expected = np.zeros(session.context.length, dtype=np.uint32)
    for number in range(clients - silent):
        expected += vector_of(number, bits, expected.size)
    if not np.array_equal(total(half), expected & np.uint32(2**bits - 1)):
        raise SystemExit(f"{clients} clients, {values} values: the sum is wrong")
    if carried.refusals:
        raise SystemExit(f"refused: {carried.refusals}")
    stages = stage_figures(courier.exchanges, over)
    return {
        "what": "round",
        "clients": clients,
        "values": values,
        "silent": silent,
        "bits": bits,
        "degree": parameters.degree,
        "threshold": parameters.threshold,
        "stages": stages,
        "server_cpu": sum(each["server_cpu"] for each in stages),
        "server_wall": sum(each["server_wall"] for each in stages),
        "server_base": base,
        "server_peak": peak,
        "agent_cpu": sum(each["agent_cpu"] for each in stages),
        "agent_base": memory[0][0],
        "agent_peak": memory[0][1],
        "others_base": memory[1][0],
        "load": os.getloadavg()[0],
    }


def echo_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """As many messages of the same sizes through Flower's in-memory grid, and nothing else."""
    from flower_grid import Grid
    from flwr.app import Message
    from flwr.clientapp import ClientApp

    from securefed.engines.flower import GridCourier, packed

    answers = {each["stage"]: round(each["up"]) for each in cell["stages"]}
    app = ClientApp()

    @app.train("relay")
    def echo(message: Message, context: Any) -> Message:
        return Message(packed(bytes(answers[message.metadata.group_id])), reply_to=message)

    world = Grid(app, [Path("/nowhere")] * cell["clients"])
    begun, base = now(), peak_bytes()
    with world.running(threads=1) as grid:
        courier = GridCourier(grid, stage_seconds=3600.0, wait_seconds=60.0, poll_seconds=0.01)
        nodes = courier.nodes(cell["clients"])
        for each in cell["stages"]:
            request = bytes(round(each["down"]))
            asked = nodes[: each["messages"]]
            found = courier.exchange(dict.fromkeys(asked, request), what=each["stage"])
            if len(found) != len(asked):
                raise SystemExit(f"{each['stage']}: {len(found)} of {len(asked)} answered")
    ended = now()
    return {
        "what": "echo",
        "clients": cell["clients"],
        "values": cell["values"],
        "messages": sum(each["messages"] for each in cell["stages"]),
        "bytes": sum(each["messages"] * (each["up"] + each["down"]) for each in cell["stages"]),
        "cpu": ended[0] - begun[0],
        "wall": ended[1] - begun[1],
        "base": base,
        "peak": peak_bytes(),
        "load": os.getloadavg()[0],
    }


def in_process_of_its_own(*words: str) -> dict[str, Any]:
    """The last line that this program prints when it is called so: memory is a process's."""
    done = subprocess.run(
        [sys.executable, __file__, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{words[:2]}: {done.stdout[-500:]}{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def shown(found: dict[str, Any]) -> str:
    """One line of a cell."""
    head = f"{found['what']:<6} {found['clients']:>5} clients {found['values']:>8} values"
    if found["what"] == "echo":
        return (
            f"{head}: {found['messages']} messages, {found['bytes'] / 1e6:.1f} MB, "
            f"{found['cpu']:.2f} CPU s, {found['wall']:.2f} wall s"
        )
    stages = ", ".join(f"{each['stage']} {each['server_cpu']:.2f}" for each in found["stages"])
    return (
        f"{head}: server {found['server_cpu']:.2f} CPU s, {found['server_wall']:.2f} wall s "
        f"({stages}), {(found['server_peak'] - found['server_base']) / 1e6:.0f} MB over "
        f"{found['server_base'] / 1e6:.0f}; agent {found['agent_cpu']:.3f} CPU s, "
        f"{(found['agent_peak'] - found['agent_base']) / 1e6:.0f} MB over "
        f"{found['agent_base'] / 1e6:.0f}; {found['clients'] / found['server_cpu']:.0f} clients/s"
    )


def main() -> None:
    """Run every cell in processes of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cell", nargs="*", default=list(CELLS), help="CLIENTSxVALUES")
    parser.add_argument("--drop", type=float, default=0.05)
    parser.add_argument("--echo", action="store_true", help="Flower's in-memory grid, too")
    parser.add_argument("--out", type=Path, help="append a line of JSON for each cell")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one == "round":
        clients, values = map(int, given.cell[0].split("x"))
        print(json.dumps(run_cell(clients, values, given.drop)))
        return
    if given.one:
        print(json.dumps(echo_cell(json.loads(Path(given.one).read_text()))))
        return
    for name in given.cell:
        found = [in_process_of_its_own("--one", "round", "--cell", name, "--drop", str(given.drop))]
        if given.echo:
            with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
                file.write(json.dumps(found[0]))
                file.flush()
                found.append(in_process_of_its_own("--one", file.name))
        for each in found:
            print(shown(each), flush=True)
            if given.out is not None:
                with given.out.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(each, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
