"""How far local training moves what travels: an honest client's, and one held inside a ball."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.attacks.base import PublicKnowledge
from securefed.errors import ConfigError
from securefed.training.data import Examples
from securefed.training.steps import AdamWTrainer, SgdTrainer

_CPU = torch.device("cpu")


def local_update(
    public: PublicKnowledge,
    data: Examples,
    *,
    seed: int,
    effort: int = 1,
    radius: float | None = None,
) -> NDArray[np.float32]:
    """Train as the round asks, and say how far that moved what travels; the model stays as it was.

    Args:
        public: the model at the round's beginning, and how clients train.
        data: what is trained on.
        seed: of the order of examples, >= 0.
        effort: times that ``public.local_steps`` are taken, >= 1; optimisers start anew each time.
        radius: L2 ball around the beginning that the values are projected onto after each of these
            times; None for no such ball.

    Returns:
        float32[public.layout.size]; zeros where training ended in values that are not finite, as a
        client's codec has it.

    Raises:
        ConfigError: an argument is outside that.

    Source: projection during the attacker's own training: Sun et al. 2019, "Can You Really Backdoor
    Federated Learning?" (1911.07963), section 3; Wang et al. 2020, "Attack of the Tails"
    (2007.05084), section 3.
    """
    if effort < 1 or (radius is not None and not (math.isfinite(radius) and radius > 0.0)):
        raise ConfigError(f"effort = {effort}, radius = {radius}; allowed: >= 1; > 0 or None")
    named = dict(public.model.named_parameters())
    parameters = {name: named[name] for name in public.layout.names}
    before = {name: p.detach().clone() for name, p in parameters.items()}
    kind = SgdTrainer if public.optimizer == "sgd" else AdamWTrainer
    trainer = kind(
        local_steps=public.local_steps,
        batch_size=public.batch_size,
        learning_rate=public.learning_rate,
        task=public.task,
        device=_CPU,
        seed=seed,
    )
    for turn in range(1, effort + 1):
        trainer.train(public.model, data, turn)
        if radius is not None:
            _project(parameters, before, radius)
    moved = {name: p.detach() - before[name] for name, p in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(before[name])
    if not all(bool(torch.isfinite(value).all()) for value in moved.values()):
        return np.zeros(public.layout.size, dtype=np.float32)
    return public.layout.flatten(moved)


def _project(
    parameters: dict[str, torch.nn.Parameter], before: dict[str, torch.Tensor], radius: float
) -> None:
    with torch.no_grad():
        moved = {name: p - before[name] for name, p in parameters.items()}
        norm = math.sqrt(sum(float(value.double().square().sum()) for value in moved.values()))
        if norm > radius:
            for name, parameter in parameters.items():
                parameter.copy_(before[name] + moved[name] * (radius / norm))
