"""The pilot's plots, as SVG to stand inside the page; readable at the width of a phone.

Words are written as text, not as outlines: a reader's own fonts then show any language.  Trials are
marked by their number in the page's table.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from securefed.errors import ConfigError
from securefed.pilot.front import Point, front, points
from securefed.pilot.protections import Protection
from securefed.pilot.summaries import Spread, Summary
from securefed.pilot.words import Words
from securefed.reports.catalogue import signed
from securefed.reports.picture import BLUE, GREY, INK, STYLE, VERMILION

_WIDTH = 3.9  # inches, as everything below; shown at most at 360 pixels on a phone
_LEFT, _RIGHT = 0.16, 0.95  # shares of the width
_MARGIN = 0.08
_HEADING, _FOOT = 0.34, 0.5
_PLANE = 2.5
_BAR = 0.24
_ROW = 0.36
_CLOSE = 11.0  # points: numbers nearer than this are written as one
_WIDE = 20.0
_LONGEST = 34

_LOOKS: dict[str, Any] = STYLE | {
    "font.size": 9.5,
    "svg.fonttype": "none",
    "axes.grid.axis": "both",
}


def plots(
    found: Sequence[Summary],
    prices: Sequence[Protection],
    numbers: Mapping[str, int],
    words: Words,
    currency: str,
) -> dict[str, str]:
    """The plots that there are figures for, by name, as ``<svg>`` elements.

    Args:
        found: the pilot's trials.
        prices: of the protections, each alone.
        numbers: by a trial's name, its place in the table.
        words: of the page's language.
        currency: of the prices.

    Raises:
        ConfigError: matplotlib is missing.
    """
    try:
        import matplotlib as mpl
        from matplotlib import style
    except ImportError:
        raise ConfigError(
            "a pilot's page needs matplotlib, which is not installed: in the clone of securefed, "
            "pip install -c constraints.txt -e '.[reports]'"
        ) from None
    drawn: dict[str, str] = {}
    with style.context("default"), mpl.rc_context(_LOOKS), warnings.catch_warnings():
        # Widths are guessed from another font where matplotlib's own lacks a letter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        if placed := [point for point in points(found) if _finite(point)]:
            drawn["trade"] = _trade(placed, found, numbers, words)
        if shown := [one for one in found if _is_finite(one.improvement)]:
            drawn["quality"] = _quality(shown, numbers, words)
        if prices:
            drawn["protections"] = _protections(prices, words, currency)
    return drawn


def _finite(point: Point) -> bool:
    return math.isfinite(point.improvement) and math.isfinite(point.bytes)


def _is_finite(spread: Spread | None) -> bool:
    return spread is not None and math.isfinite(spread.least) and math.isfinite(spread.most)


def _sheet(height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(_WIDTH, height), dpi=72)


def _axes(figure: Any, bottom: float, tall: float, *, left: float = _LEFT) -> Any:
    height = figure.get_size_inches()[1]
    return figure.add_axes((left, bottom / height, _RIGHT - left, tall / height))


def _head(figure: Any, at: float, text: str) -> None:
    height = figure.get_size_inches()[1]
    figure.text(0.02, at / height, text, weight="bold", color=INK, va="bottom", size=9.5)


def _trade(
    placed: Sequence[Point], found: Sequence[Summary], numbers: Mapping[str, int], words: Words
) -> str:
    """Improvement against bytes: full marks are on the front of all four, the line is of these two.

    Dashed lines: baselines of which nothing is sent in rounds.
    """
    figure = _sheet(_FOOT + _PLANE + _HEADING)
    axes = _axes(figure, _FOOT, _PLANE)
    best = {point.name for point in front(placed)}
    gains = [100.0 * point.improvement for point in placed]
    moved = [point.bytes / 1e6 for point in placed]
    if min(moved) > 0.0 and max(moved) > _WIDE * min(moved):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    flat = front(Point(point.name, point.improvement, point.bytes, 0.0, 0.0) for point in placed)
    corners = sorted((point.bytes / 1e6, 100.0 * point.improvement) for point in flat)
    axes.step(*zip(*corners, strict=True), where="post", color=BLUE, linewidth=1.0, alpha=0.5)
    for point, x, y in zip(placed, moved, gains, strict=True):
        full = BLUE if point.name in best else "white"
        axes.plot([x], [y], "o", color=BLUE, markerfacecolor=full, markersize=6, clip_on=False)
    axes.margins(x=0.2, y=0.14)
    for one in found:
        if one.group == "baseline" and one.name not in {point.name for point in placed}:
            if _is_finite(one.improvement) and one.improvement is not None:
                axes.axhline(100.0 * one.improvement.mean, color=GREY, linestyle=(0, (4, 3)))
                axes.annotate(
                    str(numbers[one.name]),
                    (1.0, 100.0 * one.improvement.mean),
                    (3, 0),
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                    va="center",
                    color=GREY,
                    weight="bold",
                )
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    axes.set_xlabel(words("plot.megabytes"))
    _number(axes, [numbers[point.name] for point in placed], moved, gains)
    _head(figure, _FOOT + _PLANE + 0.1, words("plot.trade"))
    return _svg(figure, "trade", words("plot.trade"))


def _number(axes: Any, numbers: Sequence[int], xs: Sequence[float], ys: Sequence[float]) -> None:
    """Write each mark's number beside it; those that lie together are written as one list.

    Each text takes the first of several places around its marks at which it covers no other one.
    """
    axes.figure.draw_without_rendering()
    at = axes.transData.transform(list(zip(xs, ys, strict=True)))
    groups: list[list[int]] = []
    for index in sorted(range(len(numbers)), key=lambda i: (-at[i][1], at[i][0])):
        near = next((g for g in groups if math.dist(at[g[-1]], at[index]) < _CLOSE), None)
        if near is None:
            groups.append([index])
        else:
            near.append(index)
    frame = axes.get_window_extent()
    taken = [(x - 3.0, y - 3.0, x + 3.0, y + 3.0) for x, y in at]
    for group in groups:
        text = ", ".join(str(number) for number in sorted(numbers[i] for i in group))
        wide, tall = 5.8 * len(text) + 2.0, 9.0
        x0, x1 = (end(at[i][0] for i in group) for end in (min, max))
        y0, y1 = (end(at[i][1] for i in group) for end in (min, max))
        middle = (y0 + y1) / 2.0
        places = [
            (x, y)
            for away in (0.0, 9.0, 18.0)
            for x, y in (
                (x1 + 5.0 + away, middle - tall / 2.0),
                (x0 - 5.0 - away - wide, middle - tall / 2.0),
                ((x0 + x1 - wide) / 2.0, y1 + 5.0 + away),
                ((x0 + x1 - wide) / 2.0, y0 - 5.0 - away - tall),
            )
        ]
        boxes = [(x, y, x + wide, y + tall) for x, y in places]
        inside = [b for b in boxes if b[0] >= frame.x0 + 2.0 and b[2] <= frame.x1 + 14.0]
        free = (b for b in inside if not any(_cover(b, other) for other in taken))
        box = next(free, boxes[0])
        taken.append(box)
        axes.annotate(
            text,
            (box[0], box[1]),
            xycoords="figure pixels",
            va="bottom",
            color=INK,
            weight="bold",
            annotation_clip=False,
        )


def _cover(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    return not apart


def _quality(shown: Sequence[Summary], numbers: Mapping[str, int], words: Words) -> str:
    """Improvement by trial: a dot for the mean, a line over the seeds, a rhomb for the worst."""
    tall = _ROW * len(shown)
    figure = _sheet(_FOOT + tall + _HEADING)
    axes = _axes(figure, _FOOT, tall, left=0.05)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    for row, one in enumerate(shown):
        gained = one.improvement
        if gained is None:
            continue
        axes.hlines(row, 100.0 * gained.least, 100.0 * gained.most, color=BLUE, linewidth=1.6)
        axes.plot([100.0 * gained.mean], [row], "o", color=BLUE, markersize=6)
        worst = _worst_gain(one)
        if worst is not None and math.isfinite(worst):
            axes.plot([100.0 * worst], [row], "D", color=VERMILION, markersize=4.5)
        name = words.say(one.name, "name")
        short = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
        axes.annotate(
            f"{numbers[one.name]}  {short}",
            (0.0, row),
            (2, 5),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            size=8.5,
            va="bottom",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85},
        )
    axes.axvline(0.0, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.margins(x=0.08)
    metric = shown[0].gain.metric if shown[0].gain else "perplexity"
    axes.set_xlabel(words(f"plot.axis_{metric}"))
    _head(figure, _FOOT + tall + 0.1, words("plot.quality"))
    return _svg(figure, "quality", words("plot.quality"))


def _worst_gain(one: Summary) -> float | None:
    """Of the worst client at the end over the worst one before."""
    if one.gain is None or one.worst_before is None or one.worst_after is None:
        return None
    if one.gain.metric == "perplexity":
        return 1.0 - one.worst_after.most / one.worst_before.mean
    return one.worst_after.least - one.worst_before.mean


def _protections(prices: Sequence[Protection], words: Words, currency: str) -> str:
    """A panel for each of bytes, seconds, quality and money, a bar for each protection."""
    panels: list[tuple[str, list[float | None], list[str]]] = []
    for what, kind in (("bytes", "bytes"), ("seconds", "seconds"), ("money", "money")):
        values = [getattr(one, what) for one in prices]
        panels.append((words(f"plot.more_{what}", currency=currency), values, []))
        panels[-1][2].extend(words.say(value, kind) for value in values)
    gains = [one.improvement for one in prices]
    texts = [
        words.say(gain) if gain is None or not math.isfinite(gain) else signed(100.0 * gain)
        for gain in gains
    ]
    panels.insert(2, (words("plot.more_quality"), gains, texts))
    panels = [panel for panel in panels if any(value is not None for value in panel[1])]
    tall = _BAR * len(prices)
    figure = _sheet((tall + _HEADING + 0.12) * len(panels) + _MARGIN)
    names = [words(f"protection.{one.name}") for one in prices]
    for row, (heading, values, written) in enumerate(reversed(panels)):
        low = _MARGIN + (tall + _HEADING + 0.12) * row
        axes = _axes(figure, low, tall, left=0.27)
        _bars(axes, values, written, names)
        _head(figure, low + tall + 0.07, heading)
    return _svg(figure, "protections", words("plot.protections"))


def _bars(
    axes: Any, values: Sequence[float | None], written: Sequence[str], names: Sequence[str]
) -> None:
    lengths = [0.0 if value is None or not math.isfinite(value) else value for value in values]
    colours = [VERMILION if length < 0 else BLUE for length in lengths]
    axes.barh(range(len(values)), lengths, color=colours, height=0.62)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_yticks(range(len(values)), names)
    axes.tick_params(left=False, bottom=False, labelbottom=False)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.axvline(0.0, color=GREY, linewidth=0.8)
    reach = max(map(abs, lengths), default=0.0) or 1.0
    # Room for the figure behind the longest bar; bars to the left leave it on the right too.
    axes.set_xlim(min(0.0, *lengths) * 1.02, max(0.0, *lengths) + 0.75 * reach)
    for row, (length, text) in enumerate(zip(lengths, written, strict=True)):
        axes.annotate(
            text,
            (max(length, 0.0), row),
            (4, 0),
            textcoords="offset points",
            va="center",
            size=8.5,
            color=INK,
        )


def _svg(figure: Any, prefix: str, label: str) -> str:
    """The ``<svg>`` element alone, with ids of its own and a name for those who cannot see it."""
    target = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(target, format="svg", metadata=nothing)
    text = target.getvalue().decode("utf-8")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{prefix}-", text)
    # Its size is the page's to say; the view box keeps its shape.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    named = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return text.replace("<svg", f'<svg role="img" aria-label="{named}"', 1).strip()
