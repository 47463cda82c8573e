"""Draws the plots of a report, which are SVG, on a page of a PDF.

The plots come from this package alone and use a small part of SVG; what is outside of that part is
refused, so that no plot is drawn with something missing.
"""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from securefed.errors import ConfigError
from securefed.reports.pdf.text import INK, Colour, Stretch, Style, Typesetter

_POINT = 25.4 / 72.0
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_PATH = re.compile(rf"([MLHVCQZ])|({_NUMBER.pattern})")
_ROTATE = re.compile(r"rotate\(([^)]*)\)")
_TRANSLATE = re.compile(r"translate\(([^)]*)\)")
_NAMED: dict[str, Colour] = {"white": (255, 255, 255), "black": (0, 0, 0), "currentColor": INK}
_SKIPPED = ("title", "desc")
_CURVE_STEPS = 16
_ARGUMENTS = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "Q": 4, "Z": 0}
_ALLOWED = frozenset(
    "x y x1 y1 x2 y2 cx cy r rx ry width height points d viewBox fill stroke stroke-width "
    "stroke-dasharray stroke-linecap stroke-linejoin opacity fill-opacity stroke-opacity "
    "text-anchor font-size font-weight font-family dominant-baseline dy transform id role "
    "aria-label aria-labelledby aria-hidden focusable preserveAspectRatio xmlns lang".split()
)

Point = tuple[float, float]


class Drawing:
    """One ``<svg>`` element.

    Raises:
        ConfigError: it is no SVG, or uses what this module does not draw.
    """

    def __init__(self, svg: str) -> None:
        if "<!" in svg:
            raise ConfigError("plot: a document type or a comment is not drawn")
        try:
            self._root = ElementTree.fromstring(svg)
        except ElementTree.ParseError as error:
            raise ConfigError(f"plot: is not XML ({error})") from None
        box = _numbers(self._root.get("viewBox", ""))
        if _name(self._root) != "svg" or len(box) != 4 or box[2] <= 0.0 or box[3] <= 0.0:
            raise ConfigError("plot: needs <svg> with a viewBox of four numbers")
        self._x, self._y, self.width, self.height = box

    def draw(self, pdf: Any, typesetter: Typesetter, left: float, top: float, width: float) -> None:
        """Puts the drawing on the page, ``width`` millimetres wide."""
        scale = width / self.width
        pen = _Pen(pdf, typesetter, scale)
        origin = (left - self._x * scale, top - self._y * scale)
        for element in self._root:
            pen.element(element, _inherited({}, self._root), origin)


