"""One picture of a run: what it gained (held-out perplexity) and what it cost (epsilon)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from securefed.errors import ConfigError
from securefed.privacy.accounting import Adversary, epsilon_text

# From the palette of Okabe and Ito, told apart in every common colour blindness and in grey.
BLUE = "#0072B2"
VERMILION = "#D55E00"
INK = "#222222"
GREY = "#6b6b6b"
_FAINT = "#dddddd"

_WIDTH = 7.2  # inches, as everything below
_PANEL_HEIGHT = 1.9
_STRIP_HEIGHT = 0.34
_HEADING_HEIGHT = 0.36
_TITLE_LINE = 0.2
_NOTE_LINE = 0.165
_AXIS_FOOT = 0.6
_LEFT, _RIGHT = 0.085, 0.88  # shares of the width
_EDGE = 0.02
_INNER_WIDTH = (_RIGHT - _LEFT) * _WIDTH
_LABEL_WIDTH = 0.42
_TITLE_COLUMNS = 68
_NOTE_COLUMNS = 116
_MOST_TICKS = 20
_LOG_SCALE_FROM = 20.0

_LOST_NOTE = "Grey bars between the panels: rounds that lost clients (survivors of cohort)."
_SILENT_NOTE = "Rings: how many clients fell silent after their masked input; they are in the sum."
_HELD_OUT_NOTE = "Held-out perplexity: outside the guarantee."
_ESTIMATED_NOTE = "Held-out perplexity: estimated from noised counts, by a statement of their own."

STYLE = {
    "font.size": 9.0,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
    # Element ids are hashed from this instead of from chance: the same run, the same file.
    "svg.hashsalt": "securefed",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class RoundPoint:
    """What one round shows.

    Attributes:
        round: its number; 0 stands for the state before training.
        perplexity: mean over clients on held-out text, > 0; None where it was not measured.
        epsilon: spent up to and with this round; None without a guarantee.
        survivors: clients whose update is in the sum.
        cohort: clients invited.
        silent: survivors that fell silent after they had sent their masked input.
    """

    round: int
    perplexity: float | None
    epsilon: float | None
    survivors: int
    cohort: int
    silent: int = 0


def draw_run(
    rounds: Sequence[RoundPoint],
    path: Path,
    *,
    title: str,
    notes: Sequence[str],
    unit: str | None = None,
    delta: float | None = None,
    against: Adversary = "server",
    estimated: bool = False,
) -> None:
    """Draw perplexity and epsilon over the rounds, one above the other.

    A strip between the two shows the rounds in which clients were lost or fell silent.  The same
    arguments give the same file with the same version of matplotlib.

    Args:
        rounds: in strictly rising order of ``round``, at least one.
        path: the file; ``.svg`` or ``.png`` decides the format.
        title: one line above the panels.
        notes: what a reader must know beside it, set small below the panels.
        unit: what epsilon protects one of, in words: ``"window of 32 tokens"``, ``"client"``.
        delta: the delta at which epsilon holds, in (0, 1).  Epsilon without unit or delta is drawn
            with the words that they are not given.
        against: whom epsilon speaks of.
        estimated: whether perplexities are estimates from noised counts of clients.

    Raises:
        ConfigError: matplotlib is missing, the suffix is another, ``rounds`` is empty, out of
            order or holds a value that is out of range, or the file cannot be written.
    """
    _check(rounds, path)
    try:
        import matplotlib as mpl
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "a picture needs matplotlib, which is not installed: in the clone of securefed, "
            "pip install -c constraints.txt -e '.[reports]'"
        ) from None

    lost = any(point.survivors < point.cohort for point in rounds)
    silent = any(point.silent for point in rounds)
    strip = _STRIP_HEIGHT if lost or silent else 0.0
    held_out = _ESTIMATED_NOTE if estimated else _HELD_OUT_NOTE
    shown = [
        *notes,
        *([held_out] if any(point.perplexity is not None for point in rounds) else []),
        *([_LOST_NOTE] if lost else []),
        *([_SILENT_NOTE] if silent else []),
    ]
    note_lines = [line for note in shown for line in textwrap.wrap(note, _NOTE_COLUMNS)]
    title_lines = textwrap.wrap(title, _TITLE_COLUMNS)
    foot = _AXIS_FOOT + _NOTE_LINE * len(note_lines)
    middle = foot + _PANEL_HEIGHT + _HEADING_HEIGHT
    top = middle + strip + _PANEL_HEIGHT + _HEADING_HEIGHT
    height = top + _TITLE_LINE * len(title_lines) + 0.15
    metadata = {"Title": title, "Date": None} if path.suffix == ".svg" else {"Software": None}
    with style.context("default"), mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, height), dpi=200)

        def axes(bottom: float, tall: float, shared: Any = None) -> Any:
            box = (_LEFT, bottom / height, _RIGHT - _LEFT, tall / height)
            return figure.add_axes(box, sharex=shared)

        def write(at: float, text: str, **looks: Any) -> None:
            figure.text(_EDGE, at / height, text, **looks)

        lower = axes(foot, _PANEL_HEIGHT)
        upper = axes(middle + strip, _PANEL_HEIGHT, lower)
        _share_rounds(upper, lower, rounds)
        heading = _draw_perplexity(upper, rounds)
        write(top - _HEADING_HEIGHT + 0.1, heading, weight="bold", color=BLUE)
        heading = _draw_epsilon(lower, rounds, unit, delta, against)
        write(middle - _HEADING_HEIGHT + 0.1, heading, weight="bold", color=VERMILION)
        if strip:
            between = axes(middle, strip, lower)
            between.set_axis_off()
            between.set_ylim(0.0, 1.0)
            _draw_losses(between, rounds)
            _draw_silences(between, rounds)
        for row, line in enumerate(title_lines):
            write(height - 0.1 - _TITLE_LINE * row, line, weight="bold", size=11, va="top")
        for row, line in enumerate(note_lines):
            low = foot - _AXIS_FOOT + 0.1 - _NOTE_LINE * row
            write(low, line, size=7.5, color=GREY, va="top")
        try:
            figure.savefig(path, metadata=metadata)
        except OSError as error:
            raise ConfigError(f"picture {path}: cannot be written ({error.strerror})") from error


def _check(rounds: Sequence[RoundPoint], path: Path) -> None:
    if path.suffix not in (".svg", ".png"):
        raise ConfigError(f"picture {path}: suffix {path.suffix!r} given, .svg or .png allowed")
    if not rounds:
        raise ConfigError("rounds: none given, at least one is needed")
    for before, point in zip((None, *rounds), rounds, strict=False):
        if before is not None and point.round <= before.round:
            raise ConfigError(f"rounds: round {point.round} follows round {before.round}")
        where = f"rounds: round {point.round}"
        if point.perplexity is not None and not 0.0 < point.perplexity < math.inf:
            raise ConfigError(f"{where}: perplexity {point.perplexity} given, > 0 allowed")
        if point.epsilon is not None and not 0.0 <= point.epsilon < math.inf:
            raise ConfigError(f"{where}: epsilon {point.epsilon} given, >= 0 allowed")
        if not 0 <= point.survivors <= point.cohort:
            raise ConfigError(
                f"{where}: {point.survivors} survivors given, 0..{point.cohort} allowed"
            )
        if not 0 <= point.silent <= point.survivors:
            raise ConfigError(f"{where}: {point.silent} silent, 0..{point.survivors} allowed")


def _share_rounds(upper: Any, lower: Any, rounds: Sequence[RoundPoint]) -> None:
    first, last = rounds[0].round, rounds[-1].round
    lower.set_xlim(first - 0.5, last + 0.5)
    if last - first <= _MOST_TICKS:
        lower.set_xticks(range(first, last + 1))
    lower.set_xlabel("round")
    upper.tick_params(bottom=False, labelbottom=False)


def _say(axes: Any, text: str) -> None:
    """Words in the middle of a panel that has nothing to show."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", size=13)
    axes.set_yticks([])


