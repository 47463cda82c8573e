"""How much easier training made it to guess a canary.  No attack imports this module."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kstest, skewnorm

from securefed.attacks.results import Interval, clopper_pearson
from securefed.errors import ConfigError

_LEAST_FITTED = 100


@dataclass(frozen=True)
class Exposure:
    """One canary after one training run.

    exposure = log2 |R| - log2 rank, the canary's rank by loss among all |R| secrets of its format.
    Of a model that never saw it it is geometric with mean 1 / ln 2 = 1.44 bits.

    Attributes:
        copies: how often the canary was in the data.
        bits: log2 |R|.
        sampled: the exposure with the rank estimated among m secrets drawn at random: at most
            log2(m + 1).
        interval: of it, from that of Clopper and Pearson of the share of secrets below.
        extrapolated: the exposure with losses of the drawn secrets taken to be skew-normal, cut at
            ``bits``; None with fewer than 100 of them.
        fit: p of a Kolmogorov-Smirnov test of that; a small one says not to trust it.
        reference: m.
        extracted: whether greedy completion gave the secret word for word.
    """

    copies: int
    bits: float
    sampled: float
    interval: Interval
    extrapolated: float | None
    fit: float | None
    reference: int
    extracted: bool

    def as_json(self) -> dict[str, object]:
        """Figures alone."""
        return asdict(self)


def exposure(
    loss: float,
    reference: NDArray[np.float64],
    *,
    copies: int,
    bits: float,
    extracted: bool,
    confidence: float = 0.95,
) -> Exposure:
    """The exposure of one canary.

    Args:
        loss: of the canary.
        reference: float64[m], losses of m other secrets of its format, drawn at random; m >= 1.
        copies: how often the canary was in the data, >= 0.
        bits: log2 of how many secrets there are, > 0.
        extracted: whether the model completed it.
        confidence: in (0, 1).

    Raises:
        ConfigError: a loss is not finite, or an argument is out of range.

    Source: Carlini et al. 2019, "The Secret Sharer" (1802.08232), sections 4.2 to 4.4.
    """
    count = len(reference)
    if count < 1 or not (math.isfinite(loss) and np.isfinite(reference).all()):
        raise ConfigError(f"reference: {count} losses; one at least, and all must be finite")
    if copies < 0 or not bits > 0.0:
        raise ConfigError(f"copies = {copies}, bits = {bits}; allowed: >= 0 and > 0")
    below = int((reference <= loss).sum())
    low, high = clopper_pearson(below, count, confidence)
    most = -math.log2(low) if low > 0.0 else bits
    extrapolated = fit = None
    if count >= _LEAST_FITTED and float(np.std(reference)) > 0.0:
        shape = skewnorm.fit(reference)
        fit = float(kstest(reference, skewnorm(*shape).cdf).pvalue)
        logarithm = float(skewnorm.logcdf(loss, *shape))
        extrapolated = min(bits, max(0.0, -logarithm / math.log(2.0)))
    return Exposure(
        copies=copies,
        bits=bits,
        sampled=math.log2(count + 1) - math.log2(below + 1),
        interval=(max(0.0, -math.log2(high)), min(bits, most)),
        extrapolated=extrapolated,
        fit=fit,
        reference=count,
        extracted=extracted,
    )
