"""Rounds over Flower: its own grid, messages and ClientApp, and agents behind real sockets."""

import json
import os
import secrets
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from deployed import CLOCK, FakeTime, policy_values, write_deployment
from flower_grid import Grid
from recorded_site import CONFIG, MODEL, RecordedSite, session_of

from securefed.agent.agent import Agent
from securefed.agent.policy import AgentPolicy
from securefed.agent.runs import RunAccounts
from securefed.agent.socket_server import SocketServer
from securefed.agent.spending import Spending
from securefed.crypto.identity import IdentityKey
from securefed.engines.couriers import greet, over_agents
from securefed.engines.events import Silent
from securefed.engines.flower import GridCourier, client_app, server_app
from securefed.engines.in_process import carry, carry_by
from securefed.engines.verify import verify_run
from securefed.evidence.roster import Roster
from securefed.federation.client import ClientRound
from securefed.federation.invitations import Invitation
from securefed.federation.log import Log
from securefed.federation.server import ServerRound

DIMENSION = 40
ONE_AT_A_TIME = threading.Lock()  # torch's warnings are caught by a context that is the process's


@contextmanager
def listening(path, agent, log):
    stop = threading.Event()

    def handle(request):
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


@pytest.fixture
def recorded(tmp_path):
    """Four agents with recorded vectors, on a grid; noise off."""
    names = [f"site-{i}" for i in range(4)]
    server, keys = IdentityKey.generate(), {n: IdentityKey.generate() for n in names}
    roster = Roster(server.public, {n: k.public for n, k in keys.items()})
    session = session_of(bytes(16), names, roster.clients, DIMENSION)
    rng = np.random.default_rng(5)
    vectors = {
        n: rng.integers(0, 1 << session.plan.bits, session.context.length).astype(np.uint32)
        for n in names
    }
    with ExitStack() as held:
        sockets = []
        for name in names:
            values = policy_values(
                name,
                server.public.raw.hex(),
                runs={"configurations": [CONFIG], "models": [MODEL]},
                floors={"mechanisms": ["none"], "units": ["client"], "min_noise_multiplier": 0.0},
                budget={"epsilon": 1.0, "delta": 1e-4, "unit": "client"},
            )
            policy = AgentPolicy.model_validate(values)
            time = FakeTime()
            log = quiet(tmp_path / f"{name}.log")
            agent = Agent(
                policy,
                keys[name],
                roster,
                RecordedSite(vectors[name], DIMENSION),
                Spending(tmp_path / name, name, policy.budget, lambda: CLOCK),
                RunAccounts(tmp_path / name / "runs", name, lambda: CLOCK),
                log,
                clock=time,
                pause=time.pause,
            )
            path = tmp_path / f"s{name}" / "agent.sock"
            held.enter_context(listening(path, agent, log))
            sockets.append(path)
        yield server, keys, roster, vectors, sockets


def over_flower(recorded, dropped=lambda node, message: False, seconds=30.0):
    server, _, roster, vectors, sockets = recorded
    world = Grid(client_app, sockets)
    session = session_of(secrets.token_bytes(16), vectors, roster.clients, DIMENSION)
    half = ServerRound(session)
    with world.running() as grid:
        courier = GridCourier(grid, stage_seconds=seconds, wait_seconds=5.0, poll_seconds=0.01)
        greeted = greet(courier, CONFIG, roster, server, Silent(), min_clients=3)
        world.dropped = lambda node, message: dropped(
            {n: c for c, n in greeted.nodes.items()}[node], message.metadata.group_id
        )
        invitation = Invitation(
            run=greeted.run,
            ledger=bytes(32),
            round=1,
            session=session.session,
            figures=False,
            sizes=dict(greeted.sizes),
            noise_multiplier=0.0,
            fractions=(),
            adapter=b"",
        ).encode(server)
        charged = []
        exchange = over_agents(
            courier, greeted.nodes, invitation, session, charge=charged.append, observer=Silent()
        )
        carried = carry_by(exchange, half, session.cohort)
    return half, carried, charged


