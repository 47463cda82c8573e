"""Train a personal adapter from a shared one, and choose how much of it to use.

Run by: client, alone.  Nothing here is sent, and nothing carries noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from securefed.config import PersonalSection
from securefed.lora.interpolation import interpolated
from securefed.training.data import Examples
from securefed.training.evaluate import example_losses
from securefed.training.steps import AdamWTrainer
from securefed.training.validation import Chosen, choose_mix, validation_parts

Tensors = dict[str, torch.Tensor]


class PersonalTrainer:
    """Personal adapters of clients that take their turn in one model.

    Args:
        model: holds the shared adapter at every call.
        parameters: by name, what a personal adapter changes; all else is frozen.
        section: of the run file.
        task: ``causal-lm`` or ``sequence-classification``.
        device: where the model is.
        seed: of the shuffles and of the validation part.
        micro_batch: examples at a time, >= 1.

    Guarantees:
        - After each call the model's values and what trains in it are as they were before.
        - While a client chooses, it trains on none of its validation examples.
        - An adapter that is not finite is not used: a = 0 is chosen.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        section: PersonalSection,
        *,
        task: str,
        device: torch.device,
        seed: int,
        micro_batch: int,
    ) -> None:
        self._model, self._parameters, self._section = model, dict(parameters), section
        self._task, self._device, self._micro_batch = task, device, micro_batch
        self._seed = seed

    def values(self) -> Tensors:
        """Copies, in float32 on the CPU, of what a personal adapter changes."""
        return {
            name: parameter.detach().to("cpu", torch.float32, copy=True).contiguous()
            for name, parameter in self._parameters.items()
        }

    @contextmanager
    def holding(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Other values in the model; afterwards those that were there before."""
        before = self.values()
        self._load(tensors)
        try:
            yield
        finally:
            self._load(before)

    def made(self, examples: Examples) -> tuple[Tensors, Chosen]:
        """One client's personal adapter, and how much of it the client uses.

        Args:
            examples: its training data, which may be empty; never its held-out part.

        Returns:
            The personal adapter v, and the choice of a.
        """
        section, shared = self._section, self.values()
        if section.mix != "choose":
            own = self._train(examples, shared)
            return own, Chosen(section.mix if _is_finite(own) else 0.0, None, None, 0)
        parts = validation_parts(examples, section.validation_fraction, seed=self._seed)
        validation = examples.take(parts.validation)
        own = self._train(examples.take(parts.fit), shared)
        losses = {0.0: self._losses(validation, shared)}
        if _is_finite(own):
            for mix in section.choices:
                losses[mix] = self._losses(validation, interpolated(shared, own, mix))
        choice = choose_mix(losses, section.margin)
        if choice.mix > 0.0 and section.refit:
            again = self._train(examples, shared)
            own = again if _is_finite(again) else own
        return own, choice

    def _train(self, examples: Examples, shared: Tensors) -> Tensors:
        if len(examples) == 0:
            return shared
        section = self._section
        steps = AdamWTrainer(
            local_steps=section.steps,
            batch_size=section.batch_size,
            learning_rate=section.learning_rate,
            task=self._task,
            device=self._device,
            seed=self._seed,
            micro_batch=self._micro_batch,
            proximal_mu=section.pull,
        )
        every = dict(self._model.named_parameters(remove_duplicate=False))
        trains = {name: parameter.requires_grad for name, parameter in every.items()}
        try:
            for parameter in every.values():
                parameter.requires_grad_(False)
            for parameter in self._parameters.values():
                parameter.requires_grad_(True)
            steps.train(self._model, examples, 1)
            return self.values()
        finally:
            for name, parameter in every.items():
                parameter.requires_grad_(trains[name])
            self._load(shared)

    def _losses(self, examples: Examples, tensors: Tensors) -> NDArray[np.float64]:
        with self.holding(tensors):
            return example_losses(
                self._model,
                examples,
                task=self._task,
                micro_batch=self._micro_batch,
                device=self._device,
            )

    def _load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[name])


def _is_finite(tensors: Tensors) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in tensors.values())
