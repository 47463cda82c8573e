"""Trainers as a user might write them, some of which carry one client's data to the next."""

from __future__ import annotations

from typing import Any, ClassVar

import torch


class Quiet:
    """Writes a fixed value into what travels."""

    made: ClassVar[list[Quiet]] = []

    def __init__(self, section: Any) -> None:
        self.calls: list[int] = []
        Quiet.made.append(self)

    def train(self, model: torch.nn.Module, data: Any, round: int) -> None:
        self.calls.append(round)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.01)


class MovesFrozen(Quiet):
    def train(self, model: torch.nn.Module, data: Any, round: int) -> None:
        super().train(model, data, round)
        with torch.no_grad():
            model.get_input_embeddings().weight[1, 1] += float(data.input_ids[0, 0])


class MovesFrozenFactor(Quiet):
    """From the second round on it changes what of the adapter is frozen in the round."""

    def train(self, model: torch.nn.Module, data: Any, round: int) -> None:
        super().train(model, data, round)
        for name, parameter in model.named_parameters():
            if round > 1 and ".lora_" in name and not parameter.requires_grad:
                parameter.data.add_(0.01)


class MovesBuffer(Quiet):
    def train(self, model: torch.nn.Module, data: Any, round: int) -> None:
        super().train(model, data, round)
        next(iter(model.buffers())).add_(0.5)


class LeavesTrainingMode(Quiet):
    def train(self, model: torch.nn.Module, data: Any, round: int) -> None:
        super().train(model, data, round)
        model.train()


class LeavesGradients(Quiet):
    """Fails if it finds a gradient, and leaves one."""

    def train(self, model: torch.nn.Module, data: Any, round: int) -> None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                if parameter.grad is not None:
                    raise ValueError("another client's gradient")
                parameter.grad = torch.ones_like(parameter)


class DrawsGlobally(Quiet):
    """Draws from torch's global generator, as often as its data says, and keeps what it saw."""

    seen: ClassVar[list[float]] = []

    def train(self, model: torch.nn.Module, data: Any, round: int) -> None:
        DrawsGlobally.seen.append(torch.rand(()).item())
