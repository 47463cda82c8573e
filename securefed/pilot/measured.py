"""What a trial's run cost and how good it was, from its run folder and its figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from securefed.engines.figures import Figures
from securefed.engines.planning import public_seconds
from securefed.engines.results import RunResult
from securefed.engines.run_folder import RunFolder
from securefed.engines.settings import Settings
from securefed.engines.workbench import Workbench
from securefed.errors import LedgerTampered
from securefed.federation.server_optimizer import ServerOptimizer
from securefed.federation.server_step import ServerStep
from securefed.pilot.records import Cost, Quality

Vectors = Mapping[str, NDArray[np.float64]]
"""``Figures.vector`` of each client, by name."""


def quality_of_run(result: RunResult, own: Vectors) -> Quality:
    """Held-out figures of a run, as its ledger has them.

    Args:
        result: of the run.
        own: each client's at the end, where they may be seen; else nothing.
    """
    return _quality(result.before, result.after, own)


def quality_of_clients(before: Vectors, after: Vectors) -> Quality:
    """The same from each client's own figures, for whoever may see them."""
    zero = np.zeros(Figures.DIMENSION)
    first, last = (
        Figures.from_sum(sum(found.values(), zero), len(found), found) for found in (before, after)
    )
    return _quality(first, last, after)


def _quality(before: Figures, after: Figures, own: Vectors) -> Quality:
    perplexity = after.perplexity is not None
    first, last = (found.perplexity if perplexity else found.accuracy for found in (before, after))
    if first is None or last is None:
        raise LedgerTampered("held-out figures: perplexity before and accuracy after, or likewise")
    return Quality(
        metric="perplexity" if perplexity else "accuracy",
        before=first,
        after=last,
        worst_before=before.worst if own else None,
        worst_after=after.worst if own else None,
        clients={name: _shown(vector, perplexity) for name, vector in own.items()},
    )


def _shown(vector: NDArray[np.float64], perplexity: bool) -> float:
    alone = Figures.from_sum(vector, 1, None)
    value = alone.perplexity if perplexity else alone.accuracy
    return 0.0 if value is None else value


def own_figures(bench: Workbench, folder: Path, rounds: int) -> dict[str, NDArray[np.float64]]:
    """Each client's figures with the adapter that a run folder holds, its own part of it too.

    Args:
        bench: prepared for the same run file.
        folder: of the finished run.
        rounds: how many it applied.

    Raises:
        LedgerTampered: the folder's last state is missing or is not of this run.
    """
    run = RunFolder(folder)
    bench.load_initial(run.initial)
    state = run.load_checkpoint(rounds)
    if state is None:
        raise LedgerTampered(f"{run.checkpoints}: no state after round {rounds}")
    training = bench.config.training
    ServerStep(bench.parts, lambda initial: ServerOptimizer.of(initial, training)).restore(state)
    bench.load_kept(run.personal, tuple(sorted(bench.clients)), rounds)
    return {name: bench.figures(name) for name in sorted(bench.clients)}


def cost_of_run(result: RunResult, bench: Workbench, settings: Settings, *, public: bool) -> Cost:
    """What a run cost, by its ``costs.json`` and its clients' own files.

    On data that is not public a client's own file is read for the sizes of its files alone.  Where
    its seconds would tell how much it drew, they are estimated instead, from training on made-up
    examples (``engines.planning.public_seconds``; none where it cannot), and no memory is stated.

    Args:
        result: of the run.
        bench: prepared for the same run file.
        settings: likewise.
        public: whether anybody may see the data.
    """
    folder = RunFolder(result.folder)
    summary = _read(folder.costs)
    names = sorted(bench.clients)
    own = {name: _read(folder.client_costs(name)) for name in names}
    work = summary.get("client_work")
    memory: int | None = None
    estimated: tuple[str, ...] = ()
    if public:
        rows = [row for record in own.values() for row in record["rows"] if row["what"] == "round"]
        seconds = _mean_by_phase(row["cpu_seconds"] for row in rows)
        memory = most_resident(row["peak_memory_bytes"] for row in rows)
    elif isinstance(work, dict):  # nothing secret decides them, or the policy says they are shown
        seconds = {phase: found["mean"] for phase, found in work["cpu_seconds"].items()}
        memory = most_resident([work["peak_memory_bytes"]])
    else:
        seconds = public_seconds(bench, settings)
        estimated = ("client_seconds",)
        encryption = summary.get("encryption")
        if seconds and encryption:
            seconds["encrypt"] = float(encryption["client_seconds_encrypting"])
    server = _means(summary["server"])
    if "decryptor" in summary:
        server |= {f"decryptor: {k}": v for k, v in _means(summary["decryptor"]).items()}
    sizes = [record["disk_bytes"] for record in own.values()]
    return Cost(
        values=settings.plan.dimension,
        bytes_up=float(summary["bytes_up_per_client_and_round"]),
        bytes_down=float(summary["bytes_down_per_client_and_round"]),
        client_seconds=seconds,
        server_seconds=server,
        memory_bytes=memory,
        storage_bytes={
            "base model": bench.model_bytes,
            "adapter": sum(p.stat().st_size for p in folder.adapter.rglob("*") if p.is_file()),
            "own part": max(size["personal"] for size in sizes),
            "account": max(size["account"] for size in sizes),
        },
        estimated=estimated,
    )


def _means(party: Mapping[str, Any]) -> dict[str, float]:
    return {phase: float(found["mean"]) for phase, found in party["cpu_seconds"].items()}


def _mean_by_phase(books: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Means over all books; a phase that one of them lacks counts as 0 there."""
    found = list(books)
    phases = sorted({phase for book in found for phase in book})
    return {p: float(np.mean([book.get(p, 0.0) for book in found])) for p in phases}


def most_resident(books: Iterable[Mapping[str, int]]) -> int | None:
    """The largest resident memory, of whichever kind was measured."""
    found = [value for book in books for name, value in book.items() if name.startswith("resident")]
    return max(found, default=None)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
