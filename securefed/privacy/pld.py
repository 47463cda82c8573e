"""Tight accounting: the Gaussian's privacy loss distribution, for noise that is almost Gaussian.

The distribution is that of ``dp_accounting``, in its pessimistic estimate, Poisson sampling and
composition included.  Two additions to delta make it hold for the integers that are really sent:
the distance of the noise from a rounded Gaussian (:mod:`securefed.privacy.distance`) and the
probability that rounding exceeds the sensitivity (:mod:`securefed.privacy.mechanisms`).
"""

from __future__ import annotations

import functools
import math
from typing import Any

from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution as pld

from securefed.privacy.additions import with_additions
from securefed.privacy.arguments import check_accounting
from securefed.privacy.distance import total_variation_per_round
from securefed.privacy.mechanisms import RoundPlan

_DISCRETISATION = 1e-4
_MOST_STEPS = 200_000


@functools.lru_cache(maxsize=64)
def _one_round(noise_multiplier: float, sampling_probability: float) -> Any:
    # The loss of one round spans about mu^2 / 2 + 10 mu either way; a wide one is cut into a
    # bounded number of steps.  Steps are rounded pessimistically, so a coarser one stays a bound.
    mu = 1.0 / noise_multiplier
    return pld.from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        value_discretization_interval=max(_DISCRETISATION, (mu**2 / 2 + 10 * mu) / _MOST_STEPS),
        sampling_prob=sampling_probability,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


@functools.lru_cache(maxsize=1024)
def gaussian_epsilon(
    noise_multiplier: float, sampling_probability: float, rounds: int, delta: float
) -> float:
    """Epsilon of ``rounds`` Poisson-sampled Gaussian mechanisms, by privacy loss distribution.

    Args:
        noise_multiplier: noise std / L2 sensitivity, > 0.
        sampling_probability: q in (0, 1].
        rounds: >= 0; no round at all costs 0.
        delta: in (0, 1).

    Returns:
        An upper bound (pessimistic discretisation), possibly ``math.inf``.

    Raises:
        ConfigError: an argument is outside that.
    """
    check_accounting(
        rounds=rounds,
        delta=delta,
        sampling_probability=sampling_probability,
        noise_multiplier=noise_multiplier,
    )
    if rounds == 0:
        return 0.0
    if sampling_probability == 1.0:
        # T Gaussian mechanisms are exactly one with T^(-1/2) of the noise (Dong et al. 2022).
        composed = _one_round(noise_multiplier / math.sqrt(rounds), 1.0)
    else:
        single = _one_round(noise_multiplier, sampling_probability)
        composed = single if rounds == 1 else single.self_compose(rounds)
    return max(0.0, float(composed.get_epsilon_for_delta(delta)))


def distributed_epsilon(
    plan: RoundPlan, *, honest: int, sampling_probability: float, rounds: int, delta: float
) -> float:
    """Epsilon of the distributed discrete Gaussian with ``honest`` clients' noise in every sum.

    Args:
        plan: the round's scale, ring and sensitivity.
        honest: clients whose noise the adversary does not know, >= 1.
        sampling_probability: q that this adversary does not see through.
        rounds: charged attempts, >= 0.
        delta: total, in (0, 1).

    Returns:
        An upper bound; ``math.inf`` where the additions to delta use up half of it or more.

    Raises:
        ConfigError: an argument is outside that.
        UnsupportedEvent: the honest clients' noise is too coarse for this accounting.

    Guarantees:
        Conservative: Poisson sampling is accounted for removing as well as adding a unit, and the
        worse of the two is taken.
    """
    check_accounting(rounds=rounds, delta=delta, sampling_probability=sampling_probability)
    if rounds == 0:
        return 0.0
    effective, eta = effective_gaussian(plan, honest)
    return with_additions(
        lambda share: gaussian_epsilon(effective, sampling_probability, rounds, share),
        per_round=eta,
        rounds=rounds,
        delta=delta,
    )


def effective_gaussian(plan: RoundPlan, honest: int) -> tuple[float, float]:
    """The Gaussian mechanism that one round is close to, and how close.

    Args:
        plan: the round's scale, ring and sensitivity.
        honest: clients whose noise the adversary does not know, >= 1.

    Returns:
        Noise std / L2 sensitivity of the continuous Gaussian, and what the round adds to delta.

    Raises:
        UnsupportedEvent: the honest clients' noise is too coarse for this accounting.
    """
    eta = total_variation_per_round(plan, honest) + plan.rounding_failure
    # Sheppard's correction: the rounded Gaussian that the noise is close to has this variance.
    return math.sqrt(plan.noise_std(honest) ** 2 - 1.0 / 12.0) / plan.sensitivity, eta
