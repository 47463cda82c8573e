"""Processes that are made in a moment, from one that has loaded torch and the package already."""

from __future__ import annotations

import multiprocessing
import os
import resource
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

_PRELOADED = [
    "securefed.cli.agents",
    "securefed.agent.agent",
    "securefed.engines.remote_federation",
    "securefed.engines.site",
]


def started(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A process that calls a function of a module; it ends with this one at the latest."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def prints_into(path: Path) -> None:
    """What this process prints goes into a file from now on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


def limit_files(pid: int, size: int | None) -> None:
    """No file of a process grows beyond so many bytes from now on; None: as many as it likes.

    What it writes beyond that fails in its own write, as on a full disk.
    """
    soft = resource.RLIM_INFINITY if size is None else size
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
