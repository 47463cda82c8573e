"""What a run showed, round by round, made again from its ledger.  Needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from securefed.engines.events import RoundEvent
from securefed.engines.figures import Figures
from securefed.engines.histogram_records import recorded_histogram
from securefed.engines.histogram_settings import Of, evaluated_rounds
from securefed.engines.plan_records import values_down
from securefed.engines.settings import Settings
from securefed.errors import LedgerTampered
from securefed.evidence.kinds import (
    EVALUATED,
    EVALUATION_FAILED,
    ROUND_APPLIED,
    ROUND_OPENED,
    ROUND_SUMMED,
)
from securefed.evidence.ledger import Record
from securefed.evidence.reading import read_regular

_BYTES_LIMIT = 1 << 26


def recorded_event(records: list[Record], number: int, settings: Settings) -> RoundEvent:
    """The line of a round, from the ledger alone; its seconds are 0, since no ledger holds them.

    Args:
        records: of a run in which round ``number`` was applied.
        number: the round; 0 is the evaluation before the first.
        settings: what the run file means for the cohort.
    """
    summed: Mapping[str, Any] = {}
    clip_norm = None
    values_sent: float = settings.dimension
    for record in records:
        if record.kind == ROUND_APPLIED and record.body["round"] == number:
            session = record.body["session"]
            values_sent = record.body.get("values_down", values_sent)
            sums = (r.body for r in records if r.kind == ROUND_SUMMED)
            summed = next(body for body in sums if body["session"] == session)
            if settings.stated.adaptive_clip is not None:
                opened = (r.body for r in records if r.kind == ROUND_OPENED)
                clip_norm = next(b["clip_norm"] for b in opened if b["session"] == session)
    size = len(settings.cohorts.members(number))
    if summed and settings.slices is not None:
        values_sent = sum(values_down(summed, settings.slices).values()) / size
    survivors = len(summed["survivors"]) if summed else size
    late = summed.get("late", {})
    lost = size - survivors - len(set(late) - set(summed.get("survivors", ())))
    notes = [f"{lost} dropped out"] if lost else []
    if late:
        stages = ", ".join(f"{name} in {stage}" for name, stage in sorted(late.items()))
        notes.append(f"{size} invited, {size - len(late)} in time (late: {stages})")
    silent = int(summed.get("silent", 0))
    if silent:
        notes.append(f"{silent} fell silent after sending")
    if summed and summed["refused"]:
        notes.append(f"{summed['refused']} refused")
    notes += [f"slice {number} stayed closed" for number in sorted(summed.get("closed", {}))]
    figures = recorded_figures(records, number)
    epsilon = settings.epsilon_after(int(summed["charges"]) if summed else 0)
    adapter_bytes = 4 * values_sent if summed else 0
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
        virtual_seconds=summed.get("virtual_seconds"),
        note="; ".join(notes),
        held_out_guaranteed=settings.histograms is not None and settings.histograms.protects,
    )


def recorded_figures(
    records: list[Record],
    number: int,
    shown: Mapping[str, Shown] | None = None,
    *,
    of: Of = "shared",
) -> Figures | None:
    """The held-out figures after round ``number``; None if they were not measured.

    Args:
        records: of the ledger.
        number: the round.
        shown: what a simulation shows of single clients, as :func:`read_shown` gives it.
        of: of the shared adapter, or of the one that each client uses.
    """
    histogram = recorded_histogram(records, number, of)
    if histogram is not None:
        return Figures.from_histogram(histogram)
    found = None
    for record in records:
        if (
            record.kind == EVALUATED
            and record.body["round"] == number
            and record.body.get("of", "shared") == of
        ):
            found = Figures.from_record(record.body["figures"])
    if found is None:
        return None
    single = (shown or {}).get(shown_key(number, of), Shown(None, None))
    return replace(found, worst=single.worst, spread=single.spread)


def check_measured(
    ledger: Path, records: list[Record], last: int, settings: Settings, charges: int
) -> None:
    """Whether a finished run measured all that its run file asks for.

    A sum without noise, or a charged histogram, that is taken from every file would not be missed
    otherwise.

    Args:
        ledger: the path, for messages.
        records: its own.
        last: the round that was applied last.
        settings: what the run file means for the cohort.
        charges: the most histograms that any client has charged.

    Raises:
        LedgerTampered: held-out figures are missing, no budget of histograms forbade them, and it
            is not on record that too few clients took part in their sum.
    """
    failed = {
        (record.body["round"], record.body.get("of", "shared"))
        for record in records
        if record.kind == EVALUATION_FAILED
    }
    counted = settings.histograms
    due = {number for number in evaluated_rounds(settings.config) if number < last} | {last}
    needed: list[tuple[int, Of]] = [(number, "shared") for number in sorted(due)]
    if settings.config.personal.told:
        needed.append((last, "personal"))
        if counted is not None:
            needed.append((last, "gain"))
    for number, of in needed:
        found = recorded_histogram if counted is not None else recorded_figures
        if found(records, number, of=of) is not None or (number, of) in failed:
            continue
        # Charges only rise: what could be afforded in the end could be afforded then.
        between = number not in (0, last)
        if counted is None or not counted.leaves_out(charges, in_between=between):
            raise LedgerTampered(
                f"{ledger}: closes without held-out figures of round {number}"
                + f" ({of})" * (of != "shared")
            )


@dataclass(frozen=True)
class Shown:
    """The worst client's figure and the spread over clients, as ``Figures`` has them."""

    worst: float | None
    spread: tuple[float, ...] | None


def shown_key(number: int, of: Of) -> str:
    """Under which an evaluation stands in ``shown.json``."""
    return str(number) if of == "shared" else of


def read_shown(path: Path) -> dict[str, Shown]:
    """What is shown of single clients by evaluation, where the run file asks for it.

    Raises:
        LedgerTampered: the file is not what a run writes there.
    """
    try:
        found = json.loads(read_regular(path, _BYTES_LIMIT))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise LedgerTampered(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise LedgerTampered(f"{path}: cannot be read as JSON ({error})") from None
    worst = found.get("worst_client") if isinstance(found, dict) else None
    if not isinstance(worst, dict) or not all(isinstance(v, float | int) for v in worst.values()):
        raise LedgerTampered(f"{path}: must hold worst_client, a number by round")
    spread = found.get("spread", {})
    if not isinstance(spread, dict) or not all(
        isinstance(five, list) and all(isinstance(value, float | int) for value in five)
        for five in spread.values()
    ):
        raise LedgerTampered(f"{path}: spread must hold five numbers by round")
    return {
        str(key): Shown(
            float(value), tuple(float(each) for each in spread[key]) if key in spread else None
        )
        for key, value in worst.items()
    }
