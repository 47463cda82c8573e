"""``securefed client``: the data owner's agent."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from securefed.cli.keys import Password, read_password
from securefed.cli.watching import quiet_libraries
from securefed.config import load_config
from securefed.errors import ConfigError

if TYPE_CHECKING:
    from securefed.agent.relay_user import RelayUser


def client(
    policy: Annotated[Path, typer.Option(help="The owner's policy (TOML).")],
    config: Annotated[Path, typer.Option(help="The run file that all parties have (TOML).")],
    roster: Annotated[Path, typer.Option(help="The signed roster.")],
    key: Annotated[Path, typer.Option(help="This client's identity key (mode 0600).")],
    socket: Annotated[Path, typer.Option(help="Unix-domain socket to answer on.")],
    accounts: Annotated[Path, typer.Option(help="Folder of this owner's privacy accounts.")],
    model: Annotated[
        str | None, typer.Option(help="What the run file's model.source stands for here.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="What the run file's data.source stands for here.")
    ] = None,
    relay_user: Annotated[
        str | None,
        typer.Option(help="Answer this user, whom the SuperNode runs as, and nobody else."),
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="Append the log there (mode 0600); else standard error.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(help="Answer Prometheus at HOST:PORT (extra metrics).")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Fetch nothing; use the cache only.")
    ] = False,
    password_file: Password = None,
) -> None:
    """Hold data, model and keys, and answer a server by the owner's policy, until it is stopped.

    On SIGHUP it reads the roster again; one that is not later and signed as it must be is refused,
    and one that no longer names this client ends the agent.
    """
    from securefed.agent.accounts import opened_accounts
    from securefed.agent.agent import Agent
    from securefed.agent.policy import load_policy
    from securefed.agent.relay_user import check_unread
    from securefed.agent.relay_user import relay_user as user_of
    from securefed.agent.rosters import take_roster
    from securefed.agent.socket_server import SocketServer
    from securefed.crypto.identity import IdentityKey
    from securefed.evidence.signed_roster import read_signed_roster
    from securefed.operations.log import Log, appended

    relay = None if relay_user is None else user_of(relay_user)
    if relay is not None:
        secrets = {"identity file": key, "accounts": accounts, "password file": password_file}
        for what, path in secrets.items():
            if path is not None:
                check_unread(path, relay, what)
    allowed = load_policy(policy)
    identity = IdentityKey.load(key, password=read_password(password_file))
    pinned = read_signed_roster(roster, allowed.server_key, least_serial=allowed.least_serial)
    run_file = load_config(config)

    from securefed.engines.deployed import local_config
    from securefed.engines.events import Silent
    from securefed.engines.simulation import utc_now
    from securefed.engines.site import TrainingSite
    from securefed.training.assets import cache_dir

    class Loading(Silent):
        """What is being loaded goes into the log."""

        def __init__(self, told: Log) -> None:
            self._told = told

        def message(self, text: str) -> None:
            self._told.write("loading", what=text)

    stopped = renew = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True

    def read_again(number: int, frame: object) -> None:
        nonlocal renew
        renew = True

    signal.signal(signal.SIGHUP, read_again)  # it would end a process that is still loading
    with ExitStack() as held:
        stream = sys.stderr if log is None else held.enter_context(appended(log))
        counted = None
        if metrics is not None:
            from securefed.operations.metrics import AgentMetrics, answering

            counted = AgentMetrics()
            held.enter_context(answering(metrics, counted.registry))
        told = Log(stream, utc_now, count=None if counted is None else counted.count)
        spending, runs = held.enter_context(opened_accounts(accounts, allowed, pinned, utc_now))
        told.write("roster", serial=pinned.serial)
        told.write("spent", **spending.terms())
        for why in _open_to(relay, Path(local_config(run_file, data=data).data.source), metrics):
            told.write("warning", why=why)
        quiet_libraries()
        site = TrainingSite(
            run_file,
            client=allowed.client,
            cache=cache_dir(),
            offline=offline,
            observer=Loading(told),
            model=model,
            data=data,
            trainers=allowed.runs.trainers,
        )
        agent = Agent(
            allowed,
            identity,
            pinned.roster,
            site,
            spending,
            runs,
            told,
            clock=time.monotonic,
            pause=time.sleep,
        )
        agent.finish()

        def handle(request: bytes) -> bytes:
            reply = agent.handle(request)
            if counted is not None:
                counted.carried(len(request), len(reply))
            return reply

        def renewed() -> None:
            """Take the roster that lies there now, unless it is no later one of this server."""
            try:
                later = read_signed_roster(
                    roster, allowed.server_key, least_serial=allowed.least_serial
                )
                take_roster(accounts, later, clock=utc_now)
            except ConfigError as error:
                told.write("refused", request="roster", kind=type(error).__name__, why=str(error))
                return
            told.write("roster", serial=later.serial)
            try:
                agent.renew(later.roster)
            except ConfigError as error:
                told.write("revoked", why=str(error))
                raise

        def looked() -> bool:
            nonlocal renew
            if renew:
                renew = False
                renewed()
            return stopped

        server = SocketServer(socket, handle, told, relay=relay)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        server.serve(looked)
        agent.finish()
        told.write("stopped")


def _open_to(relay: RelayUser | None, data: Path, metrics: str | None) -> Iterator[str]:
    """What code that the server sends can read beside the agent, though nothing is refused."""
    from securefed.agent.relay_user import first_readable

    if relay is None:
        yield "no --relay-user: what a server sends runs as this user"
        return
    if (found := first_readable(data, relay)) is not None:
        yield (
            f"data {found}: user {relay.name} (--relay-user), which runs what a server sends, can "
            "read it (chmod go-rwx)"
        )
    if metrics is not None:
        yield f"metrics {metrics}: user {relay.name} can read them"
