"""The two tasks of the table: their models, natural clients, and clients left out of training."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import combining
import numpy as np
import torch
from bench import CPU, tokenized
from torch import nn

from securefed.config import DataSection, LoraSection, ModelSection
from securefed.errors import DataError
from securefed.training.corpora import Document, load_corpus
from securefed.training.data import Examples, tokenize_clients
from securefed.training.models import load_model


@dataclass(frozen=True, kw_only=True)
class Task:
    """What was fixed before the runs.

    Args:
        name: of the task, in results.
        source: of the clients' texts.
        model: what is adapted.
        lora: rank, alpha, targets and head of every LoRA arm, as keys of ``LoraSection``.
        bottleneck: where bottlenecks go, likewise.
        clients: how many train; they are drawn by the seed.
        left_out: how many others are measured that never take part.
        held_out: most held-out examples of a client.
        tiers: rank of the first client, of the second, and so on around.
        core_rank: r of Fed-SB, whose r x r values a layer are few at the others' rank.
        personal_steps: of each client on its own, after the rounds.
        validation: share of a client's training examples that choose its personal copy.
        bfloat16: matrix products in bfloat16 (values and sums stay float32), for all arms.
        clip_norm: beyond every update: what is compared is not clipping.
    """

    name: str
    source: str
    model: ModelSection
    lora: Mapping[str, Any]
    bottleneck: Mapping[str, Any]
    clients: int
    left_out: int
    held_out: int
    tiers: tuple[int, ...]
    core_rank: int
    window_tokens: int = 32
    rounds: int = 6
    local_steps: int = 2
    batch_size: int = 8
    personal_steps: int = 6
    validation: float = 0.25
    most_validation: int = 16
    seeds: tuple[int, ...] = (1, 2, 3)
    tuning_seeds: tuple[int, ...] = (10,)
    bfloat16: bool = True
    clip_norm: float = 100.0

    def section(self, changes: Mapping[str, Any], seed: int) -> LoraSection:
        """The adapter of an arm; without LoRA nothing of LoRA's is set, a head neither."""
        kinds = changes.get("kind", "lora")
        values: dict[str, Any] = {"seed": seed}
        if "lora" in kinds:
            values |= self.lora
        if "bottleneck" in kinds:
            values |= self.bottleneck
        return LoraSection(**(values | dict(changes)))


SPEECHES = Task(
    name="speeches",
    source="builtin:state-of-the-union",
    model=ModelSection(source="builtin:smollm2-135m-instruct"),
    lora={
        "rank": 4,
        "alpha": 8.0,
        "target_modules": [f"{kind}_proj" for kind in "q k v o gate up down".split()],
    },
    bottleneck={},
    clients=5,
    left_out=4,
    held_out=16,
    tiers=(8, 8, 8, 4, 2),
    core_rank=32,
    batch_size=4,
)
MAILS = Task(
    name="mails",
    source="builtin:spam-assassin",
    model=ModelSection(source="builtin:minilm-l6-v2", task="sequence-classification", labels=2),
    lora={
        "rank": 4,
        "alpha": 8.0,
        "target_modules": ["query", "key", "value", "dense"],
        "modules_to_save": ["classifier"],
    },
    bottleneck={"bottleneck_modules": ["output.dense"]},
    clients=10,
    left_out=4,
    held_out=60,
    tiers=(8, 4, 2, 8, 4, 2, 8, 4, 2, 8),
    core_rank=16,
    most_validation=60,
    seeds=(4, 5, 6),
    tuning_seeds=(10, 11),
)
ALPHA = 0.1
LABELS = replace(MAILS, name="labels")
"""Mails again, clients unlike in their labels: for the personal copy."""


@dataclass(frozen=True)
class Clients:
    """Examples to learn from and to be measured on, by client.

    Attributes:
        train: of the clients that take part.
        held_out: of the same clients, never trained on.
        left_out: of the clients that never take part, never trained on.
    """

    train: Mapping[str, Examples]
    held_out: Mapping[str, Examples]
    left_out: Mapping[str, Examples]


