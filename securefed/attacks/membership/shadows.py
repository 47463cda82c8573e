"""What the attacker's own runs of the public recipe say of the candidates."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Shadows:
    """s runs of the attacker's own, each judged on all candidates.

    Runs whose data holds no candidate are *offline*: they can be made before there are candidates.
    *Online* runs hold each candidate about half of the time.

    Attributes:
        inside: bool[s, n], which candidates each run was trained on.
        losses: float64[s, n], mean negative log-likelihood of each candidate after each run.
        population: float64[s, p], the same of the attacker's other records, which are in no run.

    Raises:
        ConfigError: shapes differ, or a loss is not finite.
    """

    inside: NDArray[np.bool_] = field(repr=False)
    losses: NDArray[np.float64] = field(repr=False)
    population: NDArray[np.float64] = field(repr=False)

    def __post_init__(self) -> None:
        if (
            self.losses.ndim != 2
            or self.inside.shape != self.losses.shape
            or self.population.ndim != 2
            or len(self.population) != len(self.losses)
        ):
            raise ConfigError(
                f"shadows: shapes {self.inside.shape}, {self.losses.shape} and "
                f"{self.population.shape}; allowed are [s, n] twice and [s, p]"
            )
        if not (np.isfinite(self.losses).all() and np.isfinite(self.population).all()):
            raise ConfigError("shadows: a loss is NaN or infinite")

    def __len__(self) -> int:
        return len(self.losses)

    def apart_from(self, inside: NDArray[np.bool_]) -> Shadows:
        """The shadows for an attack on one of these runs: neither it nor its opposite.

        Where runs come in pairs of opposite halves each record is in half of all runs.  With one
        run alone left out, how often a record is in the others would tell whether it is in that.

        Args:
            inside: bool[n], of the run that is attacked.
        """
        same = (self.inside == inside).all(axis=1) | (self.inside == ~inside).all(axis=1)
        return Shadows(self.inside[~same], self.losses[~same], self.population[~same])

    @property
    def outside_enough(self) -> bool:
        """Whether each candidate was left out of two runs or more."""
        return bool((~self.inside).sum(axis=0).min(initial=2) >= 2) and len(self) >= 2

    @property
    def inside_enough(self) -> bool:
        """Whether each candidate was in two runs or more."""
        return bool(self.inside.sum(axis=0).min(initial=2) >= 2) and len(self) >= 2


def masked_mean(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """float64[n]: of float64[s, n], each column's mean over the runs that are chosen for it."""
    found: NDArray[np.float64] = np.where(chosen, values, 0.0).sum(axis=0) / chosen.sum(axis=0)
    return found
