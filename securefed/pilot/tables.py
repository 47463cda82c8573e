"""The pilot's trials as a table that a spreadsheet reads."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from securefed.pilot.costing import trial_price
from securefed.pilot.front import front, points
from securefed.pilot.records import PilotRecord, Trial
from securefed.pilot.settings import pilot_config
from securefed.pilot.summaries import client_seconds, guarantee_of, summaries

COLUMNS = (
    "name",
    "group",
    "seed",
    "status",
    "why",
    "clients",
    "rounds",
    "metric",
    "before",
    "after",
    "improvement",
    "worst_client_before",
    "worst_client_after",
    "values",
    "bytes_up",
    "bytes_down",
    "client_cpu_seconds",
    "server_cpu_seconds",
    "memory_bytes",
    "storage_bytes",
    "estimated",
    "epsilon",
    "delta",
    "epsilon_unit",
    "epsilon_against",
    "money_per_client_and_round",
    "currency",
    "on_front",
    "seconds_by_the_clock",
)
"""Bytes and seconds are of a client and round, but for the server's, which are of a round."""

_UNKNOWN = "not recorded"
# A cell that begins so is taken for a formula by spreadsheets.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def trials_csv(record: PilotRecord) -> str:
    """One line a trial, seeds apart; an empty cell is what was not measured or does not hold.

    Raises:
        ConfigError: the record holds no pilot file of this version.
    """
    best = {point.name for point in front(points(summaries(record)))}
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(COLUMNS)
    for trial in record.trials:
        row = _row(record, trial) | {"on_front": "yes" if trial.name in best else "no"}
        writer.writerow([_cell(row.get(column)) for column in COLUMNS])
    return target.getvalue()


def _row(record: PilotRecord, trial: Trial) -> dict[str, Any]:
    prices = pilot_config(record).prices
    row: dict[str, Any] = {
        "name": trial.name,
        "group": trial.group,
        "seed": trial.seed,
        "status": trial.status,
        "why": trial.why,
        "clients": trial.clients or None,
        "rounds": trial.rounds or None,
        "epsilon": trial.epsilon,
        "currency": prices.currency,
        "seconds_by_the_clock": trial.seconds or None,
    }
    if (quality := trial.quality) is not None:
        row |= {
            "metric": quality.metric,
            "before": quality.before,
            "after": quality.after,
            "improvement": quality.improvement,
            "worst_client_before": quality.worst_before,
            "worst_client_after": quality.worst_after,
        }
    if (cost := trial.cost) is not None:
        price = trial_price(trial, prices)
        row |= {
            "values": cost.values,
            "bytes_up": cost.bytes_up,
            "bytes_down": cost.bytes_down,
            "client_cpu_seconds": client_seconds(cost),
            "server_cpu_seconds": math.fsum(cost.server_seconds.values()),
            "memory_bytes": cost.memory_bytes,
            "storage_bytes": sum(cost.storage_bytes.values()),
            "estimated": " ".join(cost.estimated),
            "money_per_client_and_round": None if price is None else price.total,
        }
    if trial.epsilon is not None:
        held = guarantee_of(trial) or {}
        row |= {
            "delta": held.get("delta", _UNKNOWN),
            "epsilon_unit": held.get("unit", _UNKNOWN),
            "epsilon_against": held.get("against", _UNKNOWN),
        }
    return row


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return value
