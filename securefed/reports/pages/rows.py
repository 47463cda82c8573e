"""Pieces that several sections are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from securefed.reports.blocks import Bullets, Cell, Definitions, Line, Run, Table
from securefed.reports.values import Fact, Figure, Value
from securefed.reports.wording import Wording, referred, without_references
from securefed.threats.verdicts import Reference

Row = tuple[Cell, ...]


def badge(kind: str, text: str) -> Line:
    """A verdict, or the kind of an open item, by its name."""
    return (Run(text, badge=kind),)


def bullets(values: Iterable[Value], word: Wording) -> Bullets:
    """A list of sentences."""
    return Bullets(tuple(word.line(value) for value in values))


def definitions(facts: Sequence[Fact], word: Wording) -> Definitions:
    """Named facts."""
    return Definitions(
        tuple(
            (word.line(fact.label), (referred(word.line(fact.value), fact.references),))
            for fact in facts
        )
    )


def table(caption: str, columns: Sequence[str], rows: Iterable[Row], word: Wording) -> Table:
    """A table from keys of the catalogue: its caption, and the names of its columns."""
    return Table(word(caption), tuple(word(f"column.{name}") for name in columns), tuple(rows))


def shown(figure: Figure | None, word: Wording) -> Cell:
    """A figure whose source stands in another column; empty where there is none."""
    return ((),) if figure is None else (without_references(word.line(figure)),)


def source(figures: Iterable[Figure | None]) -> Cell:
    """The lines and files that figures stand in, without the places inside them."""
    found: list[Reference] = []
    for figure in figures:
        for reference in figure.references if figure is not None else ():
            whole = reference.model_copy(update={"pointer": None})
            if whole not in found:
                found.append(whole)
    return ((Run("", references=tuple(found)),),)
