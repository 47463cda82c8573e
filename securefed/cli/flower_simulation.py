"""``securefed flower simulate``: a whole deployment on one machine, through Flower's simulation.

Everything that parties have on their machines lies in one folder beside the run folder, made for
this user alone: ``NAME.parties`` with ``server.pem``, ``roster.json`` (signed) and
``roster.public.json``, ``run.toml`` as all parties have it, and for each client ``ID/`` with
``identity.pem``, ``policy.toml``, ``accounts/`` and ``agent.log``.
"""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from securefed.cli.closing import statements
from securefed.cli.watching import quiet_libraries, say, watching
from securefed.config import RunConfig, load_config
from securefed.errors import ConfigError

if TYPE_CHECKING:
    from securefed.agent.agent import Agent
    from securefed.crypto.identity import IdentityKey
    from securefed.engines.couriers import Courier
    from securefed.engines.events import Observer
    from securefed.engines.results import RunResult
    from securefed.evidence.roster import Roster
    from securefed.operations.log import Log

_STARTED_WITHIN = 60.0


def simulate(
    config: Annotated[Path, typer.Argument(help="Run file (TOML).")],
    out: Annotated[Path, typer.Option(help="Run folder; new or empty.")],
    offline: Annotated[
        bool, typer.Option("--offline", help="Fetch nothing; use the cache only.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that carry messages.")] = 2,
    stage_seconds: Annotated[
        float, typer.Option(min=1.0, help="How long the answers of a stage are waited for.")
    ] = 3600.0,
    figures: Annotated[
        bool,
        typer.Option("--figures", help="Policies take part in exact sums of held-out figures."),
    ] = False,
) -> None:
    """Carry a run through Flower's simulation engine, with an agent and a policy for each client.

    Parties, keys and policies are made for this run.  Time that answers are held back for is not
    waited: nobody here sees when an answer leaves.
    """
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # Flower reads it when it is imported
    from securefed.engines.run_folder import RunFolder

    read = load_config(config)
    parties = out.with_name(f"{out.name}.parties")
    RunFolder(out).check_new()
    if parties.exists():
        raise ConfigError(f"{parties}: is there already; choose another --out, or move it away")
    stopped = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: stopped.set())
    try:
        with watching() as shown:
            result = _simulated(
                read,
                out,
                parties,
                shown,
                offline=offline,
                workers=workers,
                stage_seconds=stage_seconds,
                figures=figures,
                stopped=stopped.is_set,
            )
    finally:
        signal.signal(signal.SIGINT, before)
    say(statements(read, result.guarantees) + "\n")
    say(f"run folder: {out}")
    say(f"its parties: {parties} (verify --roster takes {parties / 'roster.public.json'})")


def _simulated(
    config: RunConfig,
    out: Path,
    parties: Path,
    shown: Observer,
    *,
    offline: bool,
    workers: int,
    stage_seconds: float,
    figures: bool,
    stopped: Callable[[], bool],
) -> RunResult:
    """Make all parties, and run the federation over them."""
    from securefed.config import dump_config
    from securefed.crypto.identity import IdentityKey
    from securefed.engines.deployed import common_config
    from securefed.engines.deployment import Deployment
    from securefed.engines.flower_simulation import simulate as over_flower
    from securefed.engines.remote_federation import federate
    from securefed.evidence.roster import Roster
    from securefed.evidence.signed_roster import SignedRoster
    from securefed.operations.private_folder import private_folder

    common = common_config(config)
    names = _clients(config, offline, shown)
    quiet_libraries()
    private_folder(parties, "parties")
    (parties / "run.toml").write_text(dump_config(common), encoding="utf-8")
    server = IdentityKey.generate()
    server.save(parties / "server.pem")
    identities = {name: IdentityKey.generate() for name in names}
    roster = Roster(server.public, {name: key.public for name, key in identities.items()})
    SignedRoster(roster, 1).save(parties / "roster.json", server)
    deployment = Deployment(
        run_file=str(parties / "run.toml"),
        roster=str(parties / "roster.json"),
        key=str(parties / "server.pem"),
        out=str(out),
        model=config.model.source,
        offline=offline,
        stage_seconds=stage_seconds,
    )
    results: list[RunResult] = []
    with ExitStack() as held:
        short = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="sf-")))
        sockets = []
        turn = threading.Lock()
        for number, (name, identity) in enumerate(identities.items()):
            shown.message(f"agent of {name}")
            place = parties / name
            private_folder(place, "party")
            identity.save(place / "identity.pem")
            agent, log = held.enter_context(
                _agent(config, common, name, place, identity, roster, offline, figures)
            )
            socket = short / str(number) / "agent.sock"
            held.enter_context(_answering(socket, agent, log, turn))
            sockets.append(socket)

        def serve(courier: Courier) -> None:
            results.append(federate(deployment, courier, observer=shown))

        over_flower(
            serve,
            sockets,
            folder=short / "ray",
            workers=workers,
            stage_seconds=stage_seconds,
            stopped=stopped,
        )
    return results[0]


