"""Whether what stands in a file is what follows from other figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from securefed.errors import LedgerTampered


def require_same(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Equal up to the last digits of a float: libraries round differently on other machines.

    Raises:
        LedgerTampered: names the first key whose values differ, and both.
    """
    for key in differing(found, expected):
        if key not in found:
            raise LedgerTampered(
                f"{where}: lacks {key}, which this version writes; it was written by another "
                "version, or cut"
            )
        raise LedgerTampered(
            f"{where}: {key} = {found.get(key)!r}, recomputed {expected.get(key)!r}"
        )


def differing(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """The keys whose values are not the same but for rounding."""
    return [
        key
        for key in sorted(set(found) | set(expected))
        if not _same(found.get(key), expected.get(key))
    ]


def _same(one: object, other: object) -> bool:
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-9)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return not differing(one, other)
    return one == other
