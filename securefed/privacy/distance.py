"""How far the honest clients' summed noise is from a rounded continuous Gaussian.

The Gaussian mechanism's exact accounting applies to integer noise through one fact.  Rounding
(query + continuous Gaussian) to integers is post-processing of the Gaussian mechanism, and for an
integer query it equals query + *rounded* Gaussian.  Reducing mod 2^bits is post-processing again.
So if the noise that is really added is within total variation eta of a rounded Gaussian, over all
coordinates of a round, then T adaptive rounds satisfy the Gaussian's (epsilon, delta) with delta
raised by (1 + e^epsilon) T eta.

Three distances add up to eta:

1. One discrete Gaussian of variance s^2 against a Gaussian of variance s^2 - 1/12 rounded to
   integers.  Per coordinate their Hellinger distance is at most ``hellinger_bound(s)``; over p
   independent coordinates squared distances add, and total variation <= sqrt(2) Hellinger.
2. The sum of h discrete Gaussians of std s_c against one of variance h s_c^2: the log-ratio of the
   probabilities is at most 10 sum_{k<h} exp(-2 pi^2 s_c^2 k/(k+1)) per coordinate, so at most
   10 (h-1) exp(-pi^2 s_c^2).  Source: Kairouz, Liu and Steinke 2021 (2102.06387), on sums of
   discrete Gaussians.
3. The sampler's own distance, ``STATISTICAL_DISTANCE`` a draw.
"""

from __future__ import annotations

import math

from securefed.errors import UnsupportedEvent
from securefed.privacy.mechanisms import RoundPlan
from securefed.privacy.samplers import STATISTICAL_DISTANCE

_SMALLEST_STD = 4.0
_HELLINGER_CONSTANT = 1.0e-3


def hellinger_bound(std: float) -> float:
    """Hellinger distance of a discrete Gaussian and a rounded Gaussian of variance std^2 - 1/12.

    Expanding the rounded Gaussian's probability about an integer, the two log-probabilities agree
    up to terms of order std^-4, which gives a distance of about 6.0e-4 / std^4.  The bound used
    here is 1e-3 / std^4; a test compares it with 60-digit sums for std from 4 to 60.  That the
    constant keeps falling for larger std is the expansion's word, not a formal proof.

    Args:
        std: s >= 4, in grid units.

    Raises:
        UnsupportedEvent: s is below 4, where no bound is stated.
    """
    if std < _SMALLEST_STD:
        raise UnsupportedEvent(
            f"noise std = {std:.3g} grid units: the Gaussian's accounting is used from "
            f"{_SMALLEST_STD:g} upwards"
        )
    return _HELLINGER_CONSTANT / std**4


def total_variation_per_round(plan: RoundPlan, honest: int) -> float:
    """Eta of the module docstring for one round with ``honest`` clients' noise in the sum."""
    std = plan.local_std * math.sqrt(honest)
    one = math.sqrt(2.0 * plan.padded) * hellinger_bound(std)
    exponent = -(math.pi**2) * plan.local_std**2
    summed = plan.padded * 10.0 * (honest - 1) * math.exp(max(exponent, -700.0))
    return one + summed + honest * plan.padded * STATISTICAL_DISTANCE
