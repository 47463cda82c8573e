"""What a client's step takes of its memory, foreseen before anything is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn

from securefed.config import RunConfig
from securefed.lora.parts import AdapterParts
from securefed.training.dp_sgd import PerExampleGradients
from securefed.training.evaluate import batches, predict
from securefed.training.memory import StepMemory, made_up, step_memory
from securefed.training.steps import trainable

GIB = 2**30


def foreseen_memory(
    model: nn.Module,
    parts: AdapterParts,
    config: RunConfig,
    device: torch.device,
    *,
    per_example: bool,
) -> StepMemory:
    """The most that any turn of the sharing mode takes; which round comes next stays as it was.

    Args:
        model: the adapted model, without per-example hooks.
        parts: what of it trains when.
        config: window length, labels, ``training.micro_batch``.
        device: where the model is.
        per_example: whether a step takes one gradient an example, as DP-SGD does.
    """
    task, tokens, labels = config.model.task, config.data.window_tokens, config.model.labels
    before, found = parts.turn, []

    try:
        for turn in range(len(parts.layouts)):
            parts.begin(turn + 1)
            with _step(model, parts, task, tokens, labels, device, per_example) as run:
                most = max(2, config.training.micro_batch)
                found.append(step_memory(run, model, travelling=parts.trained.size, most=most))
    finally:
        parts.begin(before + 1)
    return StepMemory(
        held=max(one.held for one in found),
        first=max(one.first for one in found),
        each=max(one.each for one in found),
        filler=max(one.filler for one in found),
    )


@contextlib.contextmanager
def _step(
    model: nn.Module,
    parts: AdapterParts,
    task: str,
    tokens: int,
    labels: int | None,
    device: torch.device,
    per_example: bool,
) -> Iterator[Callable[[int], None]]:
    """A step of the present turn on so many made-up examples at a time."""
    if not per_example:

        def plain(count: int) -> None:
            (batch,) = batches(made_up(count, tokens, labels), count, device)
            loss = predict(model, batch, task).losses().sum()
            torch.autograd.grad(loss, list(trainable(model).values()), allow_unused=True)

        yield plain
        return
    gradients = PerExampleGradients(model, parts.trained, task=task, micro_batch=1, device=device)

    def one_each(count: int) -> None:
        for _ in gradients.at_a_time(count).micro_batches(made_up(count, tokens, labels)):
            pass

    try:
        yield one_each
    finally:
        gradients.close()
