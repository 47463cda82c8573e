"""Real processes of a deployment on this machine: agents, SuperLink, SuperNodes, a run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Processes(AbstractContextManager):
    """Starts processes with a log each, and ends those that are left, and their children."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, {}
        folder.mkdir(parents=True, exist_ok=True)
        self.environment = os.environ | {
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    def start(self, name: str, *words: Any) -> subprocess.Popen:
        with (self.folder / f"{name}.out").open("ab") as log:
            process = subprocess.Popen(
                [str(BIN / str(words[0])), *map(str, words[1:])],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
        self.started[name] = process
        return process

    def call(self, *words: Any, timeout: float = 120.0) -> str:
        done = subprocess.run(
            [str(BIN / str(words[0])), *map(str, words[1:])],
            capture_output=True,
            text=True,
            env=self.environment,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def output(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text(errors="replace")

    def kill(self, name: str) -> None:
        """As a power cut would: the process and all that it started."""
        os.killpg(self.started[name].pid, signal.SIGKILL)
        self.started[name].wait()

    def __exit__(self, *of: object) -> None:
        for process in self.started.values():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            process.wait()


def until(holds: Any, what: str, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.2)


def logged(path: Path, **values: Any) -> bool:
    """Whether an agent's log has a line with these values."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = (json.loads(line) for line in lines)
    return any(values.items() <= line.items() for line in found)
