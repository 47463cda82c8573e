"""What comes on top of an ideal mechanism's delta, and how delta is divided to hold it."""

from __future__ import annotations

import math
from collections.abc import Callable

# Shares of delta that the ideal mechanism may use.  The first that leaves room for the additions is
# taken: long runs with a large epsilon need more.
_SHARES = (0.999, 0.99, 0.9, 0.5)
_LARGEST_EPSILON = 500.0  # exp of it is still a float


def with_additions(
    epsilon_at: Callable[[float], float], *, per_round: float, rounds: int, delta: float
) -> float:
    """Epsilon of a real mechanism from that of the ideal one it is close to, round by round.

    If in each of T adaptively composed rounds the real output is within eta of the ideal one's in
    total variation, on either of two neighbours, then outputs of whole runs are within T eta, and
    an ideal (epsilon, delta') makes the real run (epsilon, delta' + (1 + e^epsilon) T eta).

    Args:
        epsilon_at: epsilon of the ideal run as a function of the delta' it may use, falling.
        per_round: eta.
        rounds: T, charged attempts, >= 0.
        delta: what delta' and the additions must fit in together, in (0, 1).

    Returns:
        An upper bound; ``math.inf`` where the additions use up half of delta or more.
    """
    for share in _SHARES:
        epsilon = epsilon_at(delta * share)
        if epsilon > _LARGEST_EPSILON:
            break
        if (1.0 + math.exp(epsilon)) * rounds * per_round <= delta * (1.0 - share):
            return epsilon
    return math.inf
