"""Single updates from sums over different cohorts: a linear system.

Round r opens s_r = sum_i P[r, i] u_i, with P[r, i] = 1 for the clients in the sum, which the server
knows.  Where updates change little from round to round, u_i follows by least squares as soon as the
i-th unit vector lies in the row space of P: for all i once P has full column rank, after about n
random cohorts; for one victim after two sums that differ by the victim alone.

With independent noise of std sigma in each coordinate of a sum, the estimate of u_i has std
sigma |w_i|, where w_i is row i of the pseudo-inverse of P.

Source: So et al. 2023, "Securing Secure Aggregation: Mitigating Multi-Round Privacy Leakage in
Federated Learning" (2106.03328), the part on random selection.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed.attacks.base import AdversaryView, PublicKnowledge
from securefed.attacks.views import SumsOverRounds
from securefed.errors import ConfigError

_EXACT = 1e-9


def weights(cohorts: Sequence[Collection[str]]) -> Mapping[str, NDArray[np.float64]]:
    """By client whose update the sums determine: how to combine the sums to get it.

    Args:
        cohorts: whose updates each sum holds.

    Returns:
        float64[rounds] by name: the combination of least noise.  Clients whose unit vector is not
        in the row space of P are left out: no combination of these sums gives their updates.

    Raises:
        ConfigError: there is no sum.
    """
    if not cohorts:
        raise ConfigError("cohorts: none; at least one sum is needed")
    names = sorted({name for cohort in cohorts for name in cohort})
    members = np.array([[name in set(cohort) for name in names] for cohort in cohorts], dtype=float)
    inverse = np.linalg.pinv(members)
    hit = inverse @ members
    return {
        name: inverse[at]
        for at, name in enumerate(names)
        if np.abs(hit[at] - np.eye(len(names))[at]).max() < _EXACT
    }


@dataclass(frozen=True, eq=False)
class Solved(AdversaryView):
    """One client's update, as several sums together determine it.

    Attributes:
        client: whose.
        total: float64[d].
        roundings: sum over the rounds of squared weight times clients: by how much more the
            rounding (and noise) of one contribution is in it.
    """

    adversary: str
    client: str
    total: NDArray[np.float64] = field(repr=False)
    roundings: float

    @property
    def contributions(self) -> int:
        """Of how many contributions it has the rounding and noise; the update is that of one."""
        return max(1, math.ceil(self.roundings))

    def reading(self, public: PublicKnowledge) -> NDArray[np.float64]:
        """The update."""
        return self.total


def disaggregated(sums: SumsOverRounds) -> dict[str, Solved]:
    """Every client's update that the sums determine.

    Exact, but for rounding and noise, as long as clients send the same update in all rounds; else
    it is off by what changed.
    """
    totals = np.stack([each.total for each in sums.sums])
    inside = np.array([each.contributions for each in sums.sums])
    who = f"{sums.adversary} over {len(totals)} rounds"
    return {
        name: Solved(who, name, weight @ totals, float(weight**2 @ inside))
        for name, weight in weights([each.clients for each in sums.sums]).items()
    }
