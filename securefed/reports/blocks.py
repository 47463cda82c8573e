"""A report in words, before it is drawn: the few kinds of blocks that every rendering draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from securefed.reports.catalogue import Language
from securefed.reports.visible import visible
from securefed.threats.verdicts import Reference


@dataclass(frozen=True)
class Run:
    """A stretch of text.

    Attributes:
        text: plain; whoever draws it escapes it. What cannot be seen in it is made visible.
        references: of the figure that it is; drawn beside it.
        value: that figure as the report holds it; None for words.
        language: of the text, where it is not the page's.
        strong: to be set apart.
        code: a name, a path or a command.
        badge: the verdict, or the kind of open item, that this text is the name of.
        link: id of the place on the page that it leads to.
        anchor: id of the place that it is itself.
    """

    text: str
    references: tuple[Reference, ...] = ()
    value: int | float | str | None = None
    language: str | None = None
    strong: bool = False
    code: bool = False
    badge: str | None = None
    link: str | None = None
    anchor: str | None = None

    def __post_init__(self) -> None:
        """Nothing that is drawn hides a character, whatever file it is from."""
        object.__setattr__(self, "text", visible(self.text))


Line = tuple[Run, ...]
Cell = tuple[Line, ...]
"""One or several lines."""


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; a note is set smaller."""

    line: Line
    note: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row names it."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Picture:
    """A plot or a diagram, with its figures in a table.

    Attributes:
        svg: an ``<svg>`` element without script; its texts are escaped.
        alt: what it shows, for whoever does not see it.
        caption: under it.
        table: the same figures.
    """

    svg: str
    alt: str
    caption: str
    table: Table


@dataclass(frozen=True)
class Definitions:
    """Names, each with what stands for it."""

    pairs: tuple[tuple[Line, Cell], ...]


@dataclass(frozen=True)
class Code:
    """Commands, as they are typed."""

    text: str


@dataclass(frozen=True)
class Heading:
    """A heading inside a section; ``level`` is 3 or 4."""

    text: str
    level: int = 3
    id: str | None = None


Block = Paragraph | Bullets | Table | Picture | Definitions | Code | Heading


@dataclass(frozen=True)
class Section:
    """A part of the page, under a heading of level 2."""

    id: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Page:
    """The whole report in one language.

    Attributes:
        language: of its words.
        title: of it.
        first: what stands on the first page: the run, what is open, and the figures.
        sections: the rest; the last one lists the references by their numbers.
        numbers: of references, as they are drawn beside figures.
    """

    language: Language
    title: str
    first: tuple[Section, ...]
    sections: tuple[Section, ...]
    numbers: Mapping[Reference, int]


def lines_of(sections: tuple[Section, ...]) -> Iterator[Line]:
    """Every line of some sections, in the order in which it is read."""
    for section in sections:
        for block in section.blocks:
            yield from _lines(block)


def _lines(block: Block) -> Iterator[Line]:
    match block:
        case Paragraph(line=line):
            yield line
        case Bullets(items=items):
            yield from items
        case Table(rows=rows):
            for row in rows:
                for cell in row:
                    yield from cell
        case Picture(table=table):
            yield from _lines(table)
        case Definitions(pairs=pairs):
            for head, cell in pairs:
                yield head
                yield from cell


def numbered(sections: tuple[Section, ...]) -> dict[Reference, int]:
    """The number of every reference, from 1, by where it is first met."""
    found: dict[Reference, int] = {}
    for line in lines_of(sections):
        for run in line:
            for reference in run.references:
                found.setdefault(reference, len(found) + 1)
    return found