class Ground(ABC):
    """A task's base model and texts, loaded once."""

    def __init__(self, task: Task, *, cache: Path, offline: bool) -> None:
        self.task = task
        loaded = load_model(task.model, cache=cache, offline=offline, device=CPU)
        self.tokenizer: Any = loaded.tokenizer
        self._base: nn.Module = loaded.model

    def fresh(self, seed: int) -> nn.Module:
        """The base model, to be adapted; for a classifier with a head that the seed draws."""
        return self.with_head(copy.deepcopy(self._base), seed)

    @staticmethod
    def with_head(model: nn.Module, seed: int) -> nn.Module:
        """Draw a classifier's head anew, wherever it stands in the model."""
        generator = torch.Generator().manual_seed(seed)
        drawn: dict[torch.Size, torch.Tensor] = {}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "classifier." in name:
                    shape = parameter.shape
                    if shape not in drawn:  # PEFT holds two copies of one head
                        drawn[shape] = 0.02 * torch.randn(shape, generator=generator)
                    parameter.copy_(drawn[shape])
        return model

    @abstractmethod
    def clients(self, seed: int) -> Clients:
        """Those that the seed draws, and how their texts are divided."""


class Speeches(Ground):
    """Speeches by speaker: windows of tokens, whole documents held out."""

    def __init__(self, task: Task, *, cache: Path, offline: bool) -> None:
        super().__init__(task, cache=cache, offline=offline)
        section = DataSection(source=task.source, clients="all", window_tokens=task.window_tokens)
        self._data = tokenize_clients(
            load_corpus(task.source, cache=cache, offline=offline, section=section),
            section,
            tokenizer=self.tokenizer,
            task="causal-lm",
            labels=None,
            held_out_windows=task.held_out,
            held_out_tokens=task.window_tokens,
        )

    def clients(self, seed: int) -> Clients:
        """As :meth:`Ground.clients`."""
        inside, outside = drawn(list(self._data), self.task, seed)
        return Clients(
            {name: self._data[name].train for name in inside},
            {name: self._data[name].held_out for name in inside},
            {name: self._data[name].held_out for name in outside},
        )


@dataclass(frozen=True)
class _Parts:
    train: Examples
    held_out: Examples


class Mails(Ground):
    """Mails by sender, each with a share of the spam.

    Args:
        task: what was fixed.
        senders: their mails.
        cache: of models.
        offline: fetch nothing.
        alpha: clients of 60 mails instead, each with a share of spam from Dirichlet(alpha, alpha).
    """

    def __init__(
        self,
        task: Task,
        senders: Mapping[str, list[Document]],
        *,
        cache: Path,
        offline: bool,
        alpha: float | None = None,
    ) -> None:
        super().__init__(task, cache=cache, offline=offline)
        self._senders, self._alpha = senders, alpha

    def clients(self, seed: int) -> Clients:
        """As :meth:`Ground.clients`."""
        task = self.task
        design = combining.Design(clients=task.clients + task.left_out, alpha=self._alpha or 1.0)
        if self._alpha is None:
            documents = combining.by_sender(self._senders, design)
        else:
            every = [d for name in sorted(self._senders) for d in self._senders[name]]
            wanted, spam = ([d for d in every if d.label == label] for label in (0, 1))
            documents = combining.by_dirichlet((wanted, spam), design, seed)
        data = {}
        for name, (train, held_out) in combining.parted(documents, design, seed).items():
            kept = held_out[: task.held_out]
            data[name] = _Parts(
                tokenized(train, self.tokenizer, task.window_tokens),
                tokenized(kept, self.tokenizer, task.window_tokens),
            )
        inside, outside = drawn(list(data), task, seed)
        return Clients(
            {name: data[name].train for name in inside},
            {name: data[name].held_out for name in inside},
            {name: data[name].held_out for name in outside},
        )


def drawn(names: list[str], task: Task, seed: int) -> tuple[list[str], list[str]]:
    """Which clients train, sorted, and which are left out of training.

    Raises:
        DataError: there are too few.
    """
    if len(names) < task.clients + task.left_out:
        raise DataError(f"{task.name}: {len(names)} clients, too few to leave some out")
    order = np.random.default_rng([seed, 13]).permutation(len(names))
    taken = [sorted(names)[place] for place in order[: task.clients + task.left_out]]
    return sorted(taken[: task.clients]), sorted(taken[task.clients :])
