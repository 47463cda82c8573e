"""Processes of other users of this machine, which do what the code that a server sends could.

Needs root.  The interpreter may lie where other users cannot come to: such a process is forked, and
drops what root may do before it does anything else.
"""

from __future__ import annotations

import multiprocessing
import os
import pwd
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from forked import started

from securefed.errors import RemoteProtocolError
from securefed.federation.frames import ask

RELAY = pwd.getpwnam("nobody")


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user of the machine can pass; pytest's own ones are closed."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        folder = Path(made)
        folder.chmod(0o755)
        yield folder


class HostileCode(AbstractContextManager):
    """What a SuperNode of a user runs for a server: it relays, and tries whatever else it likes.

    Args:
        uid: of the user.
        gid: of its group; it is in no other.
    """

    def __init__(self, uid: int, gid: int) -> None:
        self._here, there = multiprocessing.Pipe()
        self._process = started(_obey, uid, gid, there)
        there.close()

    def relay(self, socket: Path, request: bytes) -> bytes:
        """The agent's reply.

        Raises:
            RemoteProtocolError: there is none.
        """
        reply: bytes = self._asked("relay", socket, request)
        return reply

    def read(self, path: Path) -> bytes:
        """A file.

        Raises:
            PermissionError: the machine refuses it.
        """
        found: bytes = self._asked("read", path)
        return found

    def signal(self, pid: int, number: int) -> None:
        """Send a signal.

        Raises:
            PermissionError: the machine refuses it.
        """
        self._asked("signal", pid, number)

    def _asked(self, *words: Any) -> Any:
        self._here.send(words)
        assert self._here.poll(120)
        found = self._here.recv()
        if isinstance(found, Exception):
            raise found
        return found

    def __exit__(self, *of: object) -> None:
        self._process.kill()
        self._process.join()
        self._here.close()


def become(uid: int, gid: int) -> None:
    """Give up for good what this process may do beyond a user."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _obey(uid: int, gid: int, commands: Connection) -> None:
    become(uid, gid)
    while True:
        what, *words = commands.recv()
        try:
            if what == "relay":
                socket, request = words
                found: Any = ask(socket, request, timeout=120)
            elif what == "read":
                found = words[0].read_bytes()
            else:
                found = os.kill(*words)
        except (OSError, RemoteProtocolError) as error:
            found = error
        commands.send(found)


_OPENED = """
set -e
shut=$1; shift
kept=$(mktemp -d)
n=0
for each in $1; do n=$((n + 1)); mkdir "$kept/$n"; mount --bind "$each" "$kept/$n"; done
mount -t tmpfs -o mode=755 tmpfs "$shut"
n=0
for each in $1; do n=$((n + 1)); mkdir -p "$each"; mount --move "$kept/$n" "$each"; done
rmdir "$kept"/* "$kept"
shift
exec "$@"
"""


def as_user(user: pwd.struct_passwd, *groups: int, **environment: object) -> tuple[str, ...]:
    """The words that make a command run as another user, whom the interpreter is opened to.

    Where the interpreter lies behind a folder that is closed to others, the command has its own
    view of that folder (a mount namespace), in which nothing else is left.
    """
    folders = {Path(each).resolve() for each in (sys.prefix, sys.base_prefix)}
    shut = {each for each in map(_closed, folders) if each is not None}
    assert len(shut) < 2, f"the interpreter lies behind {shut}"
    opened: tuple[str, ...] = ()
    for first in shut:
        behind = [str(each) for each in folders if first in each.parents]
        opened = ("unshare", "-m", "sh", "-c", _OPENED, "sh", str(first), " ".join(behind))
    ids = ("setpriv", "--reuid", user.pw_uid, "--regid", user.pw_gid)
    more = ("--groups", ",".join(map(str, groups))) if groups else ("--clear-groups",)
    values = (f"{name}={value}" for name, value in environment.items())
    return (*opened, *map(str, ids), *more, "env", *values)


def _closed(path: Path) -> Path | None:
    """The first folder above a path that is closed to others."""
    above = reversed(path.parents)
    return next((each for each in above if not each.stat().st_mode & stat.S_IXOTH), None)
