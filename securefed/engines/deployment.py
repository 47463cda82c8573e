"""The server's own configuration: what lies where on its machine, and what ``flwr run`` may change.

Places are in a file that stays on the server (``deployment.toml``, written by ``securefed flower
init``), which the environment of the SuperLink names: what is in an app travels to every node, and
would tell it.  Relative paths in it are taken from its own folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import tomli_w
from pydantic import Field, ValidationError

from securefed.config import RunConfig
from securefed.config.base import Positive, Section
from securefed.config.complaints import complaints
from securefed.config.files import read_toml
from securefed.errors import ConfigError
from securefed.operations.private_folder import check_unwritten_by_others

ENVIRONMENT = "SECUREFED_DEPLOYMENT"
RUN_FILE = "run-file-sha256"

_PATHS = ("run_file", "roster", "key", "out", "log")
_HEAD = """\
# Where this server's files lie; relative paths are taken from this file's folder.  It stays here.
# metrics = "127.0.0.1:9464" would answer Prometheus there while a run goes on.
"""


class Deployment(Section):
    """What a server needs to know besides the run file.

    ``run_file``, ``roster`` (signed), ``key`` (the server's identity, mode 0600) and ``out`` (the
    run folder) are paths; ``model`` is what the run file's ``model.source`` stands for here.
    ``log`` is a file that log lines are appended to, mode 0600, ``metrics`` the HOST:PORT where
    Prometheus is answered while a run goes on; without them nothing is logged or answered.

    ``resume`` goes on with the run in ``out``.  ``stage_seconds`` is how long the answers of a
    stage are waited for: training is inside one of them.  ``wait_seconds``: how long for nodes.
    ``run_file_sha256``: the run file that the app was made for; another one is refused.
    """

    run_file: Annotated[str, Field(min_length=1)]
    roster: Annotated[str, Field(min_length=1)]
    key: Annotated[str, Field(min_length=1)]
    out: Annotated[str, Field(min_length=1)]
    model: str = ""
    log: str = ""
    metrics: str = ""
    resume: bool = False
    offline: bool = False
    stage_seconds: Positive = 600.0
    wait_seconds: Positive = 120.0
    run_file_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""

    @classmethod
    def of(cls, values: Mapping[str, Any], environment: Mapping[str, str]) -> Self:
        """From an app's configuration, whose keys have dashes, and the file of places.

        Args:
            values: what travelled with the app.
            environment: of this process; ``SECUREFED_DEPLOYMENT`` names the file.

        Raises:
            ConfigError: no file is named, it cannot be read, others can write it, or a field is
                unknown, missing, out of range, or in both.
        """
        named = environment.get(ENVIRONMENT, "")
        if not named:
            raise ConfigError(
                f"{ENVIRONMENT} is not set: start the SuperLink with {ENVIRONMENT}=PATH, the "
                "deployment.toml that `securefed flower init` wrote"
            )
        path = Path(named)
        # It says which key signs, and where this user's files are written.
        places = read_toml(path, ENVIRONMENT, check=check_unwritten_by_others)
        asked = {key.replace("-", "_"): value for key, value in values.items()}
        twice = sorted(places.keys() & asked.keys())
        if twice:
            raise ConfigError(f"{twice[0]}: is in {path} and in the app's configuration; keep one")
        try:
            found = cls.model_validate(places | asked)
        except ValidationError as error:
            what = complaints(error, cls, "deployment")
            raise ConfigError(f"{path} and app configuration: {what}") from None
        return found.model_copy(update=found._placed(path.resolve().parent))

    def _placed(self, folder: Path) -> dict[str, str]:
        placed = {
            name: str((folder / value).resolve())
            for name in _PATHS
            if (value := str(getattr(self, name)))
        }
        if self.model and (folder / self.model).is_dir():
            placed["model"] = str((folder / self.model).resolve())
        return placed


def places(config: RunConfig, app: Path) -> str:
    """The file of places for an app, by the usual names beside it; ``Deployment.of`` reads it.

    Args:
        config: the run file as this machine reads it, with its own model's folder.
        app: the app's folder, absolute.
    """
    values = {
        "run_file": "run.toml",
        "roster": "../roster.json",
        "key": "../server.pem",
        "out": f"../runs/{config.output.name}",
        "log": "../server.log",
    }
    if not config.model.source.startswith("builtin:"):
        source = Path(config.model.source)
        values["model"] = (
            os.path.relpath(source.resolve(), app) if source.is_dir() else config.model.source
        )
    return _HEAD + tomli_w.dumps(values)
