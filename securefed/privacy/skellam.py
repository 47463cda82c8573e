"""Exact, vectorised sampler of the symmetric Skellam distribution.

Beside the discrete Gaussian of :mod:`securefed.privacy.samplers`, with the same generator, table
look-up and settling of ties.  Sums of independent Skellam variables are Skellam with the variances
added, so a sum of clients' noises needs no approximation; its accounting is by Renyi divergence
(:mod:`securefed.privacy.rdp`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache

from securefed.errors import ConfigError
from securefed.privacy.inversion import TABLE_BITS, CumulativeTable, SymmetricInversion

MIN_VARIANCE = 0.25
MAX_VARIANCE = 2.0**34
"""The table has about 12 std entries: 4 s and 0.3 GB to build at this end, 0.1 s at std 10^3."""

_TAIL_NATS = 71.0  # P(|X| > K) <= 2 exp(-71) < 2^-101
_START_NATS = 140.0  # the recurrence starts where it errs by exp(-140) < 2^-201 at K
_START_BITS = 320
_RATIO_BITS = 256


def _rate(variance: float, x: float) -> float:
    """r(x) = x asinh(x / v) - sqrt(x^2 + v^2) + v, the Chernoff exponent of P(X >= x)."""
    y = x / variance
    # sqrt(1 + y^2) - 1 without its cancellation for small y.
    return x * math.asinh(y) - variance * (y * y / (math.sqrt(1.0 + y * y) + 1.0))


def _first(holds: Callable[[int], bool]) -> int:
    """The least integer >= 0 at which a monotone predicate holds."""
    stop = 1
    while not holds(stop):
        stop *= 2
    start = 0
    while start < stop:
        middle = (start + stop) // 2
        if holds(middle):
            stop = middle
        else:
            start = middle + 1
    return start


@lru_cache(maxsize=4)
def _skellam_table(variance: float) -> CumulativeTable:
    """T_k of :class:`Skellam` for k = 0..K, by the recurrence analysed there."""
    top, bottom = variance.as_integer_ratio()
    last = _first(lambda k: _rate(variance, k + 1.0) >= _TAIL_NATS)
    reach = _rate(variance, float(last)) + _START_NATS
    start = _first(lambda k: _rate(variance, float(k)) >= reach)

    after = weight = 1 << _START_BITS  # W_{k+1} and W_k
    descending = []
    for k in range(start, 0, -1):
        if k <= last:
            descending.append(weight)
        after, weight = weight, after + 2 * k * bottom * weight // top
    total = weight + 2 * sum(descending)
    shift = total.bit_length() - _RATIO_BITS
    short_total = total >> shift

    def entries() -> Iterator[int]:
        cumulative = weight
        while descending:
            yield ((cumulative >> shift) << TABLE_BITS) // short_total
            cumulative += 2 * descending.pop()

    return CumulativeTable.of(entries(), last)


class Skellam(SymmetricInversion):
    """The symmetric Skellam distribution: the difference of two Poisson variables of mean v / 2.

    P(X = k) = exp(-v) I_|k|(v), where I_k is the modified Bessel function of the first kind and v
    the variance.  Drawn by inversion as :class:`~securefed.privacy.inversion.SymmetricInversion`
    says, from a table T_k of about 2^191 C_k, where C_k = P(|X| <= k).  With
    r(x) = x asinh(x/v) - sqrt(x^2 + v^2) + v, the table ends at the least K with r(K + 1) >= 71
    (about 12 std; more where v is small, as the tails are heavier than a Gaussian's).

    Guarantees:
        - Each draw is within :data:`~securefed.privacy.inversion.STATISTICAL_DISTANCE` = 2^-100
          of the Skellam distribution in total variation, given uniform words.  Over n draws
          distances add to at most n 2^-100.
        - The sum of h independent draws is Skellam of variance h v, to within h 2^-100.

    Proof.

    1. Cutting at K.  E exp(tX) = exp(v (cosh t - 1)), so with t = asinh(x/v) Chernoff's bound is
       P(X >= x) <= exp(-r(x)).  Conditioning on |X| <= K moves P by exactly
       P(|X| > K) <= 2 exp(-r(K + 1)) <= 2 exp(-71) < 2^-101.
    2. The recurrence.  W_{k-1} = W_{k+1} + (2k/v) W_k is solved by I_k and by (-1)^k K_k (K_k the
       Bessel function of the second kind), so from W_{N+1} = W_N it gives, up to a factor,
       W_k = I_k + c (-1)^k K_k with |c| = (I_N - I_{N+1}) / (K_N + K_{N+1}) <= I_N / K_N.  As
       I_k falls and K_k rises with k, W_k differs from I_k, relatively, by at most I_N / I_K for
       every k <= K.  Now I_{j+1}/I_j <= exp(-asinh((j + 1/2)/v)) (Amos), asinh is concave, and r
       is the integral of asinh(x/v), so I_N / I_K <= exp(r(K) - r(N)) <= exp(-140) < 2^-201 by
       the choice of N.
    3. Its arithmetic.  Integers start at 2^320 and rise as k falls; each step loses less than 1,
       so at most 2^-320 of what it computes, and all terms are positive: relative errors do not
       grow but add, to less than N 2^-320 < 2^-297.  With 2., every W_k and each sum of them is
       right to 2^-200 relative, up to one factor, and a ratio of two sums to 2^-198.
    4. Cutting numerator and denominator to 256 bits errs by < 2^-253, cutting the quotient to 191
       bits by < 2^-191: T_k / 2^191 is within 2^-190 of C_k / C_K.
    5. Total variation of the table is at most half the sum of the errors of its K + 1
       differences, (K + 1) 2^-190 < 2^-169, as K + 1 < 2^21.  2^-101 + 2^-169 < 2^-100.

    Source: Skellam 1946 for the distribution; Agarwal, Kairouz and Liu 2021 (2110.04995), section
    2, for its use as noise; Gautschi 1967, "Computational aspects of three-term recurrence
    relations", for the backward recurrence (Miller's algorithm); Amos 1974, "Computation of
    modified Bessel functions and their ratios", for the bound on ratios.

    Args:
        variance: v in squared grid units, 0.25 <= v <= 2^34; any float in between is taken exactly.
            Each of the two Poisson variables has mean v / 2.

    Raises:
        ConfigError: ``variance`` is outside that.
    """

    def __init__(self, variance: float) -> None:
        if not MIN_VARIANCE <= variance <= MAX_VARIANCE:  # also refuses nan
            raise ConfigError(
                f"variance = {variance}; it must satisfy {MIN_VARIANCE} <= variance <= 2^34 "
                "squared grid units"
            )
        self._variance = float(variance)
        super().__init__(_skellam_table(self._variance))

    def __repr__(self) -> str:
        return f"Skellam(variance={self._variance!r})"

    @property
    def variance(self) -> float:
        """The variance v in squared grid units, exactly that of the distribution."""
        return self._variance

    @property
    def std(self) -> float:
        """The square root of the variance, in grid units."""
        return math.sqrt(self._variance)
