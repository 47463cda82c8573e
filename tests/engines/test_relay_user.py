"""A hostile server's code in a SuperNode: as the owner's user, and as one of its own.  Needs root.

Run with ``-m namespaces``.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from agent_processes import Agents
from deployed import World, write_deployment
from forked import prints_into, started
from other_users import RELAY, HostileCode, become, open_folder
from typer.testing import CliRunner

from securefed.cli.commands import app
from securefed.engines.remote_federation import federate
from securefed.engines.verify import verified_run
from securefed.errors import ConfigError, RemoteProtocolError
from securefed.operations.private_folder import passable_folder

pytestmark = pytest.mark.namespaces


@dataclass
class Owners:
    """Four agents at work, and the code that a server has run beside each of them."""

    world: World
    agents: Agents
    code: HostileCode

    def nodes(self, wanted: int) -> list[int]:
        return list(range(len(self.world.identities)))

    def exchange(self, requests, *, what):
        return {n: self.code.relay(self.socket(n), each) for n, each in requests.items()}

    def socket(self, node: int) -> Path:
        return self.agents.socket(sorted(self.world.identities)[node])

    def theirs(self) -> list[Path]:
        """An owner's data, identity key and account."""
        folder = self.world.folder
        accounts = [each for each in self.agents.accounts("site-0").rglob("*") if each.is_file()]
        assert accounts
        return [folder / "data" / "site-0.txt", folder / "site-0.pem", *accounts]


@contextmanager
def owners(*, relay: bool) -> Iterator[Owners]:
    """With ``relay`` the agents have a user who relays, and the code runs as that one."""
    with ExitStack() as held:
        folder = held.enter_context(open_folder()) / "world"
        folder.mkdir()
        world = write_deployment(folder)
        (folder / "data").chmod(0o700)
        agents = held.enter_context(
            Agents(
                world,
                relay_user=RELAY.pw_name if relay else None,
                floors={"exact_figures": False},
            )
        )
        agents.start(*world.identities)
        user = (RELAY.pw_uid, RELAY.pw_gid) if relay else (0, 0)
        yield Owners(world, agents, held.enter_context(HostileCode(*user)))


def test_as_another_user_it_relays_a_whole_run_and_reads_nothing():
    with owners(relay=True) as found:
        federate(found.world.deployment, found)
        run = verified_run(Path(found.world.deployment.out))
        assert [len(each) for each in run.history.survivors.values()] == [4, 4]
        for path in found.theirs():
            with pytest.raises(PermissionError):
                found.code.read(path)
        with pytest.raises(PermissionError):
            found.code.signal(found.agents.pid("site-0"), signal.SIGTERM)
        assert not [line for line in found.agents.said("site-0") if line["event"] == "warning"]


def test_as_the_owners_user_it_reads_everything():
    """The defence off: the same code."""
    with owners(relay=False) as found:
        for path in found.theirs():
            assert found.code.read(path) == path.read_bytes()
        found.code.relay(found.socket(0), b"")
        (line,) = [line for line in found.agents.said("site-0") if line["event"] == "warning"]
        assert "--relay-user" in line["why"]


def test_nobody_else_comes_through():
    with owners(relay=True) as found, HostileCode(12_345, RELAY.pw_gid) as in_its_group:
        with pytest.raises(RemoteProtocolError):
            in_its_group.relay(found.socket(0), b"")
        said = [line for line in found.agents.said("site-0") if line["event"] == "turned away"]
        assert [line["uid"] for line in said] == [12_345]
        with HostileCode(12_346, 12_346) as another, pytest.raises(RemoteProtocolError):
            another.relay(found.socket(0), b"")
        assert found.agents.said("site-0")[-1] == said[-1]  # it did not even come to the socket


def test_without_a_user_who_relays_the_socket_is_the_owners_alone():
    with owners(relay=False) as found, HostileCode(RELAY.pw_uid, RELAY.pw_gid) as another:
        with pytest.raises(RemoteProtocolError, match="Permission denied"):
            another.relay(found.socket(0), b"")


def test_data_that_the_other_user_can_read_are_warned_of():
    with owners(relay=True) as found:
        found.agents.kill("site-0")
        data = found.world.folder / "data"
        data.chmod(0o755)
        found.agents.start("site-0")
        assert found.code.read(data / "site-0.txt")
        (line,) = [line for line in found.agents.said("site-0") if line["event"] == "warning"]
        assert "site-0.txt: user nobody (--relay-user)" in line["why"]


def test_a_key_or_account_of_the_other_user_is_refused():
    with open_folder() as folder:
        (folder / "accounts").mkdir(mode=0o700)
        for path in (folder / "key.pem", folder / "accounts" / "spent"):
            path.touch(mode=0o600)
        names = {"--policy": "p", "--config": "c", "--roster": "r", "--socket": "s/agent.sock"}
        places = names | {"--key": "key.pem", "--accounts": "accounts"}
        words = [w for option, name in places.items() for w in (option, str(folder / name))]
        for theirs, what in ((folder / "accounts", "spent"), (folder / "key.pem", "key.pem")):
            for each in (theirs, *theirs.glob("*")):
                os.chown(each, RELAY.pw_uid, RELAY.pw_gid)
            done = CliRunner().invoke(app, ["client", *words, "--relay-user", "nobody"])
            assert isinstance(done.exception, ConfigError)
            assert f"{what}: user nobody (--relay-user)" in str(done.exception)
        assert not (folder / "s").exists()


def _asks_for_the_group(folder: Path, gid: int, out: Path) -> None:
    prints_into(out)
    out.chmod(0o666)
    become(12_345, 12_345)
    try:
        passable_folder(folder, "socket folder", gid)
    except ConfigError as error:
        print(error, flush=True)


def test_an_owner_who_is_not_in_the_group_is_told_what_to_do():
    with open_folder() as folder:
        folder.chmod(0o777)
        out = folder / "out"
        process = started(_asks_for_the_group, folder / "socket", RELAY.pw_gid, out)
        process.join(120)
        assert "usermod -aG" in out.read_text()
