"""Noise in layers: enough for the most dropouts, of which the excess is removed again.

Without layers each client's noise is sized for the fewest survivors, so a sum from which few are
missing carries more noise than the guarantee asks for: at no dropout its variance is larger by
(n - c) / (n - T - c).  With layers the honest survivors' noise has exactly the target variance
sigma^2, however many are missing.

Symbols: n clients invited, c of them corrupt, T the most that may be missing from an opened sum
(``CohortBounds``), D <= T how many are.  A client's noise is a sum of T + 1 independent discrete
Gaussians, with m = n - k - c:

    layer 0            sigma^2 / (n - c)
    layer k = 1..T     sigma^2 / (n - k - c) - sigma^2 / (n - k + 1 - c) = sigma^2 / (m (m + 1))

Together they are what a client adds without layers, sigma^2 / (n - T - c).  Once the survivors are
known, layers D + 1..T of every survivor are removed.  What is left of a client's noise telescopes
to sigma^2 / (n - D - c), and n - D - c survivors at least are honest: sigma^2.

A layer that can be removed is drawn from a generator of its own, whose key gives it again, value
for value.  Layer 0 comes from the client's secret generator.  Who may learn which keys, and how, is
in :mod:`securefed.secagg.noise_layers`.

Source: Jiang, Wang and Chen 2024, "Efficient Federated Learning with Dropout-Resilient Differential
Privacy" (Dordis, EuroSys; arXiv 2209.12528), the part on the XNoise scheme and its noise
decomposition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.prg import NoiseGenerator
from securefed.errors import LocalProtocolError
from securefed.privacy.policy import CohortBounds
from securefed.privacy.samplers import DiscreteGaussian


def removable_stds(honest_std: float, bounds: CohortBounds) -> tuple[float, ...]:
    """Std of layers 1..T, rising.

    Args:
        honest_std: sigma, in grid units.
        bounds: n, c and T.

    Example:
        >>> bounds = CohortBounds(size=6, corrupt=1, survivor_floor=4)
        >>> [round(std**2, 6) for std in removable_stds(12.0, bounds)]  # 144 / 20, 144 / 12
        [7.2, 12.0]
    """
    left = (bounds.size - k - bounds.corrupt for k in range(1, bounds.most_missing + 1))
    return tuple(honest_std / math.sqrt(m * (m + 1)) for m in left)


@lru_cache(maxsize=128)
def _sampler(std: float) -> DiscreteGaussian:
    return DiscreteGaussian(std)


def layer_noise(stds: Sequence[float], keys: Sequence[bytes], count: int) -> NDArray[np.int64]:
    """The sum of one client's layers: the same at the client, which adds it, and at the server.

    Args:
        stds: of the layers, in grid units.
        keys: of the layers, 32 secret bytes each, used for nothing else.
        count: coordinates.

    Returns:
        int64[count].

    Raises:
        LocalProtocolError: not one key for each std.
    """
    if len(stds) != len(keys):
        raise LocalProtocolError(f"{len(keys)} keys for {len(stds)} layers: must be one each")
    total = np.zeros(count, dtype=np.int64)
    for std, key in zip(stds, keys, strict=True):
        total += _sampler(std).sample(count, NoiseGenerator.from_key(key))
    return total
