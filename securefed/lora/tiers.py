"""The public ranks that clients of one adapter may have.  Needs no torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

from securefed.errors import ConfigError


@dataclass(frozen=True)
class RankTiers:
    """The ranks that clients may have, lowest first.

    Args:
        ranks: r_1 < .. < r_m, each >= 1.

    Raises:
        ConfigError: there are none, or they do not rise.

    Example:
        >>> tiers = RankTiers((4, 8, 16))
        >>> tiers.tier(12), tiers.members({"a": 4, "b": 12, "c": 16})
        (2, [3, 2, 1])
    """

    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in itertools.pairwise((0, *self.ranks)))
        if not self.ranks or not rising:
            raise ConfigError(f"rank tiers {self.ranks}: must be ranks >= 1 that rise")

    @property
    def largest(self) -> int:
        """r_m, the rank of the server's adapter."""
        return self.ranks[-1]

    def bounds(self, number: int) -> tuple[int, int]:
        """First column of slice ``number`` (1-based), and the one after its last."""
        return (0, *self.ranks)[number - 1], self.ranks[number - 1]

    def tier(self, rank: int) -> int:
        """The highest tier of at most this rank, 1..m.

        Raises:
            ConfigError: the rank is below the lowest tier's.
        """
        found = sum(own <= rank for own in self.ranks)
        if not found:
            raise ConfigError(f"rank = {rank}: the lowest tier has rank {self.ranks[0]}")
        return found

    def members(self, ranks: Mapping[str, int]) -> list[int]:
        """How many clients hold each slice: those of its tier and above."""
        tiers = [self.tier(rank) for rank in ranks.values()]
        return [sum(tier >= number for tier in tiers) for number in range(1, len(self.ranks) + 1)]

    def merged(self, standing: int) -> RankTiers:
        """The lowest ``standing`` tiers; clients of higher rank are then of the last of them.

        Run by: every party for itself, before training, from public sizes
        (``securefed.federation.slices.standing_slices``).
        """
        return RankTiers(self.ranks[:standing])
