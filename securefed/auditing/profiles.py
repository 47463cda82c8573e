"""Which cells an audit has: few and quick, or all."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from securefed.auditing.catalogue import CATALOGUE, entry
from securefed.auditing.cells import MASKS, Cell
from securefed.auditing.entries import Entry
from securefed.auditing.from_config import AuditedRun
from securefed.errors import ConfigError

Profile = Literal["quick", "full"]

NOISES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""z of the sweep: each client's noise over the clip norm."""
COHORTS = (2, 4, 8, 16)
"""n of the sweep."""


@dataclass(frozen=True)
class Amount:
    """How much a profile does.

    Attributes:
        trials: of each cell.
        control_trials: of the control, which is there to show that the attack works at all.
        trial_seconds: of one trial at most.
        seconds: of the whole audit, where nothing else is said.
    """

    trials: int
    control_trials: int
    trial_seconds: float
    seconds: float


AMOUNTS: dict[Profile, Amount] = {
    # What is at work when the time is over is not cut off: with it an audit ends within 30 minutes.
    "quick": Amount(trials=8, control_trials=3, trial_seconds=30.0, seconds=1500.0),
    "full": Amount(trials=20, control_trials=5, trial_seconds=120.0, seconds=86400.0),
}


def cells(
    run: AuditedRun,
    profile: Profile,
    *,
    attacks: Collection[str] = (),
    trials: int | None = None,
    seed: int = 0,
) -> list[Cell]:
    """The cells of an audit, an attack's control and baseline before what they are needed for.

    Args:
        run: that is audited.
        profile: ``"quick"``: one example of each client a round.  ``"full"``: also as many as a
            client has, every attack, and the sweeps over noise and cohort.
        attacks: only these; those of the profile if there are none.
        trials: of each cell; the profile's own without it.
        seed: the first; trials have one after another.

    Raises:
        ConfigError: an attack or the profile is unknown, or ``trials`` < 1.
    """
    if profile not in AMOUNTS:
        raise ConfigError(f"profile = {profile!r}; allowed: {', '.join(map(repr, AMOUNTS))}")
    amount = AMOUNTS[profile]
    many = amount.trials if trials is None else trials
    if many < 1:
        raise ConfigError(f"trials = {many}; it must be >= 1")
    chosen = [entry(name) for name in attacks] or [
        each for each in CATALOGUE.values() if profile == "full" or each.cost == "quick"
    ]
    batches = [1] if profile == "quick" or run.share == 1 else [1, run.share]
    found: list[Cell] = []
    for each in chosen:
        for batch in batches if each.sized else [1]:
            found += _of(each, profile, batch, many, min(many, amount.control_trials), seed)
    return found


def _of(
    each: Entry, profile: Profile, batch: int, trials: int, control: int, seed: int
) -> list[Cell]:
    def cell(exposure: str, defence: str, clients: int | None = None) -> Cell:
        count = control if exposure == "control" else trials
        seeds = tuple(range(seed, seed + count))
        return Cell(each.name, exposure, defence, batch, clients, seeds)

    columns = each.quick if profile == "quick" else each.full
    found = [cell(exposure, defence) for exposure, defence in columns]
    if profile == "full" and each.kind == "texts" and batch == 1:
        found += [cell("plain", f"noise-{z:g}") for z in NOISES]
        found += [cell("sum", MASKS, n) for n in COHORTS]
    return found
