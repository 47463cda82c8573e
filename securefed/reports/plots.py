"""The plots of a report, as SVG; each stands beside a table of the same figures.

Nothing is told by colour alone: what is void is hatched and named, curves differ in their dashes,
and values with and without the defence differ in their marks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from securefed.reports.attack_plots import GREEN, ORANGE, PURPLE, dp_bound
from securefed.reports.document import AttackRow, Curve, UtilityRow
from securefed.reports.svg import (
    BLUE,
    GREY,
    INK,
    PALE,
    RULE,
    VERMILION,
    Drawing,
    Point,
    text_width,
    wrapped,
)
from securefed.reports.wording import Wording, known

_WIDTH = 680.0
_SIZE = 11.5
_LINES = (BLUE, VERMILION, GREEN, ORANGE, PURPLE)
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 3")
_SHADES = ("#ffffff", "#fbe3d2", "#f6c29a", "#ec8f4f", "#d55e00")
"""From no lift to a lift of 1; white letters stand on the darkest alone."""


def heat_map(rows: Sequence[AttackRow], word: Wording) -> str:
    """The lift over the prior of every attack, on what it was tried on."""
    columns = sorted({(row.exposure, row.defence) for row in rows}, key=_order)
    names = list(dict.fromkeys(row.attack for row in rows))
    left = 16.0 + min(190.0, max(text_width(name, _SIZE) for name in names))
    cell = min(130.0, (_WIDTH - left - 8) / len(columns))
    tall, top = 46.0, 46.0
    drawing = Drawing(
        max(left + cell * len(columns) + 8, 340.0), top + tall * len(names) + 50, word("heat.alt")
    )
    for place, (exposure, defence) in enumerate(columns):
        middle = left + cell * (place + 0.5)
        lines = wrapped(word.text(known("exposure", exposure)), cell - 6, 10.5, most=2)
        drawing.lines((middle, 14), lines, size=10.5)
        drawing.text(
            (middle, 40), word("as.defence", name=defence), size=10.5, anchor="middle", colour=GREY
        )
    for number, name in enumerate(names):
        y = top + tall * number
        lines = wrapped(name, left - 12, _SIZE, most=2)
        drawing.lines((left - 8, y + tall / 2), lines, size=_SIZE, anchor="end")
        for place, column in enumerate(columns):
            found = [r for r in rows if (r.attack, r.exposure, r.defence) == (name, *column)]
            at = (left + cell * place, y)
            _cell(drawing, at, cell, tall, found[0] if found else None, word)
    y = top + tall * len(names) + 14
    for number, shade in enumerate(_SHADES):
        drawing.rect((left + 34.0 * number, y), 34, 12, fill=shade, colour=RULE)
        drawing.text(
            (left + 34.0 * number + 17, y + 25), f"{number / 4:g}", size=10, anchor="middle"
        )
    drawing.text((left + 34.0 * 5 + 10, y + 11), word("heat.scale"), size=10.5, colour=GREY)
    return drawing.svg()


def _order(column: tuple[str, str]) -> tuple[int, str, str]:
    exposure, defence = column
    return (0 if defence == "off" else 1, exposure, defence)


def _cell(
    drawing: Drawing, at: Point, width: float, height: float, row: AttackRow | None, word: Wording
) -> None:
    middle = (at[0] + width / 2, at[1] + height / 2)
    if row is None:
        drawing.rect(at, width, height, colour=RULE, fill=PALE)
        return
    lift = row.lift.value if row.lift is not None else None
    if row.verdict != "guessed" or not isinstance(lift, int | float):
        drawing.rect(at, width, height, colour=RULE, fill="#ffffff")
        if row.verdict == "void":
            _hatched(drawing, at, width, height)
        lines = wrapped(word(f"result.{row.verdict}"), width - 6, 10.5, most=2)
        drawing.rect(
            (middle[0] - text_width(lines[0], 10.5) / 2 - 4, middle[1] - 8 * len(lines)),
            text_width(lines[0], 10.5) + 8,
            16 * len(lines),
            fill="#ffffff",
        )
        drawing.lines(middle, lines, size=10.5, colour=INK)
        return
    interval = row.lift.interval if row.lift is not None else None
    first, second = _signed(float(lift)), ""
    if interval is not None:
        second = f"[{_signed(interval[0])}, {_signed(interval[1])}]"
    if row.kind == "epsilon":  # its lift is over a promise: a bound below that shows no leak
        lift = 1.0 if interval is not None and interval[0] > 0.0 else 0.0
        values = (row.value, row.prior)
        first, second = (
            word(key, value=figure) if figure is not None else ""
            for key, figure in zip(("heat.least", "heat.promised"), values, strict=True)
        )
    shade = _SHADES[min(4, round(4 * max(0.0, min(1.0, float(lift)))))]
    drawing.rect(at, width, height, colour=RULE, fill=shade)
    ink = "#ffffff" if shade == _SHADES[-1] else INK
    drawing.text(
        (middle[0], middle[1] - (2 if second else -4)),
        first,
        size=12.5,
        anchor="middle",
        bold=True,
        colour=ink,
    )
    if second:
        drawing.text((middle[0], middle[1] + 14), second, size=9.5, anchor="middle", colour=ink)


def _hatched(drawing: Drawing, at: Point, width: float, height: float) -> None:
    step = 9.0
    for number in range(1, int((width + height) / step) + 1):
        d = number * step
        start = (at[0] + min(d, width), at[1] + max(0.0, d - width))
        end = (at[0] + max(0.0, d - height), at[1] + min(d, height))
        drawing.line(start, end, colour=RULE)


@dataclass(frozen=True)
class _Axes:
    """A frame, and where a value lies in it."""

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]
    scale: Literal["linear", "log"] = "linear"

    def at(self, x: float, y: float) -> Point:
        """Where a point lies; beyond the frame it is put on its edge."""
        return (
            self.left + self.width * self._share(x, self.x),
            self.top + self.height * (1.0 - self._share(y, self.y)),
        )

    def _share(self, value: float, ends: tuple[float, float]) -> float:
        low, high = ends
        value = min(max(value, low), high)
        if self.scale == "log":
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)


def roc(curves: Sequence[Curve], word: Wording) -> str:
    """True against false positive rates, both logarithmic, with what differential privacy allows.

    Source: the axes: Carlini et al. 2022 (2112.03570); the bound: Kairouz, Oh and Viswanath 2015
    (1311.0776), theorem 2.1.
    """
    rates = [rate for curve in curves for point in curve.points for rate in point if rate > 0.0]
    floor = 10.0 ** math.floor(math.log10(min([0.1, *rates])))
    axes = _Axes(58, 16, 330, 300, (floor, 1.0), (floor, 1.0), "log")
    bounds = sorted({curve.bound for curve in curves if curve.bound is not None})
    drawing = Drawing(_WIDTH, 370, word("roc.alt"))
    for power in range(round(math.log10(floor)), 1):
        value = 10.0**power
        across, up = axes.at(value, floor), axes.at(floor, value)
        drawing.line((across[0], 16), across, colour=RULE)
        drawing.line(up, (388, up[1]), colour=RULE)
        drawing.text((across[0], 334), f"{value:g}", size=10.5, anchor="middle")
        drawing.text((52, up[1] + 4), f"{value:g}", size=10.5, anchor="end")
    steps = [floor ** (1.0 - i / 120.0) for i in range(121)]
    drawing.polyline([axes.at(x, x) for x in steps], colour=GREY, width=1, dash="2 3")
    legend: list[tuple[str, str, str]] = [(word("roc.guessing"), GREY, "2 3")]
    for number, (epsilon, delta) in enumerate(bounds):
        dash = _DASHES[number % len(_DASHES)]
        points = [axes.at(x, dp_bound(x, epsilon, delta)) for x in steps]
        drawing.polyline(points, colour=INK, width=2, dash=dash)
        legend.append((word("roc.bound", epsilon=epsilon, delta=delta), INK, dash))
    for number, curve in enumerate(curves):
        colour, dash = _LINES[number % len(_LINES)], _DASHES[number % len(_DASHES)]
        stairs: list[Point] = []
        for x, y in sorted(curve.points):
            if stairs:
                stairs.append((axes.at(x, y)[0], stairs[-1][1]))
            stairs.append(axes.at(x, y))
        drawing.polyline(stairs, colour=colour, width=1.8, dash=dash)
        name = word("roc.curve", attack=curve.attack, defence=curve.defence)
        legend.append((name, colour, dash))
    drawing.text((223, 356), word("roc.false"), size=_SIZE, anchor="middle")
    drawing.text((16, 166), word("roc.true"), size=_SIZE, anchor="middle", turned=True)
    y = 30.0
    for text, colour, dash in legend:
        drawing.line((404, y), (432, y), colour=colour, width=2, dash=dash)
        lines = wrapped(text, _WIDTH - 446, 10.5, most=3)
        for number, line in enumerate(lines):
            drawing.text((438, y + 4 + 13 * number), line, size=10.5)
        y += 13 * len(lines) + 10
    return drawing.svg()


def lifts(pairs: Sequence[tuple[AttackRow, AttackRow | None]], word: Wording) -> str:
    """The lift of each attack with its interval, with the defence and without it.

    Args:
        pairs: a row with the defence on, and the same attack with it off.
        word: the language.
    """
    left, right, tall = 250.0, 20.0, 58.0
    height = 40 + tall * len(pairs) + 44
    low = _lowest(row for pair in pairs for row in pair)
    axes = _Axes(left, 36, _WIDTH - left - right, tall * len(pairs), (low, 1.0), (0.0, 1.0))
    drawing = Drawing(_WIDTH, height, word("lift.alt"))
    bottom = 36 + tall * len(pairs)
    for step in range(round(4 * low), 5):
        x = axes.at(step / 4, 0)[0]
        drawing.line(
            (x, 36), (x, bottom), colour=INK if step == 0 else RULE, width=1.4 if step == 0 else 1
        )
        drawing.text((x, bottom + 15), _signed(step / 4), size=10.5, anchor="middle")
    middle = left + (_WIDTH - left - right) / 2
    drawing.text((middle, bottom + 33), word("lift.axis"), size=_SIZE, anchor="middle")
    x = left
    for colour, name, filled in ((BLUE, "lift.with", True), (VERMILION, "lift.without", False)):
        _mark(drawing, (x + 6, 15), colour, filled=filled)
        drawing.text((x + 18, 19), word(name), size=10.5)
        x += 40 + text_width(word(name), 10.5)
    for number, (defended, bare) in enumerate(pairs):
        y = 36 + tall * (number + 0.5)
        drawing.lines((left - 14, y - 15), [defended.attack], size=_SIZE, anchor="end")
        exposure = word.text(known("exposure", defended.exposure))
        where = f"{exposure}, {word('as.defence', name=defended.defence)}"
        lines = wrapped(where, left - 20, 10, most=2)
        drawing.lines((left - 14, y + 8), lines, size=10, anchor="end", colour=GREY)
        for row, colour, shift, filled in (
            (defended, BLUE, -8.0, True),
            (bare, VERMILION, 8.0, False),
        ):
            _lift(drawing, axes, row, y + shift, colour, filled=filled, word=word)
    return drawing.svg()


def _lowest(rows: Iterable[AttackRow | None]) -> float:
    """Where the axis of lifts begins: a multiple of a quarter, from -1 to -0.25."""
    found = [-0.25]
    for row in rows:
        if row is not None and row.lift is not None and isinstance(row.lift.value, int | float):
            found += [float(row.lift.value), *(row.lift.interval or ())]
    return max(-1.0, math.floor(4.0 * min(found)) / 4.0)


def _lift(
    drawing: Drawing,
    axes: _Axes,
    row: AttackRow | None,
    y: float,
    colour: str,
    *,
    filled: bool,
    word: Wording,
) -> None:
    lift = None if row is None or row.verdict != "guessed" or row.lift is None else row.lift
    if lift is None or not isinstance(lift.value, int | float):
        text = word("lift.none") if row is None else word(f"result.{row.verdict}")
        drawing.text((axes.at(0, 0)[0] + 6, y + 4), text, size=10, colour=colour)
        return
    if lift.interval is not None:
        low, high = (axes.at(end, 0)[0] for end in lift.interval)
        drawing.line((low, y), (high, y), colour=colour, width=2)
        for end in (low, high):
            drawing.line((end, y - 4), (end, y + 4), colour=colour, width=2)
    _mark(drawing, (axes.at(float(lift.value), 0)[0], y), colour, filled=filled)


def _mark(drawing: Drawing, at: Point, colour: str, *, filled: bool) -> None:
    if filled:
        drawing.circle(at, 5, fill=colour, colour=colour)
    else:
        drawing.rect(
            (at[0] - 4.5, at[1] - 4.5), 9, 9, fill="#ffffff", colour=colour, stroke_width=2
        )


def by_round(rows: Sequence[UtilityRow], metric: str, word: Wording) -> str:
    """A held-out figure after each round in which it was measured."""
    points = [
        (float(row.round.value or 0), float(getattr(row, metric).value))
        for row in rows
        if getattr(row, metric).value is not None
    ]
    values = [y for _, y in points]
    low, high = min(values), max(values)
    room = 0.12 * (high - low) or max(abs(high), 1.0) * 0.1
    last = max(float(row.round.value or 0) for row in rows)
    axes = _Axes(70, 20, _WIDTH - 150, 190, (0.0, max(last, 1.0)), (low - room, high + room))
    drawing = Drawing(_WIDTH, 270, word(f"rounds.alt_{metric}"))
    for step in range(5):
        value = low - room + (high - low + 2 * room) * step / 4
        y = axes.at(0, value)[1]
        drawing.line((70, y), (_WIDTH - 80, y), colour=RULE)
        shown = f"{100 * value:.1f} %" if metric == "accuracy" else f"{value:.4g}"
        drawing.text((64, y + 4), shown, size=10.5, anchor="end")
    every = max(1, round(last / 12))
    for number in range(0, int(last) + 1, every):
        drawing.text((axes.at(number, 0)[0], 230), str(number), size=10.5, anchor="middle")
    places = [axes.at(x, y) for x, y in points]
    drawing.polyline(places, colour=BLUE, width=2)
    for place, value in zip(places, values, strict=True):
        drawing.circle(place, 4.5, fill=BLUE)
        shown = f"{100 * value:.1f} %" if metric == "accuracy" else f"{value:.4g}"
        drawing.text((place[0] + 9, place[1] - 8), shown, size=11, bold=True)
    drawing.text((70 + (_WIDTH - 150) / 2, 256), word("rounds.axis"), size=_SIZE, anchor="middle")
    return drawing.svg()


def bars(items: Sequence[tuple[str, float, str]], word: Wording) -> str:
    """Horizontal bars on one scale.

    Args:
        items: what each is, its value >= 0 in one unit, and that value in words.
        word: the language.
    """
    left = 20 + min(250.0, max(text_width(name, _SIZE) for name, _, _ in items))
    most = max(value for _, value, _ in items) or 1.0
    tall = 30.0
    drawing = Drawing(_WIDTH, 12 + tall * len(items), word("cost.alt"))
    room = _WIDTH - left - 100
    for number, (name, value, shown) in enumerate(items):
        y = 6 + tall * number
        lines = wrapped(name, left - 16, _SIZE, most=2)
        drawing.lines((left - 8, y + tall / 2), lines, size=_SIZE, anchor="end")
        drawing.rect((left, y + 6), max(1.0, room * value / most), tall - 12, fill=BLUE)
        at = (left + room * value / most + 8, y + tall / 2 + 4)
        drawing.text(at, shown, size=_SIZE, bold=True)
    return drawing.svg()


def _signed(value: float) -> str:
    text = f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")
    return "0" if text in ("+0.00", "\N{MINUS SIGN}0.00") else text
