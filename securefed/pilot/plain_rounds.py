"""A run's rounds without clip, noise or sums that hide: on its adapter, or on all of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from securefed.config import TrainingSection
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.events import Observer
from securefed.engines.settings import Settings
from securefed.federation.server_optimizer import ServerOptimizer
from securefed.federation.server_step import ServerStep
from securefed.lora.layout import AdapterLayout
from securefed.lora.parts import AdapterParts
from securefed.phases import Phase
from securefed.privacy.samplers import poisson_sample
from securefed.training.data import Examples
from securefed.training.evaluate import batches, predict
from securefed.training.steps import AdamWTrainer, SgdTrainer
from securefed.training.users import sampled_users


class Trained(Protocol):
    """What trains in a model, as one flat vector, and the server's rule for it."""

    model: nn.Module

    def begin(self, number: int) -> None:
        """Let train what trains in round ``number``."""
        ...

    @property
    def layout(self) -> AdapterLayout:
        """Of the present round's vector."""
        ...

    def flat(self) -> NDArray[np.float32]:
        """The present values, float32[d]."""
        ...

    def load(self, vector: NDArray[np.float32]) -> None:
        """Put float32[d] into the model."""
        ...

    def step(self, number: int, gradient: NDArray[Any]) -> None:
        """Move against a mean gradient, or minus a mean change, float[d]."""
        ...


class TrainedAdapter:
    """The adapter of a workbench, by its sharing mode.

    Args:
        model: that holds it.
        parts: what of it trains when.
        training: names the server's rule.
    """

    def __init__(self, model: nn.Module, parts: AdapterParts, training: TrainingSection) -> None:
        self.model, self._parts = model, parts
        self._server = ServerStep(parts, lambda initial: ServerOptimizer.of(initial, training))

    def begin(self, number: int) -> None:
        """Let train what trains in round ``number``."""
        self._parts.begin(number)

    @property
    def layout(self) -> AdapterLayout:
        """Of the present round's vector."""
        return self._parts.layout

    def flat(self) -> NDArray[np.float32]:
        """The present values."""
        return self._parts.flat()

    def load(self, vector: NDArray[np.float32]) -> None:
        """Put them into the model."""
        self._parts.load_flat(vector)

    def step(self, number: int, gradient: NDArray[Any]) -> None:
        """One step of the server's rule."""
        self._server.step(number, gradient)


class TrainedModel:
    """All parameters of a model.

    Args:
        model: in evaluation mode; all of it is set to train.
        training: names the server's rule and its rate.

    Attributes:
        layout: of all parameters; tied ones are there once.
    """

    def __init__(self, model: nn.Module, training: TrainingSection) -> None:
        self.model = model
        self._parameters = dict(model.named_parameters())
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        self._layout = AdapterLayout({n: tuple(p.shape) for n, p in self._parameters.items()})
        self._server = ServerOptimizer.of(self.flat(), training)

    def begin(self, number: int) -> None:
        """The same trains in every round."""

    @property
    def layout(self) -> AdapterLayout:
        """Of all parameters; tied ones are there once."""
        return self._layout

    def flat(self) -> NDArray[np.float32]:
        """The present values."""
        return self._layout.flatten({n: p.detach() for n, p in self._parameters.items()})

    def load(self, vector: NDArray[np.float32]) -> None:
        """Put them into the model."""
        with torch.no_grad():
            for name, value in self._layout.unflatten(vector).items():
                self._parameters[name].copy_(value)

    def step(self, number: int, gradient: NDArray[Any]) -> None:
        """One step of the server's rule."""
        self.load(self._server.step(gradient))