def _name_last(axes: Any, x: float, y: float, text: str, colour: str) -> None:
    """The last value, to the right of where it stands; the margin leaves room for it."""
    axes.annotate(
        text,
        (x, y),
        (7, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        weight="bold",
        annotation_clip=False,
    )


def _draw_perplexity(axes: Any, rounds: Sequence[RoundPoint]) -> str:
    """Draw the upper panel; returns its heading."""
    heading = "Held-out perplexity, mean over clients (lower is better)"
    measured = [(p.round, p.perplexity) for p in rounds if p.perplexity is not None]
    if not measured:
        _say(axes, "not measured")
        return heading
    numbers, values = zip(*measured, strict=True)
    start, last = values[0], values[-1]
    axes.axhline(start, color=GREY, linewidth=1.0, linestyle=(0, (5, 3)))
    axes.plot(numbers, values, color=BLUE, linewidth=1.6, marker="o", markersize=4.5, clip_on=False)
    if max(values) > _LOG_SCALE_FROM * min(values):
        axes.set_yscale("log")
        axes.yaxis.get_major_locator().set_params(subs=(1.0, 2.0, 5.0))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        heading += ", log scale"
    axes.margins(y=0.15)
    risen = last > start
    axes.annotate(
        f"start: {start:.4g}",
        (0.995, start),
        (0, -4 if risen else 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="top" if risen else "bottom",
        color=GREY,
        size=8,
    )
    if len(values) > 1:
        _name_last(axes, numbers[-1], last, f"{last:.4g}", BLUE)
    return heading


def _draw_epsilon(
    axes: Any,
    rounds: Sequence[RoundPoint],
    unit: str | None,
    delta: float | None,
    against: Adversary,
) -> str:
    """Draw the lower panel; returns its heading."""
    spent = [(float(p.round), p.epsilon) for p in rounds if p.epsilon is not None]
    if not spent:
        _say(axes, "no differential privacy")
        return "Privacy spent"
    final = spent[-1][1]
    if spent[0][0] <= 1.0:
        spent.insert(0, (rounds[0].round - 0.5, 0.0))  # nothing is spent before the first round
    spent.append((spent[-1][0] + 0.5, final))
    numbers, values = zip(*spent, strict=True)
    axes.step(numbers, values, where="post", color=VERMILION, linewidth=1.6, clip_on=False)
    axes.set_ylim(0.0, 1.12 * final or 1.0)
    _name_last(axes, numbers[-1], final, f"ε = {epsilon_text(final)}", VERMILION)
    terms = [
        "unit not given" if unit is None else f"per {unit}",
        "δ not given" if delta is None else f"at δ = {delta:g}",
    ]
    who = against.replace("_", " ")
    return f"Privacy spent: ε against the {who}, {', '.join(terms)}"


def _draw_losses(axes: Any, rounds: Sequence[RoundPoint]) -> None:
    """Bars for the share of the cohort that was lost; counts where there is room for them."""
    short = [point for point in rounds if point.survivors < point.cohort]
    if not short:
        return
    shares = [1.0 - point.survivors / point.cohort for point in short]
    inches = _INNER_WIDTH / (rounds[-1].round - rounds[0].round + 1)
    numbers = [point.round for point in short]
    most = max(shares)
    tall = [share / (2.6 * most) for share in shares]
    axes.vlines(numbers, 0.0, tall, color=GREY, linewidth=min(9.0, 0.6 * 72 * inches))
    gap = min((after - before for before, after in pairwise(numbers)), default=_MOST_TICKS)
    room = gap * inches >= _LABEL_WIDTH
    for point, share, height in zip(short, shares, tall, strict=True):
        if room or share == most:
            text = f"{point.survivors} of {point.cohort}"
            axes.text(point.round, height, text, size=7, color=GREY, ha="center", va="bottom")
        if share == most and not room:
            break  # one worst round stands for all


def _draw_silences(axes: Any, rounds: Sequence[RoundPoint]) -> None:
    """A ring where clients fell silent after they had sent, with their number beside it."""
    for point in rounds:
        if point.silent:
            ring = {"markersize": 5, "markerfacecolor": "white", "markeredgecolor": INK}
            axes.plot([point.round], [0.12], marker="o", linestyle="", clip_on=False, **ring)
            axes.annotate(
                str(point.silent),
                (point.round, 0.12),
                (6, 0),
                textcoords="offset points",
                size=7,
                color=GREY,
                va="center",
            )