def in_process(recorded, drop):
    _, keys, roster, vectors, _ = recorded
    session = session_of(secrets.token_bytes(16), vectors, roster.clients, DIMENSION)
    half = ServerRound(session)
    clients = {
        name: ClientRound(session, name, keys[name], lambda codec, g, v=vector: v)
        for name, vector in vectors.items()
    }
    carry(half, clients, drop=drop)
    return half


def total(half):
    return half._half.result.total


def test_integer_sums_over_flower_equal_those_in_process_to_the_bit(recorded):
    half, carried, charged = over_flower(recorded)
    expected = in_process(recorded, {})
    vectors = recorded[3]
    plain = np.sum([v.astype(np.uint64) for v in vectors.values()], axis=0)
    assert np.array_equal(total(half), total(expected))
    assert np.array_equal(total(half), (plain & (2**32 - 1)).astype(np.uint32) & mask(half))
    assert half.survivors == expected.survivors == tuple(sorted(vectors))
    assert charged == sorted(vectors)
    assert not carried.refusals


def mask(half):
    return np.uint32((1 << half._session.plan.bits) - 1)


def test_a_node_that_falls_silent_is_a_dropout_and_the_sum_is_the_others(recorded):
    def silent(name, stage):
        return name == "site-2" and stage == "masked_input"

    half, carried, charged = over_flower(recorded, silent, seconds=3.0)
    expected = in_process(recorded, {"site-2": "masked_input"})
    assert np.array_equal(total(half), total(expected))
    assert half.survivors == ("site-0", "site-1", "site-3")
    assert "site-2" in charged
    assert "site-2" in carried.unanswered


def test_an_agent_that_is_gone_is_an_error_message_and_a_dropout(recorded):
    gone = recorded[4][1]

    def goes(name, stage):
        if name == "site-1" and stage == "share":
            gone.unlink()
        return False

    half, carried, charged = over_flower(recorded, goes)
    assert half.survivors == ("site-0", "site-2", "site-3")
    assert "site-1" not in charged
    assert "site-1" in carried.unanswered


def test_the_whole_server_app_trains_a_tiny_model_over_flower(tmp_path, monkeypatch):
    world = write_deployment(tmp_path, clients=3, training={"rounds": 1})
    with ExitStack() as held:
        sockets = []
        for name in world.identities:
            path = tmp_path / f"s-{name}" / "agent.sock"
            held.enter_context(listening(path, world.agent(name), quiet(tmp_path / f"{name}.log")))
            sockets.append(path)
        grid = Grid(client_app, sockets)
        with grid.running() as running:
            from flwr.app import Context, RecordDict

            names = ("run_file", "roster", "key", "out", "model")
            places = {name: getattr(world.deployment, name) for name in names}
            (tmp_path / "deployment.toml").write_text(tomli_w.dumps(places | {"log": "server.log"}))
            monkeypatch.setenv("SECUREFED_DEPLOYMENT", str(tmp_path / "deployment.toml"))
            config = {"stage-seconds": 60.0, "wait-seconds": 5.0, "offline": True}
            server_app(running, Context(1, 0, {}, RecordDict(), config))
    verdict = verify_run(Path(world.deployment.out))
    assert verdict.finished
    events = [json.loads(x)["event"] for x in (tmp_path / "server.log").read_text().splitlines()]
    assert (events[0], events[-1], events.count("round")) == ("started", "finished", 2)


def test_a_client_app_loads_neither_model_nor_training():
    program = (
        "import sys; import securefed.engines.flower as f; assert f.client_app; "
        "print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"},
    )
    loaded = set(done.stdout.split())
    assert "flwr" in loaded
    assert not loaded & {"torch", "peft", "transformers", "opacus", "safetensors", "tenseal"}
