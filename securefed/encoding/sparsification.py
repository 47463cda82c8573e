"""A random part of the coordinates, the same for all clients of a round.

Only the kept coordinates are clipped, noised, masked and sent, so the vector of a round is shorter
and a secure sum adds like to like.  Which they are is public: nothing is credited for it.

**Who chooses.**  The subset follows by SHA-256 and AES-256-CTR from a seed in the run file and the
number of the round, nothing else.  The run file is bound, by its hash, into every signature and key
of every round, so all parties of a sum kept the same coordinates.  It is agreed before there is a
sum, so no subset can depend on one.  A repeated attempt at a round keeps the same coordinates, so
attempts cannot be thrown away until a subset pleases.  A value that the server draws, or an adapter
that it computes, could be tried over and over.  Who writes the run file may still have tried seeds:
that decides when each coordinate trains and shows nothing more, since the bound C on a unit holds
for every subset, and no subset makes a sum show a single client.

**Scale.**  Coordinates that were not kept count as zeros, and kept ones are not enlarged: over the
subsets the mean of ``expand(select(x))`` is (k / m) x, unbiased but for that factor, which the
server's learning rate may take up.  Dividing by k / m instead would enlarge the noise with it.

Source: Konecny et al. 2016, "Federated Learning: Strategies for Improving Communication Efficiency"
(1610.05492), the random mask; there every client has its own, which a secure sum cannot add.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.prg import uniform_below
from securefed.errors import ConfigError

_WORDS = 1 << 63


def kept_dimension(dimension: int, fraction: float) -> int:
    """How many of m coordinates a round keeps: ceil(fraction m), the same in all rounds."""
    return max(1, math.ceil(fraction * dimension - 1e-9))


class KeptCoordinates:
    """The coordinates of one round.

    Each coordinate gets a uniform 63-bit word, and those with the k least words are kept: a uniform
    subset, from integers alone, the same on every machine.

    Args:
        dimension: m >= 1, the length of a whole vector.
        fraction: of the coordinates that are kept, in (0, 1]; 1 keeps all as they are.
        seed: public, >= 0, of the run.
        round: number of the round, >= 1.

    Attributes:
        indices: int64[k], which ones, ascending.

    Raises:
        ConfigError: an argument is outside that.
    """

    def __init__(self, dimension: int, fraction: float, *, seed: int, round: int) -> None:
        if dimension < 1 or round < 1 or seed < 0:
            raise ConfigError(
                f"dimension = {dimension}, round = {round}, seed = {seed}: must be >= 1, 1 and 0"
            )
        if not 0.0 < fraction <= 1.0:
            raise ConfigError(f"keep_fraction = {fraction}: must be in (0, 1]")
        self.dimension = dimension
        kept = kept_dimension(dimension, fraction)
        if kept == dimension:
            self.indices = np.arange(dimension, dtype=np.int64)
            return
        text = f"securefed/1/kept coordinates of seed {seed}, round {round}"
        words = uniform_below(hashlib.sha256(text.encode()).digest(), _WORDS, dimension)
        self.indices = np.sort(np.argsort(words, kind="stable")[:kept]).astype(np.int64)

    def select(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """From float64[m] to float64[k], a fresh array."""
        if vector.shape != (self.dimension,):
            raise ConfigError(f"vector of shape {vector.shape}: must be ({self.dimension},)")
        return vector[self.indices]

    def expand(self, kept: NDArray[np.float64]) -> NDArray[np.float64]:
        """From float64[k] to float64[m], with zeros where nothing was kept."""
        if kept.shape != self.indices.shape:
            raise ConfigError(f"vector of shape {kept.shape}: must be {self.indices.shape}")
        whole = np.zeros(self.dimension)
        whole[self.indices] = kept
        return whole
