"""Text on a page of a PDF: which font draws a character, where lines break, how wide they are.

Western text breaks at spaces, and long names after a slash or the like; Japanese text breaks
between characters, but no line begins with a closing mark or ends with an opening one.

Source: JIS X 4051 (line-end rules, the two classes alone).
"""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from securefed.errors import ConfigError
from securefed.reports.catalogue import Language

EXTRA = "reports"

_LATIN = ("matplotlib", "mpl-data/fonts/ttf")
_JAPANESE = ("matplotlib_fontja", "fonts")
_FILES = {
    "latin": (*_LATIN, "DejaVuSans.ttf"),
    "latin-bold": (*_LATIN, "DejaVuSans-Bold.ttf"),
    "latin-mono": (*_LATIN, "DejaVuSansMono.ttf"),
    "japanese": (*_JAPANESE, "ipaexg.ttf"),
}
"""Fonts by name: the package that carries the file, its folder there, the file.

DejaVu may be embedded by its licence (LICENSE_DEJAVU beside it), IPAex Gothic in part or whole by
article 2 of the IPA Font License v1.0 (beside it too).
"""

_ORDER: dict[tuple[Language, str], tuple[str, ...]] = {
    ("en", "body"): ("latin", "japanese"),
    ("en", "strong"): ("latin-bold", "japanese"),
    ("en", "code"): ("latin-mono", "japanese", "latin"),
    ("ja", "body"): ("japanese", "latin"),
    ("ja", "strong"): ("japanese", "latin-bold"),
    ("ja", "code"): ("latin-mono", "japanese", "latin"),
}

_WESTERN = {"body": ("latin",), "strong": ("latin-bold",), "code": ("latin-mono",)}
_GREEK = {chr(code) for code in range(0x370, 0x400)}
"""A Japanese font has these as wide as its own characters."""

_NO_START = (
    "、。，．・：；？！）」』】〕〉》］｝ー々〜…‥％"
    "ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶ"
    ")]},.;:!?%"
)
_NO_END = "（「『【〔〈《［｛([{"
_WIDE = "\u2e80-\u303f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef"
_PIECE = re.compile(rf"[ \t\n]+|[{_WIDE}]|[^ \t\n{_WIDE}]+")
_SPLIT = re.compile(r"(?<=[/_.:=,@+&?-])")
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]")

Colour = tuple[int, int, int]
INK: Colour = (34, 34, 34)


@dataclass(frozen=True)
class Style:
    """How a stretch of text looks, and where it leads.

    Attributes:
        size: in points.
        face: ``body``, ``strong`` or ``code``.
        colour, back: of letters and of what is behind them.
        link: number of the link that it leads to; ``target``: of the one that leads here.
    """

    size: float = 9.0
    face: str = "body"
    colour: Colour = INK
    back: Colour | None = None
    link: int | None = None
    target: int | None = None


@dataclass(frozen=True)
class Stretch:
    """Text in one style."""

    text: str
    style: Style


@dataclass(frozen=True)
class Fragment:
    """Text in one font at its place in a line; ``x`` and ``width`` in millimetres."""

    text: str
    font: str
    style: Style
    x: float
    width: float


@dataclass(frozen=True)
class TypesetLine:
    """A line; ``size`` of the largest letter in it, in points."""

    fragments: tuple[Fragment, ...]
    width: float
    size: float


@dataclass(frozen=True)
class _Word:
    """What no line break divides."""

    fragments: tuple[Fragment, ...]
    width: float
    space: bool


