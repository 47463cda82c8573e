"""How far candidates' gradients are from the observed one.

g is the observed gradient and g' a candidate's, g_l and g'_l their parts of one parameter l:

    L2       |g' - g|^2 / |g|^2
    cosine   mean over l of 1 - <g'_l, g_l> / (|g'_l| |g_l|)
    TAG      sum over l of |g'_l - g_l|^2 / |g|^2 + alpha w_l |g'_l - g_l|_1 / |g|_1

Clipping shortens an update by an unknown factor.  The cosine does not see it; for the others g' is
first brought to the length of g where g was clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from securefed.attacks.matching.target import ObservedGradient

_LEAST = 1e-12

Gradients = Mapping[str, torch.Tensor]
"""Of R candidates: by parameter, float32[R, *its shape]."""


class Distance(Protocol):
    """A measure of how far gradients are from the observed one, smooth almost everywhere."""

    @property
    def name(self) -> str:
        """Short and fixed."""
        ...

    def __call__(self, gradients: Gradients, observed: ObservedGradient) -> torch.Tensor:
        """float32[R], 0 where a candidate's gradient is the observed one."""
        ...


@dataclass(frozen=True)
class L2Distance:
    """Squared Euclidean distance, relative to the observed gradient's.

    Source: Zhu, Liu and Han 2019, "Deep Leakage from Gradients" (1906.08935), equation 4.
    """

    name: str = "l2"

    def __call__(self, gradients: Gradients, observed: ObservedGradient) -> torch.Tensor:
        """See :class:`Distance`."""
        scaled = _scaled(gradients, observed)
        total = torch.stack([_square(scaled[n] - g) for n, g in observed.tensors.items()]).sum(0)
        return total / observed.norm**2


@dataclass(frozen=True)
class CosineDistance:
    """Mean over parameters of one less the cosine.

    Source: Geiping et al. 2020, "Inverting Gradients" (2003.14053), equation 4, for the cosine;
    Balunovic et al. 2022 (2202.08827), section 4, for taking it a parameter at a time.
    """

    name: str = "cosine"

    def __call__(self, gradients: Gradients, observed: ObservedGradient) -> torch.Tensor:
        """See :class:`Distance`."""
        cosines = []
        for name, wanted in observed.tensors.items():
            found = gradients[name].flatten(1)
            size = found.square().sum(dim=1).clamp(min=_LEAST**2).sqrt() * wanted.norm()
            cosines.append(found @ wanted.flatten() / size.clamp(min=_LEAST**2))
        return 1.0 - torch.stack(cosines).mean(dim=0)


@dataclass(frozen=True)
class TagDistance:
    """L2, and L1 besides, which weighs less the later a layer is.

    Args:
        alpha: weight of L1, >= 0.
        decay: w_l of the last layer, that of the first being 1, in (0, 1]; exponential in between.

    Source: Deng et al. 2021, "TAG: Gradient Attack on Transformer-based Language Models"
    (2103.06819), section 3.
    """

    alpha: float = 0.5
    decay: float = 0.1
    name: str = "tag"

    def __call__(self, gradients: Gradients, observed: ObservedGradient) -> torch.Tensor:
        """See :class:`Distance`."""
        scaled = _scaled(gradients, observed)
        absolute = sum(float(g.abs().sum()) for g in observed.tensors.values())
        total = torch.zeros(())
        for name, wanted in observed.tensors.items():
            difference = scaled[name] - wanted
            weight = self.alpha * self.decay ** observed.depths[name] / absolute
            total = total + _square(difference) / observed.norm**2
            total = total + weight * difference.flatten(1).abs().sum(dim=1)
        return total


def _square(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.flatten(1).square().sum(dim=1)


def _scaled(gradients: Gradients, observed: ObservedGradient) -> dict[str, torch.Tensor]:
    """The gradients, at the observed length where clipping has hidden it."""
    names = observed.tensors
    if observed.scaled:
        return {name: gradients[name] for name in names}
    size = torch.stack([_square(gradients[name]) for name in names]).sum(dim=0)
    factor = observed.norm / size.clamp(min=_LEAST**2).sqrt()
    return {
        name: gradients[name] * factor.view(-1, *(1,) * (gradients[name].dim() - 1))
        for name in names
    }
