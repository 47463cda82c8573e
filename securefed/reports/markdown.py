"""A report as Markdown (GitHub's kind, for its tables); pictures are left to their tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from securefed.reports.blocks import (
    Block,
    Bullets,
    Cell,
    Code,
    Definitions,
    Heading,
    Line,
    Page,
    Paragraph,
    Picture,
    Run,
    Section,
    Table,
)
from securefed.reports.document import Report
from securefed.reports.markdown_text import at_start, inline
from securefed.reports.page import page
from securefed.threats.verdicts import Reference

Numbers = Mapping[Reference, int]


def render(report: Report, language: str) -> str:
    """The report.

    Args:
        report: all that there is to say.
        language: ``"en"`` or ``"ja"``.

    Raises:
        ConfigError: there is no such language.
    """
    return whole(page(report, language))


def whole(found: Page) -> str:
    """A page."""
    parts = [f"# {_text(found.title)}"]
    parts += [section(one, found.numbers) for one in (*found.first, *found.sections)]
    return "\n\n".join(parts) + "\n"


def section(part: Section, numbers: Numbers, *, level: int = 2) -> str:
    """One section of a page, under a heading of a level."""
    blocks = [_block(one, numbers, level - 2) for one in part.blocks]
    return "\n\n".join([f"{'#' * level} {_text(part.title)}", *blocks])


def _block(block: Block, numbers: Numbers, deeper: int) -> str:
    match block:
        case Paragraph(line=line):
            return at_start(_line(line, numbers))
        case Bullets(items=items):
            return "\n".join(f"- {at_start(_line(item, numbers))}" for item in items)
        case Table():
            return _table(block, numbers)
        case Picture(caption=caption, table=table):
            return f"*{_text(caption)}*\n\n{_table(table, numbers)}"
        case Definitions(pairs=pairs):
            return "\n".join(
                f"- **{_line(head, numbers)}**: {_cell(cell, numbers, '; ')}"
                for head, cell in pairs
            )
        case Code(text=text):
            fence = "```"
            while fence in text:
                fence += "`"
            return f"{fence}text\n{text}\n{fence}"
        case Heading(text=text, level=level):
            return f"{'#' * (level + deeper)} {_text(text)}"


def _table(table: Table, numbers: Numbers) -> str:
    rows = [[_text(column) for column in table.columns], ["---"] * len(table.columns)]
    rows += [[_cell(cell, numbers, "<br>") for cell in row] for row in table.rows]
    return "\n".join([f"**{_text(table.caption)}**", "", *(_row(cells) for cells in rows)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell, numbers: Numbers, between: str) -> str:
    return between.join(_line(line, numbers) for line in cell)


def _line(line: Line, numbers: Numbers) -> str:
    return "".join(_run(run, numbers) for run in line)


def _run(run: Run, numbers: Numbers) -> str:
    marks = "".join(f" \\[{numbers[one]}\\]" for one in run.references)
    if not run.text:
        return marks.lstrip()
    if run.code:
        return f"{_code(run.text)}{marks}"
    text = _text(run.text)
    if run.strong or run.badge is not None:
        stripped = text.strip()
        text = f"**{stripped}**" if stripped else text
    return f"{text}{marks}"


def _code(text: str) -> str:
    """A code span: a pipe would end a table's cell even inside it."""
    if "\\|" in text:  # a backslash before a pipe frees it again, and code spans have no escapes
        return f"<code>{inline(text)}</code>"
    text = re.sub(r"\s+", " ", text).replace("|", "\\|")
    fence = "`"
    while fence in text:
        fence += "`"
    room = " " if len(fence) > 1 or text.startswith("`") else ""
    return f"{fence}{room}{text}{room}{fence}"


_text = inline
"""Plain text: nothing in it is markup, and no line of it ends early."""
