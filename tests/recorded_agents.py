"""Real agents with recorded vectors in place of model and data: keys, accounts on disk, sockets."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from recorded_site import CONFIG, MODEL, POLICY, RecordedSite, session_of

from securefed import PrivacyPolicy
from securefed.agent.agent import Agent
from securefed.agent.policy import AgentPolicy
from securefed.agent.runs import RunAccounts
from securefed.agent.socket_server import SocketServer
from securefed.agent.spending import Spending
from securefed.crypto.identity import IdentityKey
from securefed.engines.couriers import Courier, Greeted, greet, over_agents
from securefed.engines.events import Silent
from securefed.engines.in_process import Carried, carry_by
from securefed.evidence.roster import Roster
from securefed.federation.invitations import Invitation
from securefed.federation.server import ServerRound
from securefed.operations.log import Log

ONE_AT_A_TIME = threading.Lock()  # torch's warnings are caught by a context that is the process's
CLOCK = "2026-01-01T00:00:00Z"
FLOORS = {
    "min_clients": 3,
    "min_threshold": 2,
    "min_noise_multiplier": 0.0,
    "max_clip_norm": 1.0,
    "max_delta": 1e-5,
    "min_corrupt_fraction": 0.05,
    "max_dropout_fraction": 0.25,
    "mechanisms": ["none"],
    "units": ["client"],
}


@contextmanager
def listening(path: Path, agent: Agent, log: Log) -> Iterator[None]:
    """An agent behind a socket, in a thread."""
    stop = threading.Event()

    def handle(request: bytes) -> bytes:
        with ONE_AT_A_TIME:
            return agent.handle(request)

    server = SocketServer(path, handle, log)
    thread = threading.Thread(target=server.serve, args=[stop.is_set])
    thread.start()
    while not path.exists():
        assert thread.is_alive()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def quiet(path: Path) -> Log:
    return Log(path.open("a"), lambda: CLOCK)


def recorded_agent(
    folder: Path, name: str, key: IdentityKey, roster: Roster, site: Any, **floors: Any
) -> tuple[Agent, Log]:
    """An agent of an owner who takes part in rounds of recorded vectors."""
    policy = AgentPolicy.model_validate(
        {
            "client": name,
            "server": roster.server.raw.hex(),
            "runs": {"configurations": [CONFIG], "models": [MODEL]},
            "floors": FLOORS | floors,
            "budget": {"epsilon": 1e6, "delta": 1e-4, "unit": "client"},
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    log = quiet(folder / f"{name}.log")
    agent = Agent(
        policy,
        key,
        roster,
        site,
        Spending(folder / name, name, policy.budget, lambda: CLOCK),
        RunAccounts(folder / name / "runs", name, lambda: CLOCK),
        log,
        clock=lambda: 0.0,
        pause=lambda seconds: None,
    )
    return agent, log


@dataclass(frozen=True)
class Recorded:
    """A server, and agents that listen."""

    server: IdentityKey
    keys: dict[str, IdentityKey]
    roster: Roster
    vectors: dict[str, NDArray[np.uint32]]
    sockets: list[Path]


@contextmanager
def recorded_agents(folder: Path, count: int, dimension: int) -> Iterator[Recorded]:
    """Agents of one cohort, without noise, each behind a socket."""
    names = [f"site-{i}" for i in range(count)]
    server, keys = IdentityKey.generate(), {n: IdentityKey.generate() for n in names}
    roster = Roster(server.public, {n: k.public for n, k in keys.items()})
    session = session_of(bytes(16), names, roster.clients, dimension)
    rng = np.random.default_rng(5)
    vectors = {
        n: rng.integers(0, 1 << session.plan.bits, session.context.length).astype(np.uint32)
        for n in names
    }
    with ExitStack() as held:
        sockets = []
        for name in names:
            site = RecordedSite(vectors[name], dimension)
            agent, log = recorded_agent(folder, name, keys[name], roster, site)
            path = folder / f"s{name}" / "agent.sock"
            held.enter_context(listening(path, agent, log))
            sockets.append(path)
        yield Recorded(server, keys, roster, vectors, sockets)


def one_round(
    courier: Courier,
    server: IdentityKey,
    roster: Roster,
    dimension: int,
    *,
    policy: PrivacyPolicy = POLICY,
    charge: Callable[[str], None] = lambda name: None,
    then: Callable[[Greeted], None] = lambda greeted: None,
) -> tuple[ServerRound, Carried]:
    """The greeting and one round of all of a roster's clients; ``then`` is called between."""
    session = session_of(
        secrets.token_bytes(16), roster.clients, roster.clients, dimension, policy=policy
    )
    greeted = greet(courier, CONFIG, roster, server, Silent(), min_clients=3)
    then(greeted)
    invitation = Invitation(
        run=greeted.run,
        ledger=bytes(32),
        round=1,
        session=session.session,
        figures=False,
        sizes=dict(greeted.sizes),
        noise_multiplier=policy.noise_multiplier or 0.0,
        fractions=(),
        adapter=b"",
    ).encode(server)
    exchange = over_agents(
        courier, greeted.nodes, invitation, session, charge=charge, observer=Silent()
    )
    half = ServerRound(session)
    return half, carry_by(exchange, half, session.cohort, keep_transcript=False)


def total(half: ServerRound) -> NDArray[np.uint32]:
    """The sum in the ring, before it is decoded."""
    found: NDArray[np.uint32] = half._half.result.total
    return found
