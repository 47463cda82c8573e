"""The data-flow diagram: parties as boxes, flows as numbered arrows, and what adversaries see.

The words of flows stand in the table beside it; on an arrow is its number only, so that it can be
read on paper and on a phone.
"""

from __future__ import annotations

from collections import defaultdict

from securefed.reports.document import Flow, Node, System
from securefed.reports.svg import (
    BLUE,
    GREY,
    INK,
    PALE,
    VERMILION,
    Drawing,
    Point,
    text_width,
    wrapped,
)
from securefed.reports.wording import Wording, plain

_BOX = (120.0, 64.0)
_GAP, _ROW_GAP = 66.0, 58.0
_LEFT, _TOP = 12.0, 40.0
_CHIP_HEIGHT, _CHIPS = 40.0, 3
_SIZE = 12.0


def data_flow(system: System, word: Wording) -> str:
    """The diagram as an ``<svg>`` element."""
    columns = 1 + max(node.column for node in system.nodes)
    rows = 1 + max(node.row for node in system.nodes)
    width = 2 * _LEFT + columns * _BOX[0] + (columns - 1) * _GAP
    boxes_end = _TOP + rows * _BOX[1] + (rows - 1) * _ROW_GAP + 34.0
    chips = -(-len(system.adversaries) // _CHIPS)
    height = boxes_end + (34.0 + chips * (_CHIP_HEIGHT + 8.0) if chips else 0.0)
    drawing = Drawing(width, height, word("diagram.alt"))
    places = {node.id: node for node in system.nodes}
    for node in system.nodes:
        _box(drawing, node, word)
    _arrows(drawing, system.flows, places)
    if chips:
        _adversaries(drawing, system, word, boxes_end)
    return drawing.svg()


def _corner(node: Node) -> Point:
    x = _LEFT + node.column * (_BOX[0] + _GAP)
    return x, _TOP + node.row * (_BOX[1] + _ROW_GAP)


def _middle(node: Node) -> Point:
    x, y = _corner(node)
    return x + _BOX[0] / 2, y + _BOX[1] / 2


def _box(drawing: Drawing, node: Node, word: Wording) -> None:
    drawing.rect(_corner(node), *_BOX, fill=PALE, colour=INK, stroke_width=1.2, rounded=4)
    label = wrapped(plain(word.line(node.label)), _BOX[0] - 12, _SIZE)
    drawing.lines(_middle(node), label, size=_SIZE, bold=True)


def _arrows(drawing: Drawing, flows: list[Flow], places: dict[str, Node]) -> None:
    """Arrows between two boxes side by side, one below the other; far ones go around."""
    between: dict[frozenset[str], list[Flow]] = defaultdict(list)
    for flow in flows:
        between[frozenset((flow.source, flow.target))].append(flow)
    around = 0
    for pair in between.values():
        source, target = places[pair[0].source], places[pair[0].target]
        if abs(source.column - target.column) + abs(source.row - target.row) == 1:
            for number, flow in enumerate(pair):
                _straight(drawing, flow, places, (number + 1) / (len(pair) + 1))
        elif source.row != target.row:
            for number, flow in enumerate(pair):
                _bent(drawing, flow, places, (number + 1) / (len(pair) + 1))
        else:
            for flow in pair:
                _around(drawing, flow, places, around)
                around += 1


def _colour(flow: Flow) -> str:
    return BLUE if flow.protected else VERMILION


def _dash(flow: Flow) -> str:
    return "" if flow.protected else "5 3"


def _straight(drawing: Drawing, flow: Flow, places: dict[str, Node], share: float) -> None:
    source, target = places[flow.source], places[flow.target]
    (x0, y0), (x1, y1) = _corner(source), _corner(target)
    if source.row == target.row:
        y = y0 + _BOX[1] * share
        start, end = (x0 + _BOX[0], y), (x1, y)
        if x1 < x0:
            start, end = (x0, y), (x1 + _BOX[0], y)
    else:
        x = x0 + _BOX[0] * share
        start, end = (x, y0 + _BOX[1]), (x, y1)
        if y1 < y0:
            start, end = (x, y0), (x, y1 + _BOX[1])
    drawing.arrow([start, end], colour=_colour(flow), dash=_dash(flow))
    # Numbers of arrows side by side stand apart.
    along = 0.05 + 0.85 * share if source.row == target.row else 0.5
    x, y = (a + along * (b - a) for a, b in zip(start, end, strict=True))
    _numbered(drawing, flow, (x, y))


def _bent(drawing: Drawing, flow: Flow, places: dict[str, Node], share: float) -> None:
    """Between a box and one in the next row and column: down, then across."""
    source, target = places[flow.source], places[flow.target]
    upper, lower = (source, target) if source.row < target.row else (target, source)
    (ux, uy), (lx, ly) = _corner(upper), _corner(lower)
    y = ly + _BOX[1] * share
    x = ux + _BOX[0] * (0.62 + 0.28 * (1 - share))
    path = [(x, uy + _BOX[1]), (x, y), (lx if lx > x else lx + _BOX[0], y)]
    if source is lower:
        path.reverse()
    drawing.arrow(path, colour=_colour(flow), dash=_dash(flow))
    _numbered(drawing, flow, ((x + path[-1][0]) / 2 if source is upper else (x + lx) / 2, y))


def _around(drawing: Drawing, flow: Flow, places: dict[str, Node], lane: int) -> None:
    """Over the boxes between them."""
    (x0, y0), (x1, _) = _corner(places[flow.source]), _corner(places[flow.target])
    height = y0 - 16.0 - 12.0 * lane
    start, end = x0 + _BOX[0] * 0.5, x1 + _BOX[0] * (0.5 + 0.12 * lane)
    path = [(start, y0), (start, height), (end, height), (end, y0)]
    drawing.arrow(path, colour=_colour(flow), dash=_dash(flow))
    _numbered(drawing, flow, ((start + end) / 2, height))


def _numbered(drawing: Drawing, flow: Flow, at: Point) -> None:
    drawing.circle(at, 8.5, fill="#ffffff", colour=_colour(flow))
    text = str(flow.number)
    drawing.text(
        (at[0], at[1] + 3.8), text, size=10.5, anchor="middle", colour=_colour(flow), bold=True
    )


def _adversaries(drawing: Drawing, system: System, word: Wording, top: float) -> None:
    drawing.text((_LEFT, top + 12.0), word("diagram.adversaries"), size=_SIZE, bold=True)
    wide = (drawing.width - 2 * _LEFT - (_CHIPS - 1) * 8.0) / _CHIPS
    for number, one in enumerate(system.adversaries):
        x = _LEFT + (number % _CHIPS) * (wide + 8.0)
        y = top + 22.0 + (number // _CHIPS) * (_CHIP_HEIGHT + 8.0)
        drawing.rect((x, y), wide, _CHIP_HEIGHT, colour=VERMILION, rounded=3, dash="4 3")
        name = one.name.partition("/")[2]
        size = 11.0
        sees = word("diagram.sees", flows=", ".join(map(str, one.sees)) or word("diagram.nothing"))
        head = f"{name} ({plain(word.line(one.role))})"
        if 1.1 * text_width(head, size) > wide - 16:  # the role stands in the threat model's table
            head = name
        drawing.text((x + 8, y + 16), head, size=size, bold=True)
        drawing.text((x + 8, y + 31), sees, size=size, colour=GREY)
