"""From a target epsilon to the noise that meets it; the other way is the accountant itself.

Every search here is over accountants that already exist and returns a noise at which the accountant
itself was asked and answered with at most the target: nothing is extrapolated, and an accountant
that is not quite monotone cannot make the answer unsafe, only larger than it need be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from securefed.errors import ConfigError, OverflowBoundError, UnsupportedEvent
from securefed.privacy.accounting import Adversary, guarantee
from securefed.privacy.arguments import check_accounting
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.pld import gaussian_epsilon
from securefed.privacy.policy import PrivacyPolicy
from securefed.privacy.rdp import gaussian_rdp_epsilon

TOLERANCE = 1e-3
"""Relative: the noise found is at most this much above the least that meets the target."""

SMALLEST_NOISE = 2.0**-6
LARGEST_NOISE = 2.0**20
"""Noise multipliers that are tried lie between these."""


def least_noise(
    epsilon_at: Callable[[float], float],
    epsilon: float,
    *,
    tolerance: float = TOLERANCE,
    start: float = 1.0,
) -> float:
    """The least noise multiplier, to ``tolerance``, at which an accountant stays within a target.

    Doubling and halving from ``start`` brackets the answer.  Then the accountant is asked a little
    to the side of where a power law through the bracket's ends meets the target, and in the middle
    where that did not halve the bracket: about eight questions in all.

    Args:
        epsilon_at: an accountant as a function of the noise multiplier (noise std / sensitivity),
            falling; it may answer ``math.inf``.
        epsilon: the target, finite, > 0.
        tolerance: relative, in (0, 1).
        start: where to begin, in 2^-6..2^20; it changes the time, hardly the result.

    Returns:
        z, with ``epsilon_at(z) <= epsilon`` as evaluated.

    Raises:
        ConfigError: the target is outside that, or no noise up to 2^20 reaches it.

    Guarantees:
        - Conservative: the accountant was evaluated at the very value that is returned.
        - If the accountant is monotone, ``z / (1 + tolerance)`` misses the target, unless z is
          below 2^-5, where the search may stop.
    """
    if not (math.isfinite(epsilon) and epsilon > 0.0):
        raise ConfigError(f"epsilon = {epsilon}: must be finite, > 0")
    if not 0.0 < tolerance < 1.0:
        raise ConfigError(f"tolerance = {tolerance}: must be in (0, 1)")
    if not SMALLEST_NOISE <= start <= LARGEST_NOISE:
        raise ConfigError(f"start = {start}: must be in 2^-6..2^20")
    low = high = start
    above = below = epsilon_at(start)
    while below > epsilon:
        if high >= LARGEST_NOISE:
            raise ConfigError(
                f"epsilon = {epsilon}: not reached by any noise_multiplier up to "
                f"{LARGEST_NOISE:g}; allow a larger epsilon or delta, or take fewer rounds"
            )
        low, above = high, below
        high = min(2.0 * high, LARGEST_NOISE)
        below = epsilon_at(high)
    while above <= epsilon:
        high, below = low, above
        if high <= 2.0 * SMALLEST_NOISE:
            return high
        low = high / 2.0
        above = epsilon_at(low)
    halved = True
    while high > low * (1.0 + tolerance):
        width = math.log(high / low)
        share = 0.5
        if halved and math.isfinite(above) and below > 0.0:
            share = math.log(above / epsilon) / math.log(above / below)
            # A step beyond the guess, towards the far end: if the guess is good, this end moves.
            share += 0.45 * tolerance / width * (1.0 if share < 0.5 else -1.0)
        share = min(max(share, 0.3 * tolerance / width), 1.0 - 0.3 * tolerance / width)
        middle = low * math.exp(share * width)
        found = epsilon_at(middle)
        if found <= epsilon:
            high, below = middle, found
        else:
            low, above = middle, found
        halved = math.log(high / low) <= 0.5 * width
    return high


def gaussian_noise_multiplier(
    epsilon: float,
    *,
    sampling_probability: float,
    rounds: int,
    delta: float,
    tolerance: float = TOLERANCE,
) -> float:
    """The least noise multiplier of ``rounds`` Poisson-sampled Gaussian mechanisms for a target.

    The inverse of :func:`securefed.privacy.pld.gaussian_epsilon`.

    Args:
        epsilon: the target, finite, > 0.
        sampling_probability: q in (0, 1].
        rounds: >= 1.
        delta: in (0, 1).
        tolerance: as of :func:`least_noise`.

    Raises:
        ConfigError: an argument is outside that, or the target is out of reach.

    Example:
        >>> round(gaussian_noise_multiplier(10, sampling_probability=1, rounds=100, delta=1e-5), 1)
        5.0
    """
    check_accounting(rounds=rounds, delta=delta, sampling_probability=sampling_probability)
    if rounds == 0:
        raise ConfigError("rounds = 0: must be >= 1, no round needs no noise")
    # Renyi accounting asks for a little more noise and answers at once: a good place to start.
    start = least_noise(
        lambda noise: gaussian_rdp_epsilon(noise, sampling_probability, rounds, delta),
        epsilon,
        tolerance=0.1,
    )
    return least_noise(
        lambda noise: gaussian_epsilon(noise, sampling_probability, rounds, delta),
        epsilon,
        tolerance=tolerance,
        start=start,
    )


def calibrated_policy(
    policy: PrivacyPolicy,
    epsilon: float,
    *,
    cohort_size: int,
    dimension: int,
    against: Adversary = "server",
    plaintext: bool = False,
    bits: int | Literal["auto"] = "auto",
    tolerance: float = TOLERANCE,
) -> PrivacyPolicy:
    """The policy with the least noise whose statement against one adversary is within a target.

    Rounding, the ring that follows from the noise, dropouts, corrupt clients and the shape of the
    noise are all in: the statement is that of :func:`securefed.privacy.accounting.guarantee` for
    the plan of :func:`securefed.privacy.mechanisms.plan_round`.

    Args:
        policy: everything but the noise; ``policy.noise_multiplier`` is not used.
        epsilon: the target over all ``policy.rounds`` at ``policy.delta``, finite, > 0.
        cohort_size: n, clients invited to every round.
        dimension: d, length of an update.
        against: the adversary whose statement is to meet the target.
        plaintext: whether sums are formed without masking.
        bits: ring width, as of ``plan_round``.
        tolerance: as of :func:`least_noise`.

    Returns:
        ``policy`` with ``noise_multiplier`` replaced.

    Raises:
        ConfigError: the policy has no noise to calibrate, or the target is out of reach; the
            message names the epsilon.
    """

    def epsilon_of(candidate: PrivacyPolicy) -> float:
        plan = plan_round(candidate, cohort_size=cohort_size, dimension=dimension, bits=bits)
        return guarantee(
            candidate, plan, cohort_size=cohort_size, against=against, plaintext=plaintext
        ).epsilon

    return calibrated_by(policy, epsilon, epsilon_of, tolerance=tolerance)


def calibrated_by(
    policy: PrivacyPolicy,
    epsilon: float,
    epsilon_of: Callable[[PrivacyPolicy], float],
    *,
    tolerance: float = TOLERANCE,
) -> PrivacyPolicy:
    """The policy with the least noise at which a statement of the caller's own meets a target.

    Args:
        policy: everything but the noise.
        epsilon: the target, finite, > 0.
        epsilon_of: the statement's epsilon; noise for which it raises ``OverflowBoundError`` or
            ``UnsupportedEvent`` does not fit the ring, or is too coarse on its grid, and is not
            taken.
        tolerance: as of :func:`least_noise`.

    Raises:
        ConfigError: as of :func:`calibrated_policy`.
    """
    if policy.mechanism == "none":
        raise ConfigError("mechanism = 'none': adds no noise, so it meets no epsilon")

    def epsilon_at(noise: float) -> float:
        try:
            return epsilon_of(replace(policy, noise_multiplier=noise))
        except (OverflowBoundError, UnsupportedEvent):
            return math.inf  # nothing is stated

    return replace(policy, noise_multiplier=least_noise(epsilon_at, epsilon, tolerance=tolerance))
