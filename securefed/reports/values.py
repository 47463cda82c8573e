"""What a report's sentences and tables are made of: words in no language yet, and figures."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from securefed.config.base import Section
from securefed.threats.verdicts import Finite, Reference

FigureKind = Literal[
    "epsilon",  # three digits, rounded up
    "probability",  # with a power of ten where it is small
    "count",
    "bytes",
    "seconds",
    "percent",  # of 1
    "figure",  # four significant digits
    "digest",  # hexadecimal
    "name",
]


class Text(Section):
    """Words that come with the run, in English and perhaps in Japanese."""

    en: str
    ja: str | None = None


class Figure(Section):
    """One figure, and where it stands.

    Attributes:
        value: None where it was not measured; of an epsilon that is infinite ``"unprotected"``.
        kind: how it is written.
        interval: of the value.
        references: each to a place that holds ``value``; empty where it follows from others.
    """

    value: int | Finite | str | None
    kind: FigureKind
    interval: tuple[Finite, Finite] | None = None
    references: list[Reference] = Field(default=[])


class Said(Section):
    """A sentence or a word: a key of the catalogue, and what stands at its places."""

    key: str
    values: dict[str, Value] = Field(default={})


class Verbatim(Section):
    """Words of a record that the catalogue does not know, as they stand there, in English."""

    verbatim: str


Item = Said | Figure | Text | Verbatim | int | Finite | str
Value = Item | list[Item]
Words = Said | Text | Verbatim


class Fact(Section):
    """A named fact: a row of a list of settings.

    ``references``: where figures inside words stand, beside those that figures name themselves.
    """

    label: Said
    value: Figure | Words
    references: list[Reference] = Field(default=[])
