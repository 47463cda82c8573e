"""What a run has to show, and how it is made again from the run's ledger.  Needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from securefed.engines.attempts import (
    CLOSED,
    EVALUATED,
    ROUND_APPLIED,
    ROUND_OPENED,
    ROUND_SUMMED,
)
from securefed.engines.events import RoundEvent
from securefed.engines.figures import Figures
from securefed.engines.settings import Settings
from securefed.engines.verify import verified_run
from securefed.errors import LedgerTampered
from securefed.evidence.ledger import Record, read_ledger
from securefed.privacy.accounting import ADVERSARIES, Adversary, PrivacyGuarantee


@dataclass(frozen=True)
class RunResult:
    """What a finished run has to show.

    Attributes:
        folder: the run folder.
        rounds: rounds applied to the adapter.
        charges: most masked inputs any client charged (retries included); epsilon counts these.
        guarantees: what holds against each adversary.
        noise_multiplier: of the run, whether it was given or followed from a target.
        before: held-out figures of the untouched model, and ``after``: of the last adapter.
        events: one a round.
        stopped: why the run ended early; empty if it did not.
    """

    folder: Path
    rounds: int
    charges: int
    guarantees: dict[Adversary, PrivacyGuarantee]
    noise_multiplier: float
    before: Figures
    after: Figures
    events: list[RoundEvent] = field(repr=False)
    stopped: str = ""


def recorded_event(records: list[Record], number: int, settings: Settings) -> RoundEvent:
    """The line of a round, from the ledger alone; its seconds are 0, since no ledger holds them.

    Args:
        records: of a run in which round ``number`` was applied.
        number: the round; 0 is the evaluation before the first.
        settings: what the run file means for the cohort.
    """
    summed: Mapping[str, Any] = {}
    clip_norm = None
    for record in records:
        if record.kind == ROUND_APPLIED and record.body["round"] == number:
            session = record.body["session"]
            sums = (r.body for r in records if r.kind == ROUND_SUMMED)
            summed = next(body for body in sums if body["session"] == session)
            if settings.stated.adaptive_clip is not None:
                opened = (r.body for r in records if r.kind == ROUND_OPENED)
                clip_norm = next(b["clip_norm"] for b in opened if b["session"] == session)
    size = settings.cohort_size
    survivors = len(summed["survivors"]) if summed else size
    notes = [f"{size - survivors} dropped out"] if survivors < size else []
    silent = int(summed.get("silent", 0))
    if silent:
        notes.append(f"{silent} fell silent after sending")
    if summed and summed["refused"]:
        notes.append(f"{summed['refused']} refused")
    figures = recorded_figures(records, number)
    epsilon = settings.epsilon_after(int(summed["charges"]) if summed else 0)
    adapter_bytes = 4 * settings.plan.dimension if summed else 0
    return RoundEvent(
        round=number,
        rounds=settings.config.training.rounds,
        survivors=survivors,
        cohort=size,
        epsilon=epsilon if math.isfinite(epsilon) else None,
        against=settings.accounted,
        delta=settings.stated.delta,
        perplexity=figures.perplexity if figures else None,
        accuracy=figures.accuracy if figures else None,
        bytes_up=summed["bytes_up"] / size if summed else 0.0,
        bytes_down=(summed["bytes_down"] / size if summed else 0.0) + adapter_bytes,
        client_seconds=0.0,
        seconds=0.0,
        silent=silent,
        clip_norm=clip_norm,
        unclipped_fraction=summed.get("unclipped_fraction"),
        note="; ".join(notes),
    )


def recorded_figures(
    records: list[Record], number: int, shown: Mapping[str, float] | None = None
) -> Figures | None:
    """The held-out figures after round ``number``; None if they were not measured.

    Args:
        records: of the ledger.
        number: the round.
        shown: the worst client by round, as :func:`read_shown` gives it.
    """
    found = None
    for record in records:
        if record.kind == EVALUATED and record.body["round"] == number:
            found = Figures.from_record(record.body["figures"])
    return replace(found, worst=(shown or {}).get(str(number))) if found is not None else None


def read_shown(path: Path) -> dict[str, float]:
    """The worst client's held-out figure by round, where the run file asks for it.

    Raises:
        LedgerTampered: the file is not what a run writes there.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LedgerTampered(f"{path}: cannot be read ({error})") from None
    worst = found.get("worst_client") if isinstance(found, dict) else None
    if not isinstance(worst, dict) or not all(isinstance(v, float | int) for v in worst.values()):
        raise LedgerTampered(f"{path}: must hold worst_client, a number by round")
    return {str(number): float(value) for number, value in worst.items()}


def recorded_result(folder: Path) -> RunResult | None:
    """What a finished run had to show, once more; None if the run is not finished.

    Raises:
        ConfigError, LedgerTampered: the folder does not verify.
    """
    if read_ledger(folder / "ledger.jsonl")[-1].kind != CLOSED:
        return None  # another process may be writing it
    run = verified_run(folder)
    closed = run.history.closed or {}
    rounds = run.history.applied
    shown = read_shown(folder / "shown.json")
    before, after = (recorded_figures(run.records, number, shown) for number in (0, rounds))
    if before is None or after is None:
        raise LedgerTampered(f"{folder / 'ledger.jsonl'}: closes without held-out figures")
    return RunResult(
        folder=folder,
        rounds=rounds,
        charges=run.charges,
        guarantees={who: run.settings.guarantee(who, run.charges) for who in ADVERSARIES},
        noise_multiplier=run.settings.stated.noise_multiplier,
        before=before,
        after=after,
        events=[recorded_event(run.records, n, run.settings) for n in range(rounds + 1)],
        stopped=str(closed["stopped"]),
    )


def costs(events: list[RoundEvent], settings: Settings) -> dict[str, Any]:
    """Means over the rounds of a run; seconds are over those since the last resume."""
    rounds = [event for event in events if event.round > 0]
    timed = [event for event in rounds if event.seconds > 0]

    def mean(of: list[RoundEvent], value: Callable[[RoundEvent], float]) -> float:
        return float(np.mean([value(event) for event in of])) if of else 0.0

    return {
        "rounds": len(rounds),
        "clients": settings.cohort_size,
        "trainable_parameters": settings.plan.dimension,
        "bytes_up_per_client_and_round": mean(rounds, lambda event: event.bytes_up),
        "bytes_down_per_client_and_round": mean(rounds, lambda event: event.bytes_down),
        "client_seconds_per_round": mean(timed, lambda event: event.client_seconds),
        "seconds_per_round": mean(timed, lambda event: event.seconds),
        "note": "client seconds are means over the cohort of a simulation; a deployment does "
        "not send them, because they tell the size of a secret sample",
    }
