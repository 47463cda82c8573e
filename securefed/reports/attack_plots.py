"""Pictures of what attacks were measured to do; drawn from figures alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import norm

from securefed.errors import ConfigError
from securefed.reports.picture import BLUE, GREY, INK, STYLE, VERMILION

GREEN = "#009E73"
ORANGE = "#E69F00"
PURPLE = "#CC79A7"
_LINES = (BLUE, VERMILION, GREEN, ORANGE, PURPLE)
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)))
_WIDTH = 7.2  # inches, as everything below
_NOT_THERE = {"not_applicable": "n/a", "out_of_time": "no time"}


@dataclass(frozen=True)
class MatrixCell:
    """One cell of the heat map.

    Attributes:
        row: the attack.
        column: exposure and defence, on lines of their own.
        verdict: of the measurement.
        lift: over the prior, in [-1, 1]; None where there is none.
        interval: of the lift.
        words: what is written instead of these, on two lines at most; ``lift`` then is its shade.
    """

    row: str
    column: str
    verdict: str
    lift: float | None = None
    interval: tuple[float, float] | None = None
    words: str = ""


@dataclass(frozen=True)
class SweepPoint:
    """One point of a curve.

    Attributes:
        at: where: noise or number of clients, > 0.
        value: of the metric, in [0, 1].
        interval: of the value.
        prior: what the same figure is without seeing anything.
        void: whether the attack says itself that it does not apply, so that this is the prior.
    """

    at: float
    value: float
    interval: tuple[float, float]
    prior: float | None = None
    void: bool = False


def draw_matrix(
    cells: Sequence[MatrixCell],
    paths: Sequence[Path],
    *,
    title: str,
    columns: Sequence[str] = (),
) -> None:
    """The lift over the prior of every cell; void ones are hatched, those without any blank.

    Args:
        cells: in the order in which rows are to appear.
        paths: files, ``.svg`` or ``.png``.
        title: above it.
        columns: in their order; that of the cells without it.

    Raises:
        ConfigError: there is no cell, one is there twice or in no column, or a file cannot be
            written.
    """
    if not cells:
        raise ConfigError("cells: none; there is nothing to draw")
    rows = list(dict.fromkeys(cell.row for cell in cells))
    columns = list(columns or dict.fromkeys(cell.column for cell in cells))
    if not {cell.column for cell in cells} <= set(columns):
        raise ConfigError("columns: a cell is in none of them")
    if len({(cell.row, cell.column) for cell in cells}) < len(cells):
        raise ConfigError("cells: one of them is there twice")
    height = 1.9 + 0.46 * len(rows)
    width = max(_WIDTH, 2.4 + 0.92 * len(columns))
    with _figure(paths, (width, height)) as figure:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import LinearSegmentedColormap, Normalize
        from matplotlib.patches import Patch

        left, bottom = 1.9 / width, 1.0 / height
        axes = figure.add_axes(
            (left, bottom, 1.0 - left - 0.9 / width, 1.0 - bottom - 0.5 / height)
        )
        colours = LinearSegmentedColormap.from_list("lift", ["#ffffff", "#f6c29a", VERMILION])
        scale = Normalize(0.0, 1.0)
        for cell in cells:
            _draw_cell(axes, columns.index(cell.column), rows.index(cell.row), cell, colours)
        axes.set_xlim(0, len(columns))
        axes.set_ylim(len(rows), 0)
        axes.set_xticks([x + 0.5 for x in range(len(columns))], [_wrapped(c) for c in columns],
                        fontsize=7)  # fmt: skip
        axes.set_yticks([y + 0.5 for y in range(len(rows))], rows, fontsize=8)
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.add_axes(
            (1.0 - 0.72 / width, bottom, 0.14 / width, 1.0 - bottom - 0.5 / height)
        )
        figure.colorbar(ScalarMappable(scale, colours), cax=bar)
        bar.set_ylabel("lift over the prior", fontsize=7)
        bar.tick_params(labelsize=6)
        bar.grid(visible=False)
        keys = [
            Patch(
                facecolor="white", edgecolor="#999999", hatch="////", label="void: shows nothing"
            ),
            Patch(facecolor="white", edgecolor="#cccccc", label="n/a: cannot be tried here"),
        ]
        figure.legend(handles=keys, loc="lower left", ncols=2, fontsize=7, frameon=False)
        figure.text(0.01, 1.0 - 0.26 / height, title, fontsize=10, va="center")


def _draw_cell(axes: Any, x: int, y: int, cell: MatrixCell, colours: Any) -> None:
    from matplotlib.patches import Rectangle

    shown, lift = cell.verdict == "guessed" and cell.lift is not None, cell.lift or 0.0
    fill = colours(min(max(lift, 0.0), 1.0)) if shown else "white"
    box = Rectangle((x, y), 1, 1, facecolor=fill, edgecolor="#cccccc", linewidth=0.8)
    if cell.verdict == "void":
        box.set_hatch("////")
    axes.add_patch(box)

    def write(down: float, text: str, size: float, colour: str) -> None:
        axes.text(x + 0.5, y + down, text, ha="center", va="center", fontsize=size, color=colour)

    if not shown:
        write(0.5, _NOT_THERE.get(cell.verdict, ""), 7, GREY)
        return
    low, high = cell.interval or (lift, lift)
    first, _, second = (cell.words or f"{lift:+.2f}\n[{low:+.2f}, {high:+.2f}]").partition("\n")
    dark = lift > 0.75
    write(0.40, first, 9, "white" if dark else INK)
    write(0.72, second, 6, "white" if dark else GREY)


def draw_roc(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    paths: Sequence[Path],
    *,
    title: str,
    epsilon: float | None = None,
    delta: float = 0.0,
    mu: float | None = None,
) -> None:
    """True against false positive rates of membership inference, both on logarithmic axes.

    With an epsilon the bound TPR <= min(e^eps FPR + delta, 1 - e^-eps (1 - delta - FPR)) is drawn,
    which holds of every attack under (epsilon, delta)-DP; with a mu that of Gaussian DP,
    TPR <= Phi(Phi^-1(FPR) + mu).

    Args:
        curves: by name, points (FPR, TPR) in [0, 1].
        paths: files, ``.svg`` or ``.png``.
        title: above it.
        epsilon: >= 0.
        delta: in [0, 1).
        mu: >= 0.

    Raises:
        ConfigError: there is no curve, a point is outside, or a file cannot be written.

    Source: Carlini et al. 2022, "Membership Inference Attacks From First Principles" (2112.03570),
    for the axes; Kairouz, Oh and Viswanath 2015 (1311.0776), theorem 2.1, and Dong, Roth and Su
    2022 (1905.02383), section 2.2, for the bounds.
    """
    if not curves or not all(curves.values()):
        raise ConfigError("curves: none, or one without a point")
    every = [point for points in curves.values() for point in points]
    if not all(0.0 <= x <= 1.0 and 0.0 <= y <= 1.0 for x, y in every):
        raise ConfigError("curves: every rate must be in [0, 1]")
    low = min([0.1, *(rate for point in every for rate in point if rate > 0.0)])
    floor = 10.0 ** math.floor(math.log10(low))
    with _figure(paths, (4.8, 4.6)) as figure:
        axes = figure.add_axes((0.17, 0.13, 0.79, 0.76))
        steps = [floor ** (1.0 - i / 400.0) for i in range(401)]
        axes.plot(steps, steps, color=GREY, linewidth=0.8, linestyle=":", label="guessing")
        bounds: dict[str, list[float]] = {}
        if epsilon is not None:
            bounds[f"bound at epsilon {epsilon:.3g}, delta {delta:g}"] = [
                dp_bound(x, epsilon, delta) for x in steps
            ]
        if mu is not None:
            bounds[f"bound at mu {mu:.3g}"] = [float(norm.cdf(norm.ppf(x) + mu)) for x in steps]
        for (label, bound), dash in zip(bounds.items(), ("-", "--"), strict=False):
            axes.plot(steps, bound, color=INK, linewidth=1.2, linestyle=dash, label=label)
            if dash == "-":
                axes.fill_between(steps, bound, 1.0, color=GREY, alpha=0.12, linewidth=0)
        for place, (name, points) in enumerate(curves.items()):
            ordered = sorted(points)
            axes.plot(
                [max(x, floor) for x, _ in ordered],
                [max(y, floor) for _, y in ordered],
                color=_LINES[place % len(_LINES)],
                linestyle=_DASHES[place % len(_DASHES)],
                linewidth=1.5,
                drawstyle="steps-post",
                label=name,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(_plain_number)
        axes.set_xlim(floor, 1.0)
        axes.set_ylim(floor, 1.05)
        axes.grid(visible=True, axis="both")
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.legend(loc="lower right", fontsize=7, frameon=True, framealpha=0.9, edgecolor="none")
        figure.text(0.02, 0.95, title, fontsize=10, va="center")


def dp_bound(false_positive: float, epsilon: float, delta: float) -> float:
    """The highest true positive rate that (epsilon, delta)-DP leaves at a false positive rate."""
    first = math.exp(min(epsilon, 700.0)) * false_positive + delta
    second = 1.0 - math.exp(-epsilon) * (1.0 - delta - false_positive)
    return min(1.0, first, second)


def draw_noise(
    curves: Mapping[str, Sequence[SweepPoint]], paths: Sequence[Path], *, title: str
) -> None:
    """A metric against each client's noise, std over the clip norm, with intervals.

    Args:
        curves: by attack, an adaptive one beside the plain one.
        paths: files, ``.svg`` or ``.png``.
        title: above it.

    Raises:
        ConfigError: as :func:`draw_cohort`.
    """
    _draw_sweep(curves, paths, title, "noise z: std of a client's noise over the clip norm")


def draw_cohort(
    curves: Mapping[str, Sequence[SweepPoint]], paths: Sequence[Path], *, title: str
) -> None:
    """A metric against the number of clients in the sum, with intervals and the prior.

    Args:
        curves: by attack (or by rank).
        paths: files, ``.svg`` or ``.png``.
        title: above it.

    Raises:
        ConfigError: there is no curve, a point is outside, or a file cannot be written.
    """
    _draw_sweep(curves, paths, title, "clients in the sum")


def _draw_sweep(
    curves: Mapping[str, Sequence[SweepPoint]],
    paths: Sequence[Path],
    title: str,
    label: str,
) -> None:
    if not curves or not all(curves.values()):
        raise ConfigError("curves: none, or one without a point")
    if any(point.at <= 0.0 for points in curves.values() for point in points):
        raise ConfigError("curves: every point must be at a value > 0")
    with _figure(paths, (_WIDTH, 3.6)) as figure:
        axes = figure.add_axes((0.09, 0.16, 0.88, 0.70))
        for place, (name, points) in enumerate(curves.items()):
            colour, at = _LINES[place % len(_LINES)], [point.at for point in points]
            axes.fill_between(
                at,
                [point.interval[0] for point in points],
                [point.interval[1] for point in points],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
            axes.plot(
                at,
                [point.value for point in points],
                color=colour,
                linestyle=_DASHES[place % len(_DASHES)],
                marker="o",
                markersize=3.5,
                linewidth=1.5,
                label=name,
            )
        void = [point for points in curves.values() for point in points if point.void]
        if void:
            axes.plot(
                [point.at for point in void],
                [point.value for point in void],
                color=INK,
                linestyle="none",
                marker="o",
                markersize=6.5,
                markerfacecolor="none",
                markeredgewidth=0.8,
                label="the attack says it does not apply",
            )
        for place, points in enumerate(curves.values()):
            known = [(point.at, point.prior) for point in points if point.prior is not None]
            axes.plot(
                [at for at, _ in known],
                [prior for _, prior in known],
                color=_LINES[place % len(_LINES)],
                linestyle=":",
                linewidth=1.0,
                label="its prior (sees nothing)" if place == 0 else None,
            )
        axes.set_xscale("log")
        ticks = sorted({point.at for points in curves.values() for point in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(-0.02, 1.04)
        axes.set_xlabel(label)
        axes.set_ylabel("token recall")
        axes.legend(loc="upper right", fontsize=7, frameon=True, framealpha=0.9, edgecolor="none")
        figure.text(0.012, 0.945, title, fontsize=10, va="center")


def _plain_number(value: float, _: int) -> str:
    return f"{value:g}"


def _wrapped(column: str) -> str:
    return column.replace(" with all others", "\nwith all others").replace(
        "noise and", "noise and\n"
    )


@contextmanager
def _figure(paths: Sequence[Path], size: tuple[float, float]) -> Iterator[Any]:
    """A figure in the house's style, written to every path at the end."""
    for path in paths:
        if path.suffix not in (".svg", ".png"):
            raise ConfigError(f"picture {path}: allowed are .svg and .png")
    try:
        import matplotlib as mpl
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "a picture needs matplotlib, which is not installed: in the clone of securefed, "
            "pip install -c constraints.txt -e '.[reports]'"
        ) from None
    with style.context("default"), mpl.rc_context(STYLE):
        figure = Figure(figsize=size)
        yield figure
        for path in paths:
            try:
                # No date inside: the same figures, the same file.
                metadata = {"Date": None} if path.suffix == ".svg" else {"Software": None}
                figure.savefig(path, dpi=150, metadata=metadata)
            except OSError as error:
                raise ConfigError(f"picture {path}: {error.strerror}") from None
