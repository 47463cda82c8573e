"""Losses of a model's predictions, and held-out figures made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from securefed.errors import ConfigError, DataError
from securefed.training.data import Examples

TASKS = ("causal-lm", "sequence-classification")


@dataclass(frozen=True)
class Batch:
    """A micro-batch on its device.

    Attributes:
        input_ids: int64[n, w].
        attention_mask: int64[n, w], 1 for a token and 0 for padding.
        labels: int64[n], or None for causal language modelling.
        targets: int64[n, w], 1 for a token whose prediction counts; None for all.
        weights: float32[n], of each example's loss in training; None for 1.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor | None
    targets: torch.Tensor | None = None
    weights: torch.Tensor | None = None


@dataclass(frozen=True)
class Predictions:
    """What was predicted, scored.

    Attributes:
        nll: float32[n, k], the negative log-likelihood of each target in nats; 0 where not counted.
        counted: bool[n, k], which of the k places hold a target.
        hit: bool[n, k], where the likeliest class is the target.
        weights: float32[n], of each example's loss in training; None for 1.
    """

    nll: torch.Tensor
    counted: torch.Tensor
    hit: torch.Tensor
    weights: torch.Tensor | None = None

    def losses(self) -> torch.Tensor:
        """float32[n]: what training descends: each example's mean, times its own weight."""
        means = self.example_means()
        return means if self.weights is None else means * self.weights

    def example_means(self) -> torch.Tensor:
        """float32[n]: each example's mean over its own targets; 0 for one without a target."""
        return self.nll.sum(dim=1) / self.counted.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class HeldOut:
    """Sums over held-out examples; sums of several clients add.

    Attributes:
        nll_sum: negative log-likelihood in nats.
        tokens: how many predictions were scored: tokens, or one an example for classification.
        correct: how many of them had the target as the likeliest class.
        examples: how many examples.
    """

    nll_sum: float
    tokens: int
    correct: int
    examples: int

    @property
    def perplexity(self) -> float:
        """``exp(nll_sum / tokens)``; infinity where that overflows.

        Raises:
            DataError: no prediction was scored.
        """
        if self.tokens == 0:
            raise DataError("held-out data: no prediction was scored; a perplexity needs one")
        try:
            return math.exp(self.nll_sum / self.tokens)
        except OverflowError:
            return math.inf

    @property
    def accuracy(self) -> float:
        """``correct / tokens``.

        Raises:
            DataError: no prediction was scored.
        """
        if self.tokens == 0:
            raise DataError("held-out data: no prediction was scored; an accuracy needs one")
        return self.correct / self.tokens


def check_task(task: str, examples: Examples | None = None) -> None:
    """Refuse an unknown task, and examples without the labels that it needs.

    Raises:
        ConfigError: the task is unknown.
        DataError: classification without labels.
    """
    if task not in TASKS:
        raise ConfigError(f"task = {task!r}; allowed: {', '.join(map(repr, TASKS))}")
    if task == "sequence-classification" and examples is not None and examples.labels is None:
        raise DataError("examples: task = 'sequence-classification' needs labels; there are none")


def batches(examples: Examples, micro_batch: int, device: torch.device) -> Iterator[Batch]:
    """The examples in order, at most ``micro_batch`` at a time, on ``device``.

    Raises:
        ConfigError: ``micro_batch`` < 1.
    """
    if micro_batch < 1:
        raise ConfigError(f"micro_batch = {micro_batch}; it must be >= 1")
    for start in range(0, len(examples), micro_batch):
        stop = min(start + micro_batch, len(examples))
        part = examples.take(range(start, stop))
        labels = None if part.labels is None else torch.from_numpy(part.labels).to(device)
        targets = None if part.targets is None else torch.from_numpy(part.targets).to(device)
        weights = None if part.weights is None else torch.from_numpy(part.weights).to(device)
        yield Batch(
            torch.from_numpy(part.input_ids).to(device),
            torch.from_numpy(part.attention_mask).to(device),
            labels,
            targets,
            None if weights is None else weights.float(),
        )


def predict(model: nn.Module, batch: Batch, task: str) -> Predictions:
    """Run the model and score each target.

    For ``causal-lm`` the target at a place is the next token, counted where both are tokens and
    not padding.  Losses are computed in float32 whatever the model's type.

    Padding comes last, and a causal model does not look ahead: it is given no padding mask, so that
    which kernels run does not depend on how long the other examples are.
    """
    mask = torch.ones_like(batch.attention_mask) if task == "causal-lm" else batch.attention_mask
    width = batch.input_ids.shape[1]
    output = model(input_ids=batch.input_ids, attention_mask=mask)
    if task == "sequence-classification":
        if batch.labels is None:
            raise DataError("examples: classification needs labels; there are none")
        logits, targets = output.logits[:, None, :], batch.labels[:, None]
        counted = torch.ones_like(targets, dtype=torch.bool)
    else:
        # What a prompt before the text predicts, up to the text's first token, is not scored.
        logits, targets = output.logits[:, -width:][:, :-1], batch.input_ids[:, 1:]
        counted = (batch.attention_mask[:, 1:] & batch.attention_mask[:, :-1]).bool()
        if batch.targets is not None:
            counted &= batch.targets[:, 1:].bool()
    flat = nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1), reduction="none"
    )
    nll = torch.where(counted, flat.view(targets.shape), 0.0)
    hit = (logits.argmax(dim=-1) == targets) & counted
    return Predictions(nll, counted, hit, batch.weights)


def evaluate(
    model: nn.Module, examples: Examples, *, task: str, micro_batch: int, device: torch.device
) -> HeldOut:
    """Score a model on examples, with dropout off; the model's modes come back as they were.

    Args:
        model: on ``device``.
        examples: may be empty.
        task: ``causal-lm`` or ``sequence-classification``.
        micro_batch: examples at a time, >= 1.
        device: where to compute.

    Raises:
        ConfigError: the task is unknown or ``micro_batch`` < 1.
        DataError: classification without labels.
    """
    nll, tokens, correct = 0.0, 0, 0
    for found in scored(model, examples, task=task, micro_batch=micro_batch, device=device):
        nll += float(found.nll.double().sum())
        tokens += int(found.counted.sum())
        correct += int(found.hit.sum())
    return HeldOut(nll, tokens, correct, len(examples))


def example_losses(
    model: nn.Module, examples: Examples, *, task: str, micro_batch: int, device: torch.device
) -> NDArray[np.float64]:
    """Each example's mean negative log-likelihood in nats, float64[n]; otherwise as `evaluate`.

    Raises:
        ConfigError, DataError: as there.
    """
    found = [
        part.example_means().double().cpu().numpy()
        for part in scored(model, examples, task=task, micro_batch=micro_batch, device=device)
    ]
    return np.concatenate([np.empty(0), *found])


def scored(
    model: nn.Module, examples: Examples, *, task: str, micro_batch: int, device: torch.device
) -> Iterator[Predictions]:
    """Predictions on examples, a micro-batch at a time and in order; arguments as `evaluate` has.

    Raises:
        ConfigError, DataError: as there.
    """
    check_task(task, examples)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for batch in batches(examples, micro_batch, device):
            with torch.no_grad():
                found = predict(model, batch, task)
            yield found
    finally:
        for module, mode in modes.items():
            module.training = mode
