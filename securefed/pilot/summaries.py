"""Trials of one name taken together: the mean over seeds, the least and the most."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from securefed.pilot.records import Cost, Group, PilotRecord, Quality, Trial
from securefed.pilot.words import Gain, Said
from securefed.privacy.accounting import ADVERSARIES

FULL, POOLED, ALONE = "full fine-tuning", "pooled training", "clients alone"
"""Baselines, by name."""

_UNITS = {"one example": "example", "one user": "user", "one client": "client"}


@dataclass(frozen=True)
class Spread:
    """Figures of the same thing with several seeds."""

    mean: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """None where a value is missing, or all are: a mean over some would flatter."""
        found = list(values)
        known = [value for value in found if value is not None]
        if not known or len(known) < len(found):
            return None
        if any(math.isnan(value) for value in known):
            return cls(math.nan, math.nan, math.nan, len(known))
        return cls(math.fsum(known) / len(known), min(known), max(known), len(known))


def most_of(spread: Spread | None) -> float | None:
    """The largest of them, where there are any."""
    return None if spread is None else spread.most


@dataclass(frozen=True)
class Summary:
    """One way to train, over its seeds.

    Attributes:
        name, group, varied: as of its trials.
        done: trials that finished.
        skipped: those that did not.
    """

    name: str
    group: Group
    varied: Mapping[str, Any]
    done: tuple[Trial, ...]
    skipped: tuple[Trial, ...]

    def _over(self, figure: Callable[[Trial], float | None]) -> Spread | None:
        return Spread.of(figure(trial) for trial in self.done)

    def _quality(self, figure: Callable[[Quality], float | None]) -> Spread | None:
        return self._over(lambda trial: figure(trial.quality) if trial.quality else None)

    def _cost(self, figure: Callable[[Cost], float | None]) -> Spread | None:
        return self._over(lambda trial: figure(trial.cost) if trial.cost else None)

    @cached_property
    def improvement(self) -> Spread | None:
        """Of the held-out figure, as :attr:`~securefed.pilot.records.Quality.improvement`."""
        return self._quality(lambda quality: quality.improvement)

    @cached_property
    def before(self) -> Spread | None:
        """The untrained model's held-out figure."""
        return self._quality(lambda quality: quality.before)

    @cached_property
    def after(self) -> Spread | None:
        """The held-out figure at the end."""
        return self._quality(lambda quality: quality.after)

    @cached_property
    def worst_before(self) -> Spread | None:
        """Of the worst client, untrained."""
        return self._quality(lambda quality: quality.worst_before)

    @cached_property
    def worst_after(self) -> Spread | None:
        """Of the worst client, at the end."""
        return self._quality(lambda quality: quality.worst_after)

    @cached_property
    def bytes(self) -> Spread | None:
        """Sent and received by a client in a round."""
        return self._cost(lambda cost: cost.bytes_up + cost.bytes_down)

    @cached_property
    def client_seconds(self) -> Spread | None:
        """CPU seconds of a client and round; None where they were not, or must not be, seen."""
        return self._cost(client_seconds)

    @cached_property
    def memory(self) -> Spread | None:
        """Most resident memory, in bytes."""
        return self._cost(lambda cost: cost.memory_bytes)

    @cached_property
    def storage(self) -> Spread | None:
        """Bytes on a client's disk."""
        return self._cost(lambda cost: sum(cost.storage_bytes.values()))

    @cached_property
    def epsilon(self) -> float | None:
        """The largest over seeds; None where for one of them nothing holds."""
        found = Spread.of(trial.epsilon for trial in self.done)
        return None if found is None else found.most

    @property
    def pooled(self) -> bool:
        """Whether one party holds all data here, and no client works."""
        return self.group == "baseline" and self.name.startswith(POOLED)

    @property
    def gain(self) -> Gain | None:
        """The mean improvement, with its metric."""
        if self.improvement is None or self.done[0].quality is None:
            return None
        return Gain(self.done[0].quality.metric, self.improvement.mean)

    @property
    def estimated(self) -> tuple[str, ...]:
        """Figures of its cost that follow from a formula."""
        return tuple(
            dict.fromkeys(
                name for trial in self.done if trial.cost for name in trial.cost.estimated
            )
        )

    def privacy(self) -> Said:
        """Its epsilon with unit, delta and adversary: never a bare number."""
        worst = max(self.done, key=lambda t: -1.0 if t.epsilon is None else t.epsilon, default=None)
        if worst is None:
            return Said("not_measured")
        if self.epsilon is None:
            return Said("epsilon.none")
        return Said("epsilon.stated", {"epsilon": self.epsilon, "terms": terms_of(worst)})


def client_seconds(cost: Cost) -> float | None:
    """CPU seconds of a client and round, over all phases.

    None where none was recorded, or where an estimate leaves out training: what is left of it would
    pass for the whole.
    """
    phases = cost.client_seconds
    if not phases or ("client_seconds" in cost.estimated and "train" not in phases):
        return None
    return math.fsum(phases.values())


def guarantee_of(trial: Trial) -> Mapping[str, Any] | None:
    """The statement that a trial's epsilon is part of, or None.

    Where several adversaries are held to the same epsilon, that against the strongest.
    """
    found = [
        held
        for held in trial.guarantees
        if held.get("epsilon") == trial.epsilon
        and held.get("against") in ADVERSARIES
        and {"unit", "delta"} <= held.keys()
    ]
    return min(found, key=lambda held: ADVERSARIES.index(held["against"]), default=None)


def terms_of(trial: Trial) -> Said:
    """Unit, delta and adversary of a trial's epsilon, without which it says nothing."""
    held = guarantee_of(trial)
    if held is None:
        return Said("epsilon.no_terms")
    return Said(
        "epsilon.terms",
        {
            "delta": held["delta"],
            "unit": _unit(str(held["unit"])),
            "against": Said(f"against.{held['against']}"),
        },
    )


def _unit(text: str) -> Said | str:
    for start, unit in _UNITS.items():
        if text.startswith(start):
            return Said(f"unit.{unit}")
    return text


def summaries(record: PilotRecord) -> tuple[Summary, ...]:
    """A pilot's trials by name, in the order of running."""
    found: dict[tuple[Group, str], list[Trial]] = {}
    for trial in record.trials:
        found.setdefault((trial.group, trial.name), []).append(trial)
    return tuple(
        Summary(
            name=name,
            group=group,
            varied=trials[0].varied,
            done=tuple(trial for trial in trials if trial.status == "done"),
            skipped=tuple(trial for trial in trials if trial.status == "skipped"),
        )
        for (group, name), trials in found.items()
    )


def baseline(found: Iterable[Summary], name: str) -> Summary | None:
    """The finished baseline of this name that gained most, or None.

    Variants of one baseline (other learning rates, say) begin with its name.
    """
    these = [
        one
        for one in found
        if one.group == "baseline" and one.name.startswith(name) and one.improvement is not None
    ]
    return max(
        these, key=lambda one: one.improvement.mean if one.improvement else 0.0, default=None
    )
