"""A few steps over shuffled batches, without example-level protection of their own."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from securefed.errors import ConfigError, DataError
from securefed.training.data import Examples
from securefed.training.evaluate import batches, check_task, predict


class LocalSteps(ABC):
    """Local steps of a first-order optimiser; a :class:`~securefed.training.local.LocalTrainer`.

    The loss is the mean over a batch of each example's own mean, and with a ``proximal_mu``
    (mu / 2) |w - w_0|^2 besides, w_0 being the round's adapter.  Dropout is off.  Whatever an
    optimiser keeps starts anew in every round.  Gradients add up and steps are taken in float32 at
    least, whatever the type of what trains.

    Args:
        local_steps: K steps a round, >= 1.
        batch_size: examples a step, >= 1; fewer where the client has fewer.
        learning_rate: > 0.
        task: ``causal-lm`` or ``sequence-classification``.
        device: where the model is.
        seed: of the shuffles, with the number of the round; the order carries no guarantee.
        micro_batch: examples at a time, >= 1; ``batch_size`` without it.
        proximal_mu: mu >= 0; 0: no such term.
        correction: by name, of a parameter's shape, added to every step's gradient: c - c_i of
            SCAFFOLD.  None: nothing is added.

    Raises:
        ConfigError: an argument is outside that.

    Source: Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (FedProx,
    1812.06127), for the proximal term.
    """

    def __init__(
        self,
        *,
        local_steps: int,
        batch_size: int,
        learning_rate: float,
        task: str,
        device: torch.device,
        seed: int,
        micro_batch: int | None = None,
        proximal_mu: float = 0.0,
        correction: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        check_task(task)
        check_count("local_steps", local_steps)
        check_count("batch_size", batch_size)
        check_positive("learning_rate", learning_rate)
        self.micro_batch = batch_size if micro_batch is None else micro_batch
        check_count("micro_batch", self.micro_batch)
        if seed < 0:
            raise ConfigError(f"seed = {seed}; it must be >= 0")
        if not 0.0 <= proximal_mu < math.inf:
            raise ConfigError(f"proximal_mu = {proximal_mu}; it must be finite and >= 0")
        self.local_steps, self.batch_size, self.learning_rate = (
            local_steps,
            batch_size,
            learning_rate,
        )
        self.task, self.device, self.seed = task, device, seed
        self.proximal_mu, self.correction = proximal_mu, correction

    def train(self, model: nn.Module, data: Examples, round: int) -> None:
        """As :meth:`~securefed.training.local.LocalTrainer.train`.

        Raises:
            ConfigError: nothing in the model is trainable.
            DataError: there is no example, or classification without labels.
        """
        check_task(self.task, data)
        if len(data) == 0:
            raise DataError("training data: no example; a local step needs at least one")
        named = trainable(model)
        parameters = {name: of_float32(parameter) for name, parameter in named.items()}
        optimizer = self._optimizer(list(parameters.values()))
        pull = proximal_pull(parameters.values(), self.proximal_mu)
        model.eval()
        for chosen in self._draws(len(data), round):
            optimizer.zero_grad(set_to_none=True)
            for batch in batches(data.take(chosen), self.micro_batch, self.device):
                loss = predict(model, batch, self.task).losses().sum() / len(chosen)
                loss.backward()  # type: ignore[no-untyped-call]
                for name, parameter in parameters.items():
                    _take_gradient(named[name], parameter)
            pull()
            for name, added in (self.correction or {}).items():
                parameter = parameters[name]
                term = added.to(parameter.device, parameter.dtype)
                parameter.grad = term.clone() if parameter.grad is None else parameter.grad + term
            optimizer.step()
            with torch.no_grad():
                for name, parameter in parameters.items():
                    if parameter is not named[name]:
                        named[name].copy_(parameter)
        optimizer.zero_grad(set_to_none=True)

    @abstractmethod
    def _optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer: ...

    def _draws(self, count: int, round: int) -> list[NDArray[np.int64]]:
        generator = np.random.default_rng([self.seed, round])
        wanted = min(self.batch_size, count)
        order = np.empty(0, dtype=np.int64)
        draws = []
        for _ in range(self.local_steps):
            if len(order) < wanted:
                order = generator.permutation(count)
            draws.append(order[:wanted])
            order = order[wanted:]
        return draws


class AdamWTrainer(LocalSteps):
    """Local steps of AdamW, without weight decay; moments start at zero in every round.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
    """

    def _optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=0.0)


class SgdTrainer(LocalSteps):
    """Local steps of plain SGD."""

    def _optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=self.learning_rate)


def proximal_pull(parameters: Iterable[nn.Parameter], mu: float) -> Callable[[], None]:
    """A function that adds mu (w - w_0) to the gradients, w_0 being the values at this call."""
    if mu == 0.0:
        return lambda: None
    held = [(parameter, parameter.detach().clone()) for parameter in parameters]

    def pull() -> None:
        for parameter, start in held:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=mu)

    return pull


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters with ``requires_grad``, by name.

    Raises:
        ConfigError: there is none.
    """
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ConfigError("model: no parameter has requires_grad; nothing would train")
    return found


def _take_gradient(given: nn.Parameter, parameter: nn.Parameter) -> None:
    """Add a gradient of few bits to that of the float32 copy; one of many is there already."""
    if parameter is given or given.grad is None:
        return
    gradient = given.grad.float()
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    given.grad = None


def of_float32(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter itself, or a float32 copy of one of fewer bits, for an optimiser to step on.

    bfloat16 has 8 bits: a step below half a unit in the last place would be lost, however many of
    them are taken, and gradients of micro-batches would be rounded as they add up.  So would
    clipped gradients: the sum of 64 would be off, before its noise, by up to a quarter of a clip
    norm in each coordinate, and one example would move it by that much more.
    """
    if parameter.dtype in (torch.float32, torch.float64):
        return parameter
    return nn.Parameter(parameter.detach().float())


def check_count(name: str, value: int) -> None:
    """Refuse a count below 1.

    Raises:
        ConfigError: with ``name`` and value.
    """
    if value < 1:
        raise ConfigError(f"{name} = {value}; it must be >= 1")


def check_positive(name: str, value: float) -> None:
    """Refuse what is not finite and > 0.

    Raises:
        ConfigError: with ``name`` and value.
    """
    if not (math.isfinite(value) and value > 0.0):
        raise ConfigError(f"{name} = {value}; it must be finite and > 0")
