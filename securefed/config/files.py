"""Reading, checking and writing run files and pilot files.

A validation error is reported as one :class:`~securefed.errors.ConfigError` that names each field,
its value and what is allowed.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from securefed.config.base import Section
from securefed.config.complaints import complaints
from securefed.config.pilot import PilotConfig
from securefed.config.run import RunConfig
from securefed.errors import ConfigError

_BYTES_LIMIT = 1 << 22
"""Many client names with a rank and a profile each fit into it many times."""


def parse_config(values: dict[str, Any]) -> RunConfig:
    """Validate a mapping of sections.

    Raises:
        ConfigError: names every field that is unknown or out of range, its value and what is
            allowed.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(complaints(error, RunConfig, "run file")) from None


def read_toml(
    path: Path, what: str, *, check: Callable[[os.stat_result, str], None] | None = None
) -> dict[str, Any]:
    """The values of a TOML file.

    Args:
        path: the file.
        what: it is, for messages.
        check: refuses a file by its status, told what to call it, before anything of it is used.

    Raises:
        ConfigError: the file is missing or is not TOML; it begins with ``what`` and its path.
            And what ``check`` raises.
    """
    try:
        with path.open("rb") as file:
            if check is not None:
                check(os.fstat(file.fileno()), f"{what} {path}")
            data = file.read(_BYTES_LIMIT + 1)
    except OSError as error:
        raise ConfigError(f"{what} {path}: cannot be read ({error.strerror})") from None
    if len(data) > _BYTES_LIMIT:
        raise ConfigError(f"{what} {path}: longer than {_BYTES_LIMIT} bytes, the most allowed")
    try:
        return tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{what} {path}: is not UTF-8 at byte {error.start}; save it as UTF-8 text"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{what} {path}: is not TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{what} {path}: is not TOML: its lists are nested too deep") from None


def load_config(path: Path) -> RunConfig:
    """Read a run file.

    Relative folders in ``model.source`` and ``data.source`` are taken from the run file's folder.

    Raises:
        ConfigError: the file is missing, is not TOML, or does not validate.
    """
    values = read_toml(path, "run file")
    for section in ("model", "data"):
        table = values.get(section)
        if isinstance(table, dict) and isinstance(table.get("source"), str):
            beside = path.parent / table["source"]
            if beside.is_dir():
                table["source"] = str(beside.resolve())
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {complaints(error, RunConfig, 'run file')}") from None


def load_pilot(path: Path) -> PilotConfig:
    """Read a pilot file.

    A relative ``run`` is taken from the pilot file's folder; the run file itself is not read.

    Raises:
        ConfigError: the file is missing, is not TOML, or does not validate.
    """
    values = read_toml(path, "pilot file")
    try:
        found = PilotConfig.model_validate(values)
    except ValidationError as error:
        if {"model", "lora", "training", "privacy"} & set(values):
            raise ConfigError(
                f'{path}: is a run file; a pilot file names one (run = "run.toml") and what is '
                "tried: see examples/pilot"
            ) from None
        raise ConfigError(f"{path}: {complaints(error, PilotConfig, 'pilot file')}") from None
    return found.model_copy(update={"run": path.parent / found.run})


def dump_config(config: RunConfig) -> str:
    """The fully resolved run file as TOML; ``load_config`` of it gives an equal object."""
    return _dumped(config)


def dump_pilot(config: PilotConfig) -> str:
    """The fully resolved pilot file as TOML."""
    return _dumped(config)


def _dumped(config: Section) -> str:
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def first_difference(one: Section, other: Section, *, within: str = "") -> str:
    """The first key whose values differ, with both, in words; empty where none does.

    Args:
        one: a whole file, or a section.
        other: of the same kind.
        within: what stands before a key's name.
    """
    for key in type(one).model_fields:
        mine, yours = getattr(one, key), getattr(other, key)
        if mine == yours:
            continue
        if isinstance(mine, Section) and isinstance(yours, Section):
            return first_difference(mine, yours, within=f"{within}{key}.")
        return f"{within}{key} is {_shown(mine)}, not {_shown(yours)}"
    return ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def run_file_schema() -> str:
    """The JSON Schema of the run file, as text; ``securefed/schemas/run.json`` is this."""
    schema = RunConfig.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["$id"] = "urn:securefed:schema:run-1"
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"