@dataclass(frozen=True)
class PlainRounds:
    """Trains as a run without noise would, and clips nothing.

    Where a round of the run is one step, each party's Poisson sample is drawn with the run's q and
    each unit's gradient is added up; else each party takes the run's local steps and its change of
    the vector is added up.  Of all sums there is one copy: the gradients that torch adds up itself,
    or the sum of changes.

    Args:
        settings: of the same run without noise (``engines.without_noise``).
        parties: who trains, with its examples.
        training: steps, batches and rates.
        device: where the model is.
        phase: told when a party trains (``"train"``) and the server steps (``"apply"``).
        observer: told how far a round is.
    """

    settings: Settings
    parties: Mapping[str, Examples]
    training: TrainingSection
    device: torch.device
    phase: Phase
    observer: Observer

    def run(self, trained: Trained) -> None:
        """All rounds, in place."""
        generator = NoiseGenerator()
        for number in range(1, self.training.rounds + 1):
            trained.begin(number)
            step = self._one_step if self.settings.one_step else self._local_steps
            gradient = step(trained, number, generator)
            with self.phase("apply"):
                trained.step(number, gradient)
            trained.model.zero_grad(set_to_none=True)

    def _one_step(
        self, trained: Trained, number: int, generator: NoiseGenerator
    ) -> NDArray[np.float64]:
        trained.model.zero_grad(set_to_none=True)
        for done, examples in enumerate(self.parties.values()):
            self.observer.working(f"round {number}", done, len(self.parties))
            with self.phase("train"):
                self._add_gradients(trained.model, self._drawn(examples, generator))
        parameters = dict(trained.model.named_parameters())
        summed = trained.layout.flatten(
            {
                name: torch.zeros(shape)
                if (grad := parameters[name].grad) is None
                else grad.detach()
                for name, shape in trained.layout.shapes.items()
            }
        )
        return self.settings.gradient(_float(summed), tuple(self.parties))

    def _drawn(self, examples: Examples, generator: NoiseGenerator) -> Examples:
        policy = self.settings.stated
        if policy.unit == "user":
            most = self.training.examples_per_user
            return sampled_users(examples, policy.sampling_probability, generator, most=most)
        return examples.take(poisson_sample(len(examples), policy.sampling_probability, generator))

    def _add_gradients(self, model: nn.Module, drawn: Examples) -> None:
        """Add each drawn unit's gradient, a user's being its mean, to those that are there."""
        weights = np.ones(len(drawn), dtype=np.float32)
        if self.settings.stated.unit == "user" and drawn.users is not None:
            weights = (1.0 / np.bincount(drawn.users)[drawn.users]).astype(np.float32)
        model.eval()
        size, task = self.training.micro_batch, self.settings.config.model.task
        for place, batch in enumerate(batches(drawn, size, self.device)):
            share = torch.from_numpy(weights[place * size : (place + 1) * size]).to(self.device)
            loss = (predict(model, batch, task).losses() * share).sum()
            loss.backward()  # type: ignore[no-untyped-call]

    def _local_steps(
        self, trained: Trained, number: int, generator: NoiseGenerator
    ) -> NDArray[np.float64]:
        before = trained.flat()
        total = np.zeros_like(before)
        weights = self.settings.weights
        counted = {name: weights.get(name, 1.0) for name in self.parties}
        steps = AdamWTrainer if self.training.local_optimizer == "adamw" else SgdTrainer
        trainer = steps(
            local_steps=self.training.local_steps,
            batch_size=self.training.batch_size,
            learning_rate=self.training.local_learning_rate,
            task=self.settings.config.model.task,
            device=self.device,
            seed=self.settings.config.lora.seed,
            micro_batch=self.training.micro_batch,
            proximal_mu=self.training.proximal_mu,
        )
        for done, (name, examples) in enumerate(self.parties.items()):
            self.observer.working(f"round {number}", done, len(self.parties))
            with self.phase("train"):
                trainer.train(trained.model, examples, number)
                changed = trained.flat()
            changed -= before
            changed *= counted[name]
            total += changed
            trained.load(before)
        total /= -sum(counted.values())
        return _float(total)


def _float(values: NDArray[Any]) -> NDArray[np.float64]:
    """As a gradient is typed; a second copy in twice the width would be the largest of all."""
    return values
