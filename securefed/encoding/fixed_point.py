"""Between signed integers and the ring Z_{2^bits}, held on uint32 with wrap-around addition.

Sums of ring values are taken modulo 2^32 and cut to ``bits`` bits at the end: 2^bits divides
2^32, so the low bits of the sum are right.  A signed sum ``s`` is recovered exactly if and only
if ``-2^(bits-1) <= s < 2^(bits-1)``; :func:`bits_needed` gives the width that a bound on ``|s|``
asks for, before anything is sent.  How reals become integers is in ``privacy/samplers.py``.
"""

from __future__ import annotations

import operator

import numpy as np
import numpy.typing as npt

from securefed.encoding.wire import MAX_RING_BITS, MIN_RING_BITS
from securefed.errors import ConfigError, OverflowBoundError

MIN_BITS = MIN_RING_BITS
MAX_BITS = MAX_RING_BITS


def to_ring(values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """Two's complement modulo 2^32.

    Args:
        values: int64[d], any value; the caller has bounded their sum (:func:`bits_needed`).

    Returns:
        uint32[d].

    Raises:
        ConfigError: another dtype; a float would be cut without a word.
    """
    if values.dtype != np.int64:
        raise ConfigError(f"values: dtype {values.dtype} given, int64 allowed")
    return values.astype(np.uint32)


def from_ring(vector: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.int64]:
    """The representative in ``[-2^(bits-1), 2^(bits-1))`` of each value modulo 2^bits.

    Args:
        vector: uint32[d]; bits above ``bits`` are ignored.
        bits: 20..32.

    Returns:
        int64[d].

    Raises:
        ConfigError: another dtype, or ``bits`` out of range.
    """
    if vector.dtype != np.uint32:
        raise ConfigError(f"vector: dtype {vector.dtype} given, uint32 allowed")
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ConfigError(f"bits: {bits} is not in {MIN_BITS}..{MAX_BITS}")
    # Bit bits-1 is the sign: brought to the top and shifted back, it fills the bits above it.
    spare = MAX_BITS - bits
    signed = (vector << np.uint32(spare)).view(np.int32)
    return (signed >> np.int32(spare)).astype(np.int64)


def fold_ring(vector: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.int64]:
    """:func:`from_ring` for |s| <= 2^(bits-2), and beyond that folded back towards 0.

    The representative of :func:`from_ring` jumps by 2^bits where a sum wraps around.  One party
    that sends a value near the edge could so make the smallest change by another party a huge one.
    This map has no jump: with M = 2^bits it is s up to M/4, then M/2 - s, down to 0 at the edge,
    and the same below 0.

    Args:
        vector: uint32[d]; bits above ``bits`` are ignored.
        bits: 20..32.

    Returns:
        int64[d], in -2^(bits-2)..2^(bits-2).

    Raises:
        ConfigError: another dtype, or ``bits`` out of range.

    Guarantees:
        - Ring values that differ by e modulo 2^bits, e any integer, give results that differ by at
          most |e|.
    """
    centred = from_ring(vector, bits)
    half, quarter = 1 << (bits - 1), 1 << (bits - 2)
    centred[centred > quarter] = half - centred[centred > quarter]
    centred[centred < -quarter] = -half - centred[centred < -quarter]
    return centred


def bits_needed(bound: int) -> int:
    """The fewest bits in 20..32 with ``2 * bound < 2^bits``.

    Args:
        bound: the largest ``|s|`` that any coordinate of the signed sum may reach, >= 0.

    Returns:
        The ring width; every ``s`` with ``|s| <= bound`` comes back from it exactly.

    Raises:
        OverflowBoundError: ``bound >= 2^31``: no width that this package has holds the sum.
        ConfigError: ``bound`` is negative.

    Example:
        >>> bits_needed(2**19 - 1), bits_needed(2**19)
        (20, 21)
    """
    bound = operator.index(bound)
    if bound < 0:
        raise ConfigError(f"bound: {bound} is negative")
    if bound >= 1 << (MAX_BITS - 1):
        raise OverflowBoundError(
            f"bound: the sum may reach {bound}; it must stay below 2^31 = {1 << (MAX_BITS - 1)}"
        )
    return max(MIN_BITS, bound.bit_length() + 1)
