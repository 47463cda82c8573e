"""Blockwise randomized Hadamard rotation: flattens an update before it is rounded to integers.

``forward(x) = H D P x``: ``P`` appends zeros up to a multiple of the block, ``D`` multiplies by
public random signs, and ``H`` is the orthonormal Walsh-Hadamard matrix of order ``block`` applied
to each block (entries ``+-1/sqrt(block)``).  The map is an isometry, so clipping bounds carry over;
and a coordinate of the result exceeds ``||x_b|| sqrt(2 ln(2 / beta) / block)`` with probability at
most ``beta`` over the signs (Hoeffding), where ``x_b`` is its block's input.  One block takes every
n-th coordinate rather than a run of neighbours: large layers then spread over all blocks, and the
butterfly works on whole rows of memory.

Float error.  Let ``u = 2^-53``, ``k = log2(block)``.  A butterfly stage computes each output as one
sum or difference of two inputs, whose relative error is at most ``u``; so a stage's L2 error is at
most ``u`` times the norm of its output.  The exact stages are orthogonal up to a factor sqrt(2),
hence carry an earlier relative error on unchanged, and after ``k`` stages it is at most
``(1 + u)^k - 1``.  The last step multiplies by ``1 / sqrt(block)``: exact for even ``k`` (it is a
power of two), two more roundings for odd ``k``.  With the signs exact,

    ``||computed - exact|| <= ((1 + u)^(k + 2) - 1) ||x|| <= 4 log2(block) 2^-53 ||x||``

for ``block >= 2``, forward and inverse alike, short of overflow and apart from 2^-1074 a
coordinate where the result is subnormal.  Only additions, subtractions and one multiplication in a
fixed order are used, no BLAS: the same input gives the same bits on every IEEE 754 machine.

Source: Kairouz, Liu and Steinke, "The Distributed Discrete Gaussian Mechanism for Federated
Learning with Secure Aggregation", arXiv 2102.06387, section 4 (flattening); Ailon and Chazelle,
"The Fast Johnson-Lindenstrauss Transform" (the randomized Hadamard transform); Higham, "Accuracy
and Stability of Numerical Algorithms", section 2.2 (the model of rounding).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from securefed.crypto.prg import expand_signs
from securefed.errors import ConfigError

BLOCK = 4096
_SMALLEST_SHRUNK_BLOCK = 512
_UNIT_ROUNDOFF = 2.0**-53
# Values of one pass through the butterfly: two float64 buffers of this size take 4 MiB.
_VALUES_PER_PASS = 1 << 18


def block_size(dimension: int, block: int = BLOCK) -> int:
    """The block that a vector of ``dimension`` values is rotated in.

    Up to ``block`` values: one block, the next power of two.  Above: the largest power of two in
    512..``block`` that pads by at most an eighth; 512 (or ``block``, if smaller) where none does.
    A block of 512 flattens 8^(1/2) times less than one of 4096, at most 1.5 bits a value; an
    eighth more values cost the message 2.5 to 4 bits a value.

    Args:
        dimension: number of values, >= 1.
        block: largest block, a power of two.

    Raises:
        ConfigError: names the argument that is out of range.
    """
    if dimension < 1:
        raise ConfigError(f"dimension: {dimension} given, at least 1 allowed")
    if block < 1 or block & (block - 1):
        raise ConfigError(f"block: {block} given, a power of two allowed")
    if dimension <= block:
        return 1 << (dimension - 1).bit_length()
    while block > _SMALLEST_SHRUNK_BLOCK and 8 * (-dimension % block) > dimension:
        block //= 2
    return block


def padded_dimension(dimension: int, block: int = BLOCK) -> int:
    """Length of a rotated vector: ``dimension`` rounded up to a multiple of its block.

    Args:
        dimension: number of values before rotation, >= 1.
        block: largest block, a power of two.

    Returns:
        At most ``dimension + block_size(dimension, block) - 1``.

    Example:
        >>> padded_dimension(100), padded_dimension(23_040), padded_dimension(1_000_000)
        (128, 24576, 1003520)
    """
    size = block_size(dimension, block)
    return -(-dimension // size) * size


class Rotation:
    """One public rotation: the same dimension, seed and block give the same map to every party.

    Args:
        dimension: d, number of values of an update, >= 1.
        seed: 32 bytes, public, from which the signs are expanded.
        block: largest Hadamard block, a power of two; see :func:`block_size`.

    Attributes:
        dimension: d.
        block: the block in use.
        padded: length of a rotated vector.

    Guarantees:
        - Orthonormal: norms are kept and ``inverse(forward(x)) = x``, up to ``relative_error``.
        - Deterministic to the bit.
        - The input is never written to.

    Raises:
        ConfigError: names the argument that is out of range.
    """

    def __init__(self, dimension: int, seed: bytes, block: int = BLOCK) -> None:
        self.block = block_size(dimension, block)
        self.padded = padded_dimension(dimension, block)
        self.dimension = dimension
        self._signs = expand_signs(seed, dimension)

    @property
    def relative_error(self) -> float:
        """Bound on ``||computed - exact|| / ||x||`` for ``forward`` and for ``inverse``.

        ``4 log2(block) 2^-53``, derived at the head of this module; for block = 4096 it is
        5.4e-15.  A sensitivity that is derived for the exact map is enlarged by this factor.
        """
        return 4.0 * math.log2(self.block) * _UNIT_ROUNDOFF

    def forward(self, update: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Pad, sign and rotate.

        Args:
            update: float64[d], finite.

        Returns:
            float64[padded], of the same L2 norm.

        Raises:
            ConfigError: another dtype or shape, or a value that is not finite.
        """
        self._check("update", update, self.dimension)
        signed = np.zeros(self.padded)
        np.multiply(update, self._signs, out=signed[: self.dimension])
        return self._hadamard("update", signed)

    def inverse(self, rotated: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Rotate back, take the signs off and drop the padding.

        Args:
            rotated: float64[padded], finite.

        Returns:
            float64[d].  What lies in the padding is dropped, so the norm can only fall.

        Raises:
            ConfigError: another dtype or shape, or a value that is not finite.
        """
        self._check("rotated", rotated, self.padded)
        back = self._hadamard("rotated", rotated)[: self.dimension]
        return np.multiply(back, self._signs)

    @staticmethod
    def _check(name: str, vector: npt.NDArray[np.float64], length: int) -> None:
        if vector.dtype != np.float64 or vector.shape != (length,):
            raise ConfigError(
                f"{name}: {vector.dtype}{list(vector.shape)} given, float64[{length}] allowed"
            )

    def _hadamard(self, name: str, vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """H on every block; column b of the (block, blocks) view is block b."""
        columns = vector.reshape(self.block, -1)
        result = np.empty_like(columns)
        scale = 1.0 / math.sqrt(self.block)
        per_pass = max(1, _VALUES_PER_PASS // self.block)
        # Overflow and NaN are found in the result, so their warnings would say it twice.
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, columns.shape[1], per_pass):
                part = slice(start, start + per_pass)
                np.multiply(_butterfly(columns[:, part]), scale, out=result[:, part])
        # A value that is not finite reaches all of its block, so the result shows it.
        if not np.isfinite(result).all():
            raise ConfigError(f"{name}: a value is not finite, or too large to be rotated")
        return result.reshape(-1)


def _butterfly(columns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The unscaled Walsh-Hadamard transform of each column; the input is copied."""
    block, count = columns.shape
    here = columns.copy()
    there = np.empty_like(here)
    half = 1
    while half < block:
        source = here.reshape(-1, 2, half * count)
        target = there.reshape(-1, 2, half * count)
        np.add(source[:, 0], source[:, 1], out=target[:, 0])
        np.subtract(source[:, 0], source[:, 1], out=target[:, 1])
        here, there = there, here
        half *= 2
    return here
