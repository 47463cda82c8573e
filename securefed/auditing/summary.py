"""An audit in one table: ``summary.json``, and the figures that pictures are made of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from securefed.auditing.cells import Cell
from securefed.evidence.results import AttackDocument
from securefed.operations.whole_files import write_whole
from securefed.reports.attack_plots import MatrixCell, SweepPoint

_PROMISED = {True: "exceeds", False: "of"}
_EXPOSURES = ("control", "plain", "other", "masked", "encrypted", "sum", "rounds", "released")
_DEFENCES = ("off", "noise", "masks", "noise and masks")


def write_summary(
    folder: Path, cells: Sequence[Cell], documents: Sequence[AttackDocument], *, title: str
) -> Path:
    """One row a cell: verdict, figures, and the digest of the measurement that they are from.

    Args:
        folder: of the results.
        cells: in their order.
        documents: one a cell.
        title: what was audited.

    Returns:
        The file.
    """
    rows = []
    for cell, document in zip(cells, documents, strict=True):
        found, main = document.measurement, document.measurement.main
        rows.append(
            {
                "file": f"{cell.name}.json",
                "measurement_sha256": found.digest(),
                "attack": found.attack,
                "exposure": found.exposure,
                "defence": found.defence,
                "batch": cell.batch,
                "clients": cell.clients,
                "n": found.n,
                "verdict": found.verdict,
                "reason": found.reason,
                "metric": found.headline,
                "figures": None if main is None else main.model_dump(mode="json"),
                "seconds": document.about.seconds,
            }
        )
    path = folder / "summary.json"
    whole = {"format": "securefed/audit-summary/1", "audited": title, "cells": rows}
    write_whole(path, json.dumps(whole, indent=1, sort_keys=True) + "\n")
    return path


def matrix_cells(cells: Sequence[Cell], documents: Sequence[AttackDocument]) -> list[MatrixCell]:
    """The heat map's cells: those that are no part of a sweep."""
    found = []
    for cell, document in zip(cells, documents, strict=True):
        if _of_sweep(cell):
            continue
        measurement = document.measurement
        main = measurement.main
        row = cell.attack if cell.batch == 1 else f"{cell.attack}, {cell.batch} texts"
        lift, words = None if main is None else main.lift, ""
        if measurement.attacks == "epsilon" and main is not None and main.prior is not None:
            # Its lift is over a promise: a bound below that shows no leak, and is not shaded.
            lift = 1.0 if main.shows_lift else 0.0
            words = f"\u03b5 \u2265 {main.value:.2f}\n{_PROMISED[main.shows_lift]} {main.prior:.2f}"
        found.append(
            MatrixCell(
                row=row,
                column=f"{cell.exposure}\n{cell.defence}",
                verdict=measurement.verdict,
                lift=lift,
                interval=None if main is None else main.lift_interval,
                words=words,
            )
        )
    return found


def matrix_columns(cells: Sequence[MatrixCell]) -> list[str]:
    """Columns in the order of exposures, and of defences for each."""

    def order(column: str) -> tuple[int, str, int]:
        exposure, _, defence = column.partition("\n")
        place = exposure.partition(" ")[0]
        first = _EXPOSURES.index(place) if place in _EXPOSURES else len(_EXPOSURES)
        second = _DEFENCES.index(defence) if defence in _DEFENCES else len(_DEFENCES)
        return first, exposure, second

    return sorted({cell.column for cell in cells}, key=order)


def sweep(
    cells: Sequence[Cell], documents: Sequence[AttackDocument], *, over: str
) -> dict[str, list[SweepPoint]]:
    """The curves of one sweep, by attack: the prior and the lift over it.

    A trial in which the attack says that it does not apply leaves the adversary with its prior.

    Args:
        cells: of the audit.
        documents: one a cell.
        over: ``"noise"``: z of each client's noise; ``"clients"``: n of the sum.
    """
    curves: dict[str, list[SweepPoint]] = {}
    for cell, document in zip(cells, documents, strict=True):
        measurement = document.measurement
        main = measurement.main
        if not _of_sweep(cell) or cell.batch != 1 or main is None:
            continue
        if main.prior is None or main.lift is None or main.lift_interval is None:
            continue
        if (cell.clients is not None) != (over == "clients"):
            continue
        at = float(cell.noise if cell.clients is None else cell.clients)
        low, high = main.lift_interval
        point = SweepPoint(
            at,
            main.prior + main.lift,
            (max(0.0, main.prior + low), min(1.0, main.prior + high)),
            main.prior,
            void=measurement.verdict == "void",
        )
        curves.setdefault(cell.attack, []).append(point)
    return {name: sorted(points, key=lambda point: point.at) for name, points in curves.items()}


def roc_curves(
    documents: Sequence[AttackDocument],
) -> tuple[dict[str, list[tuple[float, float]]], float | None, float]:
    """Every curve by name, and the epsilon and delta that those with noise are promised.

    Returns:
        The curves; epsilon, None where none is promised, or not the same for all; and delta.
    """
    curves, promises = {}, set()
    for document in documents:
        found = document.measurement
        if not found.curve:
            continue
        curves[f"{found.attack}, {found.defence}"] = list(found.curve)
        promised = found.predicted or {}
        epsilon, delta = promised.get("epsilon"), promised.get("delta")
        if isinstance(epsilon, (int, float)) and isinstance(delta, (int, float)):
            promises.add((float(epsilon), float(delta)))
    if len(promises) != 1:
        return curves, None, 0.0
    ((epsilon, delta),) = promises
    return curves, epsilon, delta


def _of_sweep(cell: Cell) -> bool:
    return cell.clients is not None or cell.defence.startswith("noise-")
