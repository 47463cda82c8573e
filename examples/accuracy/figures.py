"""Tables and figures of the experiments, from the results that their scripts appended.

python examples/accuracy/figures.py                 # of the results beside this file
python examples/accuracy/figures.py runs/accuracy   # of your own
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from bench import Results
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mechanisms import ARMS, MARGIN
from scipy.stats import t
from sharing_table import BEFORE, CLAIMED_GAIN, FULL, arms, bytes_up, of, percent, shares

from securefed.privacy.accounting import epsilon_text
from securefed.reports.picture import BLUE, GREY, INK, STYLE, VERMILION

Run = Mapping[str, Any]

GREEN, ORANGE = "#009E73", "#E69F00"  # of the palette of Okabe and Ito, as the others
COLOURS = dict(zip(ARMS, (INK, BLUE, VERMILION, GREEN, ORANGE), strict=True))
NAMES = {
    "none": "no noise",
    "central": "central",
    "distributed": "distributed",
    "local_sum": "local, noised sums",
    "local": "local DP-SGD",
}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % t-interval, for at least two values."""
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(np.mean(values)), float(t.ppf(0.975, len(values) - 1)) * spread


def differences(runs: Iterable[Run], first: str, second: str, figure: str) -> dict[int, float]:
    """``figure`` of one arm less that of another, by seed, where both have run."""
    found = {(run["arm"], run["seed"]): run[figure] for run in runs}
    seeds = sorted({seed for _, seed in found})
    pairs = {seed: ((first, seed), (second, seed)) for seed in seeds}
    return {s: found[a] - found[b] for s, (a, b) in pairs.items() if a in found and b in found}


def reached(values: Sequence[float]) -> bool:
    """Whether the whole interval of the paired difference lies within the margin."""
    mean, half = interval(values)
    return abs(mean) + half < MARGIN


def majority(runs: Sequence[Run]) -> float:
    """Accuracy of always answering the more frequent class of the held-out mails."""
    share = runs[0]["held_out_spam"] / runs[0]["held_out"]
    return max(share, 1.0 - share)


def _points(value: tuple[float, float], sign: str = "") -> str:
    mean, half = value
    return f"{100 * mean:{sign}.1f} ± {100 * half:.1f}"


