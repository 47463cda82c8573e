"""Reading, checking and writing run files and pilot files.

A validation error is reported as one :class:`~securefed.errors.ConfigError` that names each field,
its value and what is allowed.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from securefed.config.base import Section
from securefed.config.pilot import PilotConfig
from securefed.config.run import RunConfig
from securefed.errors import ConfigError


def _meant(model: type[BaseModel], where: tuple[int | str, ...]) -> str:
    """The keys that are allowed at an unknown key's place, the likeliest one first."""
    fields: Any = model.model_fields
    for part in where[:-1]:
        annotation = fields[part].annotation if part in fields else None
        # A table that may be left out is annotated as itself or None.
        kinds = [k for k in (annotation, *get_args(annotation)) if isinstance(k, type)]
        section = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        if section is None:
            return ""
        fields = section.model_fields
    close = difflib.get_close_matches(str(where[-1]), fields, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{hint} (allowed: {', '.join(fields)})"


def _complaints(error: ValidationError, model: type[BaseModel], whole: str) -> str:
    """All that is wrong, in a line.

    Args:
        error: as pydantic found it.
        model: of the whole file.
        whole: what is named where no field is.
    """
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or whole
        value = item["input"]
        shown = "" if isinstance(value, (dict, BaseModel)) else f" (value: {value!r})"
        if item["type"] == "extra_forbidden":
            lines.append(f"{where}: no such key{_meant(model, item['loc'])}")
        else:
            lines.append(f"{where}: {item['msg'].removeprefix('Value error, ')}{shown}")
    return "; ".join(lines)


def parse_config(values: dict[str, Any]) -> RunConfig:
    """Validate a mapping of sections.

    Raises:
        ConfigError: names every field that is unknown or out of range, its value and what is
            allowed.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_complaints(error, RunConfig, "run file")) from None


def _read(path: Path, what: str) -> dict[str, Any]:
    """The values of a TOML file.

    Raises:
        ConfigError: the file is missing or is not TOML; it begins with ``what`` and its path.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{what} {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {path}: is not UTF-8 at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{what} {path} is not TOML: {error}") from None


def load_config(path: Path) -> RunConfig:
    """Read a run file.

    Relative folders in ``model.source`` and ``data.source`` are taken from the run file's folder.

    Raises:
        ConfigError: the file is missing, is not TOML, or does not validate.
    """
    values = _read(path, "run file")
    for section in ("model", "data"):
        table = values.get(section)
        if isinstance(table, dict) and isinstance(table.get("source"), str):
            beside = path.parent / table["source"]
            if beside.is_dir():
                table["source"] = str(beside.resolve())
    return parse_config(values)


def load_pilot(path: Path) -> PilotConfig:
    """Read a pilot file.

    A relative ``run`` is taken from the pilot file's folder; the run file itself is not read.

    Raises:
        ConfigError: the file is missing, is not TOML, or does not validate.
    """
    values = _read(path, "pilot file")
    try:
        found = PilotConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_complaints(error, PilotConfig, "pilot file")) from None
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
