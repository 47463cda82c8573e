"""FedSVD's step between rounds: the same product, written with other factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from securefed.errors import ConfigError

# What torch.optim keeps for each parameter.  Sums and means of gradients turn with the basis.
_LINEAR = ("exp_avg", "momentum_buffer")
_SQUARED = ("exp_avg_sq", "max_exp_avg_sq", "sum")


@dataclass(frozen=True)
class Refactored:
    """New factors of each product, and how gradients of B went over.

    Attributes:
        tensors: name of A or B to its new value, float32.
        turns: name of B to V, float64[r, r]: a gradient G of the old B is G V of the new one.
            V is orthogonal where the old A had orthonormal rows.
    """

    tensors: dict[str, torch.Tensor]
    turns: dict[str, torch.Tensor]


def refactored(tensors: Mapping[str, torch.Tensor]) -> Refactored:
    """Write every ``B A`` as ``(U S) V^T`` of its singular value decomposition.

    With ``A^T = Q T`` (Q orthonormal) and ``B T^T = U S W^T`` the product is ``U S (Q W)^T``: the
    new B is U S, the new A is (Q W)^T, and no matrix of the product's size is formed.  A gradient
    of B is (gradient of the product) A^T, so that V = T^-1 W.

    Args:
        tensors: name to value, among them each ``lora_B`` and its ``lora_A``.

    Raises:
        ConfigError: an A has rows that are linearly dependent, which no basis can turn.

    Guarantees:
        - New B times new A equals the old product, and the new A's rows are orthonormal, both to
          float32 rounding; the arithmetic is float64.

    Source: Lee et al. 2025, "FedSVD" (2505.12805), whose new A are the right singular vectors.
    """
    fresh: dict[str, torch.Tensor] = {}
    turns: dict[str, torch.Tensor] = {}
    for name, up in tensors.items():
        if ".lora_B." not in name:
            continue
        partner = name.replace(".lora_B.", ".lora_A.")
        basis, triangle = torch.linalg.qr(tensors[partner].double().T)
        if float(triangle.diagonal().abs().min()) == 0.0:
            raise ConfigError(f"{partner}: its rows are linearly dependent; they cannot be turned")
        left, singular, right = torch.linalg.svd(up.double() @ triangle.T, full_matrices=False)
        if len(singular) < len(triangle):  # fewer outputs than the rank: U S is not square enough
            raise ConfigError(
                f"{name}: {len(up)} outputs under a rank of {len(triangle)}; the rank must not be "
                "larger"
            )
        fresh[name] = (left * singular).float()
        fresh[partner] = (basis @ right.T).T.float()
        turns[name] = torch.linalg.solve(triangle, right.T)
    return Refactored(fresh, turns)


def turned_moments(
    moment: str, values: Mapping[str, torch.Tensor], turns: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What an optimiser holds for each parameter, in the new coordinates.

    Sums of gradients go over exactly: g becomes g V.  Of squares only the diagonal is held; v
    becomes v (V * V), the squares' new mean (or sum) if gradients of different columns are
    uncorrelated.  (To forget both instead would make Adam's next step one of full length in every
    coordinate, each round anew.)

    Args:
        moment: torch's name for it.
        values: parameter name to value, of the parameter's shape.
        turns: as in :class:`Refactored`.

    Raises:
        ConfigError: it is not known how this one goes over.
    """
    if moment not in _LINEAR + _SQUARED:
        raise ConfigError(
            f"lora.sharing = 'fedsvd': it is not known how the server optimiser's {moment!r} goes "
            f"over to other factors; known are {', '.join(_LINEAR + _SQUARED)}"
        )
    found = dict(values)
    for name, turn in turns.items():
        matrix = turn.square() if moment in _SQUARED else turn
        found[name] = (values[name].double() @ matrix).float()
    return found