def mechanisms_table(runs: Sequence[Run]) -> str:
    """Markdown: the arms, and how far distributed noise is ahead of each, paired by seed."""
    lines = [
        "| who adds the noise | noise on the sum / C | seeds | accuracy, % | balanced, % | AUC, % "
        "| distributed's accuracy less this arm's, points |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        own = [run for run in runs if run["arm"] == arm]
        columns = [interval([run[f] for run in own]) for f in _FIGURES]
        paired = "-"
        if arm != "distributed":
            found = differences(runs, "distributed", arm, "accuracy")
            paired = _points(interval(list(found.values())), "+")
        lines.append(
            f"| {NAMES[arm]} | {own[0]['noise_on_the_sum']:.2f} | {len(own)} | "
            + " | ".join(_points(column) for column in columns)
            + f" | {paired} |"
        )
    return "\n".join(lines) + "\n"


_FIGURES = ("accuracy", "balanced_accuracy", "auc")


def client_table(runs: Sequence[Run]) -> str:
    """Markdown: the levels of noise."""
    lines = [
        "| epsilon against the server | against the release | noise multiplier | seeds "
        "| accuracy, % (least to most) | AUC, % |",
        "|---|---|---|---|---|---|",
    ]
    for own in by_level(runs):
        stated = [
            "no noise"
            if own[0][f"epsilon_{who}"] is None
            else epsilon_text(own[0][f"epsilon_{who}"])
            for who in ("server", "release")
        ]
        columns = [[100 * run[f] for run in own] for f in ("accuracy", "auc")]
        lines.append(
            f"| {stated[0]} | {stated[1]} | {own[0]['noise_multiplier']:.3g} | {len(own)} | "
            + " | ".join(f"{np.mean(c):.1f} ({min(c):.1f} to {max(c):.1f})" for c in columns)
            + " |"
        )
    return "\n".join(lines) + "\n"


def by_level(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of each level of noise, the noisiest first and those without noise last."""
    levels: dict[float, list[Run]] = {}
    for run in runs:
        if "target_epsilon" in run:
            levels.setdefault(run["target_epsilon"] or math.inf, []).append(run)
    return [levels[level] for level in sorted(levels)]


def draw_mechanisms(runs: Sequence[Run], path: Path) -> None:
    """Accuracy of every run by arm, above; distributed less central by seed, below."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 5.4), dpi=200)
        upper: Axes = figure.add_axes((0.085, 0.5, 0.89, 0.39))
        lower: Axes = figure.add_axes((0.085, 0.115, 0.89, 0.25))
        for place, arm in enumerate(ARMS):
            own = sorted(
                (run for run in runs if run["arm"] == arm), key=lambda run: int(run["seed"])
            )
            values = [100 * run["accuracy"] for run in own]
            across = place + 0.3 * (np.arange(len(own)) / max(1, len(own) - 1) - 0.5)
            upper.plot(across, values, "o", color=COLOURS[arm], markersize=3.5, alpha=0.65)
            mean, half = interval(values)
            upper.errorbar(
                place + 0.27, mean, half, fmt="_", color=COLOURS[arm], markersize=9, capsize=3
            )
            upper.annotate(
                f"{mean:.1f}",
                (place + 0.27, mean),
                (7, 0),
                textcoords="offset points",
                va="center",
                color=COLOURS[arm],
                weight="bold",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
        _line(upper, 100 * majority(runs), "always the commoner class")
        upper.set_xlim(-0.4, len(ARMS) - 0.35)
        upper.set_xticks(range(len(ARMS)), [NAMES[arm] for arm in ARMS])
        upper.set_ylabel("held-out accuracy, %")
        found = differences(runs, "distributed", "central", "accuracy")
        lower.axhspan(-100 * MARGIN, 100 * MARGIN, color=BLUE, alpha=0.1, linewidth=0)
        lower.axhline(0, color=GREY, linewidth=1.0)
        lower.plot(
            range(len(found)), [100 * d for d in found.values()], "o", color=VERMILION, markersize=4
        )
        mean, half = interval([100 * d for d in found.values()])
        lower.errorbar(len(found), mean, half, fmt="_", color=VERMILION, markersize=11, capsize=4)
        lower.annotate(
            f"{mean:+.2f} ± {half:.2f}",
            (len(found), mean),
            (8, 0),
            textcoords="offset points",
            va="center",
            color=VERMILION,
            weight="bold",
        )
        lower.set_xlim(-0.5, 1.22 * len(found) + 0.3)
        lower.set_xticks(range(len(found) + 1), [*map(str, found), "mean"])
        lower.set_xlabel("seed; last: mean and 95 % interval")
        lower.set_ylabel("points")
        first = next(run for run in runs if run["arm"] == "distributed")
        title = (
            f"Who adds the noise, at the same ε = {first['epsilon']:g} (δ = {first['delta']:g}) "
            "for one mail"
        )
        figure.text(0.02, 0.965, title, weight="bold", size=11, va="center")
        upper.set_title(
            f"{first['clients']} clients, {first['mails']} mails to learn from, "
            f"{first['held_out']} held out; dots are seeds, bars 95 % intervals of the mean",
            loc="left",
            size=8,
            color=GREY,
        )
        lower.set_title(
            f"Distributed less central, same seed; the band is the margin of "
            f"{100 * MARGIN:g} points, stated beforehand",
            loc="left",
            size=8,
            color=GREY,
        )
        _save(figure, path, title)


def draw_client_level(runs: Sequence[Run], path: Path) -> None:
    """Accuracy against epsilon over a logarithmic axis, down to where nothing is learnt."""
    levels = by_level(runs)
    noised = [own for own in levels if own[0]["target_epsilon"] is not None]
    free = [100 * run["accuracy"] for own in levels if own not in noised for run in own]
    first = noised[0][0]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.9), dpi=200)
        axes: Axes = figure.add_axes((0.085, 0.14, 0.72, 0.68))
        across = [own[0]["epsilon_server"] for own in noised]
        values = [[100 * run["accuracy"] for run in own] for own in noised]
        means = [float(np.mean(own)) for own in values]
        axes.plot(across, means, color=VERMILION, linewidth=1.6, marker="_", markersize=11)
        for at, own in zip(across, values, strict=True):
            axes.plot([at] * len(own), own, "o", color=VERMILION, markersize=3.5, alpha=0.6)
        axes.set_xscale("log")
        axes.set_xticks(
            [own[0]["target_epsilon"] for own in noised],
            [f"{own[0]['target_epsilon']:g}" for own in noised],
        )
        axes.minorticks_off()
        if free:
            _line(axes, float(np.mean(free)), "no noise", outside=True)
        _line(axes, 50.0, "one class always", outside=True)
        axes.set_xlabel(
            f"ε against the server, for one client with all of its mails, at δ = {first['delta']:g}"
        )
        axes.set_ylabel("held-out accuracy, %")
        title = f"Client-level privacy over {first['clients']} senders of mail"
        figure.text(0.02, 0.95, title, weight="bold", size=11, va="center")
        axes.set_title(
            f"{first['rounds']} rounds, every client in each; held out: {first['held_out']} mails, "
            "half of them spam; dots are seeds",
            loc="left",
            size=8,
            color=GREY,
        )
        _save(figure, path, title)


def draw_sharing(runs: Sequence[Run], path: Path) -> None:
    """What each method keeps of full fine-tuning's gain, and what it sends for it; two tasks."""
    tasks = [task for task in ("speeches", "mails") if of(runs, task, FULL)]
    names = [name for name in arms(runs, tasks[0]) if name != BEFORE]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.6), dpi=200)
        for place, task in enumerate(tasks):
            axes: Axes = figure.add_axes((0.215 + 0.395 * place, 0.11, 0.25, 0.71))
            gained = {n: [100 * share for share in shares(runs, task, n)] for n in names}
            every = [value for own in gained.values() for value in own]
            least, most = min(every) - 4, max(every) + 4
            axes.axvline(100 * CLAIMED_GAIN, color=GREY, linewidth=1.0, linestyle=(0, (5, 3)))
            whole = bytes_up(runs, task, of(runs, task, FULL)[0])
            for row, name in enumerate(names):
                own = of(runs, task, name)
                if not own:
                    continue
                values = gained[name]
                axes.plot(values, [row] * len(values), "o", color=BLUE, markersize=3, alpha=0.55)
                mean = float(np.mean(values))
                axes.plot([mean], [row], "|", color=VERMILION, markersize=10, markeredgewidth=2)
                sent = bytes_up(runs, task, own[0])
                share = f" ({percent(100 * sent / whole)} %)" if sent and whole else ""
                words = "nothing" if sent is None else f"{_size(sent)}{share}"
                end = most + 0.02 * (most - least)
                axes.text(end, row, words, va="center", size=7, color=GREY)
            axes.set_xlim(least, most)
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_yticks(range(len(names)), names if place == 0 else [""] * len(names), size=8)
            axes.set_xlabel("of full fine-tuning's gain, %")
            axes.set_title(task, loc="left", size=9)
        title = "What federated methods gain, and what a client sends in a round"
        figure.text(0.02, 0.955, title, weight="bold", size=11, va="center")
        figure.text(
            0.02,
            0.905,
            "gain in held-out loss, mean over clients; dots are seeds, red their "
            "mean; dashed: the claimed 95 %",
            size=8,
            color=GREY,
            va="center",
        )
        _save(figure, path, title)


