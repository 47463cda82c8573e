"""What a report says, in one language: sentences from the catalogue, figures, and other texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from securefed.privacy.accounting import epsilon_text
from securefed.reports.blocks import Cell, Line, Run
from securefed.reports.catalogue import (
    catalogue,
    checked_language,
    filled,
    percent,
    power,
    significant,
    size,
    time,
)
from securefed.reports.values import Figure, FigureKind, Said, Text, Value, Verbatim
from securefed.threats.verdicts import Reference

UNPROTECTED = "unprotected"
"""The value of an epsilon that is infinite."""

_FOLDER = Path(__file__).parent / "languages"


def table(language: str) -> dict[str, str]:
    """The sentences of a language, by key."""
    return catalogue(_FOLDER, language)


class Wording:
    """One language's sentences and ways to write figures.

    A place in a sentence is ``{name}`` or ``{name:kind}``: ``code`` and ``strong`` say how it is
    set, ``sentences`` how several are joined, and other kinds how a bare number is written.

    Raises:
        ConfigError: there is no such language.
    """

    def __init__(self, language: str) -> None:
        self.language = checked_language(language)
        self._table = table(language)

    def __call__(self, key: str, **values: Any) -> str:
        """The sentence at ``key``, as plain text."""
        return plain(self.line(Said(key=key, values=values)))

    def __contains__(self, key: str) -> bool:
        return key in self._table

    def line(self, value: Value, kind: str = "") -> Line:
        """Anything in words."""
        if isinstance(value, Said):
            return self._sentence(value)
        if isinstance(value, Figure):
            return self._figure(value)
        if isinstance(value, Text):
            known = value.ja if self.language == "ja" else value.en
            return (self._foreign(value.en) if known is None else Run(known),)
        if isinstance(value, Verbatim):
            return (self._foreign(value.verbatim),)
        if isinstance(value, list):
            return self._joined(value, kind)
        if kind in ("code", "strong"):
            return (Run(str(value), code=kind == "code", strong=kind == "strong"),)
        if isinstance(value, str):
            return (Run(value),)
        return (Run(self.number(value, _KINDS.get(kind, "figure")), value=value),)

    def line_of(self, key: str, **values: Any) -> Line:
        """The sentence at ``key``."""
        return self.line(Said(key=key, values=values))

    def text(self, value: Value) -> str:
        """Anything in words, as plain text."""
        return plain(self.line(value))

    def cell(self, *values: Value) -> Cell:
        """Lines of a table's cell."""
        return tuple(self.line(value) for value in values)

    def number(self, value: float | str | None, kind: FigureKind) -> str:
        """A figure as it is written; what was not measured does not look like a number."""
        if value is None:
            return self._table["not_measured"]
        if value == UNPROTECTED:
            return self._table["unprotected"]
        if isinstance(value, str):
            return value
        match kind:
            case "epsilon":
                return epsilon_text(value)
            case "probability":
                return power(value)
            case "count":
                return f"{value:,}" if value == int(value) else significant(value)
            case "bytes":
                return size(value)
            case "seconds":
                return time(value)
            case "percent":
                return percent(value)
        return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")

    def _sentence(self, said: Said) -> Line:
        runs: list[Run] = []
        template = self._table[said.key]

        def fill(name: str, kind: str) -> str:
            runs.extend(self.line(said.values[name], kind))
            return ""

        def words(text: str) -> str:
            if text:
                runs.append(Run(text))
            return ""

        filled(template, fill, words)
        return _merged(runs)

    def _figure(self, figure: Figure) -> Line:
        text = self.number(figure.value, figure.kind)
        if figure.interval is not None:
            low, high = (self.number(end, figure.kind) for end in figure.interval)
            text = f"{text} [{low}, {high}]"
        code = figure.kind in ("digest", "name")
        return (Run(text, references=tuple(figure.references), value=figure.value, code=code),)

    def _joined(self, values: Sequence[Value], kind: str) -> Line:
        between = self._table["join_sentences" if kind == "sentences" else "join"]
        runs: list[Run] = []
        for number, value in enumerate(values):
            if number:
                runs.append(Run(between))
            runs.extend(self.line(value, kind if kind == "code" else ""))
        return _merged(runs)

    def _foreign(self, text: str) -> Run:
        return Run(text, language=None if self.language == "en" else "en")


_KINDS: dict[str, FigureKind] = {
    "epsilon": "epsilon",
    "probability": "probability",
    "count": "count",
    "bytes": "bytes",
    "seconds": "seconds",
    "percent": "percent",
}


def plain(line: Line) -> str:
    """A line's text alone."""
    return "".join(run.text for run in line)


def reference_text(reference: Reference) -> str:
    """Where a figure stands, in one short text: ``ledger.jsonl:9 /epsilon``."""
    line = "" if reference.line is None else f":{reference.line}"
    pointer = "" if reference.pointer is None else f" {reference.pointer}"
    return f"{reference.path}{line}{pointer}"


def without_references(line: Line) -> Line:
    """A line whose references stand elsewhere."""
    return tuple(replace(run, references=()) for run in line)


def referred(line: Line, references: Sequence[Reference]) -> Line:
    """A line with further references beside its end."""
    if not line or not references:
        return line
    last = line[-1]
    more = tuple(one for one in references if one not in last.references)
    return (*line[:-1], replace(last, references=(*last.references, *more)))


def _merged(runs: Sequence[Run]) -> Line:
    found: list[Run] = []
    for run in runs:
        if found and _bare(found[-1]) and _bare(run):
            found[-1] = Run(found[-1].text + run.text)
        else:
            found.append(run)
    return tuple(found)


def _bare(run: Run) -> bool:
    return run == Run(run.text)
