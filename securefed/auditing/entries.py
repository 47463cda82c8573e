"""What an attack in the catalogue is, and what measuring it in one cell gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pydantic import JsonValue

from securefed.attacks.base import Limits
from securefed.auditing.cells import BOTH, CLIP, GROUPS, MASKS, NOISE, OFF, PROTOCOL, Cell
from securefed.auditing.from_config import AuditedRun
from securefed.errors import ConfigError
from securefed.evidence.results import Kind, Metric, Verdict

Cost = Literal["quick", "full"]
Column = tuple[str, str]
"""Exposure and defence."""

UNBOUNDED = 1e6
"""Stands for a lower bound on epsilon that is infinite, which JSON cannot hold."""

PLAIN: Column = ("plain", OFF)
CONTROL: Column = ("control", OFF)
QUICK_ROUNDS: tuple[Column, ...] = (
    CONTROL,
    PLAIN,
    ("other", OFF),
    ("plain", NOISE),
    ("masked", MASKS),
    ("encrypted", MASKS),
    ("sum", MASKS),
    ("sum", BOTH),
)
"""What attacks on the texts of one round are tried on."""
FULL_ROUNDS: tuple[Column, ...] = (
    *QUICK_ROUNDS,
    ("masked", BOTH),
    ("masked with all others", MASKS),
    ("masked with all others", BOTH),
    ("sum with all others", MASKS),
    ("sum with all others", BOTH),
    ("rounds", MASKS),
    ("rounds", BOTH),
    ("released", MASKS),
    ("released", BOTH),
)


class Clock(Protocol):
    """How much of a cell's time is left, and who hears of its trials."""

    @property
    def over(self) -> bool:
        """Whether no further trial may begin."""
        ...

    @property
    def left(self) -> float:
        """Seconds until then."""
        ...

    def trial(self, done: int, total: int) -> None:
        """One more trial is done."""
        ...


@dataclass(frozen=True)
class Finding:
    """What a cell's trials showed; the fields of a ``Measurement``, and seconds beside them."""

    metrics: Mapping[str, Metric] = field(default_factory=dict)
    headline: str | None = None
    seeds: tuple[int, ...] = ()
    n: int = 0
    verdict: Verdict = "guessed"
    reason: str = ""
    void: int = 0
    predicted: Mapping[str, JsonValue] | None = None
    curve: tuple[tuple[float, float], ...] = ()
    seconds_per_trial: float | None = None
    ended_by_time: int = 0

    @classmethod
    def none(cls, verdict: Verdict, reason: str) -> Finding:
        """No trial was made."""
        return cls(verdict=verdict, reason=reason)


Measure = Callable[[AuditedRun, Cell, Limits, Clock], Finding]


@dataclass(frozen=True)
class Entry:
    """One attack.

    Attributes:
        name: results are filed under it.
        kind: what it goes for.
        what: in words.
        cost: ``"quick"`` ones are in every audit, ``"full"`` ones in thorough ones alone.
        measure: runs the trials of one cell.
        quick: its cells in a quick audit, each exposure's baseline before the others.
        full: in a full one.
        baseline: by exposure, the cell in which it must be seen to work before its failure in
            another counts; of an exposure that is not named, ``plain`` with the defence off.
        sized: whether texts of each client, noise and cohort can be varied.
    """

    name: str
    kind: Kind
    what: str
    cost: Cost
    measure: Measure = field(repr=False)
    quick: tuple[Column, ...] = QUICK_ROUNDS
    full: tuple[Column, ...] = FULL_ROUNDS
    baseline: Mapping[str, Column] = field(default_factory=dict)
    sized: bool = True

    @property
    def exposures(self) -> tuple[str, ...]:
        """All that it can be tried on."""
        return tuple(dict.fromkeys(exposure for exposure, _ in self.full))

    def check(self, cell: Cell) -> None:
        """Refuse a cell whose measurement would not be of what the cell says.

        Raises:
            ConfigError: as :meth:`Cell.check`; or the attack is not tried on the exposure, it does
                not know the defence, or a batch or a cohort is set that it does not take.
        """
        cell.check()
        if cell.exposure not in self.exposures:
            raise ConfigError(
                f"exposure = {cell.exposure!r}: {self.name} can be tried on "
                f"{', '.join(map(repr, self.exposures))}"
            )
        known = [defence for exposure, defence in self.full if exposure == cell.exposure]
        other = cell.defence in (PROTOCOL, CLIP, GROUPS) if self.sized else True
        if other and cell.defence not in known:
            raise ConfigError(
                f"defence = {cell.defence!r}: {self.name} on {cell.exposure!r} knows "
                f"{', '.join(map(repr, known))}"
            )
        if not self.sized and (cell.batch, cell.clients) != (1, None):
            raise ConfigError(
                f"batch = {cell.batch}, clients = {cell.clients}: {self.name} has its own; leave "
                "both out"
            )

    def baseline_of(self, exposure: str) -> Column:
        """The cell in which it must work first."""
        return self.baseline.get(exposure, PLAIN)