def _size(count: int) -> str:
    return f"{count / 1e6:,.3g} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _line(axes: Axes, at: float, words: str, *, outside: bool = False) -> None:
    axes.axhline(at, color=GREY, linewidth=1.0, linestyle=(0, (5, 3)))
    axes.annotate(
        f"{words}: {at:.1f}",
        (1.0 if outside else 0.005, at),
        (4, 0) if outside else (0, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center" if outside else "bottom",
        color=GREY,
        size=8,
    )


def _save(figure: Figure, path: Path, title: str) -> None:
    figure.savefig(path, metadata={"Title": title, "Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent / "results")
    folder = parser.parse_args().folder
    mechanisms = Results(folder / "mechanisms.jsonl").runs
    clients = Results(folder / "client_level.jsonl").runs
    sharing = Results(folder / "sharing.jsonl").runs
    if mechanisms:
        draw_mechanisms(mechanisms, folder / "mechanisms.svg")
        print(mechanisms_table(mechanisms))
        found = differences(mechanisms, "distributed", "central", "accuracy")
        words = "within" if reached(list(found.values())) else "NOT within"
        print(f"distributed less central: {words} the margin of {100 * MARGIN:g} points\n")
    if clients:
        draw_client_level(clients, folder / "client_level.svg")
        print(client_table(clients))
    if sharing:
        draw_sharing(sharing, folder / "sharing.svg")


if __name__ == "__main__":
    main()
