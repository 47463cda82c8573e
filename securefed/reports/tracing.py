"""Whether each figure of a report stands where its references say.

A reference is followed into the run folder: a line of a ledger, a line of a file of JSON lines, a
place in a JSON, TOML or signed file.  Nothing of the report is believed for it.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import reprlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from securefed.errors import ConfigError, LedgerTampered
from securefed.evidence.reading import open_regular
from securefed.reports.document import Report
from securefed.reports.material import resolve
from securefed.reports.values import Figure
from securefed.threats.verdicts import Reference


def trace(folder: Path, report: Report) -> int:
    """Follow every reference of every figure; returns how many were followed.

    A figure is found where its value stands, or a list (or table) of as many entries.  References
    with no pointer name a whole line or file, which must be there.

    Raises:
        LedgerTampered: a figure is not where it is said to stand; the message names both.
    """
    count = 0
    for figure in figures(report):
        for reference in figure.references:
            count += 1
            try:
                found = target(folder, reference)
            except ConfigError as error:
                raise LedgerTampered(f"report: {error}") from None
            if reference.pointer is not None and not holds(found, figure):
                said = reprlib.repr(figure.value)
                raise LedgerTampered(
                    f"report: the figure {said} is said to stand at {reference.path}"
                    f"{'' if reference.line is None else f', line {reference.line}'}, "
                    f"{reference.pointer}; it holds {str(found)[:80]!r}"
                )
    return count


def figures(part: BaseModel) -> Iterator[Figure]:
    """Every figure in a part of a report."""
    if isinstance(part, Figure):
        yield part
        return
    for name in type(part).model_fields:
        yield from _within(getattr(part, name))


def _within(value: Any) -> Iterator[Figure]:
    if isinstance(value, BaseModel):
        yield from figures(value)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _within(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _within(each)


def holds(found: Any, figure: Figure) -> bool:
    """Whether a place holds a figure: its value, its interval, or so many entries."""
    if _same(found, figure.value):
        return True
    if isinstance(found, list | dict) and len(found) == figure.value:
        return True
    if figure.interval is not None and isinstance(found, list):
        return len(found) == 2 and all(map(_same, found, figure.interval))
    return False


def _same(found: Any, value: Any) -> bool:
    numbers = isinstance(found, int | float) and isinstance(value, int | float)
    if numbers and not isinstance(found, bool):
        try:
            return math.isclose(found, value, rel_tol=1e-12)
        except OverflowError:  # an integer that no float holds
            return bool(found == value)
    return bool(found == value)


def target(folder: Path, reference: Reference) -> Any:
    """What stands at a reference: a value, or the text of a line.

    Raises:
        ConfigError: there is no such file, line or place.
    """
    path = folder / reference.path
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{reference.path}: is outside the run folder")
    try:
        with open_regular(path) as file:
            text = file.read().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{reference.path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{reference.path}: is not UTF-8 at byte {error.start}") from None
    if reference.line is not None:
        lines = text.split("\n")
        if reference.line > len(lines):
            raise ConfigError(f"{reference.path}: has no line {reference.line}")
        text = lines[reference.line - 1]
    if reference.pointer is None:
        return text
    document = _document(text, reference)
    found = resolve(document, reference.pointer)
    if found is None and reference.kind == "ledger":  # the record's own hash and time
        found = resolve(json.loads(text), reference.pointer)
    return found


def _document(text: str, reference: Reference) -> Any:
    try:
        if reference.path.endswith(".toml"):
            return tomllib.loads(text)
        found = json.loads(text)
        if reference.kind == "ledger":
            return found["body"]
        if isinstance(found, dict) and "payloadType" in found:
            return json.loads(base64.b64decode(found["payload"], validate=True))
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise ConfigError(f"{reference.path}: is not as it must be") from None
    return found
