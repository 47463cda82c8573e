"""Thresholds of a pairwise round, computed, never set by hand."""

from __future__ import annotations

from dataclasses import dataclass

from securefed.errors import ConfigError
from securefed.privacy.policy import CohortBounds


@dataclass(frozen=True)
class PairwiseParameters:
    """What every party of a round computes for itself from the cohort's size.

    Attributes:
        size: n, clients invited.
        corrupt: most clients that may collude with the server.
        threshold: t, shares that reconstruct a secret and signatures that confirm a survivor list.
        survivor_floor: least survivors; clients refuse to unmask fewer.

    Guarantees:
        - ``threshold > (n + corrupt) / 2``: two different survivor lists cannot both be confirmed,
          since each confirmation holds more than (n - corrupt) / 2 honest signatures and an honest
          client signs once in an attempt (signatures cover the attempt's fresh keys).  The same
          bound keeps the server from gathering a threshold of both kinds of share of one client.
        - ``threshold <= survivor_floor``: the survivors can always finish.

    Source: Bonawitz et al. 2017, "Practical Secure Aggregation", the part on active adversaries.
    """

    size: int
    corrupt: int
    threshold: int
    survivor_floor: int

    @classmethod
    def of(cls, bounds: CohortBounds) -> PairwiseParameters:
        """Parameters for a complete graph of ``bounds.size`` clients.

        Raises:
            ConfigError: corrupt and dropout fractions leave no safe threshold
                (gamma + 2 delta must stay below 1).
        """
        threshold = (bounds.size + bounds.corrupt) // 2 + 1
        if threshold > bounds.survivor_floor:
            raise ConfigError(
                f"{bounds.size} clients, {bounds.corrupt} of them corrupt, and a floor of "
                f"{bounds.survivor_floor} survivors: the threshold would be {threshold}, above the "
                "floor; lower corrupt_fraction or dropout_fraction (corrupt_fraction + 2 * "
                "dropout_fraction must stay below 1)"
            )
        return cls(
            size=bounds.size,
            corrupt=bounds.corrupt,
            threshold=threshold,
            survivor_floor=bounds.survivor_floor,
        )
