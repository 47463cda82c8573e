"""One model of the largest rank that serves simulated clients of unlike ranks in turn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from securefed.engines.mixed_ranks import MixedRanks
from securefed.lora.adapter import adapter_state
from securefed.lora.parts import AdapterParts
from securefed.lora.ranks import RankLayout, limited_to_rank, slice_hashes


class RankedModel:
    """Each client's own rank in the one model, and which coordinates of its vector it holds.

    Args:
        model: the adapted model, at the largest rank that stands.
        parts: what of it travels.
        ranks: of the clients; None: one rank for all, and everything here does nothing.

    Attributes:
        layout: the vector as slices; None with one rank.
    """

    def __init__(self, model: nn.Module, parts: AdapterParts, ranks: MixedRanks | None) -> None:
        self._model, self._ranks = model, ranks
        self.layout = None if ranks is None else RankLayout(ranks.tiers, parts.layout.shapes)
        self._order = None if self.layout is None else self.layout.order()

    @property
    def widths(self) -> tuple[int, ...] | None:
        """d_1..d_m, the length of each slice; None with one rank."""
        return None if self.layout is None else self.layout.widths

    @property
    def order(self) -> NDArray[np.int64] | None:
        """Where each coordinate of the vector of slices stands in the flat one."""
        return self._order

    def held(self, client: str) -> NDArray[np.int64] | None:
        """Places, in the flat vector, of what a client passes on; None: of all of it."""
        if self._ranks is None or self._order is None or self.layout is None:
            return None
        return self._order[: sum(self.layout.widths[: self._ranks.tier_of[client]])]

    def rank(self, client: str) -> int | None:
        """The client's own rank; None with one rank for all."""
        return None if self._ranks is None else self._ranks.rank_of[client]

    @contextmanager
    def of(self, client: str) -> Iterator[None]:
        """Within the block the model computes and trains at the client's own rank."""
        if self._ranks is None:
            yield
            return
        with limited_to_rank(self._model, self._ranks.rank_of[client]):
            yield

    def adapter_hash(self) -> bytes | None:
        """SHA-256 over the hashes of the adapter's slices; None with one rank.

        A client of a lower rank makes it from the parts that it has and the others' hashes.
        """
        if self._ranks is None:
            return None
        hashes = slice_hashes(adapter_state(self._model), self._ranks.tiers)
        return hashlib.sha256(" ".join(hashes).encode()).digest()

    def save(self, folder: Path, write: Callable[[Path, int], None]) -> None:
        """Write the adapter at each rank that stands, to ``folder/RANK/adapter``."""
        for rank in () if self._ranks is None else self._ranks.tiers.ranks:
            write(folder / str(rank) / "adapter", rank)
