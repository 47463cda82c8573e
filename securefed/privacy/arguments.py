"""What every accountant asks of its arguments, and how it refuses others."""

from __future__ import annotations

import math
from numbers import Integral

from securefed.errors import ConfigError


def check_accounting(
    *,
    rounds: int,
    delta: float,
    sampling_probability: float = 1.0,
    noise_multiplier: float = 1.0,
) -> None:
    """Refuse what no accountant has an answer for.

    Args:
        rounds: an int >= 0.
        delta: in (0, 1).
        sampling_probability: q in (0, 1].
        noise_multiplier: noise std / L2 sensitivity, finite, > 0.

    Raises:
        ConfigError: names the field, the value and what is allowed.
    """
    if not isinstance(rounds, Integral) or isinstance(rounds, bool) or rounds < 0:
        raise ConfigError(f"rounds = {rounds}: must be an int >= 0")
    if not 0.0 < delta < 1.0:  # also refuses nan
        raise ConfigError(f"delta = {delta}: must be in (0, 1)")
    if not 0.0 < sampling_probability <= 1.0:
        raise ConfigError(f"sampling_probability = {sampling_probability}: must be in (0, 1]")
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0.0):
        raise ConfigError(f"noise_multiplier = {noise_multiplier}: must be finite, > 0")
