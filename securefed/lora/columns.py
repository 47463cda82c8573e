"""The rank of an adapter's tensors: rows of A, columns of B, and parts of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from securefed.errors import ConfigError


def at_rank(state: Mapping[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """An adapter's tensors at a lower rank: the first rows of A, the first columns of B.

    Args:
        state: as :func:`~securefed.lora.adapter.adapter_state` gives it, or what travels of it.
        rank: at most that of ``state``.

    Returns:
        The same names, as fresh contiguous tensors; what has no rank is whole.

    Raises:
        ConfigError: ``rank`` is below 1 or larger than the state's.
    """
    return {name: columns(name, tensor, 0, rank) for name, tensor in state.items()}


def rank_axis(name: str) -> int | None:
    """The axis of an adapter parameter that counts its rank; None for what has no rank."""
    if ".lora_B." in name:
        return 1
    return 0 if ".lora_A." in name else None


def rank_of(name: str, tensor: torch.Tensor) -> int | None:
    """The rank that a tensor has; None for what has none."""
    axis = rank_axis(name)
    return None if axis is None else tensor.shape[axis]


def columns(name: str, tensor: torch.Tensor, first: int, after: int) -> torch.Tensor:
    """Directions ``first``..``after`` - 1 of a tensor, as a copy; all of what has no rank."""
    axis = rank_axis(name)
    if axis is None:
        return tensor.detach().clone()
    check_rank(after, tensor.shape[axis])
    return tensor.detach().narrow(axis, first, after - first).clone().contiguous()


def check_rank(rank: int, largest: int) -> None:
    """Refuse a rank outside 1..``largest``.

    Raises:
        ConfigError: with both.
    """
    if not 1 <= rank <= largest:
        raise ConfigError(f"rank = {rank}: must be 1..{largest}, that of the server's adapter")
