"""A user of its own for the SuperNode: who it is, and what mode bits let it come to."""

import os
import pwd
import stat

import pytest
from other_users import open_folder
from typer.testing import CliRunner

from securefed.agent.relay_user import (
    RelayUser,
    check_passable,
    check_unread,
    first_readable,
    relay_user,
)
from securefed.agent.socket_server import SocketServer
from securefed.cli.commands import app
from securefed.errors import ConfigError
from securefed.operations.private_folder import passable_folder

NOBODY = pwd.getpwnam("nobody")
OTHER = RelayUser("other", os.getuid() + 1, 4_000_000, frozenset({4_000_000}))


@pytest.fixture
def folder():
    with open_folder() as made:
        yield made


@pytest.mark.parametrize("given", ["nobody", str(NOBODY.pw_uid)])
def test_a_user_is_named_or_numbered(given):
    found = relay_user(given)
    assert (found.name, found.uid, found.gid) == ("nobody", NOBODY.pw_uid, NOBODY.pw_gid)
    assert found.gid in found.groups


@pytest.mark.parametrize("given", ["no-such-user", "", "4000000000", "9" * 30, "-1"])
def test_a_user_that_the_machine_does_not_know_is_refused(given):
    with pytest.raises(ConfigError, match="no user of this machine"):
        relay_user(given)


@pytest.mark.parametrize("given", ["root", "0", str(os.getuid())])
def test_root_and_the_agents_own_user_are_refused(given):
    with pytest.raises(ConfigError, match="a user of its own"):
        relay_user(given)


@pytest.mark.parametrize(
    ("mode", "mine", "group", "others"),
    [(0o600, True, False, False), (0o640, True, True, False), (0o604, True, False, True)],
)
def test_the_first_bits_that_apply_decide(folder, mode, mine, group, others):
    path = folder / "file"
    path.touch()
    path.chmod(mode)
    status = path.stat()
    users = [
        RelayUser("mine", status.st_uid, 0, frozenset()),
        RelayUser("group", status.st_uid + 1, 0, frozenset({status.st_gid})),
        OTHER,
    ]
    assert [user.may(status, 4) for user in users] == [mine, group, others]


def test_the_first_file_that_it_can_read_is_found(folder):
    data = folder / "data"
    (data / "site").mkdir(parents=True)
    path = data / "site" / "letters.txt"
    path.write_text("private")
    path.chmod(0o644)
    assert first_readable(data, OTHER) == path
    with pytest.raises(ConfigError, match=r"letters\.txt: user other"):
        check_unread(data, OTHER, "data")
    data.chmod(0o711)  # names can be guessed
    assert first_readable(data, OTHER) == path
    path.chmod(0o640)
    assert first_readable(data, OTHER) is None
    path.chmod(0o644)
    for closed in (data / "site", data, folder):
        closed.chmod(0o700)
        assert first_readable(data, OTHER) is None
        closed.chmod(0o755)
    assert first_readable(folder / "missing" / "file", OTHER) is None


def test_a_file_that_it_owns_counts_whatever_its_mode(folder):
    path = folder / "key.pem"
    path.touch(mode=0o600)
    path.chmod(0)
    own = RelayUser("own", os.getuid(), 0, frozenset())
    with pytest.raises(ConfigError, match=r"key\.pem"):
        check_unread(path, own, "identity file")


def test_a_socket_folder_that_it_cannot_come_to_is_refused(folder):
    closed = folder / "closed"
    (closed / "socket").mkdir(parents=True)
    check_passable(closed / "socket", OTHER)
    (closed / "socket").chmod(0o700)
    closed.chmod(0o700)
    with pytest.raises(ConfigError, match=rf"user other cannot pass {closed} \(mode 0700\)"):
        SocketServer(
            closed / "socket" / "agent.sock",
            bytes,
            None,
            relay=RelayUser("other", OTHER.uid, os.getgid(), frozenset({os.getgid()})),
        )


@pytest.mark.parametrize("mode", [0o750, 0o711, 0o770, 0o777])
def test_a_socket_folder_that_is_open_further_is_refused(folder, mode):
    path = folder / "socket"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 710"):
        passable_folder(path, "socket folder", os.getgid())
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("mode", [None, 0o700, 0o710])
def test_its_group_may_pass_the_socket_folder_and_no_more(folder, mode):
    path = folder / "socket"
    if mode is not None:
        path.mkdir()
        path.chmod(mode)
    passable_folder(path, "socket folder", os.getgid())
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_gid) == (0o710, os.getgid())


@pytest.mark.parametrize("open_to_all", ["key.pem", "accounts/spent.jsonl", "password.txt"])
def test_an_agent_whose_secrets_the_relay_can_read_does_not_start(folder, open_to_all):
    (folder / "accounts").mkdir(mode=0o755)
    for name in ("key.pem", "accounts/spent.jsonl", "password.txt"):
        (folder / name).touch()
        (folder / name).chmod(0o644 if name == open_to_all else 0o600)
    words = {
        "policy": "p", "config": "c", "roster": "r", "socket": "s/agent.sock", "key": "key.pem",
        "accounts": "accounts", "password-file": "password.txt",
    }  # fmt: skip
    given = [w for option, name in words.items() for w in (f"--{option}", str(folder / name))]
    done = CliRunner().invoke(app, ["client", *given, "--relay-user", "nobody"])
    assert isinstance(done.exception, ConfigError)
    assert f"{open_to_all}: user nobody (--relay-user)" in str(done.exception)
    assert not (folder / "s").exists()