def _clients(config: RunConfig, offline: bool, shown: Observer) -> list[str]:
    """The ids of all clients of a run file."""
    from securefed.training.assets import cache_dir
    from securefed.training.corpora import load_corpus
    from securefed.training.data import chosen_clients

    corpus = load_corpus(
        config.data.source,
        cache=cache_dir(),
        offline=offline,
        section=config.data,
        labels=config.model.labels,
        progress=shown.message,
    )
    return chosen_clients(corpus, config.data)


@contextmanager
def _agent(
    config: RunConfig,
    common: RunConfig,
    name: str,
    place: Path,
    identity: IdentityKey,
    roster: Roster,
    offline: bool,
    figures: bool,
) -> Iterator[tuple[Agent, Log]]:
    """One client's agent, with its accounts in its folder."""
    from securefed.agent.accounts import opened_accounts
    from securefed.agent.agent import Agent
    from securefed.agent.example import example_policy
    from securefed.agent.policy import dump_policy
    from securefed.engines.events import Silent
    from securefed.engines.simulation import utc_now
    from securefed.engines.site import TrainingSite
    from securefed.evidence.signed_roster import SignedRoster
    from securefed.operations.log import Log, appended
    from securefed.training.assets import cache_dir

    site = TrainingSite(
        common,
        client=name,
        cache=cache_dir(),
        offline=offline,
        observer=Silent(),
        model=config.model.source,
        data=config.data.source,
        trainers=[] if common.training.trainer is None else [common.training.trainer],
    )
    policy = example_policy(
        common, client=name, server=roster.server.raw.hex(), digest=site.config, model=site.model
    )
    if figures:
        floors = policy.floors.model_copy(update={"exact_figures": True})
        policy = policy.model_copy(update={"floors": floors})
    path = place / "policy.toml"
    path.touch(mode=0o600)
    path.write_text(dump_policy(policy), encoding="utf-8")
    with ExitStack() as held:
        log = Log(held.enter_context(appended(place / "agent.log")), utc_now)
        signed = SignedRoster(roster, 1)
        opened = opened_accounts(place / "accounts", policy, signed, utc_now)
        spending, runs = held.enter_context(opened)
        agent = Agent(
            policy,
            identity,
            roster,
            site,
            spending,
            runs,
            log,
            clock=lambda: 0.0,
            pause=lambda seconds: None,
        )
        yield agent, log
        agent.finish()


@contextmanager
def _answering(path: Path, agent: Agent, log: Log, turn: threading.Lock) -> Iterator[None]:
    """An agent behind its socket, in a thread; one agent of the process works at a time.

    Raises:
        ConfigError: it does not begin to listen.
    """
    from securefed.agent.socket_server import SocketServer

    def handle(request: bytes) -> bytes:
        with turn:  # torch's threads, warnings and random state are the process's
            return agent.handle(request)

    over = threading.Event()
    server = SocketServer(path, handle, log)
    thread = threading.Thread(target=server.serve, args=[over.is_set])
    thread.start()
    try:
        until = time.monotonic() + _STARTED_WITHIN
        while not path.exists():
            if not thread.is_alive() or time.monotonic() >= until:
                raise ConfigError(f"socket {path}: no agent listens there")
            time.sleep(0.01)
        yield
    finally:
        over.set()
        thread.join()
