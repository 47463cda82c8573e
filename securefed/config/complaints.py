"""What is wrong with a file's values, field by field, in the words of this package."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from securefed.config.allowed import allowed_at

_MOST = 5
"""Complaints in one message: a file of another kind would otherwise fill a screen."""


def complaints(error: ValidationError, model: type[BaseModel], whole: str) -> str:
    """All that is wrong, in a line: each field, its value and what is allowed.

    Args:
        error: as pydantic found it.
        model: of the whole file.
        whole: what is named where no field is.
    """
    lines: dict[str, str] = {}  # by field: a union complains once for each of its members
    for item in error.errors():
        place, line = _complaint(item, model, whole)
        lines.setdefault(place, line)
    shown = list(lines.values())[:_MOST]
    left = len(lines) - len(shown)
    return "; ".join(shown + [f"and {left} more"] * (left > 0))


def _complaint(item: Any, model: type[BaseModel], whole: str) -> tuple[str, str]:
    kind, value = item["type"], item["input"]
    if kind == "extra_forbidden":
        where = _dotted(item["loc"])
        return where, f"{where}: no such key{_meant(model, item['loc'])}"
    if kind == "value_error":  # a check of ours, which names what it is about
        where = _dotted(item["loc"])
        said = item["msg"].removeprefix("Value error, ")
        if not where:  # such a check names its fields whole
            return whole, said
        field = isinstance(value, str | int | float) and repr(value) not in said
        return where, f"{where}{f' = {_shown(value)}' if field else ''}: {said}"
    place, allowed = allowed_at(model, item["loc"])
    where = _dotted(place) or whole
    if kind == "missing" and len(place) == len(item["loc"]):
        return where, f"{where}: is missing; it must be {allowed or 'given'}"
    must = f"must be {allowed}" if allowed else item["msg"]
    if isinstance(value, int | float) and item["type"] == "finite_number":
        must += ", and finite"
    given = "" if isinstance(value, dict | BaseModel) else f" = {_shown(value)}"
    return where, f"{where}{given}: {must}"


def _dotted(place: Sequence[int | str]) -> str:
    """Keys as in a file; tables and items of a list by their place, from 0."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _shown(value: object) -> str:
    """A value as TOML has it, shortened."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _meant(model: type[BaseModel], where: tuple[int | str, ...]) -> str:
    """The keys that are allowed at an unknown key's place, the likeliest one first."""
    fields: Any = model.model_fields
    for part in where[:-1]:
        if isinstance(part, int):
            continue
        annotation = fields[part].annotation if part in fields else None
        section = _section(annotation)
        if section is None:
            return ""
        fields = section.model_fields
    close = difflib.get_close_matches(str(where[-1]), fields, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{hint} (allowed: {', '.join(fields)})"


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section behind a field: itself, or None, or a list of such."""
    kinds = [annotation]
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
        kinds.extend(get_args(kind))
    return None
