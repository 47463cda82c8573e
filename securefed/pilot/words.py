"""All words of the pilot's page, one table per language, and how figures are written in them.

Whatever reads a pilot says what it found as :class:`Said`: a key of the table and the values that
stand in its sentence.  No other module of the reading half holds a word that a reader sees, but for
what the record itself says.
"""

from __future__ import annotations

import functools
import json
import math
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args

from securefed.errors import ConfigError
from securefed.pilot.records import Metric
from securefed.privacy.accounting import epsilon_text

Language = Literal["en", "ja"]
LANGUAGES: tuple[Language, ...] = get_args(Language)

_MINUS = "\N{MINUS SIGN}"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SPACE = "\N{NO-BREAK SPACE}"
_FOLDER = Path(__file__).with_name("languages")


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
        if language not in LANGUAGES:
            raise ConfigError(f"language = {language!r}: must be one of {LANGUAGES}")
        self.language = language
        self.table = _table(language)

    def __call__(self, key: str, **values: Any) -> str:
        """The sentence at ``key``, with its values."""
        return _Filler(self).vformat(self.table[key], (), values)

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


class _Filler(string.Formatter):
    def __init__(self, words: Words) -> None:
        self._words = words

    def format_field(self, value: Any, format_spec: str) -> str:
        return self._words.say(value, format_spec)


@functools.cache
def _table(language: str) -> dict[str, str]:
    text = (_FOLDER / f"{language}.json").read_text(encoding="utf-8")
    table: dict[str, str] = json.loads(text)
    return table


def significant(value: float) -> str:
    """Three significant digits without an exponent, and thousands apart.

    Example:
        >>> significant(0.000012345), significant(1234.5), significant(0.5)
        ('0.0000123', '1,234', '0.5')
    """
    text = f"{value:,.0f}" if abs(value) >= 1000.0 else f"{Decimal(f'{value:.3g}'):f}"
    return text.replace("-", _MINUS)


def signed(value: float) -> str:
    """Two decimals, with a true minus."""
    return f"{value:.2f}".replace("-", _MINUS)


def power(value: float) -> str:
    """A probability, with a power of ten where it is small.

    Example:
        >>> power(1e-5), power(2.5e-7), power(0.25)
        ('10⁻⁵', '2.5×10⁻⁷', '0.25')
    """
    mantissa, _, exponent = f"{value:g}".partition("e")
    if not exponent:
        return mantissa
    raised = f"10{str(int(exponent)).translate(_RAISED)}"
    return raised if mantissa == "1" else f"{mantissa}×{raised}"


def size(count: float) -> str:
    """Bytes, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 999.5 or unit == "TB":
            break
        count /= 1000.0
    return f"{significant(count)}{_SPACE}{unit}"


def time(seconds: float) -> str:
    """Seconds up to ten minutes, then minutes, then hours."""
    if abs(seconds) < 600.0:
        return f"{significant(seconds)}{_SPACE}s"
    if abs(seconds) < 7200.0:
        return f"{significant(seconds / 60.0)}{_SPACE}min"
    return f"{significant(seconds / 3600.0)}{_SPACE}h"


KINDS: dict[str, Callable[[Any], str]] = {
    "bytes": size,
    "count": lambda value: f"{value:,}",
    "epsilon": epsilon_text,
    "memory": lambda value: f"{significant(value / 2**30)}{_SPACE}GiB",
    "figure": lambda value: f"{value:.4g}",
    "money": significant,
    "percent": lambda value: f"{significant(100.0 * value)}{_SPACE}%",
    "probability": power,
    "seconds": time,
}
"""How a number is written.

Two kinds more: ``name``, a trial's or a role's, which goes through the table, and ``sentences``,
which says how a sequence is joined.
"""
