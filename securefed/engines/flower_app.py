"""The files of a Flower app that runs a federation: no code of its own, and no dependencies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomli_w

from securefed.config import RunConfig, dump_config

PACKAGE, POLICIES, PLACES = "securefed_app", "policies", "deployment.toml"

_INIT = '"""Flower apps of securefed."""\n'
_SERVER = '''"""The server's half: rounds, ledger and adapter."""

from securefed.engines.flower import server_app as app

__all__ = ["app"]
'''
_CLIENT = '''"""A client's half: relays bytes to the agent behind the owner's socket."""

from securefed.engines.flower import client_app as app

__all__ = ["app"]
'''


def app_files(
    config: RunConfig, *, name: str, version: str, settings: dict[str, Any]
) -> dict[str, str]:
    """The app's files, by path inside its folder.

    Args:
        config: the run file that all parties share; it travels with the app too.
        name: of the app.
        version: of securefed.
        settings: what ``flwr run --run-config`` can change, by key.  It travels to every node: no
            place on the server's machine is in it.
    """
    project = {
        "project": {
            "name": name,
            "version": version,
            "description": "A federation of securefed over Flower",
            "license": {"text": "Apache-2.0"},
            # Flower would otherwise ask a package index for them at the start of each run.
            "dependencies": [],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "securefed",
                    "fab-exclude": [f"{POLICIES}/**", PLACES],
                    "components": {
                        "serverapp": f"{PACKAGE}.server_app:app",
                        "clientapp": f"{PACKAGE}.client_app:app",
                    },
                    "config": settings,
                }
            }
        },
    }
    return {
        "pyproject.toml": tomli_w.dumps(project),
        "run.toml": dump_config(config),
        f"{PACKAGE}/__init__.py": _INIT,
        f"{PACKAGE}/server_app.py": _SERVER,
        f"{PACKAGE}/client_app.py": _CLIENT,
    }


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Write files, which nobody but their owner can change, into a folder that is new or empty.

    Raises:
        OSError: they cannot be written.
    """
    for place, text in files.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o644)
        path.write_text(text, encoding="utf-8")
