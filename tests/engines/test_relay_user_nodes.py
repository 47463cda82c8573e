"""Real SuperNodes run a hostile app: one as its owner's user, the others as one of their own.

Needs root; run with ``-m namespaces``.
"""

import json
import os
import pwd
from pathlib import Path

import pytest
from deployment import NAMES, Machines, Processes, until
from hostile_app import hostile
from other_users import RELAY, as_user, open_folder

pytestmark = pytest.mark.namespaces

OWNER = pwd.getpwnam("daemon")
OFF = "site-1"
"""Whose SuperNode is the owner's user, as it was before there was another one."""


def give(folder: Path, user: pwd.struct_passwd) -> None:
    for each in (folder, *folder.rglob("*")):
        os.chown(each, user.pw_uid, user.pw_gid)


def test_the_server_s_code_reads_an_owner_s_files_only_where_it_runs_as_the_owner():
    with open_folder() as top, Processes(top / "processes") as processes:
        folder = top / "machines"
        folder.mkdir()
        machines = Machines(folder, processes, tls=True, rounds=1)
        give(folder, OWNER)
        os.chown(machines.app / "deployment.toml", os.getuid(), os.getgid())  # the server's
        (folder / "data").chmod(0o700)
        owner = as_user(OWNER, RELAY.pw_gid, HOME=folder)
        for name in NAMES:
            relay = () if name == OFF else ("--relay-user", RELAY.pw_name)
            machines.start_agent(name, *relay, under=owner)
        machines.start_superlink()
        machines.connect()
        until(lambda: all(machines.socket(name).exists() for name in NAMES), "agents", 300)
        for name in NAMES:
            machines.register(name)
            user, home = OWNER if name == OFF else RELAY, top / f"{name}-home"
            home.mkdir()
            give(home, user)
            os.chown(machines.node_key(name), user.pw_uid, user.pw_gid)
            machines.start_node(name, under=as_user(user, FLWR_HOME=home, HOME=home))
        machines.run()
        machines.wait_for_the_end()
        machines.kept()
        assert [sorted(each) for each in machines.survivors()] == [NAMES]

        theirs = {
            name: [
                folder / "data" / f"{name}.txt",
                folder / f"{name}.pem",
                *(each for each in (folder / f"{name}-accounts").rglob("*") if each.is_file()),
            ]
            for name in NAMES
        }
        out = folder / "stolen.json"
        machines.app = hostile(machines.app, [p for each in theirs.values() for p in each], out)
        machines.run("hostile")
        until(out.exists, "what the hostile app read", 600)
        until(lambda: out.read_text().endswith("]"), "all of it", 60)
        found = {Path(each.pop("socket")): each for each in json.loads(out.read_text())}
    assert sorted(found) == sorted(machines.socket(name) for name in NAMES)
    for name in NAMES:
        read = found[machines.socket(name)]
        if name == OFF:
            assert all(bytes.fromhex(read[str(path)]) for path in theirs[name])
        else:
            assert set(read.values()) == {"PermissionError"}
