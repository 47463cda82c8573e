"""What every attack is given and gives back.

An attack gets a view (what this adversary sees, :mod:`securefed.attacks.views`) and public
knowledge (what everybody knows), and returns a guess.  It never gets the truth: comparing the two
is :mod:`securefed.attacks.scoring`, which no attack imports.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from securefed.errors import ConfigError
from securefed.federation.session import RoundSession
from securefed.lora.layout import AdapterLayout
from securefed.training.evaluate import check_task

Transform = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""What every client does to its update float32[d] before it is encoded; public."""

Verdict = Literal["guessed", "void"]
"""``void``: the attack says itself that it does not apply here; its failure then shows nothing."""


@dataclass(frozen=True, eq=False, kw_only=True)
class PublicKnowledge:
    """What every party knows before a round.

    Args:
        model: the base model with the adapter as of the beginning of the round, A and B; in
            evaluation mode.
        tokenizer: of the model.
        task: ``causal-lm`` or ``sequence-classification``.
        layout: which parameters are in the vector that travels.
        session: the round's public description: clip, noise, ring plan and rotation.
        sharing: the sharing mode; ``"full"`` where whole weights travel and there is no LoRA.
        optimizer: of the local steps: ``"sgd"`` or ``"adamw"``.
        local_steps: K >= 1.
        learning_rate: of a local step, > 0.
        batch_size: examples in a local step, >= 1.
        window_tokens: length of every example of a language model, special tokens included; None
            where lengths differ.
        dropout: probability of the model's dropout in the local steps, in [0, 1); 0: it is off.
        transform: what every client does to its update before it is encoded; None for nothing.

    Raises:
        ConfigError: an argument is outside that, or layout and session differ in dimension.
    """

    model: nn.Module
    tokenizer: Any
    task: str
    layout: AdapterLayout
    session: RoundSession
    sharing: str
    optimizer: str = "sgd"
    local_steps: int = 1
    learning_rate: float = 1.0
    batch_size: int = 1
    window_tokens: int | None = None
    dropout: float = 0.0
    transform: Transform | None = None

    def __post_init__(self) -> None:
        check_task(self.task)
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout = {self.dropout}; it must be in [0, 1)")
        if self.optimizer not in ("sgd", "adamw"):
            raise ConfigError(f"optimizer = {self.optimizer!r}; allowed: 'sgd', 'adamw'")
        for name in ("local_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}; it must be >= 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0.0):
            raise ConfigError(f"learning_rate = {self.learning_rate}; it must be finite and > 0")
        if self.layout.size != self.session.dimension:
            raise ConfigError(
                f"layout: {self.layout.size} values; the session has dimension = "
                f"{self.session.dimension}, and they must be equal"
            )

    @property
    def special_tokens(self) -> frozenset[int]:
        """Ids that stand in every text, or in none: no success to guess them."""
        return frozenset(int(token) for token in self.tokenizer.all_special_ids)


class AdversaryView(ABC):
    """What one adversary sees of one or more rounds, and nothing else.

    Attributes:
        adversary: who it is, in words.
    """

    adversary: str

    @property
    @abstractmethod
    def contributions(self) -> int:
        """How many clients' contributions are inside what :meth:`reading` gives, >= 1."""

    @abstractmethod
    def reading(self, public: PublicKnowledge) -> NDArray[np.float64]:
        """The float vector that this adversary can make of what it sees.

        Of a masked or encrypted share it is what comes out if the bytes are taken for a plain
        contribution: there is nothing better to be had from a uniform vector, and an attack that
        finds something in it has found a fault.

        Returns:
            float64[public.layout.size].
        """


@dataclass(frozen=True)
class Limits:
    """What an attack may spend.

    Args:
        seconds: after which it returns what it has, > 0; checked between its steps.
        max_tokens: of the longest text that it looks for, special tokens included, >= 3.

    Raises:
        ConfigError: an argument is outside that.
    """

    seconds: float = 60.0
    max_tokens: int = 32

    def __post_init__(self) -> None:
        if not self.seconds > 0.0:
            raise ConfigError(f"seconds = {self.seconds}; it must be > 0")
        if self.max_tokens < 3:
            raise ConfigError(f"max_tokens = {self.max_tokens}; it must be >= 3")


@dataclass(frozen=True)
class Guess:
    """What an attack says the training texts were.

    Attributes:
        texts: token ids of each text, in order, special tokens left out; -1 where the attack has no
            guess for a place.
        loose: tokens that it believes to be in the texts and could not put into one.
        verdict: ``"void"`` where the attack does not apply; it then guesses nothing.
        reason: in words: how the guess was found, or why the attack does not apply.
        figures: what it measured on the way (ranks, residuals), by name.
    """

    texts: tuple[tuple[int, ...], ...] = ()
    loose: tuple[int, ...] = ()
    verdict: Verdict = "guessed"
    reason: str = ""
    figures: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if self.verdict == "void" and (self.texts or self.loose):
            raise ConfigError("verdict = 'void': a void attack guesses no token")

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens that are guessed, with repeats."""
        placed = (token for text in self.texts for token in text if token >= 0)
        return (*placed, *self.loose)


class Attack(Protocol):
    """A way to learn about training texts."""

    @property
    def name(self) -> str:
        """Short and fixed: results are filed under it."""
        ...

    def run(
        self,
        view: AdversaryView,
        public: PublicKnowledge,
        *,
        generator: torch.Generator,
        limits: Limits,
    ) -> Guess:
        """Guess the training texts.

        Args:
            view: what the adversary sees.
            public: what everybody knows.
            generator: of all random choices; the same view and seed give the same guess as long as
                ``limits.seconds`` does not end it.
            limits: what it may spend.
        """
        ...
