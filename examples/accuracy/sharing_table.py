"""The table of methods, and whether what was claimed beforehand holds; from results alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bench import Results

BEFORE, FULL = "before training", "full fine-tuning"
CLAIMED_GAIN, CLAIMED_BYTES = 0.95, 0.01
TUNING_SEEDS = (10, 11)

Run = Mapping[str, Any]


def tables(results: Results) -> str:
    """Markdown, of each task what is gained and what it costs, a blank line between."""
    tasks = dict.fromkeys(str(run["task"]) for run in results.runs)
    return "\n\n".join(
        f"{task}:\n\n{gains(results.runs, task)}\n\n{costs(results.runs, task)}" for task in tasks
    )


def gains(runs: Sequence[Run], task: str) -> str:
    """Markdown: held-out figures, means over the seeds, in brackets the least and the most."""
    keys = ["perplexity", "worst_perplexity", "left_perplexity"]
    figures = ["perplexity", "worst client's", "of those left out"]
    if task != "speeches":
        keys = ["accuracy", "worst_accuracy", "left_accuracy", "nll", "worst_nll"]
        figures = ["accuracy, %", *figures[1:], "loss", "worst client's"]
    rows = []
    for arm in arms(runs, task):
        own = of(runs, task, arm)
        rate = "-" if arm == BEFORE else f"{own[0]['rate']:g}"
        rows.append(
            [arm, rate, *(_figure(own, key) for key in keys), _percent(shares(runs, task, arm))]
        )
    return _markdown(["method", "learning rate", *figures, "of full's gain, %"], rows)


def costs(runs: Sequence[Run], task: str) -> str:
    """Markdown: what a client sends, keeps and computes in a round."""
    rows = []
    whole = of(runs, task, FULL)
    most = bytes_up(runs, task, whole[0]) if whole else None
    for arm in arms(runs, task):
        own = of(runs, task, arm)
        if arm == BEFORE:
            continue
        sent = sent_by(runs, task, own[0])
        cells = ["-"] * 3 if sent is None else [f"{own[0]['values']:,}", f"{sent['bytes_up']:,}"]
        if sent is not None:
            cells.append("-" if most is None else percent(100 * sent["bytes_up"] / most))
        seconds = [float(run["train_seconds"]) for run in own]
        coded = "-" if sent is None else f"{sent['client_seconds']:.2g}"
        kept = f"{4 * own[0]['kept']:,}" if own[0]["kept"] else "-"
        rows.append([arm, *cells, kept, f"{np.mean(seconds):.2g}", coded])
    head = ["method", "values sent", "bytes up", "of full's, %", "bytes a client keeps"]
    return _markdown([*head, "CPU s: training", "clip, encode, mask"], rows)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines).replace(" --- ", "---")


def arms(runs: Sequence[Run], task: str) -> list[str]:
    """The methods with runs that count, in their order; what nobody has trained first."""
    found = [run["arm"] for run in runs if run["task"] == task and "arm" in run]
    return [name for name in dict.fromkeys([BEFORE, *found]) if of(runs, task, name)]


def of(runs: Sequence[Run], task: str, arm: str) -> list[Run]:
    """An arm's runs on the seeds that count, by seed."""
    own = [run for run in runs if (run["task"], run.get("arm")) == (task, arm)]
    return sorted(
        (run for run in own if run["seed"] not in TUNING_SEEDS), key=lambda run: run["seed"]
    )


def shares(runs: Sequence[Run], task: str, arm: str, figure: str = "nll") -> list[float]:
    """What an arm gains over what full fine-tuning gains, seed by seed; empty where not defined."""
    if arm == BEFORE:
        return []
    by_seed = [
        {run["seed"]: float(run[figure]) for run in of(runs, task, name)}
        for name in (BEFORE, FULL, arm)
    ]
    before, best, own = by_seed
    return [(before[s] - own[s]) / (before[s] - best[s]) for s in own if s in before and s in best]


def bytes_up(runs: Sequence[Run], task: str, run: Run) -> int | None:
    """What a client sends in a round, by a real one; None where nothing travels."""
    sent = sent_by(runs, task, run)
    return None if sent is None else int(sent["bytes_up"])


def sent_by(runs: Sequence[Run], task: str, run: Run) -> Run | None:
    """The masked round of what a run sends."""
    wanted = "tiers" if run.get("arm") == "mixed ranks" else run.get("values")
    found = [one for one in runs if "wire" in one and (one["task"], one["wire"]) == (task, wanted)]
    return found[0] if found else None


def claim(runs: Sequence[Run], task: str, arm: str) -> dict[str, Any]:
    """What was claimed of an arm, figure by figure, and whether it holds.

    Returns:
        ``gain``: mean share of full's gain in loss; ``least``: of a single seed; ``bytes``: share
        of full's bytes; ``holds``: both means are as claimed; for mails ``accuracy`` likewise.
    """
    own, best = of(runs, task, arm), of(runs, task, FULL)
    gains = shares(runs, task, arm)
    sent, whole = bytes_up(runs, task, own[0]), bytes_up(runs, task, best[0])
    if sent is None or whole is None:
        raise ValueError(f"{task}, {arm}: no masked round was run")
    found: dict[str, Any] = {
        "gain": float(np.mean(gains)),
        "least": min(gains),
        "bytes": sent / whole,
    }
    found["holds"] = found["gain"] >= CLAIMED_GAIN and found["bytes"] <= CLAIMED_BYTES
    if task != "speeches":
        found["accuracy"] = float(np.mean(shares(runs, task, arm, "accuracy")))
    return found


def line(run: Run) -> str:
    """A finished run in short."""
    if "wire" in run:
        return f"{run['task']}, {run['wire']} values: {run['bytes_up']:,} bytes"
    return (
        f"{run['task']}, {run['arm']}, {run.get('rate', '-')}, seed {run['seed']}: "
        f"loss {run['nll']:.4f}, worst {run['worst_nll']:.4f}, "
        f"accuracy {100 * run['accuracy']:.1f} %"
    )


def percent(share: float) -> str:
    """Two digits; a whole number near the whole."""
    return f"{share:.0f}" if share >= 99.5 else f"{share:.2g}"


def _figure(runs: Sequence[Run], key: str) -> str:
    values = [float(run[key]) for run in runs if key in run]
    if not values:
        return "-"
    if "accuracy" in key:
        return spread([100 * value for value in values], 1)
    return spread(values, 3 if key.endswith("nll") else 1)


def _percent(values: Sequence[float]) -> str:
    return spread([100 * value for value in values], 0) if values else "-"


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and in brackets the least and the most."""
    least, most = min(values), max(values)
    return f"{np.mean(values):.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"
