"""Adaptive clipping: the next clip follows from a noised count that every party can see.

Each unit of a round contributes its clipped vector x, |x| <= C, and beside it one bit b, 1 where
the unit's norm was within C already.  With the weight rho (``count_weight``), what is summed is

    (x, rho C (b - 1/2))        in R^(d+1),  of norm at most  C sqrt(1 + rho^2 / 4),

rotated, rounded and noised as *one* vector.  Scale, noise and sensitivity are planned from that
bound, so the count is paid for exactly, in the same epsilon as the update, and ``noise_multiplier``
is the noise's std over the bound of the whole: epsilon is the same function of it as without
adaptation.  With z = ``noise_multiplier``, the update alone carries noise of std z_Delta C and the
count of bits noise of std sigma_b units, where

    z_Delta = z sqrt(1 + rho^2 / 4),    sigma_b = z_Delta / rho.

That is the division of one budget that the paper has: z_Delta = (z^-2 - (2 sigma_b)^-2)^(-1/2).

From the opened sum the fraction of units within C is the count over the number of units, plus 1/2,
and the next clip is

    C' = C exp(-eta (fraction - gamma)),    cut to [min_clip_norm, max_clip_norm].

Clip, fraction and rule are public, so every party computes C' for itself and nobody sends one.
Since C enters the digest of the next round, C' must be the same to the last bit everywhere: it is
computed in decimal arithmetic, whose exp is correctly rounded, and not by a machine's libm.

A server can still give *every* client the same wrong fraction.  That costs accuracy, not privacy:
epsilon holds for every sequence of clips, whoever chooses them, and one round moves the clip by at
most a factor exp(2 eta), never out of the bounds.

Source: Andrew, Thakkar, McMahan and Ramaswamy 2021, "Differentially Private Learning with Adaptive
Clipping", arXiv 1905.03871, section 2 and Algorithm 1.
"""

from __future__ import annotations

import decimal
import math
from dataclasses import dataclass
from decimal import Decimal

from securefed.errors import ConfigError

_LEAST_FRACTION, _LARGEST_FRACTION = -1.0, 2.0

_EXACT = decimal.Context(prec=50, rounding=decimal.ROUND_HALF_EVEN)
# Six significant digits: a clip that can be read and typed; its error is far below what noise does.
_SHORT = decimal.Context(prec=6, rounding=decimal.ROUND_HALF_EVEN)


@dataclass(frozen=True, kw_only=True)
class AdaptiveClip:
    """The rule by which a clip follows the units' norms.

    Args:
        target_quantile: gamma in (0, 1): which share of the units is to lie within the clip.
        learning_rate: eta in [1e-3, 2].
        count_weight: rho in [1e-3, 2], weight of a unit's bit beside its vector.  The update's
            noise grows by sqrt(1 + rho^2 / 4) (0.5 % at 0.2), the fraction's falls with rho.
        min_clip_norm: least clip that the rule leads to, in [1e-100, 1e100].
        max_clip_norm: largest, not below ``min_clip_norm``.

    Raises:
        ConfigError: names the field, the value and what is allowed.

    Guarantees:
        - ``next_clip_norm`` gives the same float on every machine, within the two bounds.

    Example:
        >>> rule = AdaptiveClip(min_clip_norm=0.01, max_clip_norm=10.0)
        >>> rule.next_clip_norm(1.0, 1.0), rule.next_clip_norm(1.0, 0.5)
        (0.904837, 1.0)
    """

    target_quantile: float = 0.5
    learning_rate: float = 0.2
    count_weight: float = 0.2
    min_clip_norm: float
    max_clip_norm: float

    def __post_init__(self) -> None:
        for name, fits, allowed in (
            ("target_quantile", 0 < self.target_quantile < 1, "in (0, 1)"),
            ("learning_rate", 1e-3 <= self.learning_rate <= 2, "in [0.001, 2]"),
            ("count_weight", 1e-3 <= self.count_weight <= 2, "in [0.001, 2]"),
            ("min_clip_norm", 1e-100 <= self.min_clip_norm <= 1e100, "in [1e-100, 1e100]"),
            (
                "max_clip_norm",
                self.min_clip_norm <= self.max_clip_norm <= 1e100,
                f"in [min_clip_norm, 1e100] = [{self.min_clip_norm:g}, 1e100]",
            ),
        ):
            if not fits:  # a NaN fits nothing
                raise ConfigError(
                    f"adaptive_clip.{name} = {getattr(self, name)!r}: must be {allowed}"
                )

    def fraction(self, count: float, units: float) -> float:
        """The share of units within the clip, from the noised count that a sum holds.

        Args:
            count: noised sum of b - 1/2 over the units in the sum, finite.
            units: how many there are, > 0; where a secret sample is drawn, how many are expected.

        Returns:
            In [-1, 2], to six decimal places.  Noise may carry it out of [0, 1]; it is not cut
            there, since that would move its mean (in a cohort so small that the noise is as large
            as the fraction, towards 1/2, and a quantile of 0.9 were never reached).

        Raises:
            ConfigError: an argument is outside that.
        """
        if not (math.isfinite(count) and math.isfinite(units) and units > 0):
            raise ConfigError(f"count = {count}, units = {units}: must be finite, units > 0")
        return round(min(max(count / units + 0.5, _LEAST_FRACTION), _LARGEST_FRACTION), 6)

    def next_clip_norm(self, clip_norm: float, fraction: float) -> float:
        """C' of the next round.

        Args:
            clip_norm: C of this round, > 0.
            fraction: noised share of units within it, in [-1, 2], as it is on record.

        Raises:
            ConfigError: the fraction is outside that.
        """
        if not _LEAST_FRACTION <= fraction <= _LARGEST_FRACTION:  # a NaN is not either
            raise ConfigError(f"unclipped_fraction = {fraction!r}: must be in [-1, 2]")
        below = _EXACT.subtract(Decimal(self.target_quantile), Decimal(fraction))
        factor = _EXACT.exp(_EXACT.multiply(Decimal(self.learning_rate), below))
        moved = float(_SHORT.plus(_EXACT.multiply(Decimal(clip_norm), factor)))
        return min(max(moved, self.min_clip_norm), self.max_clip_norm)

    def update_noise(self, noise_multiplier: float) -> float:
        """z_Delta: std of the noise on the update alone, over C."""
        return noise_multiplier * math.sqrt(1.0 + self.count_weight**2 / 4.0)

    def count_noise(self, noise_multiplier: float) -> float:
        """sigma_b: std of the noise on the count of bits, in units."""
        return self.update_noise(noise_multiplier) / self.count_weight
