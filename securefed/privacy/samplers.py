"""Exact, vectorised samplers on the integers: discrete Gaussian, rounding, Poisson subsets.

Every probability here is a ratio of integers that the code states and a proof bounds.  No noise
is ever a floating-point number: the low bits of floating-point noise have given away what it was
to hide (Mironov 2012; Jin et al. 2022, 2112.05307).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.prg import NoiseGenerator
from securefed.errors import ConfigError, OverflowBoundError
from securefed.privacy.inversion import (
    BLOCK,
    STATISTICAL_DISTANCE,
    TABLE_BITS,
    CumulativeTable,
    SymmetricInversion,
)

__all__ = [
    "MAX_STD",
    "MIN_STD",
    "ROUNDING_GRAIN",
    "STATISTICAL_DISTANCE",
    "DiscreteGaussian",
    "poisson_sample",
    "stochastic_round",
    "uniform_subset",
]

MIN_STD = 0.5
MAX_STD = 2.0**20
"""The table has 12 std entries: about 20 s and 0.6 GB to build at this end, 0.2 s at 10^4."""

_TAIL = 12  # the table ends at 12 standard deviations
_WORK_BITS = 256
_EXP_BITS = 320
_UNIFORM_BITS = 53

ROUNDING_GRAIN = 2.0**-_UNIFORM_BITS
"""Stochastic rounding is exact for some value this close to the given one."""


def _exp_of_minus(numerator: int, denominator: int) -> int:
    """exp(-numerator / denominator) in units of 2^-320, for arguments in (0, 2].

    The alternating series has fewer than 100 terms, each in error by less than 8 units.
    """
    argument = (numerator << _EXP_BITS) // denominator
    term, total, order = 1 << _EXP_BITS, 0, 0
    while term:
        total += -term if order % 2 else term
        order += 1
        term = (term * argument >> _EXP_BITS) // order
    return total


@lru_cache(maxsize=4)
def _cumulative_table(std: float) -> CumulativeTable:
    """T_k of :class:`DiscreteGaussian` for k = 0..K, by the recurrence analysed there."""
    ratio_top, ratio_bottom = std.as_integer_ratio()
    # exp(-1 / (2 std^2)) and its square, rounded down to the working precision.
    fine_ratio = _exp_of_minus(ratio_bottom**2, 2 * ratio_top**2)
    first_ratio = fine_ratio >> (_EXP_BITS - _WORK_BITS)
    ratio_step = fine_ratio**2 >> (2 * _EXP_BITS - _WORK_BITS)
    last = math.ceil(_TAIL * std)

    weight, ratio, positive = 1 << _WORK_BITS, first_ratio, 0
    for _ in range(last):
        weight = weight * ratio >> _WORK_BITS
        ratio = ratio * ratio_step >> _WORK_BITS
        positive += weight
    total = (1 << _WORK_BITS) + 2 * positive

    def entries() -> Iterator[int]:
        weight, ratio = (1 << (2 * _WORK_BITS)) // total, first_ratio
        cumulative = weight
        for _ in range(last):
            yield cumulative >> (_WORK_BITS - TABLE_BITS)
            weight = weight * ratio >> _WORK_BITS
            ratio = ratio * ratio_step >> _WORK_BITS
            cumulative += 2 * weight

    return CumulativeTable.of(entries(), last)


class DiscreteGaussian(SymmetricInversion):
    """The discrete Gaussian N_Z(0, std^2): P(X = k) = exp(-k^2 / (2 s^2)) / S, s = std.

    Drawn by inversion as :class:`~securefed.privacy.inversion.SymmetricInversion` says, from a
    table T_k of about 2^191 C_k, where C_k = P(|X| <= k) and K = ceil(12 s).

    Guarantees:
        - Each draw is within :data:`STATISTICAL_DISTANCE` = 2^-100 of N_Z(0, s^2) in total
          variation, given uniform words.  Over n draws distances add to at most n 2^-100.

    Proof.  Write w_k = exp(-k^2 / (2 s^2)).

    1. Cutting at K.  Conditioning on |X| <= K moves P by exactly P(|X| > K).  Since w falls,
       sum_{k > K} w_k <= int_K^inf exp(-x^2 / (2 s^2)) dx <= (s^2 / K) exp(-K^2 / (2 s^2)); by
       Poisson summation S >= s sqrt(2 pi).  So P(|X| > K) <= 2 / (12 sqrt(2 pi)) exp(-72)
       < 2^-107.
    2. The recurrence, in units of 2^-256.  r_k = w_{k+1} / w_k satisfies r_{k+1} = r_k q with
       q = exp(-1 / s^2).  First values err by < 2.  Each floor loses < 1 and all factors are
       <= 1, so r_k errs by <= 3k + 2, w_k by <= 3 (k + 1)^2, and sum_{|k| <= K} w_k by
       <= 2 (K + 2)^3 < 2^73, as K + 2 < 2^24.
    3. The second pass starts from 1 / sum w instead of 1.  That sum is >= 1, so the start errs by
       < 2^-183 + 2^-256 relative to at most 1; the same recurrence and the running sum then give
       C_k within 2^-181, and cutting to 191 bits leaves T_k / 2^191 within 2^-180.
    4. Total variation of the table is at most half the sum of the errors of its K + 1
       differences, (K + 1) 2^-180 < 2^-156.  2^-107 + 2^-156 < 2^-100.

    Source: Canonne, Kamath and Steinke 2020 (2004.00010), definition 1, for the distribution;
    Devroye 1986, chapter III, for inversion by table.

    Args:
        std: s in grid units, 0.5 <= s <= 2^20; any float in between is taken exactly.

    Raises:
        ConfigError: ``std`` is outside that.
    """

    def __init__(self, std: float) -> None:
        if not MIN_STD <= std <= MAX_STD:  # also refuses nan
            raise ConfigError(f"std = {std}; it must satisfy {MIN_STD} <= std <= 2^20 grid units")
        self._std = float(std)
        super().__init__(_cumulative_table(self._std))

    def __repr__(self) -> str:
        return f"DiscreteGaussian(std={self._std!r})"

    @property
    def std(self) -> float:
        """The parameter s in grid units; the variance is at most s^2, and nearly s^2 from s = 1."""
        return self._std


def _uniform53(count: int, generator: NoiseGenerator) -> NDArray[np.uint64]:
    """uint64[count], uniform on 0..2^53 - 1."""
    words = generator.uint64(count)
    words >>= np.uint64(64 - _UNIFORM_BITS)
    return words


def stochastic_round(values: NDArray[np.float64], generator: NoiseGenerator) -> NDArray[np.int64]:
    """Round each value up with probability its fraction, else down; never conditioned.

    The result is floor(v) + [u < frac(v)], u uniform on the multiples of 2^-53 in [0, 1).  Some
    multiple v' of 2^-53 with abs(v' - v) < 2^-53 (v' = v for magnitudes >= 1) makes it equal to
    floor(v' + z), where z = 1 - 2^-53 - u is uniform too; its mean is v'.

    Args:
        values: float64[...], in grid units, finite, magnitude < 2^52.
        generator: the secret words, one for each value.

    Returns:
        int64 of the same shape.

    Raises:
        ConfigError: ``values`` is not float64.
        OverflowBoundError: a value is not finite or too large to carry a fraction.

    Guarantees:
        - The result does not depend on other values: there is no rejection, so neighbouring
          inputs under common u differ as rounded sums do (the sensitivity bound needs this).

    Source: the randomised rounding of Kairouz, Liu and Steinke 2021 (2102.06387), without its
    conditioning on the norm.
    """
    if values.dtype != np.float64:
        raise ConfigError(f"values is {values.dtype}; it must be float64")
    flat = np.ascontiguousarray(values).reshape(-1)
    out = np.empty(flat.size, dtype=np.int64)
    for start in range(0, flat.size, BLOCK):
        part = flat[start : start + BLOCK]
        if not (np.abs(part) < 2.0**52).all():  # also false for nan
            raise OverflowBoundError("values must be finite and of magnitude < 2^52 grid units")
        floor = np.floor(part)
        # Scaling by a power of two is exact, so the comparison is one of exact numbers.
        scaled_fraction = (part - floor) * 2.0**_UNIFORM_BITS
        up = _uniform53(part.size, generator).astype(np.float64) < scaled_fraction
        np.add(floor.astype(np.int64), up, out=out[start : start + BLOCK])
    return out.reshape(values.shape)


def poisson_sample(count: int, probability: float, generator: NoiseGenerator) -> NDArray[np.int64]:
    """A secret Poisson subset of 0..count - 1.

    Each index is kept independently with probability floor(q 2^53) / 2^53, which is at most q and
    within 2^-53 of it, so an accountant may use q.

    Args:
        count: size of the population, >= 0.
        probability: q, 0 <= q <= 1.
        generator: the secret words, one for each index.

    Returns:
        int64[m], the kept indices in ascending order.

    Raises:
        ConfigError: an argument is outside that.
    """
    if count < 0:
        raise ConfigError(f"count = {count}; it must be >= 0")
    if not 0.0 <= probability <= 1.0:  # also refuses nan
        raise ConfigError(f"probability = {probability}; it must satisfy 0 <= probability <= 1")
    limit = np.uint64(math.floor(probability * 2.0**_UNIFORM_BITS))
    kept = np.flatnonzero(_uniform53(count, generator) < limit)
    return kept.astype(np.int64, copy=False)


def uniform_subset(count: int, size: int, generator: NoiseGenerator) -> NDArray[np.int64]:
    """``size`` of 0..count - 1, uniformly without replacement.

    The places of the ``size`` least of ``count`` 64-bit words.  Were no two words equal, all
    subsets would be equally likely; two are equal with probability at most n^2 / 2^65, n =
    ``count``, and the earlier place wins then.  No guarantee of privacy rests on the uniformity.

    Args:
        count: n, size of the population.
        size: how many are taken, 0 <= size <= count.
        generator: the secret words, one for each index.

    Returns:
        int64[size], in ascending order.

    Raises:
        ConfigError: an argument is outside that.
    """
    if not 0 <= size <= count:
        raise ConfigError(f"size = {size}; it must satisfy 0 <= size <= count = {count}")
    order = np.argsort(generator.uint64(count), kind="stable")
    return np.sort(order[:size]).astype(np.int64, copy=False)