class _Pen:
    """Draws elements, at a scale in millimetres to the unit."""

    def __init__(self, pdf: Any, typesetter: Typesetter, scale: float) -> None:
        self._pdf = pdf
        self._type = typesetter
        self._scale = scale
        self._shapes: dict[str, Callable[[Mapping[str, str], Point], None]] = {
            "line": self._line,
            "rect": self._rect,
            "circle": self._circle,
            "polyline": self._polyline,
            "polygon": self._polygon,
            "path": self._path,
        }

    def element(
        self, element: ElementTree.Element, outer: Mapping[str, str], origin: Point
    ) -> None:
        name = _name(element)
        if name in _SKIPPED:
            return
        unknown = sorted(
            key for key in element.attrib if key not in _ALLOWED and not key.startswith("data-")
        )
        if unknown:
            raise ConfigError(f"plot: the attribute {unknown[0]!r} of <{name}> is not drawn")
        style = _inherited(outer, element)
        if name == "g":
            moved = _numbers(_inside(_TRANSLATE, element.get("transform", "")))
            dx, dy = [*moved, 0.0, 0.0][:2]
            inside = (origin[0] + dx * self._scale, origin[1] + dy * self._scale)
            for child in element:
                self.element(child, style, inside)
        elif name == "text":
            self._text(element, style, origin)
        elif name in self._shapes:
            self._shapes[name]({**style, **element.attrib}, origin)
        else:
            raise ConfigError(f"plot: <{name}> is not drawn")

    def _line(self, at: Mapping[str, str], origin: Point) -> None:
        ends = [(_number(at, f"x{i}"), _number(at, f"y{i}")) for i in (1, 2)]
        self._lines([self._placed(end, origin) for end in ends], at, closed=False, filled=False)

    def _rect(self, at: Mapping[str, str], origin: Point) -> None:
        x, y = self._placed((_number(at, "x"), _number(at, "y")), origin)
        mode = self._looks(at)
        if mode:
            self._pdf.rect(
                x,
                y,
                _number(at, "width") * self._scale,
                _number(at, "height") * self._scale,
                mode,
                round_corners="rx" in at,
                corner_radius=_number(at, "rx") * self._scale,
            )

    def _circle(self, at: Mapping[str, str], origin: Point) -> None:
        x, y = self._placed((_number(at, "cx"), _number(at, "cy")), origin)
        mode = self._looks(at)
        if mode:
            self._pdf.circle(x, y, _number(at, "r") * self._scale, mode)

    def _polyline(self, at: Mapping[str, str], origin: Point) -> None:
        self._lines(self._points(at, origin), at, closed=False, filled=True)

    def _polygon(self, at: Mapping[str, str], origin: Point) -> None:
        self._lines(self._points(at, origin), at, closed=True, filled=True)

    def _points(self, at: Mapping[str, str], origin: Point) -> list[Point]:
        numbers = _numbers(at.get("points", ""))
        return [
            self._placed(pair, origin) for pair in zip(numbers[::2], numbers[1::2], strict=True)
        ]

    def _path(self, at: Mapping[str, str], origin: Point) -> None:
        for points, closed in _subpaths(at.get("d", "")):
            placed = [self._placed(point, origin) for point in points]
            self._lines(placed, at, closed=closed, filled=True)

    def _lines(
        self, points: list[Point], at: Mapping[str, str], *, closed: bool, filled: bool
    ) -> None:
        mode = self._looks(at)
        if filled and "F" in mode and len(points) > 2:
            self._pdf.polygon(points, style="F")
        if "D" in mode and len(points) > 1:
            draw = self._pdf.polygon if closed else self._pdf.polyline
            draw(points, style="D")
        self._pdf.set_dash_pattern()

    def _text(self, element: ElementTree.Element, style: Mapping[str, str], origin: Point) -> None:
        x, y = _number(element.attrib, "x"), _number(element.attrib, "y")
        turn = _numbers(_inside(_ROTATE, element.get("transform", "")))
        self._words(element.text or "", style, (x, y), turn, origin)
        for part in element:
            if _name(part) != "tspan":
                raise ConfigError(f"plot: <{_name(part)}> in <text> is not drawn")
            x = _number(part.attrib, "x") if "x" in part.attrib else x
            y = _number(part.attrib, "y") if "y" in part.attrib else y
            size = _size(_inherited(style, part))
            y += _relative(part.get("dy", "0"), size)
            self._words(part.text or "", _inherited(style, part), (x, y), turn, origin)

    def _words(
        self,
        text: str,
        style: Mapping[str, str],
        at: Point,
        turn: list[float],
        origin: Point,
    ) -> None:
        text = " ".join(text.split())
        colour = _colour(style.get("fill", "currentColor"))
        if not text or colour is None:
            return
        face = "strong" if style.get("font-weight") in ("bold", "600", "700") else "body"
        size = _size(style) * self._scale / _POINT
        line = self._type.lines([Stretch(text, Style(size, face, colour))], 1e6)[0]
        x, y = self._placed(at, origin)
        shift = {"middle": 0.5, "end": 1.0}.get(style.get("text-anchor", "start"), 0.0)
        if style.get("dominant-baseline") in ("middle", "central"):
            y += 0.35 * size * _POINT
        start = x - shift * line.width
        if not turn:
            self._type.draw(line, start, y)
            return
        centre = self._placed((turn[1], turn[2]) if len(turn) == 3 else (0.0, 0.0), origin)
        with self._pdf.rotation(-turn[0], *centre):
            self._type.draw(line, start, y)

    def _placed(self, point: Point, origin: Point) -> Point:
        return (origin[0] + point[0] * self._scale, origin[1] + point[1] * self._scale)

    def _looks(self, at: Mapping[str, str]) -> str:
        """Sets the pen, and says whether it fills (F), draws (D) or both."""
        mode = ""
        fill = _colour(at.get("fill", "black"))
        stroke = _colour(at.get("stroke", "none"))
        if stroke is not None:
            self._pdf.set_draw_color(*_thinned(stroke, at, "stroke-opacity"))
            self._pdf.set_line_width(float(at.get("stroke-width", "1")) * self._scale)
            dashes = [d * self._scale for d in _numbers(at.get("stroke-dasharray", ""))]
            self._pdf.set_dash_pattern(*(dashes * 2)[:2] if dashes else ())
            mode += "D"
        if fill is not None:
            self._pdf.set_fill_color(*_thinned(fill, at, "fill-opacity"))
            mode += "F"
        return mode


