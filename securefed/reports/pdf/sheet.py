"""Pages of a PDF and the blocks that are put on them, one below the other."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from securefed.reports import blocks
from securefed.reports.catalogue import Language
from securefed.reports.pages.closing import SOURCE
from securefed.reports.pdf.picture import Drawing
from securefed.reports.pdf.table import Row, TableLayout
from securefed.reports.pdf.text import INK, Colour, Stretch, Style, TypesetLine, Typesetter
from securefed.threats.verdicts import Reference

LEFT, RIGHT, TOP, BOTTOM = 18.0, 18.0, 18.0, 20.0
WIDTH = 210.0 - LEFT - RIGHT
_FOOT = 297.0 - BOTTOM
_POINT = 25.4 / 72.0
_LEADING = 1.42
"""Distance of lines, in sizes of the letters."""

BLUE: Colour = (0, 84, 140)
GREY: Colour = (96, 96, 96)
_PALE: Colour = (243, 245, 247)
_GOOD = ((0, 92, 66), (226, 243, 236))
_BAD = ((150, 34, 0), (252, 232, 224))
_OPEN = ((110, 74, 0), (252, 242, 214))
_TRIED = ((0, 85, 138), (226, 238, 246))
_NEUTRAL = ((70, 70, 70), (236, 236, 236))
_BADGES = {
    **dict.fromkeys(("verified", "evidenced"), _GOOD),
    "not_refuted": _TRIED,
    **dict.fromkeys(("refuted", "not_met", "unmet"), _BAD),
    **dict.fromkeys(
        (
            "void",
            "stale",
            "inconclusive",
            "not_run",
            "unshown",
            "partly",
            "unfinished",
            "unanchored",
        ),
        _OPEN,
    ),
}
_HEADINGS = {1: 19.0, 2: 14.0, 3: 10.5, 4: 9.5}


class Sheet:
    """Draws blocks downwards, and goes on to a new page where one is full.

    Args:
        pdf: the document, an ``fpdf.FPDF`` in millimetres without margins of its own.
        language: of the words.
        foot: what stands at the foot of every page, left of the page's number.
        numbers: of the places that figures are from, by which a figure names its own.
        places: ids of what can be linked to.
    """

    def __init__(
        self,
        pdf: Any,
        language: Language,
        foot: str,
        numbers: Mapping[Reference, int],
        places: Collection[str],
    ) -> None:
        self._pdf = pdf
        self._numbers = numbers
        self._links = {place: pdf.add_link(page=1) for place in places}
        self._type = Typesetter(pdf, language)
        self._foot = foot
        self._contents = 0
        self._parts: list[tuple[str, int]] = []
        self.y = TOP
        self.new_page()

    @property
    def room(self) -> float:
        """Millimetres that are left on this page."""
        return _FOOT - self.y

    def new_page(self) -> None:
        """Begins a page, with its foot."""
        self._pdf.add_page()
        self.y = TOP
        style = Style(7.0, colour=GREY)
        number = f"{self._pdf.page_no()}"
        base = 297.0 - 11.0
        self._pdf.set_draw_color(200, 200, 200)
        self._pdf.set_line_width(0.2)
        self._pdf.line(LEFT, base - 4.0, LEFT + WIDTH, base - 4.0)
        foot = self._type.lines([Stretch(self._foot, style)], WIDTH - 20.0)
        self._type.draw(foot[0], LEFT, base)
        right = LEFT + WIDTH - self._type.width(number, style)
        self._type.draw(self._type.lines([Stretch(number, style)], 20.0)[0], right, base)

    def space(self, height: float) -> None:
        """Leaves room, but for at the top of a page."""
        if self.y > TOP:
            self.y += height

    def need(self, height: float) -> None:
        """Goes on to a new page if less than ``height`` is left."""
        if self.room < height and self.y > TOP:
            self.new_page()

    def heading(
        self,
        text: str,
        level: int,
        below: blocks.Block | None = None,
        place: str | None = None,
    ) -> None:
        """A heading that is kept together with what comes below it, and is in the outline."""
        keep = {1: 22.0, 2: 40.0, 3: 45.0, 4: 22.0}[level]
        if isinstance(below, blocks.Picture):
            keep = 18.0 + _picture_size(Drawing(below.svg))[1]
        elif isinstance(below, blocks.Table | blocks.Heading):
            keep = 40.0
        size = _HEADINGS[level]
        self.space({1: 0.0, 2: 7.0, 3: 4.0, 4: 3.0}[level])
        self.need(keep)
        colour = BLUE if level <= 2 else INK
        style = Style(size, face="strong", colour=colour)
        self._pdf.set_y(self.y)
        if level > 1:
            self._pdf.start_section(text, level=level - 2, strict=False)
        if place in self._links:
            self._pdf.set_link(self._links[place], y=self.y, page=self._pdf.page_no())
        if level == 2:
            self._parts.append((text, self._pdf.page_no()))
        self.text([Stretch(text, style)], LEFT, WIDTH)
        if level == 2:
            self._pdf.set_draw_color(*BLUE)
            self._pdf.set_line_width(0.35)
            self._pdf.line(LEFT, self.y + 0.4, LEFT + WIDTH, self.y + 0.4)
            self.y += 1.6
        self.y += 1.2

    def text(self, stretches: Sequence[Stretch], x: float, width: float) -> None:
        """Lines of text at the cursor."""
        for line in self._type.lines(stretches, width):
            self._put(line, x)

    def several(self, several: Sequence[blocks.Block]) -> None:
        """Blocks one below the other; a heading stays with the next."""
        for block, below in itertools.zip_longest(several, several[1:]):
            if isinstance(block, blocks.Heading):
                self.heading(block.text, block.level, below, block.id)
            else:
                self._block(block)

    def reserve_contents(self) -> None:
        """Leaves a page for the contents."""
        self.new_page()
        self._contents = self._pdf.page_no()
        self.new_page()

    def fill_contents(self, title: str) -> None:
        """Fills that page, once it is known where everything stands."""
        last = self._pdf.page_no()
        self._pdf.page = self._contents
        self._type.forget()
        self.y = TOP
        self.text([Stretch(title, Style(_HEADINGS[2], face="strong", colour=BLUE))], LEFT, WIDTH)
        self.y += 3.0
        for name, page in self._parts:
            style = Style(9.5, link=self._pdf.add_link(page=page))
            number = self._type.lines([Stretch(str(page), style)], 15.0)[0]
            base = self.y + 0.78 * style.size * _POINT * _LEADING
            self._type.draw(number, LEFT + WIDTH - number.width, base)
            self.text([Stretch(name, style)], LEFT, WIDTH - 15.0)
            self.y += 1.6
        self._pdf.page = last

    def _block(self, block: blocks.Block) -> None:
        if isinstance(block, blocks.Paragraph):
            self.text(
                self._stretches(block.line, 7.8 if block.note else 9.0, note=block.note),
                LEFT,
                WIDTH,
            )
            self.y += 1.6
        elif isinstance(block, blocks.Bullets):
            for item in block.items:
                self._bullet(item)
            self.y += 1.4
        elif isinstance(block, blocks.Definitions):
            self._definitions(block)
        elif isinstance(block, blocks.Table):
            self._table(block)
        elif isinstance(block, blocks.Picture):
            self._picture(block)
        elif isinstance(block, blocks.Code):
            self._code(block.text)
        else:
            raise TypeError(f"block: {type(block).__name__}")

    def _put(self, line: TypesetLine, x: float) -> None:
        height = line.size * _POINT * _LEADING
        self.need(height)
        self._type.draw(line, x, self.y + 0.78 * height)
        self.y += height

    def _bullet(self, item: blocks.Line) -> None:
        self.need(5.0)
        first = self.y
        page = self._pdf.page_no()
        mark = self._type.lines([Stretch("•", Style(9.0, colour=BLUE))], 5.0)[0]
        lines = self._type.lines(self._stretches(item, 9.0), WIDTH - 5.0)
        self._type.draw(mark, LEFT + 0.5, self.y + 0.78 * 9.0 * _POINT * _LEADING)
        for line in lines:
            self._put(line, LEFT + 5.0)
        if self.y == first and page == self._pdf.page_no():
            self.y += 9.0 * _POINT * _LEADING
        self.y += 0.7

    def _definitions(self, block: blocks.Definitions) -> None:
        rows = tuple(((name,), cell) for name, cell in block.pairs)
        layout = TableLayout(self._type, self._stretches, rows, None, WIDTH, 8.4, shares=(0.3, 0.7))
        self._rows(layout, rules=False)
        self.y += 2.0

    def _table(self, block: blocks.Table) -> None:
        size = 7.6 if len(block.columns) <= 5 else 6.8
        layout = TableLayout(self._type, self._stretches, block.rows, block.columns, WIDTH, size)
        if layout.rows and self._turns(layout, layout.rows[0], 5.0 + layout.header_height):
            self.new_page()
        self.need(24.0)
        if block.caption:
            caption = Style(8.2, face="strong")
            self.text([Stretch(block.caption, caption)], LEFT, WIDTH)
            self.y += 0.8
        self._rows(layout, rules=True)
        self.y += 3.0

    def _rows(self, layout: TableLayout, *, rules: bool) -> None:
        self._header(layout)
        for row in layout.rows:
            if self._turns(layout, row):
                self._turn(layout)
            start = 0
            while True:
                taken = layout.fitting(row, start, self.room)
                if taken == 0 and self.y > TOP + layout.header_height + 0.1:
                    self._turn(layout)
                    continue
                taken = max(taken, 1)
                self.y += layout.draw(self._pdf, row, start, taken, LEFT, self.y, rules=rules)
                start += taken
                if start >= layout.length(row):
                    break
                self._turn(layout)

    def _turns(self, layout: TableLayout, row: Row, before: float = 0.0) -> bool:
        """Whether a row goes to the next page whole, rather than be divided.

        It does where a page holds it, unless that left half of this one empty.
        """
        height, room = layout.height(row), self.room - before
        whole = _FOOT - TOP - layout.header_height
        return height > room and height <= whole and room < 0.45 * whole and self.y > TOP

    def _turn(self, layout: TableLayout) -> None:
        self.new_page()
        self._header(layout)

    def _header(self, layout: TableLayout) -> None:
        if layout.header_height:
            self.y += layout.draw_header(self._pdf, LEFT, self.y, _PALE)

    def _picture(self, block: blocks.Picture) -> None:
        drawing = Drawing(block.svg)
        width, height = _picture_size(drawing)
        self.need(height + 12.0)
        drawing.draw(self._pdf, self._type, LEFT + (WIDTH - width) / 2.0, self.y, width)
        self.y += height + 1.5
        self.text([Stretch(block.caption, Style(7.8, colour=GREY))], LEFT, WIDTH)
        self.y += 2.0
        self._table(block.table)

    def _code(self, text: str) -> None:
        style = Style(7.8, face="code")
        for command in text.splitlines() or [""]:
            for line in self._type.lines([Stretch(command, style)], WIDTH - 6.0):
                height = line.size * _POINT * _LEADING
                self.need(height)
                self._pdf.set_fill_color(*_PALE)
                self._pdf.rect(LEFT, self.y, WIDTH, height + 0.1, "F")
                self._put(line, LEFT + 3.0)
        self.y += 2.0

    def _stretches(self, line: blocks.Line, size: float, *, note: bool = False) -> list[Stretch]:
        """A line's runs in their looks, each figure followed by the number of its place."""
        found: list[Stretch] = []
        plain = Style(size, colour=GREY if note else INK)
        for run in line:
            style = plain
            if run.code:
                style = replace(style, face="code", size=0.92 * size)
            elif run.strong or run.badge is not None:
                style = replace(style, face="strong")
            if run.badge is not None:
                ink, back = _BADGES.get(run.badge, _NEUTRAL)
                style = replace(style, colour=ink, back=back, size=0.95 * size)
            if run.anchor in self._links:
                style = replace(style, target=self._links[run.anchor])
            if run.link in self._links:
                style = replace(style, colour=BLUE, link=self._links[run.link])
            found.append(Stretch(run.text, style))
            for reference in run.references:
                number = self._numbers[reference]
                link = self._links.get(SOURCE.format(number=number))
                small = Style(0.72 * size, colour=BLUE, link=link)
                found.append(Stretch(f"\u00a0[{number}]", small))
        return found


def _picture_size(drawing: Drawing) -> tuple[float, float]:
    """Millimetres of width and height."""
    width, most = min(WIDTH, 0.27 * drawing.width), 165.0
    height = width * drawing.height / drawing.width
    return (width, height) if height <= most else (width * most / height, most)
