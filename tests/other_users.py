"""Processes of other users of this machine, which do what the code that a server sends could.

Needs root.  The interpreter may lie where other users cannot come to: such a process is forked, and
drops what root may do before it does anything else.
"""

from __future__ import annotations

import multiprocessing
import os
import pwd
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