class Typesetter:
    """Breaks text into lines with the fonts of one document.

    Args:
        pdf: the document, an ``fpdf.FPDF``; fonts are added to it when a character needs them.
        language: of the document, which says whose font comes first.
    """

    def __init__(self, pdf: Any, language: Language) -> None:
        self._pdf = pdf
        self._language = language
        self._loaded: dict[str, Any] = {}
        self._widths: dict[tuple[str, str], float] = {}

    def lines(self, stretches: Sequence[Stretch], width: float) -> list[TypesetLine]:
        """The text in lines of ``width`` millimetres at most."""
        found: list[TypesetLine] = []
        line: list[_Word] = []
        used = 0.0
        for word in self._words(stretches, width):
            if word.space:
                if line:
                    line.append(word)
                    used += word.width
                continue
            if line and used + word.width > width:
                found.append(_line(line))
                line, used = [], 0.0
            line.append(word)
            used += word.width
        if line:
            found.append(_line(line))
        return found

    def width(self, text: str, style: Style) -> float:
        """Of text on one line, in millimetres."""
        return sum(fragment.width for fragment in self._fragments(Stretch(text, style)))

    def forget(self) -> None:
        """To be called where drawing goes on at another page than the last.

        The document writes a font down only where it changes, and believes that the last one holds
        on every page: it is told one that no text has.
        """
        for name in self._loaded:
            self._pdf.set_font(name, size=1)

    def draw(self, line: TypesetLine, x: float, baseline: float) -> None:
        """Puts a line on the page."""
        for fragment in line.fragments:
            style = fragment.style
            at = x + fragment.x
            height = style.size * _MILLIMETRES
            if style.back is not None:
                self._pdf.set_fill_color(*style.back)
                self._pdf.rect(
                    at - 0.5, baseline - 0.88 * height, fragment.width + 1.0, 1.16 * height, "F"
                )
            self._pdf.set_font(fragment.font, size=style.size)
            self._pdf.set_text_color(*style.colour)
            if style.face == "strong" and fragment.font == "japanese":
                # The font has no bold letters: its outlines are drawn over with a thin pen.
                with self._pdf.local_context(
                    text_mode="FILL_STROKE", draw_color=style.colour, line_width=0.025 * height
                ):
                    self._pdf.text(at, baseline, fragment.text)
            else:
                self._pdf.text(at, baseline, fragment.text)
            if style.target is not None:
                self._pdf.set_link(style.target, y=baseline - 2.0 * height, page=-1)
            if style.link is not None:
                self._pdf.link(at, baseline - height, fragment.width, 1.2 * height, style.link)

    def _words(self, stretches: Sequence[Stretch], width: float) -> Iterator[_Word]:
        """Spaces and words; marks that may not begin or end a line cling to their neighbour."""
        held: list[Stretch] = []
        for stretch in stretches:
            for piece in _PIECE.findall(_clean(stretch.text)):
                part = Stretch(piece, stretch.style)
                if piece.isspace() and not piece.strip(" \t\n"):
                    yield from self._settled(held, width)
                    held = []
                    yield self._word([Stretch(" ", stretch.style)], space=True)
                    continue
                clings = bool(held) and (
                    piece[0] in _NO_START
                    or held[-1].text[-1] in _NO_END
                    or not (_is_wide(piece[0]) or _is_wide(held[-1].text[-1]))
                )
                if not clings:
                    yield from self._settled(held, width)
                    held = []
                held.append(part)
        yield from self._settled(held, width)

    def _settled(self, held: Sequence[Stretch], width: float) -> Iterator[_Word]:
        """One word, or several where it is wider than a line."""
        if not held:
            return
        word = self._word(held)
        if word.width <= width:
            yield word
            return
        for stretch in held:
            rest = Stretch("", stretch.style)
            for piece in _SPLIT.split(stretch.text):
                for part in self._chopped(piece, stretch.style, width):
                    joined = Stretch(rest.text + part, stretch.style)
                    if rest.text and self._word([joined]).width > width:
                        yield self._word([rest])
                        joined = Stretch(part, stretch.style)
                    rest = joined
            if rest.text:
                yield self._word([rest])

    def _chopped(self, text: str, style: Style, width: float) -> Iterator[str]:
        part = ""
        for letter in text:
            if part and self.width(part + letter, style) > width:
                yield part
                part = ""
            part += letter
        if part:
            yield part

    def _word(self, stretches: Sequence[Stretch], space: bool = False) -> _Word:
        fragments: list[Fragment] = []
        x = 0.0
        for stretch in stretches:
            for fragment in self._fragments(stretch):
                fragments.append(replace(fragment, x=x))
                x += fragment.width
        return _Word(tuple(fragments), x, space)

    def _fragments(self, stretch: Stretch) -> Iterator[Fragment]:
        """The stretch, divided where another font draws."""
        style = stretch.style
        letters = [self._font_of(letter, style.face) for letter in stretch.text]
        for name, group in itertools.groupby(letters, key=lambda pair: pair[0]):
            text = "".join(letter for _, letter in group)
            yield Fragment(text, name, style, 0.0, self._width(name, text) * style.size)

    def _font_of(self, letter: str, face: str) -> tuple[str, str]:
        """The first font that has a letter, and the letter; or what stands for an unknown one."""
        names = _ORDER[self._language, face]
        if letter in _GREEK:
            names = (*_WESTERN[face], *names)
        for name in names:
            if ord(letter) in self._font(name).cmap:
                return name, letter
        return "latin", _UNKNOWN

    def _width(self, name: str, text: str) -> float:
        """Millimetres at a size of one point."""
        key = (name, text)
        if key not in self._widths:
            points: float = self._font(name).get_text_width(text, 1.0, None)[1]
            self._widths[key] = points * _MILLIMETRES
        return self._widths[key]

    def _font(self, name: str) -> Any:
        if name not in self._loaded:
            package, folder, file = _FILES[name]
            self._pdf.add_font(name, fname=_font_file(package, folder, file))
            self._loaded[name] = self._pdf.fonts[name]
        return self._loaded[name]


_MILLIMETRES = 25.4 / 72.0
"""In a point."""


def _clean(text: str) -> str:
    """Without control characters, and marks that turn the direction of writing."""
    return _CONTROL.sub(_UNKNOWN, text.replace("\r\n", "\n"))


def _is_wide(letter: str) -> bool:
    return re.match(f"[{_WIDE}]", letter) is not None


def _line(words: list[_Word]) -> TypesetLine:
    while words and words[-1].space:
        words.pop()
    fragments: list[Fragment] = []
    x = 0.0
    for word in words:
        for fragment in word.fragments:
            last = fragments[-1] if fragments else None
            if last is not None and last.font == fragment.font and last.style == fragment.style:
                fragments[-1] = replace(
                    last, text=last.text + fragment.text, width=last.width + fragment.width
                )
            else:
                fragments.append(replace(fragment, x=x + fragment.x))
        x += word.width
    return TypesetLine(tuple(fragments), x, max(f.style.size for f in fragments))


def _font_file(package: str, folder: str, file: str) -> Path:
    """Where an installed package keeps a font; the package itself is not imported.

    Raises:
        ConfigError: it is not installed, or has no such font.
    """
    spec = importlib.util.find_spec(package)
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(place) / folder / file
        if path.is_file():
            return path
    raise ConfigError(
        f"PDF: the font {file} of {package} is not there: pip install 'securefed[{EXTRA}]'"
    )
