"""Between a shared adapter and a personal one."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from securefed.errors import ConfigError

Tensors = Mapping[str, torch.Tensor]


def interpolated(shared: Tensors, personal: Tensors, share: float) -> dict[str, torch.Tensor]:
    """(1 - a) w + a v, coordinate by coordinate.

    Where the adapters differ in B alone (or in R alone, or in what is trained in full), this is the
    interpolation of the changes they make to the weights: ((1 - a) B + a B') A = (1 - a) B A +
    a B' A.  Where A differs too it is not: with B' = B + b and A' = A + e the weight change falls
    short of the interpolated one by a (1 - a) b e, which is 0 at both ends and largest in the
    middle.  Whoever chooses a by the loss of the result chooses among what is really used.

    Args:
        shared: w, by name.
        personal: v, of the same names and shapes.
        share: a in [0, 1]; at 0 and 1 the result has the very bits of w and v.

    Raises:
        ConfigError: ``share`` is outside that, or names or shapes differ.

    Source: Deng, Kamani and Mahdavi 2020, "Adaptive Personalized Federated Learning"
    (2003.13461), section 2.
    """
    if not 0.0 <= share <= 1.0:
        raise ConfigError(f"share = {share}: must be in [0, 1]")
    if _shapes(shared) != _shapes(personal):
        raise ConfigError("personal: allowed are the names and shapes of the shared adapter")
    if share in (0.0, 1.0):
        chosen = personal if share else shared
        return {name: value.clone() for name, value in chosen.items()}
    return {name: (1.0 - share) * shared[name] + share * personal[name] for name in shared}


def _shapes(tensors: Tensors) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}
