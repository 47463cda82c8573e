"""What a pilot was: model, data, trials, machine, prices, and what it spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from securefed.config.pilot import PilotConfig
from securefed.pilot.criteria import epsilon_terms
from securefed.pilot.records import PilotRecord
from securefed.pilot.summaries import Summary
from securefed.pilot.words import Words


def facts(
    record: PilotRecord, found: Sequence[Summary], config: PilotConfig, words: Words
) -> list[tuple[str, str]]:
    """What was tried, on what, and what it spent: pairs of a name and a text."""
    machine: Mapping[str, Any] = record.machine
    model = str(_deep(record.run, "model", "source")).rpartition("/")[2]
    data = str(_deep(record.run, "data", "source")).rpartition("/")[2]
    pairs = [
        ("fact.model", model),
        ("fact.data", words("fact.public" if record.public else "fact.private", data=data)),
        ("fact.trials", words("fact.counted", **_counts(record), seconds=record.seconds)),
        ("fact.spent", _spent(record, found, words)),
        ("fact.machine", "; ".join(f"{key}: {value}" for key, value in machine.items())),
        ("fact.software", record.software),
        ("fact.prices", _prices(config, words)),
    ]
    return [(words(key), text) for key, text in pairs if text]


def _counts(record: PilotRecord) -> dict[str, int]:
    done = sum(trial.status == "done" for trial in record.trials)
    return {"done": done, "planned": len(record.trials)}


def _spent(record: PilotRecord, found: Sequence[Summary], words: Words) -> str:
    if not record.spent:
        return words("fact.nothing_spent" if record.public else "not_measured")
    return words(
        "fact.charged",
        epsilon=record.spent["epsilon"],
        delta=record.spent["delta"],
        terms=epsilon_terms(found),
    )


def _prices(config: PilotConfig, words: Words) -> str:
    prices = config.prices
    return words(
        "fact.priced",
        per_gb=prices.per_gb,
        per_device_hour=prices.per_device_hour,
        per_server_hour=prices.per_server_hour,
        currency=prices.currency,
    )


def _deep(values: Mapping[str, Any], section: str, key: str) -> Any:
    found = values.get(section)
    return found.get(key, "") if isinstance(found, Mapping) else ""
