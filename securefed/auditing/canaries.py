"""Canaries: units whose presence in a sum is to be told, and how an adversary tells it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from securefed.errors import ConfigError


def directions(count: int, dimension: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Random directions at right angles to each other.

    So that no canary is in another one's score, and in noise that is the same in all directions
    scores are independent.

    Args:
        count: k, in 1..``dimension``.
        dimension: d.
        rng: of the choice.

    Returns:
        float64[k, d], orthonormal rows; uniform among such.

    Raises:
        ConfigError: ``count`` is outside that.

    Source: canaries in random directions: Andrew et al. 2024 (2302.03098), section 3.
    """
    if not 1 <= count <= dimension:
        raise ConfigError(f"canaries = {count}: must be in 1..{dimension}, the dimension")
    q, r = np.linalg.qr(rng.standard_normal((dimension, count)))
    return np.asarray((q * np.sign(np.diag(r))).T)


def scores(
    released: NDArray[np.float64],
    canaries: NDArray[np.float64],
    clip_norm: float,
    known: Sequence[NDArray[np.float64]] = (),
) -> NDArray[np.float64]:
    """How much of each canary is in a released sum: <sum, canary> / C.

    In a sum of clipped units with noise of std sigma it is 1 or 0, plus noise of std sigma / C.

    An adversary that knows noise inside the sum first takes out all that lies in its direction.
    That is to subtract it as often as fits best: once if it is there once, n times if all clients
    drew the same.  What it costs the score is one of d dimensions for each vector that is known.

    Args:
        released: float64[d].
        canaries: float64[k, d], orthonormal rows.
        clip_norm: C.
        known: float64[d] each: what colluding clients put into the sum, noise alone.

    Returns:
        float64[k].
    """
    rest = np.asarray(released, dtype=np.float64)
    if known:
        # Two that are the same, as from one seed, span one direction.
        left, lengths, _ = np.linalg.svd(np.stack(known).T, full_matrices=False)
        basis = left[:, lengths > 1e-6 * lengths[0]]
        rest = rest - basis @ (basis.T @ rest)
    return np.asarray(canaries @ rest / clip_norm)
