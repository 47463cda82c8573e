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
2. The sum of m independent discrete Gaussians, of any variances, against one of the summed
   variance: the log-ratio of the probabilities is at most 10 (m-1) exp(-pi^2 s_min^2) per
   coordinate, with s_min >= 1/2 the least of their std.  The proof is below.
3. The sampler's own distance, ``STATISTICAL_DISTANCE`` a draw.

Proof of 2.  Two summands first, of variances a^2 and b^2.  Completing the square,

    x^2 / a^2 + (z - x)^2 / b^2 = z^2 / (a^2 + b^2) + (x - z a^2 / (a^2 + b^2))^2 / tau^2,
    tau^2 = a^2 b^2 / (a^2 + b^2),

so P(X + Y = z) is proportional to exp(-z^2 / (2 (a^2 + b^2))) times a sum of
exp(-(x - shift)^2 / (2 tau^2)) over the integers x.  By Poisson summation that sum is
tau sqrt(2 pi) (1 + 2 sum_{k>=1} exp(-2 pi^2 tau^2 k^2) cos(2 pi k shift)), within a factor
1 +- e of tau sqrt(2 pi), where e = 2 sum_{k>=1} exp(-2 pi^2 tau^2 k^2).  The normalising constant
is an average of such sums and lies within the same factor.  So P(X + Y = z) over the discrete
Gaussian of variance a^2 + b^2 lies within (1 + e) / (1 - e) either way.  tau^2 >= min(a, b)^2 / 2,
so with q = exp(-pi^2 min(a, b)^2) <= exp(-pi^2 / 4) we have e <= 2 q / (1 - q^3) and
log((1 + e) / (1 - e)) <= 10 q.

More summands are merged one at a time.  If the sum so far is within a log-ratio L of one discrete
Gaussian, adding the next summand to both keeps that, since a ratio of mixtures with the same
weights lies between the ratios of their parts; merging that summand adds at most 10 q.  What is
merged has a std of at least s_min each time, since variances only grow.

For equal variances the bound follows from Kairouz, Liu and Steinke 2021 (2102.06387), on sums of
discrete Gaussians, too.
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
    """Eta of the module docstring for one round.

    Args:
        plan: the round's scale and noise.
        honest: clients whose noise the adversary does not know, in a sum of the fewest survivors.

    Guarantees:
        - With noise in layers it holds however many clients are missing: no sum has more summands,
          a smaller one or less noise in all than is assumed.
    """
    one = math.sqrt(2.0 * plan.padded) * hellinger_bound(plan.noise_std(honest))
    most = (honest + len(plan.removable_stds)) * (1 + len(plan.removable_stds))
    exponent = -(math.pi**2) * min((plan.kept_std, *plan.removable_stds)) ** 2
    summed = plan.padded * 10.0 * (most - 1) * math.exp(max(exponent, -700.0))
    return one + summed + most * plan.padded * STATISTICAL_DISTANCE