_PASSED_ON = (
    "fill",
    "stroke",
    "stroke-width",
    "stroke-dasharray",
    "opacity",
    "fill-opacity",
    "stroke-opacity",
    "font-size",
    "font-weight",
    "text-anchor",
    "dominant-baseline",
)


def _inherited(outer: Mapping[str, str], element: ElementTree.Element) -> dict[str, str]:
    own = {key: element.attrib[key] for key in _PASSED_ON if key in element.attrib}
    return {**outer, **own}


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _numbers(text: str) -> list[float]:
    return [float(number) for number in _NUMBER.findall(text)]


def _inside(pattern: re.Pattern[str], text: str) -> str:
    """What stands in the brackets of a transform; any other transform is refused."""
    if not text:
        return ""
    match = pattern.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"plot: the transform {text[:60]!r} is not drawn")
    return match.group(1)


def _number(at: Mapping[str, str], key: str) -> float:
    text = at.get(key, "0")
    if _NUMBER.fullmatch(text.removesuffix("px")) is None:
        raise ConfigError(f"plot: {key} = {text[:60]!r}: must be a number")
    return float(text.removesuffix("px"))


def _size(style: Mapping[str, str]) -> float:
    return _number(style, "font-size") or 12.0


def _relative(text: str, size: float) -> float:
    """A length in units, or in sizes of the letters (``1.2em``)."""
    if text.endswith("em"):
        return size * _number({"dy": text.removesuffix("em")}, "dy")
    return _number({"dy": text}, "dy")


def _colour(text: str) -> Colour | None:
    if text in ("none", "transparent"):
        return None
    if text in _NAMED:
        return _NAMED[text]
    digits = text.removeprefix("#")
    if len(digits) == 3:
        digits = "".join(2 * digit for digit in digits)
    if re.fullmatch(r"[0-9a-fA-F]{6}", digits) is None:
        raise ConfigError(f"plot: the colour {text[:60]!r} is not drawn")
    red, green, blue = bytes.fromhex(digits)
    return red, green, blue


def _thinned(colour: Colour, at: Mapping[str, str], key: str) -> Colour:
    """A colour on white paper, as see-through as it is said to be."""
    share = float(at.get("opacity", "1")) * float(at.get(key, "1"))
    red, green, blue = (round(255 - share * (255 - part)) for part in colour)
    return red, green, blue


def _subpaths(text: str) -> Iterator[tuple[list[Point], bool]]:
    """The lines of a path; curves in short straight pieces."""
    if _PATH.sub("", text).strip(" ,\n"):
        raise ConfigError(f"plot: the path {text[:60]!r} is not drawn")
    points: list[Point] = []
    for command, numbers in _commands(text):
        last = points[-1] if points else (0.0, 0.0)
        if command == "M":
            if points:
                yield points, False
            points = [(numbers[0], numbers[1])]
        elif command == "L":
            points.append((numbers[0], numbers[1]))
        elif command == "H":
            points.append((numbers[0], last[1]))
        elif command == "V":
            points.append((last[0], numbers[0]))
        elif command == "Z":
            yield points, True
            points = []
        else:
            ends = list(zip(numbers[::2], numbers[1::2], strict=True))
            points += _curve([last, *ends])
    if points:
        yield points, False


def _commands(text: str) -> Iterator[tuple[str, list[float]]]:
    command, numbers = "", list[float]()
    for letter, number in _PATH.findall(text):
        if letter:
            if numbers:
                raise ConfigError(f"plot: the path {text[:60]!r} lacks a number")
            command = letter
            if command == "Z":
                yield command, []
            continue
        if command in ("", "Z"):
            raise ConfigError(f"plot: the path {text[:60]!r} has a number too many")
        numbers.append(float(number))
        if len(numbers) == _ARGUMENTS[command]:
            yield command, numbers
            numbers = []
            command = "L" if command == "M" else command
    if numbers:
        raise ConfigError(f"plot: the path {text[:60]!r} lacks a number")


def _curve(corners: list[Point]) -> list[Point]:
    """Points of a Bezier curve, by de Casteljau's construction."""
    found: list[Point] = []
    for step in range(1, _CURVE_STEPS + 1):
        share = step / _CURVE_STEPS
        level = corners
        while len(level) > 1:
            level = [
                (a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1]))
                for a, b in itertools.pairwise(level)
            ]
        found.append(level[0])
    return found
