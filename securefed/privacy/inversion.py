"""Exact sampling of symmetric integer distributions by inversion of a cumulative table.

What the discrete Gaussian and the Skellam sampler share: the table's layout, the look-up, and the
settling of ties with more bits.  How the table's entries come about, and how far they are from the
distribution, is each sampler's own proof.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.prg import NoiseGenerator
from securefed.errors import ConfigError

STATISTICAL_DISTANCE = 2.0**-100
"""Bound on the total variation distance of one draw from the exact distribution."""

TABLE_BITS = 191  # 63 for the first look-up, 128 to settle ties
TIE_BITS = 128
BLOCK = 1 << 16  # draws at a time: words and indices stay in the cache


class CumulativeTable(NamedTuple):
    """The cumulative table T_k in units of 2^-191, split into what each comparison reads."""

    high: NDArray[np.uint64]  # uint64[K + 1], T_k >> 128
    low: NDArray[np.uint64]  # uint64[K + 1, 2], the other 128 bits, less significant word first

    def low_bits(self, index: int) -> int:
        """The 128 lower bits of T_index."""
        return int(self.low[index, 0]) | int(self.low[index, 1]) << 64

    @classmethod
    def of(cls, entries: Iterator[int], last: int) -> CumulativeTable:
        """The table T_0..T_K, read-only, with T_K = 2^191 appended.

        Args:
            entries: T_0..T_{K-1}, ascending, each in 0..2^191 - 1.
            last: K.
        """
        rows = np.empty((last + 1, 3), dtype="<u8")
        for start in range(0, last, BLOCK):
            stop = min(start + BLOCK, last)
            part = itertools.islice(entries, stop - start)
            encoded = b"".join(entry.to_bytes(24, "little") for entry in part)
            rows[start:stop] = np.frombuffer(encoded, dtype="<u8").reshape(-1, 3)
        rows[last] = (0, 0, 1 << (TABLE_BITS - TIE_BITS))
        high = rows[:, 2].astype(np.uint64)
        low = rows[:, :2].astype(np.uint64)
        high.flags.writeable = low.flags.writeable = False
        return cls(high, low)


class SymmetricInversion:
    """Draws from a distribution on the integers with P(X = k) = P(X = -k), given its table.

    A draw looks the magnitude up in a cumulative table and takes the sign from a bit of its own.
    The table holds T_k, about 2^191 P(|X| <= k), for k = 0..K, and T_K = 2^191.  For U uniform on
    0..2^191 - 1 the magnitude is the number of k with T_k <= U; it is exactly j with probability
    (T_j - T_{j-1}) / 2^191.  Zero needs no correction for its sign, since P(|X| = 0) is counted
    once and -0 = 0.

    One 64-bit word gives the sign (lowest bit) and the top 63 bits u of U.  T_k <= U is decided by
    u alone unless u equals the top 63 bits of T_k; only then are the 128 lower bits of U drawn.
    So U has full precision in every case.

    Not constant-time: the search and the tie take time that depends on the draw.

    Source: Devroye 1986, "Non-Uniform Random Variate Generation", chapter III, inversion by table.

    Args:
        table: the table, shared and never written to.
    """

    def __init__(self, table: CumulativeTable) -> None:
        self._table = table

    @property
    def bound(self) -> int:
        """K: no draw exceeds it in magnitude."""
        return int(self._table.high.size) - 1

    def sample(self, count: int, generator: NoiseGenerator) -> NDArray[np.int64]:
        """Independent draws.

        Args:
            count: how many, >= 0.
            generator: the secret words, one for each draw and two more for each tie.

        Returns:
            int64[count], each of magnitude <= :attr:`bound`.

        Raises:
            ConfigError: ``count`` < 0.
        """
        if count < 0:
            raise ConfigError(f"count = {count}; it must be >= 0")
        out = np.empty(count, dtype=np.int64)
        for start in range(0, count, BLOCK):
            self._fill(out[start : start + BLOCK], generator)
        return out

    def _fill(self, out: NDArray[np.int64], generator: NoiseGenerator) -> None:
        high = self._table.high
        words = generator.uint64(out.size)
        top = words >> np.uint64(1)
        below = np.searchsorted(high, top, side="right")
        # A tie: the last entry not above ``top`` equals it.  (Where below = 0 there is none, and
        # index -1 reads 2^63, which no ``top`` equals.)
        for position in np.flatnonzero(high[below - 1] == top):
            below[position] = self._settle_tie(int(top[position]), int(below[position]), generator)
        out[:] = below
        np.negative(out, out=out, where=(words & np.uint64(1)).astype(np.bool_))

    def _settle_tie(self, top: int, stop: int, generator: NoiseGenerator) -> int:
        """How many T_k <= U, where entries before ``stop`` have high part <= ``top``."""
        start = int(np.searchsorted(self._table.high, np.uint64(top), side="left"))
        low_word, high_word = (int(word) for word in generator.uint64(2))
        low = low_word | high_word << 64
        while start < stop:  # bisection: the low parts ascend among equal high parts
            middle = (start + stop) // 2
            if self._table.low_bits(middle) <= low:
                start = middle + 1
            else:
                stop = middle
        return start
