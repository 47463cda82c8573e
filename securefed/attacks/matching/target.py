"""What an update says about the gradient that made it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from securefed.attacks.base import AdversaryView, PublicKnowledge
from securefed.attacks.inversion.algebra import entry_noise

_BELOW_CLIP = 0.98  # of the clip norm; an update that is shorter was surely not clipped
_ABOVE_NOISE = 1.5
_LEAST = 1e-20
_BLOCK = re.compile(r"\.([0-9]+)\.")


@dataclass(frozen=True, eq=False)
class ObservedGradient:
    """The gradient that candidates are compared with.

    Attributes:
        tensors: by parameter, float32 of its shape; parameters whose update is zero, or no longer
            than what rounding and noise of the round make by themselves, are left out.
        norm: of all tensors together, > 0.
        depths: by parameter, in [0, 1]: 0 for the first block that is in the update, 1 for the last
            and for what belongs to no block, such as a head.
        scaled: whether the length is that of the gradient.  Where it is not, clipping has shortened
            it by a factor that the attacker does not know.
    """

    tensors: Mapping[str, torch.Tensor]
    norm: float
    depths: Mapping[str, float]
    scaled: bool


def observed_gradient(
    view: AdversaryView, public: PublicKnowledge
) -> tuple[ObservedGradient | None, str]:
    """The gradient that a view's reading stands for, or None and why there is none.

    One step of SGD moves parameters by -lr * gradient, which clipping rescales.  Of K steps the
    reading / (-K lr) is the mean of K gradients, each at the parameters that the step began with:
    it is taken for the gradient at the public ones, which is nearer the truth the less the steps
    move.  Of a sum of n clients it is the mean of theirs.
    """
    if public.optimizer == "adamw":
        return None, (
            "AdamW divides every value by its own size: its steps are not a multiple of a gradient"
        )
    reading = view.reading(public) / view.contributions
    step = public.local_steps * public.learning_rate
    tensors = {name: -tensor / step for name, tensor in public.layout.unflatten(reading).items()}
    noise = entry_noise(view, public) / (view.contributions * step)
    signal = {
        name: tensor
        for name, tensor in tensors.items()
        if float(tensor.norm()) > _ABOVE_NOISE * noise * math.sqrt(tensor.numel())
    }
    norm = float(sum(tensor.double().square().sum() for tensor in signal.values())) ** 0.5
    if norm <= _LEAST:
        return None, "no signal: the update is no more than rounding and noise make by themselves"
    size = float(np.linalg.norm(reading))
    scaled = view.contributions == 1 and size < _BELOW_CLIP * public.session.policy.clip_norm
    return ObservedGradient(signal, norm, _depths(signal), scaled), ""


def _depths(names: Iterable[str]) -> dict[str, float]:
    found = {name: _BLOCK.search(name) for name in names}
    numbers = {name: int(match[1]) for name, match in found.items() if match}
    first, last = min(numbers.values(), default=0), max(numbers.values(), default=0)
    span = max(1, last - first)
    return {name: (numbers[name] - first) / span if name in numbers else 1.0 for name in found}
