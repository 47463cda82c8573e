"""What a pilot did not measure, said before somebody takes silence for a zero."""

from __future__ import annotations

from collections.abc import Sequence

from securefed.config.pilot import PilotConfig
from securefed.pilot.costing import priced
from securefed.pilot.protections import COMPARED
from securefed.pilot.records import PilotRecord
from securefed.pilot.summaries import Summary
from securefed.pilot.words import Said


def missing(record: PilotRecord, config: PilotConfig, found: Sequence[Summary]) -> tuple[Said, ...]:
    """Each gap in a sentence: trials left out first, then figures, then what no pilot shows."""
    done = [one for one in found if one.done]
    gaps = [
        Said("missing.trial", {"trial": one.name, "seed": trial.seed, "why": trial.why})
        for one in found
        for trial in one.skipped
    ]
    if not done:
        return (*gaps, Said("missing.everything"))
    if max(len(one.done) for one in done) == 1:
        gaps.append(Said("missing.spread"))
    if not _has_protections(done):
        gaps.append(Said("missing.protections"))
    for key, figure in (
        ("worst", "worst_after"),
        ("seconds", "client_seconds"),
        ("memory", "memory"),
    ):
        could = [one for one in done if not (key == "seconds" and one.pooled)]
        lacking = tuple(one.name for one in could if getattr(one, figure) is None)
        if len(lacking) == len(could):
            gaps.append(Said(f"missing.{key}"))
        elif lacking:
            gaps.append(Said(f"missing.{key}_of", {"trials": lacking}))
    if not priced(config.prices):
        gaps.append(Said("missing.prices"))
    gaps += [
        Said(
            "missing.estimated",
            {"trial": one.name, "what": tuple(Said(f"cost.{name}") for name in one.estimated)},
        )
        for one in done
        if one.estimated
    ]
    gaps += [
        Said("missing.note", {"trial": one.name, "why": trial.why})
        for one in done
        for trial in one.done[:1]
        if trial.why
    ]
    if record.public:
        gaps.append(Said("missing.private_data"))
    return (
        *gaps,
        Said("missing.devices"),
        Said("missing.attacks"),
        Said("missing.held_out_counted" if _counted(record) else "missing.held_out"),
    )


def _counted(record: PilotRecord) -> bool:
    """Whether held-out figures are from noised histograms."""
    return bool(record.run.get("evaluation", {}).get("figures") == "histogram")


def _has_protections(done: Sequence[Summary]) -> bool:
    names = {one.name for one in done if one.group == "protection"}
    return all(trial in names for pair in COMPARED.values() for trial in pair)
