"""Values of a run's ledger that claims rest on, each with the lines that it is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from securefed.config import share_of
from securefed.evidence.chain import Record
from securefed.threats.ledger_names import LedgerName
from securefed.threats.verdicts import Reference

LEDGER = "ledger.jsonl"
_MOST_SHOWN = 8


@dataclass(frozen=True)
class LedgerValue:
    """One value.

    Attributes:
        value: infinite where the ledger says ``unprotected``; None where it has none.
        references: the lines, at most eight of them: the first and the last.
        why: there is none.
    """

    value: float | None
    references: tuple[Reference, ...] = ()
    why: str = ""

    @classmethod
    def none(cls, why: str) -> LedgerValue:
        """The ledger does not have it."""
        return cls(None, why=why)


@dataclass(frozen=True)
class Beside:
    """What is counted in other files than the run's ledger, by whoever verified them.

    Attributes:
        openings_beyond_sums: sums that a decryptor opened and that no record of the ledger holds;
            None where there is no decryptor, or nobody looked.
        unsigned_rounds: heads of the ledger with no head at or after them that enough clients have
            signed; None where nobody looked.
    """

    openings_beyond_sums: int | None = None
    unsigned_rounds: int | None = None


def ledger_value(name: LedgerName, records: Sequence[Record], beside: Beside) -> LedgerValue:
    """The value of that name; a record that lacks what it must hold has been refused before.

    Args:
        name: which.
        records: of the run's ledger, verified; none where there is no run yet.
        beside: counts of other files.
    """
    if not records:
        return LedgerValue.none("there is no ledger: nothing was run")
    return _VALUES[name](records, beside)


def reference(record: Record, pointer: str | None = None) -> Reference:
    """Where a record of the run's ledger stands."""
    return Reference(
        kind="ledger", path=LEDGER, line=record.seq + 1, pointer=pointer, sha256=record.hash
    )


def _number(value: Any) -> float:
    return math.inf if value == "unprotected" else float(value)


def _last(records: Sequence[Record], kind: str) -> Record | None:
    return next((record for record in reversed(records) if record.kind == kind), None)


def _closed(records: Sequence[Record], take: Callable[[Record], LedgerValue]) -> LedgerValue:
    closed = _last(records, "closed")
    if closed is None:
        return LedgerValue.none("the ledger has no closing record: the run is not finished")
    return take(closed)


def _statement(
    guarantees: Sequence[Mapping[str, Any]], against: str, at: str, record: Record
) -> LedgerValue:
    for number, found in enumerate(guarantees):
        if found["against"] == against:
            where = reference(record, f"{at}/{number}/epsilon")
            return LedgerValue(_number(found["epsilon"]), (where,))
    return LedgerValue.none(f"the closing record says nothing against {against}")


def _epsilon(against: str, records: Sequence[Record], beside: Beside) -> LedgerValue:
    return _closed(
        records,
        lambda closed: _statement(closed.body["guarantees"], against, "/guarantees", closed),
    )


def _epsilon_of_figures(records: Sequence[Record], beside: Beside) -> LedgerValue:
    def take(closed: Record) -> LedgerValue:
        histograms = closed.body.get("histograms")
        if histograms is None:
            return LedgerValue.none("held-out figures of this run are no histograms")
        return _statement(histograms["guarantees"], "server", "/histograms/guarantees", closed)

    return _closed(records, take)


def _charges(records: Sequence[Record], beside: Beside) -> LedgerValue:
    return _closed(
        records,
        lambda closed: LedgerValue(float(closed.body["charges"]), (reference(closed, "/charges"),)),
    )


def _privacy(field: str, records: Sequence[Record], beside: Beside) -> LedgerValue:
    first = records[0]
    where = reference(first, f"/privacy/{field}")
    return LedgerValue(float(first.body["privacy"][field]), (where,))


def _count(kind: str, records: Sequence[Record], beside: Beside) -> LedgerValue:
    found = [reference(record) for record in records if record.kind == kind]
    if len(found) > _MOST_SHOWN:
        found = found[: _MOST_SHOWN // 2] + found[-_MOST_SHOWN // 2 :]
    count = sum(record.kind == kind for record in records)
    # Where there is none, all of the ledger says so: its last line stands for it.
    return LedgerValue(float(count), tuple(found) or (reference(records[-1]),))


def _least_survivors(records: Sequence[Record], beside: Beside) -> LedgerValue:
    summed = [record for record in records if record.kind == "round_summed"]
    if not summed:
        return LedgerValue.none("no sum was opened")
    least = min(summed, key=lambda record: len(record.body["survivors"]))
    return LedgerValue(float(len(least.body["survivors"])), (reference(least, "/survivors"),))


def _survivor_floor(records: Sequence[Record], beside: Beside) -> LedgerValue:
    first = records[0]
    members = len(first.body["cohort"])
    floor = members - share_of(float(first.body["privacy"]["dropout_fraction"]), members)
    where = (reference(first, "/cohort"), reference(first, "/privacy/dropout_fraction"))
    return LedgerValue(float(floor), where)


def _openings(records: Sequence[Record], beside: Beside) -> LedgerValue:
    if beside.openings_beyond_sums is None:
        return LedgerValue.none("no decryptor's ledger was read")
    where = Reference(kind="file", path="decryptor/openings.jsonl")
    return LedgerValue(float(beside.openings_beyond_sums), (where,))


def _unsigned(records: Sequence[Record], beside: Beside) -> LedgerValue:
    if beside.unsigned_rounds is None:
        return LedgerValue.none("nobody has checked signatures of heads")
    found = [reference(record) for record in records if record.kind == "witnessed"]
    return LedgerValue(
        float(beside.unsigned_rounds), tuple(found[-1:]) or (reference(records[-1]),)
    )


_VALUES: Mapping[LedgerName, Callable[[Sequence[Record], Beside], LedgerValue]] = {
    "closing.epsilon.server": partial(_epsilon, "server"),
    "closing.epsilon.release": partial(_epsilon, "release"),
    "closing.epsilon.fellow_client": partial(_epsilon, "fellow_client"),
    "closing.epsilon.figures": _epsilon_of_figures,
    "closing.charges": _charges,
    "privacy.noise_multiplier": partial(_privacy, "noise_multiplier"),
    "privacy.delta": partial(_privacy, "delta"),
    "rounds.summed": partial(_count, "round_summed"),
    "rounds.failed": partial(_count, "round_failed"),
    "rounds.survivors.min": _least_survivors,
    "rounds.survivor_floor": _survivor_floor,
    "evaluation.unnoised_sums": partial(_count, "evaluation_opened"),
    "evaluation.histograms": partial(_count, "histogram_opened"),
    "openings.beyond_sums": _openings,
    "witnesses.unsigned_rounds": _unsigned,
}
