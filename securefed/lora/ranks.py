"""Adapters of unlike ranks over one frozen A: nested slices of B, the same adapter at each rank.

Public ranks r_1 < .. < r_m.  The server makes one adapter of rank r_m; A is frozen and the same for
all.  A client of tier k trains B[:, :r_k] over A[:r_k], the first r_k directions.  Slice s is
columns r_(s-1) .. r_s of every B (r_0 = 0); what else travels, a head say, is in slice 1, which
everyone holds.  The weight change is a sum over slices,

    dW = scale sum_s B_s A_s,

so the mean of each slice over *its own* contributors is exact, and no slice moves another.

**One scale.**  PEFT scales by alpha / r.  A column of B must mean the same weight change whatever
the rank of the client that trained it, so the scale is one at every rank: with
alpha_k = alpha r_k / r_m it is alpha_k / r_k = alpha / r_m.  The top tier is then what it would be
without tiers.  A scale that follows a client's own rank (alpha / r_k at one alpha, or
alpha / sqrt(r_k) as in rsLoRA, 2312.03732) would make the mean of a column a mean of unlike things.
Lower ranks are not scaled up for having fewer directions.

Ranks follow from a client's capability (memory, computing, bandwidth), never from its data: they
are public, and one that followed from data would tell of it outside of any noise.

Sources: the frozen A is that of FFA-LoRA (2403.12313).  Clients of unlike ranks that get the first
columns of a larger adapter: Cho et al. 2024, "Heterogeneous LoRA for Federated Fine-tuning of
On-Device Foundation Models" (2401.06432), which pads with zeros, weighs each client by the norm of
its update and prunes ranks by it; neither is possible under a secure sum, and neither is done here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from securefed.config import LoraSection
from securefed.errors import ConfigError
from securefed.lora.adapter import state_hash
from securefed.lora.columns import check_rank, columns, rank_axis, rank_of
from securefed.lora.layout import AdapterLayout
from securefed.lora.tiers import RankTiers


def section_at(section: LoraSection, rank: int) -> LoraSection:
    """The adapter's settings at a client's own rank, with the scale of the whole.

    Args:
        section: of the server's adapter, at the largest rank.
        rank: in 1..``section.rank``.

    Raises:
        ConfigError: ``rank`` is larger than the server's.
    """
    check_rank(rank, section.rank)
    alpha = section.alpha * rank / section.rank
    return section.model_copy(update={"rank": rank, "alpha": alpha})


def slice_hashes(state: Mapping[str, torch.Tensor], tiers: RankTiers) -> tuple[str, ...]:
    """SHA-256 over each slice of an adapter, the frozen rows of A included.

    A client of tier k has slices 1..k and checks those; all hashes together name the adapter that a
    round is agreed on (``SlicedSession.model``), also for those that hold a part of it.

    Args:
        state: the adapter at rank ``tiers.ranks[k - 1]`` for some k.
        tiers: the ranks of all.

    Returns:
        k hashes in hexadecimal, slice 1 first.

    Raises:
        ConfigError: the state's rank is not one of a tier.
    """
    ranks = (rank_of(name, tensor) for name, tensor in state.items())
    found = {rank for rank in ranks if rank is not None}
    if len(found) != 1 or not found <= set(tiers.ranks):
        raise ConfigError(
            f"adapter state: of rank {' and '.join(sorted(map(str, found))) or 'none'}; it must be "
            f"one of {tiers.ranks}"
        )
    hashes = []
    for number in range(1, tiers.tier(max(found)) + 1):
        first, after = tiers.bounds(number)
        part = {
            name: columns(name, tensor, first, after)
            for name, tensor in state.items()
            if number == 1 or rank_axis(name) is not None
        }
        hashes.append(state_hash(part))
    return tuple(hashes)


@contextmanager
def limited_to_rank(model: nn.Module, rank: int) -> Iterator[None]:
    """Within the block a model of the largest rank computes and trains as one of ``rank``.

    For a simulation, where one model serves clients of all tiers; a deployment builds its own
    (:func:`section_at`), which is smaller.  The scale being one, the two are the same function: the
    columns of every B beyond ``rank`` are zeros, and their gradients too, so that an optimiser that
    starts from zeros (and decays towards zero) leaves them there.  A per-example gradient
    (``PerExampleGradients``) is not masked: take the slices that the tier holds.

    Args:
        model: a PEFT model with a LoRA adapter, what trains already chosen; no other block of this
            kind is open on it.
        rank: in 1..its own.

    Raises:
        ConfigError: ``rank`` is outside that.

    Guarantees:
        - Afterwards the columns beyond ``rank`` are bit for bit what they were.
    """
    factors = [p for name, p in model.named_parameters() if rank_axis(name) == 1]
    for factor in factors:
        check_rank(rank, factor.shape[1])
    kept = [factor.detach()[:, rank:].clone() for factor in factors]

    def masked(gradient: torch.Tensor) -> torch.Tensor:
        own = gradient.clone()
        own[:, rank:] = 0.0
        return own

    trained = [factor for factor in factors if factor.requires_grad]
    hooks = [factor.register_hook(masked) for factor in trained]  # type: ignore[no-untyped-call]
    try:
        with torch.no_grad():
            for factor in factors:
                factor[:, rank:] = 0.0
        yield
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for factor, beyond in zip(factors, kept, strict=True):
                factor[:, rank:] = beyond


class RankLayout:
    """What travels, of every rank, as one vector of slices: slice 1 first, each in its own layout.

    The vector of a client of tier k is the beginning of that of a client of tier k + 1.

    Args:
        tiers: the ranks.
        shapes: name to shape of what travels at the largest rank.

    Attributes:
        widths: d_1..d_m, the length of each slice.
        whole: the layout without slices, at the largest rank.

    Raises:
        ConfigError: nothing of low rank travels, A does, or a B has another rank than the largest.

    Guarantees:
        - ``unflatten(flatten(p, k))`` gives back every float32 value bit for bit.
        - Each coordinate is in exactly one slice.
    """

    def __init__(self, tiers: RankTiers, shapes: Mapping[str, Sequence[int]]) -> None:
        self.tiers = tiers
        if any(".lora_A." in name for name in shapes):
            raise ConfigError(
                "rank tiers: A travels; slices of B mean the same for all only over one frozen A, "
                "lora.sharing = 'ffa'"
            )
        ranked = [name for name in shapes if rank_axis(name) is not None]
        if not ranked:
            raise ConfigError("rank tiers: no parameter named lora_B travels")
        for name in ranked:
            if len(shapes[name]) != 2 or shapes[name][1] != tiers.largest:
                raise ConfigError(
                    f"rank tiers: {name} has shape {tuple(shapes[name])}; it must have "
                    f"{tiers.largest} columns, the largest rank"
                )
        layouts = []
        for number in range(1, len(tiers.ranks) + 1):
            first, after = tiers.bounds(number)
            cut = {name: (shapes[name][0], after - first) for name in ranked}
            whole = {n: shape for n, shape in shapes.items() if n not in cut and number == 1}
            layouts.append(AdapterLayout({**whole, **cut}))
        self._layouts = tuple(layouts)
        self.widths = tuple(layout.size for layout in layouts)
        self.whole = AdapterLayout(shapes)

    def flatten(self, tensors: Mapping[str, torch.Tensor], tier: int) -> NDArray[np.float32]:
        """Join a client's tensors, at the rank of its tier, into its vector.

        Raises:
            ConfigError: as :meth:`AdapterLayout.flatten`, or a tensor has another rank.
        """
        self._check_tier(tier)
        rank = self.tiers.ranks[tier - 1]
        for name, tensor in tensors.items():
            own = rank_of(name, tensor)
            if own is not None and own != rank:
                raise ConfigError(f"adapter: {name} has rank {own}; tier {tier} has rank {rank}")
        parts = []
        for number, layout in enumerate(self._layouts[:tier], start=1):
            first, after = self.tiers.bounds(number)
            part = {
                name: columns(name, tensor, first, after)
                for name, tensor in tensors.items()
                if number == 1 or rank_axis(name) is not None
            }
            parts.append(layout.flatten(part))
        return np.concatenate(parts)

    def unflatten(self, vector: NDArray[np.floating]) -> dict[str, torch.Tensor]:
        """Cut a vector of slices 1..k into tensors at rank r_k.

        Raises:
            ConfigError: the length is that of no tier, or a value is NaN or infinite.
        """
        ends = list(itertools.accumulate(self.widths))
        if vector.ndim != 1 or vector.size not in ends:
            raise ConfigError(f"adapter vector: shape {vector.shape}; allowed lengths {ends}")
        tier = ends.index(vector.size) + 1
        cut = np.split(vector, ends[: tier - 1])
        found = [
            layout.unflatten(part) for layout, part in zip(self._layouts[:tier], cut, strict=True)
        ]
        return {
            name: torch.cat([part[name] for part in found], dim=1)
            if rank_axis(name) is not None
            else tensor
            for name, tensor in sorted(found[0].items())
        }

    def order(self) -> NDArray[np.int64]:
        """Where each coordinate of the vector of slices stands in that of ``whole``.

        ``flat[order]`` is the vector of slices, and ``flat[order[:d]]``, d = d_1 + .. + d_k, the
        vector of tier k.

        Returns:
            int64[d_1 + .. + d_m], a permutation.
        """
        places: dict[str, torch.Tensor] = {}
        start = 0
        for name, shape in self.whole.shapes.items():
            size = math.prod(shape)
            places[name] = torch.arange(start, start + size).reshape(shape)
            start += size
        return np.concatenate(
            [
                columns(name, places[name], *self.tiers.bounds(number)).reshape(-1).numpy()
                for number, layout in enumerate(self._layouts, start=1)
                for name in layout.names
            ]
        )

    def fingerprint(self) -> str:
        """Text that two parties share where they slice alike; goes into what a round agrees on."""
        return " ".join(layout.fingerprint() for layout in self._layouts)

    def _check_tier(self, tier: int) -> None:
        if not 1 <= tier <= len(self.widths):
            raise ConfigError(f"tier = {tier}: must be 1..{len(self.widths)}")
