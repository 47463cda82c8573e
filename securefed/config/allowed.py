"""What a run file may hold at a place, in words: read off the file's own JSON Schema."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

_LEAST, _MOST = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
_SIGNS = dict(zip((*_LEAST, *_MOST), (">=", ">", "<=", "<"), strict=True))
_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "object": "a table",
}
_PATTERNS = {
    "^[0-9a-f]{64}$": "64 hexadecimal digits in small letters",
    r"^[A-Za-z0-9][\w.-]{0,63}$": "1 to 64 letters, digits, dots, dashes and underscores, the "
    "first a letter or a digit",
}


def allowed_at(model: type[BaseModel], place: Sequence[int | str]) -> tuple[list[str | int], str]:
    """Where in a file a value stands, and what is allowed there.

    Args:
        model: of the whole file.
        place: keys and positions, from the top; what pydantic adds to tell the members of a union
            apart is left out of the result.

    Returns:
        The place in the file, and what is allowed, to follow "must be"; empty where the schema
        does not say.
    """
    schema = _schema_of(model)
    node: Mapping[str, Any] = schema
    found: list[str | int] = []
    for part in place:
        inner = _inside(node, part, schema)
        if inner is None:  # which member of a union it is
            break
        found.append(part)
        node = inner
    return found, _words(node, schema)


@functools.cache
def _schema_of(model: type[BaseModel]) -> Mapping[str, Any]:
    return model.model_json_schema()


def _resolved(node: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = node.get("$ref")
    if reference is None:
        return node
    target: Mapping[str, Any] = schema["$defs"][str(reference).rpartition("/")[2]]
    return target


def _members(node: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A value's kinds, without null: in TOML what is not given is left out."""
    whole = _resolved(node, schema)
    found = [_resolved(each, schema) for each in whole.get("anyOf", [whole])]
    return [each for each in found if each.get("type") != "null"]


def _inside(
    node: Mapping[str, Any], part: int | str, schema: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    for each in _members(node, schema):
        inner: Mapping[str, Any] | None = None
        if isinstance(part, int):
            places = each.get("prefixItems", [])
            inner = places[part] if part < len(places) else each.get("items")
        else:
            inner = each.get("properties", {}).get(part) or each.get("additionalProperties")
        if isinstance(inner, Mapping):
            return inner
    return None


def _words(node: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    words = [_one(each, schema) for each in _members(node, schema)]
    return ", or ".join(dict.fromkeys(each for each in words if each))


def _one(node: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if "const" in node:
        return repr(node["const"])
    if "enum" in node:
        *first, last = map(repr, node["enum"])
        return f"{', '.join(first)} or {last}" if first else last
    kind = str(node.get("type", ""))
    if kind == "array":
        return _list(node, schema)
    if "pattern" in node:
        return _PATTERNS.get(node["pattern"], f"a text of the form {node['pattern']}")
    return f"{_TYPES.get(kind, '')} {_bounds(node)}".strip()


def _bounds(node: Mapping[str, Any]) -> str:
    if "minimum" in node and "maximum" in node:
        return f"from {_number(node['minimum'])} to {_number(node['maximum'])}"
    return " and ".join(f"{_SIGNS[k]} {_number(node[k])}" for k in (*_LEAST, *_MOST) if k in node)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _list(node: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    least, most = node.get("minItems"), node.get("maxItems")
    items: Mapping[str, Any] = node.get("items") or next(iter(node.get("prefixItems", [])), {})
    each = _words(items, schema)
    count = ""
    if least is not None and least == most:
        count = f" with exactly {least} items"
    elif least:
        count = f" with {least} item{'s' * (least > 1)} or more"
    return f"a list in [ ]{count}{f', each {each}' if each else ''}"
