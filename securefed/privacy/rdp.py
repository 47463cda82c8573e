"""Renyi accounting: Skellam noise, and a cross-check of the discrete Gaussian's.

The Renyi divergence of order a > 1 of P from Q is

    D_a(P, Q) = 1 / (a - 1) log sum_x P(x)^a Q(x)^(1 - a).

A mechanism is (a, e(a))-RDP when D_a between its outputs on any two neighbours, in either order, is
at most e(a).  Rounds add their e(a), adaptively chosen ones too (Mironov 2017, 1702.07476,
proposition 1), and (a, e)-RDP at any one order implies

    (e + log(1 - 1/a) - log(a delta) / (a - 1), delta)-differential privacy

for every delta (Canonne, Kamath and Steinke 2020, 2004.00010, proposition 12).

The aggregate's own accounting is tighter (:mod:`securefed.privacy.pld`): Renyi accounting is
loose where sampling is rare.  It is what Skellam noise has, whose distance from a rounded Gaussian
is too large for the other way unless its std is about 10^6.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant, compute_epsilon
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

from securefed.errors import ConfigError
from securefed.privacy.additions import with_additions
from securefed.privacy.arguments import check_accounting
from securefed.privacy.inversion import STATISTICAL_DISTANCE
from securefed.privacy.mechanisms import RoundPlan

INTEGER_ORDERS: tuple[float, ...] = (*range(2, 65), 72, 80, 96, 128, 192, 256, 384, 512, 1024)
"""Orders at which bounds that hold for integers only are evaluated."""

REAL_ORDERS: tuple[float, ...] = (*(1 + k / 20 for k in range(1, 20)), *INTEGER_ORDERS)
REAL_ORDERS = tuple(sorted({*REAL_ORDERS, *(1 + k / 10 for k in range(10, 100))}))
"""Orders for bounds that hold at every real order > 1."""

# Sampling at q >= this: dp_accounting's series for fractional orders below 2 does not converge.
_FREQUENT = 0.03


def gaussian_divergence(order: float, noise_multiplier: float) -> float:
    """e(a) = a / (2 z^2) of the Gaussian mechanism: exact, for every real a > 1.

    Args:
        order: a > 1.
        noise_multiplier: z = noise std / L2 sensitivity, > 0.

    Source: Mironov 2017 (1702.07476), proposition 7.
    """
    return order / (2.0 * noise_multiplier**2)


def rounded_l1_sensitivity(l2: float, padded: int) -> float:
    """L1 sensitivity after rounding, from the L2 sensitivity after rounding.

    :mod:`securefed.privacy.mechanisms` bounds the difference D of two neighbours' rounded vectors
    at common coins: an integer vector of p coordinates with |D|_2 <= L, except with probability
    ``plan.rounding_failure``.  On that same event, so at no further charge to delta,

        |D|_1 <= sqrt(p) |D|_2 <= sqrt(p) L    (Cauchy and Schwarz), and
        |D|_1 <= |D|_2^2 <= L^2                (|n| <= n^2 for every integer n),

    and the smaller of the two holds.  Both are met: by D = (c, ..., c), and by D in {-1, 0, 1}^p.

    Args:
        l2: L, in grid units, >= 0.
        padded: p >= 1, the number of rounded coordinates.

    Source: Agarwal, Kairouz and Liu 2021 (2110.04995), section 4, for the same two bounds under
    its conditional rounding.
    """
    return min(math.sqrt(padded) * l2, l2**2)


def skellam_divergence(order: float, *, variance: float, l1: float, l2: float) -> float:
    """e(a) of adding Skellam noise of variance mu to every coordinate of an integer vector.

    e(a) = a L2^2 / (2 mu) + min(((2 a - 1) L2^2 + 6 L1) / (4 mu^2), 3 L1 / (2 mu)).

    Args:
        order: a, an integer >= 2.
        variance: mu of the whole sum's noise, in squared grid units, > 0.
        l1: L1, and
        l2: L2: the sensitivities of the integer vector, in grid units.

    Raises:
        ConfigError: ``order`` is not an integer >= 2, where no bound is stated.

    Source: Agarwal, Kairouz and Liu 2021 (2110.04995), corollary 3.6 (theorem 3.5 coordinate by
    coordinate).  A test compares it with the exact divergence at 40 digits.
    """
    if order != int(order) or order < 2:
        raise ConfigError(f"order = {order}: must be an integer >= 2 for Skellam noise")
    first = order * l2**2 / (2.0 * variance)
    square = ((2.0 * order - 1.0) * l2**2 + 6.0 * l1) / (4.0 * variance**2)
    return first + min(square, 3.0 * l1 / (2.0 * variance))


def discrete_gaussian_divergence(
    order: float, *, local_std: float, summands: int, l2: float, padded: int
) -> float:
    """e(a) of adding the sum of n discrete Gaussians N_Z(0, s^2) to each of p integer coordinates.

    e(a) = a r^2 / 2, where, with t = 10 sum_{k=1}^{n-1} exp(-2 pi^2 s^2 k / (k + 1)),

        r = min( sqrt(L2^2 / (n s^2) + p t / 2), L2 / (sqrt(n) s) + sqrt(p) t ).

    Args:
        order: a > 1, any real.
        local_std: s, each summand's std in grid units, >= 1/2.
        summands: n >= 1.
        l2: L2, the sensitivity of the integer vector, in grid units.
        padded: p >= 1.

    Source: Kairouz, Liu and Steinke 2021 (2102.06387), theorem 1 (concentrated differential
    privacy of the sum of discrete Gaussians).
    """
    # exp(-2 pi^2 s^2 k / (k + 1)) falls with k, to a limit above 0: no term is left out, but
    # beyond k = 1000 each is replaced by a larger one.
    k = np.arange(1, min(summands, 1000), dtype=np.float64)
    terms = np.exp(-2.0 * math.pi**2 * local_std**2 * k / (k + 1.0))
    beyond = max(summands - 1000, 0) * (float(terms[-1]) if terms.size else 0.0)
    excess = 10.0 * (float(terms.sum()) + beyond)
    scaled = l2 / (math.sqrt(summands) * local_std)
    root = min(math.sqrt(scaled**2 + padded * excess / 2.0), scaled + math.sqrt(padded) * excess)
    return order * root**2 / 2.0


def amplified_divergence(
    order: float, sampling_probability: float, divergence: Callable[[float], float]
) -> float:
    """e'(a) of any mechanism on a secret Poisson sample, from its own e at 2..a.

    With q the sampling probability and a an integer >= 2, e'(a) is at most

        1/(a-1) log( (1-q)^(a-1) (a q - q + 1) + C(a,2) q^2 (1-q)^(a-2) exp(e(2))
                     + 3 sum_{l=3}^{a} C(a,l) q^l (1-q)^(a-l) exp((l-1) e(l)) ),

    and at most e(a) itself, since the divergence is quasi-convex; the smaller is returned.  It is
    loose: for the Gaussian, :func:`gaussian_rdp_epsilon` has the exact divergence.

    Args:
        order: a, an integer >= 2.
        sampling_probability: q in (0, 1].
        divergence: e, for neighbours that differ in one unit, in both directions.

    Raises:
        ConfigError: ``order`` is not an integer >= 2.

    Source: Zhu and Wang 2019, "Poisson Subsampled Renyi Differential Privacy", the general upper
    bound (for any mechanism).
    """
    if order != int(order) or order < 2:
        raise ConfigError(f"order = {order}: must be an integer >= 2 for a sampled mechanism")
    q, a = sampling_probability, int(order)
    own = divergence(a)
    if q == 1.0:
        return own
    l = np.arange(2, a + 1, dtype=np.float64)  # noqa: E741 - the paper's letter
    own_terms = (l - 1.0) * np.array([divergence(float(value)) for value in l])
    choose = gammaln(a + 1.0) - gammaln(l + 1.0) - gammaln(a - l + 1.0)
    logs = choose + l * math.log(q) + (a - l) * math.log1p(-q) + own_terms
    logs[1:] += math.log(3.0)
    none = (a - 1) * math.log1p(-q) + math.log(a * q - q + 1.0)
    return min(own, float(logsumexp([none, *logs])) / (a - 1))


@dataclass(frozen=True)
class RenyiCurve:
    """Bounds e(a) on the Renyi divergence at several orders a, of one round or of many.

    Attributes:
        orders: float64[m], each > 1.
        divergences: float64[m], e(a) >= 0 at those orders.

    Guarantees:
        - ``curve.composed(rounds)`` and ``curve + other`` bound the composition, adaptive too;
          so does ``curve.worst(other).composed(rounds)`` for rounds that are each of either kind.
        - :meth:`epsilon` holds at every delta: the order may be chosen after the fact.
    """

    orders: NDArray[np.float64]
    divergences: NDArray[np.float64]

    @classmethod
    def of(cls, orders: Iterable[float], divergence: Callable[[float], float]) -> RenyiCurve:
        """The curve of ``divergence`` at ``orders``."""
        at = np.array(list(orders), dtype=np.float64)
        return cls(at, np.array([divergence(float(order)) for order in at]))

    def composed(self, rounds: int) -> RenyiCurve:
        """The curve of ``rounds`` >= 0 such rounds."""
        return RenyiCurve(self.orders, self.divergences * rounds)

    def __add__(self, other: RenyiCurve) -> RenyiCurve:
        """The curve of both, one after the other.

        Raises:
            ConfigError: their orders differ.
        """
        if not np.array_equal(self.orders, other.orders):
            raise ConfigError("curves to be added must have the same orders")
        return RenyiCurve(self.orders, self.divergences + other.divergences)

    def worst(self, other: RenyiCurve) -> RenyiCurve:
        """A curve that bounds a round of either kind: the larger divergence at each order.

        Raises:
            ConfigError: their orders differ.
        """
        if not np.array_equal(self.orders, other.orders):
            raise ConfigError("curves to be compared must have the same orders")
        return RenyiCurve(self.orders, np.maximum(self.divergences, other.divergences))

    def epsilon(self, delta: float) -> float:
        """The least epsilon that any of the orders gives.

        Args:
            delta: in (0, 1).

        Raises:
            ConfigError: ``delta`` is outside that.
        """
        check_accounting(rounds=0, delta=delta)
        found, _ = compute_epsilon(self.orders, self.divergences, delta)
        return float(found)


def _curve(
    real: Sequence[float], sampling_probability: float, divergence: Callable[[float], float]
) -> RenyiCurve:
    """One round's curve: ``real`` are the orders at which ``divergence`` itself may be used.

    At fractional orders a sample is credited with nothing: never more than the whole costs.
    """
    if sampling_probability == 1.0:
        return RenyiCurve.of(real, divergence)
    cached = functools.cache(divergence)

    def sampled(order: float) -> float:
        if order != int(order):
            return cached(order)
        return amplified_divergence(order, sampling_probability, cached)

    return RenyiCurve.of(real, sampled)


@functools.lru_cache(maxsize=256)
def gaussian_rdp_epsilon(
    noise_multiplier: float, sampling_probability: float, rounds: int, delta: float
) -> float:
    """Epsilon of ``rounds`` Poisson-sampled Gaussian mechanisms, by Renyi divergence.

    The same statement as :func:`securefed.privacy.pld.gaussian_epsilon`, by the other
    accountant of ``dp_accounting``; never smaller.

    Args:
        noise_multiplier: noise std / L2 sensitivity, > 0.
        sampling_probability: q in (0, 1].
        rounds: >= 0.
        delta: in (0, 1).

    Raises:
        ConfigError: an argument is outside that.

    Source: Mironov, Talwar and Zhang 2019 (1908.10530), for the sampled Gaussian.
    """
    check_accounting(
        rounds=rounds,
        delta=delta,
        sampling_probability=sampling_probability,
        noise_multiplier=noise_multiplier,
    )
    if rounds == 0:
        return 0.0
    dense = _FREQUENT <= sampling_probability < 1.0
    orders = [order for order in REAL_ORDERS if order >= 2 or not dense]
    event = dp_event.PoissonSampledDpEvent(
        sampling_probability, dp_event.GaussianDpEvent(noise_multiplier)
    )
    return float(RdpAccountant(orders).compose(event, rounds).get_epsilon(delta))


def _with_additions(
    curve: RenyiCurve, plan: RoundPlan, honest: int, rounds: int, delta: float
) -> float:
    """Epsilon of the curve with what rounding and the samplers add to delta.

    Rounding exceeds the sensitivity with probability ``plan.rounding_failure`` a round, and each of
    honest * padded draws is within ``STATISTICAL_DISTANCE`` of its distribution.
    """
    if rounds == 0:
        return 0.0
    return with_additions(
        curve.composed(rounds).epsilon,
        per_round=renyi_addition(plan, honest),
        rounds=rounds,
        delta=delta,
    )


def renyi_addition(plan: RoundPlan, honest: int) -> float:
    """What a round of independent noises adds to delta: rounding's failure, the samplers' part."""
    return plan.rounding_failure + honest * plan.padded * STATISTICAL_DISTANCE


def _check(
    plan: RoundPlan, honest: int, sampling_probability: float, rounds: int, delta: float
) -> None:
    check_accounting(rounds=rounds, delta=delta, sampling_probability=sampling_probability)
    if honest < 1:
        raise ConfigError(f"honest = {honest}: must be >= 1")
    if plan.removable_stds:
        raise ConfigError("remove_excess_noise = True: must be False for Renyi accounting")
    if not 0.5 <= plan.local_std < math.inf:  # also refuses nan
        raise ConfigError(f"local_std = {plan.local_std}: must be finite, >= 0.5 grid units")


def skellam_epsilon(
    plan: RoundPlan, *, honest: int, sampling_probability: float, rounds: int, delta: float
) -> float:
    """Epsilon when every client's noise is Skellam of variance ``plan.local_std`` squared.

    Args:
        plan: the round's scale, ring and L2 sensitivity after rounding.
        honest: clients whose noise the adversary does not know, >= 1.
        sampling_probability: q that this adversary does not see through.
        rounds: charged attempts, >= 0.
        delta: total, in (0, 1).

    Returns:
        An upper bound; ``math.inf`` where additions to delta use up half of it or more.

    Raises:
        ConfigError: an argument is outside that, or there is no noise.

    Guarantees:
        - The sum's noise is exactly Skellam of variance honest * local_std^2: no distance of a
          sum from one distribution is charged, at any std.
        - Wrapping around modulo 2^bits is post-processing.
    """
    _check(plan, honest, sampling_probability, rounds, delta)
    curve = skellam_curve(plan, honest, sampling_probability)
    return _with_additions(curve, plan, honest, rounds, delta)


def skellam_curve(plan: RoundPlan, honest: int, sampling_probability: float) -> RenyiCurve:
    """One round's curve when every client's noise is Skellam; arguments as there."""
    _check(plan, honest, sampling_probability, 0, 0.5)
    l2 = plan.sensitivity
    bound = functools.partial(
        skellam_divergence,
        variance=honest * plan.local_std**2,
        l1=rounded_l1_sensitivity(l2, plan.padded),
        l2=l2,
    )
    return _curve(INTEGER_ORDERS, sampling_probability, bound)


def discrete_gaussian_rdp_epsilon(
    plan: RoundPlan, *, honest: int, sampling_probability: float, rounds: int, delta: float
) -> float:
    """The statement of ``pld.distributed_epsilon`` by Renyi divergence: a cross-check.

    Arguments, result and errors as of :func:`skellam_epsilon`.  Never smaller than that of the
    Gaussian's privacy loss distribution; with sampling, much larger.
    """
    _check(plan, honest, sampling_probability, rounds, delta)
    bound = functools.partial(
        discrete_gaussian_divergence,
        local_std=plan.local_std,
        summands=honest,
        l2=plan.sensitivity,
        padded=plan.padded,
    )
    curve = _curve(REAL_ORDERS, sampling_probability, bound)
    return _with_additions(curve, plan, honest, rounds, delta)
