"""Discrete Gaussian noise of any std, from draws whose tables stay small."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.prg import NoiseGenerator
from securefed.errors import ConfigError
from securefed.privacy.samplers import MIN_STD, DiscreteGaussian

MAX_STD = 2.0**45
"""Draws stay below 2^50 in magnitude, far from the ends of int64."""

WIDE_DISTANCE = 2.0**-97
"""Bound on the total variation distance of one draw from the exact distribution: of four draws at
most, each within 2^-100, and of what their sum differs by."""

_PLAIN = 2.0**15
_STEP = 2**10
_FINE_STD = 2.0**14


class WideDiscreteGaussian:
    """The discrete Gaussian N_Z(0, std^2) as a sum of two or more with small tables.

    Up to std 2^15 a draw is one of :class:`~securefed.privacy.samplers.DiscreteGaussian`.  Beyond,
    it is m X + Y, with m = 2^10, Y of std s_2 = 2^14 and X of std s_1 = sqrt(std^2 - s_2^2) / m, X
    again by this class.

    Guarantees:
        - Each draw is within :data:`WIDE_DISTANCE` = 2^-97 of N_Z(0, s^2) in total variation, for
          an s that differs from ``std`` by the rounding of s_1 alone: less than 2^-48 relative.

    Proof.  Completing the square, with s^2 = m^2 s_1^2 + s_2^2 and t = s_1 s_2 / s,

        P(m X + Y = n)  ~  exp(-n^2 / (2 s^2)) sum_x exp(-(x - m s_1^2 n / s^2)^2 / (2 t^2)).

    By Poisson summation the sum over the integers x is t sqrt(2 pi) times 1 + e with
    |e| <= 2.1 exp(-2 pi^2 t^2), whatever the shift.  For std > 2^15 s_1 > 27, so
    1 / t^2 = 1 / s_1^2 + m^2 / s_2^2 < 1/27^2 + 1/16^2 and t > 13: all probabilities are those of
    N_Z(0, s^2) up to a factor within 2^-1000 of 1.  The distances of the draws add, and 2^45 takes
    four: three of std 2^14 and one of at most 2^15.

    Source: Micciancio and Walter 2017, "Gaussian Sampling over the Integers: Efficient, Generic,
    Constant-Time", for sampling by convolution.

    Args:
        std: in grid units, 0.5 <= std <= 2^45.

    Raises:
        ConfigError: ``std`` is outside that.
    """

    def __init__(self, std: float) -> None:
        if not MIN_STD <= std <= MAX_STD:  # also refuses nan
            raise ConfigError(f"std = {std}; it must satisfy {MIN_STD} <= std <= 2^45 grid units")
        self.std = float(std)
        wide = self.std > _PLAIN
        self._fine = DiscreteGaussian(_FINE_STD if wide else self.std)
        self._coarse = (
            WideDiscreteGaussian(math.sqrt(self.std**2 - _FINE_STD**2) / _STEP) if wide else None
        )

    def sample(self, count: int, generator: NoiseGenerator) -> NDArray[np.int64]:
        """Independent draws.

        Args:
            count: how many, >= 0.
            generator: the secret words.

        Returns:
            int64[count].

        Raises:
            ConfigError: ``count`` < 0.
        """
        out = self._fine.sample(count, generator)
        if self._coarse is not None:
            out += _STEP * self._coarse.sample(count, generator)
        return out
