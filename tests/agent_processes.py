"""Owners' agents as processes of their own, each made in a moment from one that has loaded torch.

What runs in such a process is ``securefed client`` itself, with a socket, keys, accounts and a log
on disk; it can be killed, stopped, and started again on the same accounts.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import tomli_w
from deployed import World, policy_values
from deployment import until
from forked import limit_files, started

from securefed.config import load_config
from securefed.engines.deployed import config_digest
from securefed.training.models import weights_fingerprint


def _serve(arguments: dict[str, Any]) -> None:
    # Imported here: the parent has no use for it.
    from securefed.cli.agents import client

    client(**arguments)


class Agents(AbstractContextManager):
    """The agents of a world, by client; all of them are ended in the end.

    Args:
        world: as ``write_deployment`` wrote it.
        accounts: where an owner's accounts lie, if elsewhere than in the world's folder.
        relay_user: as of ``securefed client``.
        sections: of every policy, over those of ``policy_values``.
    """

    def __init__(
        self,
        world: World,
        accounts: dict[str, Path] | None = None,
        *,
        relay_user: str | None = None,
        **sections: Any,
    ) -> None:
        self.world, self._relay_user = world, relay_user
        self._accounts, self._sections = accounts or {}, sections
        self._processes: dict[str, Any] = {}
        config = config_digest(load_config(world.run_file))
        runs = {"configurations": [config], "models": [weights_fingerprint(world.folder / "model")]}
        server = world.server.public.raw.hex()
        for name, key in world.identities.items():
            values = policy_values(name, server, **({"runs": runs} | sections))
            (world.folder / f"{name}-policy.toml").write_text(tomli_w.dumps(values))
            key.save(world.folder / f"{name}.pem")

    def socket(self, name: str) -> Path:
        return self.world.folder / f"{name}-socket" / "agent.sock"

    def accounts(self, name: str) -> Path:
        return self._accounts.get(name, self.world.folder / f"{name}-accounts")

    def said(self, name: str) -> list[dict[str, Any]]:
        path = self.world.folder / f"{name}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def start(self, *names: str) -> None:
        """Start agents and wait until they listen."""
        folder = self.world.folder
        before = {name: self._listened(name) for name in names}
        for name in names:
            arguments = {
                "policy": folder / f"{name}-policy.toml",
                "config": self.world.run_file,
                "roster": folder / "roster.json",
                "key": folder / f"{name}.pem",
                "socket": self.socket(name),
                "accounts": self.accounts(name),
                "model": str(folder / "model"),
                "data": str(folder / "data"),
                "relay_user": self._relay_user,
                "log": folder / f"{name}.log",
                "offline": True,
                "password_file": None,
            }
            process = started(_serve, arguments)
            self._processes[name] = process
        for name in names:
            until(lambda name=name: self._listened(name) > before[name], f"agent {name}", 300)

    def kill(self, name: str) -> None:
        """As a power cut would."""
        self._processes[name].kill()
        self._processes[name].join()

    def pause(self, name: str) -> None:
        """It does nothing from now on, and its connections stay."""
        os.kill(self._processes[name].pid, signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        os.kill(self._processes[name].pid, signal.SIGCONT)

    def pid(self, name: str) -> int:
        pid: int = self._processes[name].pid
        return pid

    def alive(self, name: str) -> bool:
        alive: bool = self._processes[name].is_alive()
        return alive

    def limit_files(self, name: str, size: int | None) -> None:
        """As of the function of that name."""
        limit_files(self._processes[name].pid, size)

    def _listened(self, name: str) -> int:
        return sum(line["event"] == "listening" for line in self.said(name))

    def __exit__(self, *of: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.join()
