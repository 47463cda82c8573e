"""Sentences by key, one table a language, and how figures are written in them.

A place in a sentence is ``{name}`` or ``{name:kind}``; what a kind is, its table's reader says.
"""

from __future__ import annotations

import functools
import json
import string
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Literal, get_args

from securefed.errors import ConfigError

Language = Literal["en", "ja"]
LANGUAGES: tuple[Language, ...] = get_args(Language)

_MINUS = "\N{MINUS SIGN}"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SPACE = "\N{NO-BREAK SPACE}"


def checked_language(language: str) -> Language:
    """The language, as one of ``LANGUAGES``.

    Raises:
        ConfigError: it is none of them.
    """
    for known in LANGUAGES:
        if language == known:
            return known
    raise ConfigError(f"language = {language!r}: must be one of {', '.join(LANGUAGES)}")


@functools.cache
def catalogue(folder: Path, language: str) -> dict[str, str]:
    """The table of a language: ``LANGUAGE.json`` in a folder that comes with this package."""
    text = (folder / f"{checked_language(language)}.json").read_text(encoding="utf-8")
    table: dict[str, str] = json.loads(text)
    return table


def filled(template: str, fill: Callable[[str, str], str], plain: Callable[[str], str]) -> str:
    """A sentence with its places filled.

    Args:
        template: from a catalogue.
        fill: what stands at a place, from its name and kind.
        plain: what becomes of the words between places.
    """
    return "".join(
        plain(literal) + ("" if name is None else fill(name, kind))
        for literal, name, kind in _pieces(template)
    )


def places(template: str) -> list[tuple[str, str]]:
    """Name and kind of every place, sorted."""
    return sorted((name, kind) for _, name, kind in _pieces(template) if name is not None)


def _pieces(template: str) -> Iterator[tuple[str, str | None, str]]:
    for literal, name, kind, _ in string.Formatter().parse(template):
        yield literal, name, kind or ""


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


def memory(count: float) -> str:
    """Bytes of memory, in GiB."""
    return f"{significant(count / 2**30)}{_SPACE}GiB"


def percent(share: float) -> str:
    """A share of 1 in hundredths."""
    return f"{significant(100.0 * share)}{_SPACE}%"


def time(seconds: float) -> str:
    """Seconds up to ten minutes, then minutes, then hours."""
    if abs(seconds) < 600.0:
        return f"{significant(seconds)}{_SPACE}s"
    if abs(seconds) < 7200.0:
        return f"{significant(seconds / 60.0)}{_SPACE}min"
    return f"{significant(seconds / 3600.0)}{_SPACE}h"
