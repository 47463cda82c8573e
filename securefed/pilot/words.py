"""All words of the pilot's page, one table per language, and how figures are written in them.

Whatever reads a pilot says what it found as :class:`Said`: a key of the table and the values that
stand in its sentence.  No other module of the reading half holds a word that a reader sees, but for
what the record itself says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from securefed.pilot.records import Metric
from securefed.privacy.accounting import epsilon_text
from securefed.reports.catalogue import (
    catalogue,
    checked_language,
    filled,
    memory,
    percent,
    power,
    signed,
    significant,
    size,
    time,
)

_FOLDER = Path(__file__).parent / "languages"


@dataclass(frozen=True)
class Said:
    """A sentence, or a part of one, in no language yet.

    Attributes:
        key: of the table of words.
        values: what stands at its places: numbers, texts, other ``Said``, or sequences of these.
    """

    key: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Gain:
    """An improvement, which is read by its metric: a share of perplexity, or points of accuracy."""

    metric: Metric
    value: float


class Words:
    """One language's table.

    A place in a sentence is ``{name}`` or ``{name:kind}``, with the kinds of ``KINDS``.

    Raises:
        ConfigError: there is no such language.
    """

    def __init__(self, language: str) -> None:
        self.language = checked_language(language)
        self.table = _table(language)

    def __call__(self, key: str, **values: Any) -> str:
        """The sentence at ``key``, with its values."""
        return filled(self.table[key], lambda name, kind: self.say(values[name], kind), str)

    def say(self, value: Any, kind: str = "") -> str:
        """Any value in words; nothing that was not measured looks like a number."""
        if isinstance(value, Said):
            return self(value.key, **value.values)
        if isinstance(value, Sequence) and not isinstance(value, str):
            if kind == "name":
                quoted = (self("as.name", value=item) for item in value)
                return self.table["join_names"].join(quoted)
            join = "join_sentences" if kind == "sentences" else "join"
            return self.table[join].join(self.say(item) for item in value)
        if value is None:
            return self.table["not_measured"]
        if isinstance(value, float) and not math.isfinite(value):
            return self.table["not_finite"]
        if isinstance(value, Gain):
            if not math.isfinite(value.value):
                return self.table["not_finite"]
            kind = "gain" if value.value >= 0.0 else "loss"
            return self(f"{kind}.{value.metric}", number=signed(100.0 * abs(value.value)))
        if kind == "name":
            return self.table.get(f"name.{value}", str(value))
        return KINDS[kind](value) if kind else str(value)


def _table(language: str) -> dict[str, str]:
    return catalogue(_FOLDER, language)


KINDS: dict[str, Callable[[Any], str]] = {
    "bytes": size,
    "count": lambda value: f"{value:,}",
    "epsilon": epsilon_text,
    "memory": memory,
    "figure": lambda value: f"{value:.4g}",
    "money": significant,
    "percent": percent,
    "probability": power,
    "seconds": time,
}
"""How a number is written.

Two kinds more: ``name``, a trial's or a role's, which goes through the table, and ``sentences``,
which says how a sequence is joined.
"""
