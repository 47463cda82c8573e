"""JSON in which each name of an object stands once.

Of a name that stands twice one reader takes the first value and another the last: two people then
read two documents in one file.
"""

from __future__ import annotations

import json
from typing import Any


def loads_once(data: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, or a name stands twice in one of its objects.
        RecursionError: it is nested too deep.
    """
    return json.loads(data, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:80]!r} stands twice in one object; once is allowed")
        found[name] = value
    return found
