"""Fed-SB's small matrix between a frozen B and a frozen A, inside PEFT's LoRA layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from securefed.errors import ConfigError

_LORA_A, _DOWN, _CORE = ".lora_A.", ".down.weight", ".core.weight"


class CoreProduct(nn.Module):
    """``x -> R (A x)`` in the place of LoRA's A.

    PEFT reads the weight of a layer's A where it merges, and finds R A there.

    Args:
        down: LoRA's A, ``[r, in]``, to be frozen.
    """

    def __init__(self, down: nn.Linear) -> None:
        super().__init__()
        rank, kind = down.weight.shape[0], down.weight
        self.down = down
        self.core = nn.Linear(rank, rank, bias=False, device=kind.device, dtype=kind.dtype)

    @property
    def weight(self) -> torch.Tensor:
        """R A, ``[r, in]``."""
        return self.core.weight @ self.down.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in] -> [..., r]``."""
        found: torch.Tensor = self.core(self.down(x))
        return found


def put_in_cores(model: nn.Module) -> None:
    """Give every LoRA layer an R = 0 between the singular vectors of its frozen base weight.

    ``W = U S V^T``: A becomes the first r rows of V^T, B the first r columns of U.  Both have
    orthonormal rows or columns, so that one clip norm fits the R of every layer.

    Args:
        model: a PEFT model with LoRA layers; changed in place.

    Raises:
        ConfigError: a base weight is not of floats (it is quantised).

    Source: Balazy et al. 2024, "LoRA-XS" (2405.17604).
    """
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        base = layer.get_base_layer().get_parameter("weight").detach()
        if not base.is_floating_point():
            raise ConfigError(
                f"lora.sharing = 'fedsb': {name} has a base weight of {base.dtype}; its singular "
                "vectors are needed, so it must be of floats"
            )
        # GPT-2's Conv1D holds its weight transposed.
        matrix = base.T if getattr(layer, "fan_in_fan_out", False) else base
        left, _, right = torch.linalg.svd(matrix.float(), full_matrices=False)
        for adapter, down in list(layer.lora_A.items()):
            rank = down.weight.shape[0]
            up = layer.lora_B[adapter].weight
            with torch.no_grad():
                down.weight.copy_(right[:rank])
                up.copy_(left[:, :rank])
            product = CoreProduct(down)
            nn.init.zeros_(product.core.weight)
            layer.lora_A[adapter] = product


def folded(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A model's state with R A in the place of R and A: an ordinary LoRA adapter."""
    plain = dict(state)
    for name in state:
        if _LORA_A in name and name.endswith(_CORE):
            stem = name.removesuffix(_CORE)
            plain[f"{stem}.weight"] = plain.pop(name) @ plain.pop(stem + _DOWN)
    return plain
