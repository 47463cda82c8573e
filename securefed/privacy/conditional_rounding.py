"""Stochastic rounding that is redrawn until the result is short enough."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.prg import NoiseGenerator
from securefed.errors import ConfigError, OverflowBoundError
from securefed.privacy.samplers import stochastic_round

TRIAL_FAILURE = math.exp(-0.5)
"""beta_c: a trial fails with at most this probability where ``longest`` allows for it."""

MOST_TRIALS = 64
"""All of them fail with probability at most exp(-32) < 2^-46."""

_LARGEST_NORM = 2.0**31  # squared norms then stay below 2^63


def conditional_round(
    values: NDArray[np.float64], longest: float, generator: NoiseGenerator
) -> NDArray[np.int64]:
    """Round stochastically until the L2 norm is at most ``longest``; towards zero if nothing helps.

    Write v for the values, p for how many there are, F for the probability that one trial fails,
    z for the result and e for the error of one unconditional trial.

    Only for a vector that one unit alone makes up, its neighbour being zeros: in a sum the
    rejection would depend on the other units, and no bound at common coins would hold.

    Args:
        values: float64[p], in grid units, finite.
        longest: bound on the result's norm, in grid units, >= the norm of ``values``.  At least
            sqrt(|v|^2 + p/4 + |v| + sqrt(p)/2) makes F <= exp(-1/2) (``mechanisms``).
        generator: the secret words, p for each trial.

    Returns:
        int64[p].

    Raises:
        ConfigError: ``values`` is not float64[p], or is longer than ``longest`` even towards zero.
        OverflowBoundError: a value is not finite, or |v| + sqrt(p) is not below 2^31.

    Guarantees:
        - |z|_2 <= ``longest`` always, compared in integers.
        - Each coordinate is floor(v_j) or ceil(v_j); zeros give zeros.
        - |E z - v|_2 <= sqrt(F) / (2 (1 - F)) + F^64 sqrt(p) + 2^-53 sqrt(p): below one grid step
          for the whole vector where F <= exp(-1/2).  With A the event that a trial is short
          enough, E[e 1_A] = -E[e 1_notA], and by Cauchy and Schwarz E[<w, e> 1_notA] <=
          sqrt(Var <w, e>) sqrt(F) <= sqrt(F) / 2 for each unit vector w, since coordinates are
          independent with variances of at most 1/4; P(A) = 1 - F.  The second term is rounding
          towards zero, the last the grain of the coins.

    How many trials it takes depends on the values, and so does the time: see ``ClientRound``.
    Drawing all 64 always would hide that for 64 times the work.

    Source: Kairouz, Liu and Steinke 2021 (2102.06387), conditional randomised rounding; there
    without a limit on the trials.
    """
    if values.dtype != np.float64 or values.ndim != 1:
        raise ConfigError(f"values is {values.dtype}{list(values.shape)}; it must be float64[p]")
    fits = bool((np.abs(values) < _LARGEST_NORM).all())  # false for nan
    if not (fits and float(np.linalg.norm(values)) + math.sqrt(values.size) < _LARGEST_NORM):
        raise OverflowBoundError("values must be finite, of norm + sqrt(p) < 2^31 grid units")
    most = math.floor(Fraction(longest) ** 2)
    shortest = np.trunc(values).astype(np.int64)
    if int(shortest @ shortest) > most:
        raise ConfigError(f"values are longer than longest = {longest:g} grid units")
    for _ in range(MOST_TRIALS):
        rounded = stochastic_round(values, generator)
        if int(rounded @ rounded) <= most:
            return rounded
    return shortest
