"""The local steps that a run file asks for, where they are not the user's own."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from securefed.crypto.prg import NoiseGenerator
from securefed.engines.settings import Settings
from securefed.lora.parts import AdapterParts
from securefed.training.local import DpSgdTrainer, LocalTrainer
from securefed.training.steps import AdamWTrainer, SgdTrainer


def built_in_trainer(
    settings: Settings,
    parts: AdapterParts,
    *,
    units: int,
    local_steps: int,
    micro_batch: int,
    correction: Mapping[str, torch.Tensor] | None,
    device: torch.device,
) -> LocalTrainer:
    """Local DP-SGD with ``mechanism = "local"``, else steps of AdamW or SGD.

    Args:
        settings: of the run.
        parts: the adapter, in the round at hand.
        units: how many units the client has.
        local_steps: of this client.
        micro_batch: examples at a time; under DP-SGD as they were checked.
        correction: what controls add to each step's gradient, by name; None for nothing.
        device: where the model is.
    """
    training, privacy = settings.config.training, settings.config.privacy
    task = settings.config.model.task
    if privacy.mechanism == "local":
        q = settings.stated.sampling_probability
        return DpSgdTrainer(
            parts.trained,
            local_steps=local_steps,
            sampling_probability=q,
            expected_batch_size=q * units,
            clip_norm=privacy.clip_norm,
            noise_multiplier=settings.stated.noise_multiplier,
            learning_rate=training.local_learning_rate,
            micro_batch=micro_batch,
            task=task,
            device=device,
            generator=NoiseGenerator(),
            unit=settings.stated.unit,
            examples_per_user=training.examples_per_user,
            proximal_mu=training.proximal_mu,
        )
    steps = AdamWTrainer if training.local_optimizer == "adamw" else SgdTrainer
    return steps(
        local_steps=local_steps,
        batch_size=training.batch_size,
        learning_rate=training.local_learning_rate,
        task=task,
        device=device,
        seed=settings.config.lora.seed,
        micro_batch=micro_batch,
        proximal_mu=training.proximal_mu,
        correction=correction,
    )
