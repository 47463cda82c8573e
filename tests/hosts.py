"""Hosts of their own on this machine: network namespaces that a bridge joins.  Needs root."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager

SERVER = "server"

_KNOCK = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 9), timeout=5).close()
except ConnectionRefusedError:
    print("refused")
except OSError as error:
    print(error)
"""


class Hosts(AbstractContextManager):
    """A server's host, at 10.77.0.1, and clients' hosts from 10.77.0.2 on; a link to each.

    Nothing outside can be reached from any of them.
    """

    def __init__(self, clients: Sequence[str]) -> None:
        self._mark = f"sf{os.getpid()}"
        self.addresses = {SERVER: "10.77.0.1"}
        self._made: list[str] = []
        try:
            self._make(SERVER)
            self._ip("-n", self.name(SERVER), "link", "add", "bridge", "type", "bridge")
            self._up(SERVER, "bridge")
            for place, client in enumerate(clients):
                self.addresses[client] = f"10.77.0.{place + 2}"
                self._make(client)
                inside, port = self.name(client), self._port(client)
                self._ip(
                    "-n", self.name(SERVER), "link", "add", port, "type", "veth",
                    "peer", "name", "uplink", "netns", inside,
                )  # fmt: skip
                self._ip("-n", self.name(SERVER), "link", "set", port, "master", "bridge")
                self.set_link(client, "up")
                self._up(client, "uplink")
        except BaseException:
            self.__exit__()
            raise

    def name(self, host: str) -> str:
        return f"{self._mark}-{host}"

    def under(self, host: str) -> tuple[str, ...]:
        """The words that make a command run on this host."""
        return ("ip", "netns", "exec", self.name(host))

    def set_link(self, client: str, state: str) -> None:
        """Cut (``"down"``) or mend (``"up"``) the link between a client's host and the server's."""
        self._ip("-n", self.name(SERVER), "link", "set", self._port(client), state)

    def reaches(self, host: str, other: str) -> bool:
        """Whether packets come through: a port that nobody listens on is refused then."""
        words = [*self.under(host), sys.executable, "-c", _KNOCK, self.addresses[other]]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return done.stdout.strip() == "refused"

    def listeners(self, host: str) -> set[str]:
        """Every address and port that anything on this host listens on, TCP and UDP."""
        words = [*self.under(host), "ss", "-H", "-l", "-n", "-t", "-u"]
        found = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        return {line.split()[4] for line in found.splitlines()}

    def _make(self, host: str) -> None:
        self._ip("netns", "add", self.name(host))
        self._made.append(self.name(host))
        self._ip("-n", self.name(host), "link", "set", "lo", "up")

    def _up(self, host: str, device: str) -> None:
        name = self.name(host)
        self._ip("-n", name, "addr", "add", f"{self.addresses[host]}/24", "dev", device)
        self._ip("-n", name, "link", "set", device, "up")

    @staticmethod
    def _port(client: str) -> str:
        return f"to-{client}"[:15]

    @staticmethod
    def _ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"

    def __exit__(self, *of: object) -> None:
        for name in self._made:
            subprocess.run(["ip", "netns", "del", name], check=False)
