"""A small writer of SVG: enough for plots and diagrams, with the same bytes every time.

Only what every reader of SVG draws is used: lines, rectangles, circles, polylines, paths and text,
with presentation attributes and no style sheet.  A text's width is a guess, since its font is the
reader's.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from typing import Literal

from securefed.reports.picture import BLUE, GREY, INK, VERMILION
from securefed.reports.visible import visible

__all__ = ["BLUE", "GREY", "INK", "PALE", "RULE", "VERMILION", "Drawing", "text_width", "wrapped"]

RULE = "#bfbfbf"
PALE = "#f2f2f2"

Anchor = Literal["start", "middle", "end"]
Point = tuple[float, float]

_NEVER_FIRST = "ー、。）」』・っゃゅょぁぃぅぇぉッャュョァィゥェォ"
"""No line of Japanese begins with one of these."""

_WIDE, _NARROW = 1.0, 0.56  # of the font size: a wide character, and a mean of the others


class Drawing:
    """A picture under way; units are pixels at 100 %.

    Args:
        width, height: of it.
        label: what it shows, in words, for whoever cannot see it.
    """

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width, self.height, self._label = width, height, label
        self._parts: list[str] = []

    def line(
        self,
        start: Point,
        end: Point,
        *,
        colour: str = INK,
        width: float = 1.0,
        dash: str = "",
    ) -> None:
        """A straight line."""
        self._element(
            "line",
            x1=start[0],
            y1=start[1],
            x2=end[0],
            y2=end[1],
            stroke=colour,
            stroke_width=width,
            stroke_dasharray=dash,
        )

    def rect(
        self,
        at: Point,
        width: float,
        height: float,
        *,
        fill: str = "none",
        colour: str = "none",
        stroke_width: float = 1.0,
        rounded: float = 0.0,
        dash: str = "",
    ) -> None:
        """A rectangle, from its upper left corner."""
        self._element(
            "rect",
            x=at[0],
            y=at[1],
            width=width,
            height=height,
            rx=rounded,
            fill=fill,
            stroke=colour,
            stroke_width=stroke_width,
            stroke_dasharray=dash,
        )

    def circle(self, at: Point, radius: float, *, fill: str, colour: str = "none") -> None:
        """A circle."""
        self._element("circle", cx=at[0], cy=at[1], r=radius, fill=fill, stroke=colour)

    def polyline(
        self, points: Sequence[Point], *, colour: str, width: float = 1.5, dash: str = ""
    ) -> None:
        """Points that are joined."""
        self._element(
            "polyline",
            points=" ".join(f"{_number(x)},{_number(y)}" for x, y in points),
            fill="none",
            stroke=colour,
            stroke_width=width,
            stroke_dasharray=dash,
        )

    def polygon(self, points: Sequence[Point], *, fill: str) -> None:
        """A filled outline."""
        self._element(
            "polygon", points=" ".join(f"{_number(x)},{_number(y)}" for x, y in points), fill=fill
        )

    def arrow(self, points: Sequence[Point], *, colour: str = INK, dash: str = "") -> None:
        """A line of straight pieces along the axes with a head at its end."""
        (x0, y0), (x1, y1) = points[-2], points[-1]
        across, along = (0.0, _sign(y1 - y0)) if x0 == x1 else (_sign(x1 - x0), 0.0)
        base = (x1 - 7 * across, y1 - 7 * along)
        self.polyline([*points[:-1], base], colour=colour, width=1.4, dash=dash)
        wing = (4 * along, 4 * across)
        self.polygon(
            [
                (x1, y1),
                (base[0] + wing[0], base[1] + wing[1]),
                (base[0] - wing[0], base[1] - wing[1]),
            ],
            fill=colour,
        )

    def text(
        self,
        at: Point,
        text: str,
        *,
        size: float = 12.0,
        anchor: Anchor = "start",
        colour: str = INK,
        bold: bool = False,
        turned: bool = False,
    ) -> None:
        """A line of text; ``at`` is the end of its base line that ``anchor`` names."""
        x, y = at
        turn = f"rotate(-90 {_number(x)} {_number(y)})" if turned else ""
        attributes = _attributes(
            x=x,
            y=y,
            font_size=size,
            text_anchor="" if anchor == "start" else anchor,
            font_weight="bold" if bold else "",
            fill=colour,
            transform=turn,
        )
        self._parts.append(f"<text {attributes}>{html.escape(visible(text))}</text>")

    def lines(
        self,
        at: Point,
        text: Sequence[str],
        *,
        size: float = 12.0,
        anchor: Anchor = "middle",
        colour: str = INK,
        bold: bool = False,
    ) -> None:
        """Lines of text around a middle height."""
        step = 1.25 * size
        top = at[1] - step * (len(text) - 1) / 2 + 0.35 * size
        for number, line in enumerate(text):
            place = (at[0], top + number * step)
            self.text(place, line, size=size, anchor=anchor, colour=colour, bold=bold)

    def svg(self) -> str:
        """The element."""
        label = html.escape(visible(self._label))
        size = f"{_number(self.width)} {_number(self.height)}"
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" '
            f'width="{_number(self.width)}" height="{_number(self.height)}" role="img" '
            f'aria-label="{label}" font-family="sans-serif">'
        )
        return "\n".join([head, f"<title>{label}</title>", *self._parts, "</svg>"])

    def _element(self, name: str, **values: float | str) -> None:
        self._parts.append(f"<{name} {_attributes(**values)}/>")


def text_width(text: str, size: float) -> float:
    """About how wide a text is, in pixels."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return size * (_WIDE * wide + _NARROW * (len(text) - wide))


def wrapped(text: str, width: float, size: float, *, most: int = 3) -> list[str]:
    """A text in lines of about a width: at spaces, or anywhere where it has none.

    What does not fit into ``most`` lines is left out, with an ellipsis in its place.
    """
    lines, line = [], ""
    for piece in _pieces(text):
        if line and text_width((line + piece).rstrip(), size) > width:
            lines.append(line.rstrip())
            line = ""
        line += piece
    lines.append(line.rstrip())
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1][:-1]}…"]
    return lines


def _pieces(text: str) -> list[str]:
    """Words with the space or hyphen after them; wide characters each by itself."""
    found: list[str] = []
    piece = ""
    for letter in text:
        if letter in _NEVER_FIRST and found and not piece:
            found[-1] += letter
            continue
        if unicodedata.east_asian_width(letter) in "WF":
            found += [piece, letter] if piece else [letter]
            piece = ""
            continue
        piece += letter
        if letter in " -/":
            found.append(piece)
            piece = ""
    return [*found, piece] if piece else found


def _attributes(**values: float | str) -> str:
    found = []
    for name, value in values.items():
        if value == "" or (name in ("rx", "stroke_width") and not value):
            continue
        shown = value if isinstance(value, str) else _number(value)
        found.append(f'{name.replace("_", "-")}="{html.escape(shown)}"')
    return " ".join(found)


def _number(value: float) -> str:
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _sign(value: float) -> float:
    return (value > 0) - (value < 0)
