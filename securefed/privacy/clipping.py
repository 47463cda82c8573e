"""Clipping to an L2 ball, and the sensitivity that follows from it.

Under adaptive clipping (:mod:`securefed.privacy.adaptive_clip`) a unit's vector is followed by one
more coordinate, which says whether it was clipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from securefed.errors import ConfigError

_UNIT_ROUNDOFF = 2.0**-53
# The norm of d <= 2^26 float64 values is computed to a relative error below d * 2^-53 < 2^-26;
# aiming this much inside the ball keeps the exact norm inside it.
_INSIDE = 1.0 - 2.0**-25


@dataclass(frozen=True)
class L2Clip:
    """Scales a vector down to L2 norm ``clip_norm`` where it is longer.

    Guarantees:
        - The exact norm of a clipped vector is at most ``clip_norm`` (float error included).
        - A vector shorter than ``clip_norm (1 - 2^-25)`` comes back as it was given; a longer one
          keeps its direction, however large it is.
        - A row that is not finite is replaced by zeros by ``clip_rows``: its norm is 0, so the
          bound holds, and the round does not stop on one example.
        - With a ``count_weight`` the exact norm of a unit's vector and bit together is at most
          ``clip_norm sqrt(1 + rho^2 / 4)``.  A vector of zeros has no bit: it counts as absent,
          so one that is not finite does too, and neither pulls the clip towards 0.

    Args:
        clip_norm: C, finite, > 0.
        count_weight: rho, in [0, 2]: each unit's vector is followed by ``rho C (b - 1/2)``, with
            b = 1 where it was short enough to be left alone.  0: nothing follows.

    Raises:
        ConfigError: an argument is outside that (a NaN would clip nothing).

    Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", Algorithm 1.
    """

    clip_norm: float
    count_weight: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0.0):
            raise ConfigError(f"clip_norm = {self.clip_norm}: must be finite, > 0")
        if not 0.0 <= self.count_weight <= 2.0:
            raise ConfigError(f"count_weight = {self.count_weight}: must be in [0, 2]")

    @property
    def bits(self) -> int:
        """Coordinates that follow a unit's vector: 1, or 0 without a ``count_weight``."""
        return 1 if self.count_weight else 0

    @property
    def unit_bound(self) -> float:
        """L2 norm that no unit's contribution exceeds: C, or C sqrt(1 + rho^2 / 4) with its bit."""
        return self.clip_norm * math.sqrt(1.0 + self.count_weight**2 / 4.0)

    def sensitivity(self, summands: int, block: int) -> float:
        """L2 sensitivity of a computed, rotated sum before rounding, over ``unit_bound``.

        Two sums that differ in one unit, which one of them has as zeros, differ by at most this.

        Args:
            summands: most units in one sum, >= 1.
            block: length of a rotation block, a power of two.
        """
        return 1.0 + self.float_slack(summands, block)

    def unit(self, vector: NDArray[np.floating]) -> NDArray[np.float64]:
        """What one unit contributes: its clipped vector, followed by its bit.

        Args:
            vector: float[d], finite.

        Returns:
            float64[d + bits], a fresh array.

        Raises:
            ConfigError: as :meth:`clip`.
        """
        exact = np.array(vector, dtype=np.float64)
        clipped = self.clip(exact)
        if not self.bits:
            return clipped
        bit = 0.0
        if clipped.any():
            # The comparison with what was given says the same as the norm's own comparison.
            bit = 0.5 if np.array_equal(clipped, exact) else -0.5
        return np.append(clipped, bit * self.count_weight * self.clip_norm * _INSIDE)

    def split(self, total: NDArray[np.float64]) -> tuple[NDArray[np.float64], float | None]:
        """A sum of units' contributions: the vectors' sum, and the sum of b - 1/2.

        Args:
            total: float64[d + bits].

        Returns:
            float64[d], and None where there is no ``count_weight``.
        """
        if not self.bits:
            return total, None
        return total[:-1], float(total[-1]) / (self.count_weight * self.clip_norm * _INSIDE)

    def clip(self, vector: NDArray[np.floating]) -> NDArray[np.float64]:
        """Clip one vector.

        Args:
            vector: float[d], finite.

        Returns:
            float64[d], a fresh array.

        Raises:
            ConfigError: a value is NaN or infinite; the message does not show it.
        """
        exact = np.array(vector, dtype=np.float64)
        if not np.isfinite(exact).all():
            raise ConfigError("update: holds NaN or infinity; every value must be finite")
        # A huge but finite float64 vector would overflow in its squares, and so might its norm.
        peak = float(np.max(np.abs(exact), initial=0.0))
        if peak == 0.0:
            return exact
        unit = exact / peak
        norm = float(np.linalg.norm(unit))
        if peak * norm > self.clip_norm * _INSIDE:
            unit *= (self.clip_norm / norm) * _INSIDE
            return unit
        return exact

    def clip_rows(self, rows: NDArray[np.floating]) -> NDArray[np.float64]:
        """Sum of what the rows contribute, each clipped by itself.

        Args:
            rows: float[b, d], one row a unit.

        Returns:
            float64[d + bits]: the sum; zeros for b = 0.
        """
        total = np.zeros(rows.shape[1] + self.bits, dtype=np.float64)
        for row in rows:
            exact = row.astype(np.float64)
            if np.isfinite(exact).all():
                total += self.unit(exact)
        return total

    def float_slack(self, summands: int, block: int) -> float:
        """How far float64 arithmetic can move a rotated sum, as a multiple of ``unit_bound``.

        Two neighbouring inputs differ in one summand; their computed rotated sums differ from the
        exact image of that summand by at most this much in L2.  Adding b vectors of norm <= C, in
        whatever order, rounds b - 1 partial sums of norm <= b C by u each, twice; a butterfly of
        log2(block) levels errs by at most 4 log2(block) u of the norm b C, twice; scaling adds u.
        u = 2^-53.  Source: Higham 2002, "Accuracy and Stability of Numerical Algorithms", ch. 3-4.

        Args:
            summands: b, most vectors in one sum, >= 1.
            block: length of a rotation block, a power of two.
        """
        levels = math.log2(block) + 1
        return _UNIT_ROUNDOFF * (2.0 * summands**2 + 8.0 * levels * summands + 2.0 * summands)
