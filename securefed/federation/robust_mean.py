"""A mean of group means that a minority of wrong groups cannot carry away.

Secure aggregation shows sums only, so a rule that looks at single updates cannot be used.  Where a
cohort is summed in g groups (:mod:`securefed.federation.group_sums`) the server has means x_1..x_g
instead, and a corrupt client spoils the one that it is in.  Let H be the groups without a corrupt
client, and t = g - |H| < g / 2 the others.  Whatever the t others are:

- *coordinate-wise median*: each coordinate of the result lies between the least and the largest of
  x_i, i in H, there (with t < g / 2 at least one of H is on either side of it, or it is in H);
- *trimmed mean* with t cut off at either end: the same;
- *geometric median* z = argmin_z sum_i |z - x_i|: for every point c and every r with |x_i - c| <= r
  for all i in H,  |z - c| <= (1 - a) / sqrt(1 - 2 a) r,  with a = t / g.

Nothing is promised within those bounds.  The rules are post-processing of opened sums and cost no
privacy.  What they cost is variance: a median of g means of Gaussian noise has up to pi / 2 times
the variance of their mean, and each group carries the whole noise of a round of its own.

Sources: Yin et al. 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates"
(1803.01498), definitions 1 and 2; Minsker 2015, "Geometric median and robust estimation in Banach
spaces" (1308.1334), lemma 2.1; Pillutla, Kakade and Harchaoui 2022, "Robust Aggregation for
Federated Learning" (1912.13445), algorithm 2 (the smoothed Weiszfeld steps).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from securefed.errors import ConfigError, ThresholdNotMet

Rule = Literal["mean", "median", "trimmed", "geometric"]
"""How group means are combined; ``"mean"`` tolerates no wrong group."""

_STEPS = 1000
_MOVED = 1e-10
_SMOOTHING = 1e-9


def robust_mean(
    means: Sequence[NDArray[np.float64]], *, rule: Rule, tolerated: int = 0
) -> NDArray[np.float64]:
    """Combine the means of the groups that were opened.

    Run by: server.  Post-processing of opened sums.

    Args:
        means: float64[d] of each group, g of them, finite.
        rule: one of ``Rule``.
        tolerated: t >= 0, groups that may hold a corrupt client; 0 with ``"mean"``.  It is what is
            cut off at either end of a ``"trimmed"`` mean, and what the other two are held to.

    Returns:
        float64[d].

    Raises:
        ConfigError: an argument is outside that, or shapes differ.
        ThresholdNotMet: fewer than 2 t + 1 groups were opened: most of them might be wrong.

    Example:
        >>> import numpy as np
        >>> means = [np.array([1.0, 2.0]), np.array([1.2, 1.8]), np.array([900.0, -900.0])]
        >>> robust_mean(means, rule="median", tolerated=1)
        array([1.2, 1.8])
    """
    if rule not in get_args(Rule):
        raise ConfigError(f"rule = {rule!r}: must be one of {get_args(Rule)}")
    if tolerated < 0 or (rule == "mean" and tolerated):
        raise ConfigError(
            f"tolerated = {tolerated} with rule = {rule!r}: must be "
            f"{'0: a mean follows any one of its groups' if rule == 'mean' else '>= 0'}"
        )
    if len({mean.shape for mean in means}) > 1 or any(mean.ndim != 1 for mean in means):
        raise ConfigError("means: must be vectors of one length")
    if len(means) < 2 * tolerated + 1:
        raise ThresholdNotMet(
            f"{len(means)} groups were opened: with tolerated = {tolerated} at least "
            f"{2 * tolerated + 1} are needed, or most of them might be wrong"
        )
    stacked = np.stack(means).astype(np.float64)
    if not np.isfinite(stacked).all():
        raise ConfigError("means: one holds NaN or infinity; every value must be finite")
    if rule == "median":
        return np.asarray(np.median(stacked, axis=0), dtype=np.float64)
    if rule == "geometric":
        return _geometric_median(stacked)
    kept = np.sort(stacked, axis=0)[tolerated : len(means) - tolerated]
    return np.asarray(kept.mean(axis=0), dtype=np.float64)


def largest_deviation(groups: int, tolerated: int) -> float:
    """(1 - a) / sqrt(1 - 2 a), the factor in the geometric median's bound, a = t / g.

    Raises:
        ConfigError: not 0 <= t < g / 2.
    """
    if not 0 <= 2 * tolerated < groups:
        raise ConfigError(f"tolerated = {tolerated} of {groups} groups: must be 0 <= t < g / 2")
    share = tolerated / groups
    return (1.0 - share) / math.sqrt(1.0 - 2.0 * share)


def _geometric_median(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weiszfeld's steps from the median, distances held above a grain of the points' own spread."""
    centre = np.median(points, axis=0)
    spread = float(np.median(np.linalg.norm(points - centre, axis=1)))
    if spread == 0.0:  # at least half of the points are this one, so it is the geometric median
        return np.asarray(centre, dtype=np.float64)
    for _ in range(_STEPS):
        weights = 1.0 / np.maximum(np.linalg.norm(points - centre, axis=1), _SMOOTHING * spread)
        following = weights @ points / weights.sum()
        moved = float(np.linalg.norm(following - centre))
        centre = following
        if moved <= _MOVED * spread:
            break
    return np.asarray(centre, dtype=np.float64)
