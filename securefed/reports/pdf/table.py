"""A table's columns, rows and lines, before it is known on which pages they stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from securefed.reports import blocks
from securefed.reports.pdf.text import Colour, Stretch, Style, TypesetLine, Typesetter

_POINT = 25.4 / 72.0
_LEADING = 1.36
_PADDING = 1.1
"""Millimetres at each side of a cell."""
_LEAST = 9.0
"""Millimetres of a column."""
_WORD = 26.0
"""Millimetres that a word may ask for, before it is broken."""

Row = tuple[tuple[TypesetLine, ...], ...]
"""Lines of each cell."""


class TableLayout:
    """Widths of columns, and each cell in lines.

    Args:
        typesetter: breaks lines.
        stretches: the looks of a line, from its runs and the size of letters.
        rows: of cells.
        columns: their names; None for a table without.
        width: of the whole, in millimetres.
        size: of letters, in points.
        shares: of the width, for each column; None to go by what they hold.
    """

    def __init__(
        self,
        typesetter: Typesetter,
        stretches: Callable[[blocks.Line, float], list[Stretch]],
        rows: Sequence[Sequence[blocks.Cell]],
        columns: Sequence[str] | None,
        width: float,
        size: float,
        shares: Sequence[float] | None = None,
    ) -> None:
        self._type = typesetter
        self._size = size
        head = Style(size, face="strong")
        names = [] if columns is None else [[Stretch(name, head)] for name in columns]
        cells = [[[stretches(line, size) for line in cell] for cell in row] for row in rows]
        if shares is None:
            self._widths = self._fitted(names, cells, width)
        else:
            self._widths = [share * width for share in shares]
        self._head: Row = tuple(
            tuple(typesetter.lines(name, w - 2 * _PADDING))
            for name, w in zip(names, self._widths, strict=False)
        )
        self.rows: list[Row] = [
            tuple(
                tuple(
                    line
                    for paragraph in cell
                    for line in typesetter.lines(paragraph, w - 2 * _PADDING)
                )
                for cell, w in zip(row, self._widths, strict=False)
            )
            for row in cells
        ]

    @property
    def header_height(self) -> float:
        """Millimetres; 0 for a table without names of columns."""
        return self.height(self._head) if self._head else 0.0

    def length(self, row: Row) -> int:
        """Lines of the longest cell."""
        return max(1, max((len(cell) for cell in row), default=1))

    def height(self, row: Row) -> float:
        """Of a whole row."""
        return self.length(row) * self._line_height + 2 * _PADDING

    def fitting(self, row: Row, start: int, room: float) -> int:
        """How many lines from ``start`` on there is room for."""
        left = self.length(row) - start
        fits = int((room - 2 * _PADDING) / self._line_height)
        return max(0, min(left, fits))

    def draw_header(self, pdf: Any, x: float, y: float, back: Colour) -> float:
        """Names of columns on a ground of their own; gives the height."""
        height = self.header_height
        pdf.set_fill_color(*back)
        pdf.rect(x, y, sum(self._widths), height, "F")
        return self.draw(pdf, self._head, 0, self.length(self._head), x, y, rules=True)

    def draw(
        self, pdf: Any, row: Row, start: int, count: int, x: float, y: float, *, rules: bool
    ) -> float:
        """``count`` lines of a row from ``start`` on; gives the height."""
        height = count * self._line_height + 2 * _PADDING
        for cell, width in zip(row, self._widths, strict=False):
            for i, line in enumerate(cell[start : start + count]):
                base = y + _PADDING + (i + 0.76) * self._line_height
                self._type.draw(line, x + _PADDING, base)
            x += width
        if rules:
            pdf.set_draw_color(205, 210, 215)
            pdf.set_line_width(0.15)
            pdf.line(x - sum(self._widths[: len(row)]), y + height, x, y + height)
        return height

    @property
    def _line_height(self) -> float:
        return self._size * _POINT * _LEADING

    def _fitted(
        self,
        names: Sequence[Sequence[Stretch]],
        cells: Sequence[Sequence[Sequence[Sequence[Stretch]]]],
        width: float,
    ) -> list[float]:
        """Widths of columns by what they hold.

        Each has its longest word's; the rest goes by how much text a column holds, but none gets
        more than its longest line.
        """
        count = max([len(names), *(len(row) for row in cells)])
        least, want, held = [_LEAST] * count, [_LEAST] * count, [1.0] * count
        for row in [[[name] for name in names], *cells]:
            for i, cell in enumerate(row):
                for paragraph in cell:
                    whole = sum(line.width for line in self._type.lines(paragraph, 1e6))
                    word = self._longest_word(paragraph)
                    want[i] = max(want[i], whole + 2 * _PADDING + 0.1)
                    least[i] = max(least[i], min(word, 0.25 * width) + 2 * _PADDING + 0.1)
                    held[i] += whole
        if sum(want) <= width:
            return [w * width / sum(want) for w in want]
        if sum(least) >= width:
            return [w * width / sum(least) for w in least]
        return _shared(least, want, held, width)

    def _longest_word(self, paragraph: Sequence[Stretch]) -> float:
        return max((line.width for line in self._type.lines(paragraph, _WORD)), default=0.0)


def _shared(least: list[float], want: list[float], held: list[float], width: float) -> list[float]:
    """``width`` in parts that lie between ``least`` and ``want``, by the roots of ``held``."""
    found = list(least)
    growing = [i for i in range(len(found)) if want[i] > found[i]]
    while growing and width - sum(found) > 1e-6:
        rest = width - sum(found)
        weights = {i: math.sqrt(held[i]) for i in growing}
        for i in growing:
            found[i] = min(want[i], found[i] + rest * weights[i] / sum(weights.values()))
        growing = [i for i in growing if want[i] - found[i] > 1e-6]
    return found
