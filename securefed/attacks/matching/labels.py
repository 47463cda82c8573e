"""Label inference as an attack of its own.

Labels are read off the head's gradient (:mod:`securefed.attacks.matching.head`).  Where the head is
not in the update, every labelling of the batch is tried by gradient matching, and the one that
matches best is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

import torch

from securefed.attacks.base import AdversaryView, Limits, PublicKnowledge, Verdict
from securefed.attacks.matching.attack import GradientMatching, every_labelling
from securefed.attacks.matching.descent import Schedule
from securefed.attacks.matching.distances import CosineDistance
from securefed.attacks.matching.head import labels_from_head
from securefed.attacks.matching.target import observed_gradient
from securefed.errors import ConfigError


@dataclass(frozen=True)
class LabelGuess:
    """What an attack says the labels of a batch were.

    Attributes:
        labels: of all its texts, in rising order: which text has which is not told.
        verdict: ``"void"`` where the attack does not apply; it then guesses nothing.
        reason: in words: how they were found, or why the attack does not apply.
        figures: what it measured on the way, by name.
    """

    labels: tuple[int, ...] = ()
    verdict: Verdict = "guessed"
    reason: str = ""
    figures: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if self.verdict == "void" and self.labels:
            raise ConfigError("verdict = 'void': a void attack guesses no label")


class LabelInference:
    """Infers the labels that a batch had; for sequence classification.

    Args:
        schedule: of gradient matching, where the head is not in the update.
        length: of every text, as of
            :class:`~securefed.attacks.matching.attack.GradientMatching`.
    """

    name = "label-inference"

    def __init__(self, *, schedule: Schedule | None = None, length: int | None = None) -> None:
        self._schedule = Schedule(steps=40, restarts=2) if schedule is None else schedule
        self._length = length

    def run(
        self,
        view: AdversaryView,
        public: PublicKnowledge,
        *,
        generator: torch.Generator,
        limits: Limits,
    ) -> LabelGuess:
        """Guess the labels; arguments as of :meth:`securefed.attacks.base.Attack.run`."""
        if public.task != "sequence-classification":
            return LabelGuess(verdict="void", reason=f"task = {public.task!r} has no labels")
        observed, reason = observed_gradient(view, public)
        if observed is None:
            return LabelGuess(verdict="void", reason=reason)
        read = labels_from_head(public, observed, generator)
        if read is not None:
            return LabelGuess(read, reason="gradient of the head")
        classes = int(cast(Any, public.model).config.num_labels)
        if not every_labelling(public.batch_size, classes):
            return LabelGuess(
                verdict="void", reason="no head in the update, and too many labellings to try"
            )
        attack = GradientMatching(
            CosineDistance(), name=self.name, schedule=self._schedule, length=self._length
        )
        found = attack.match(view, public, observed, generator=generator, limits=limits)
        figures = MappingProxyType({"distance": found.distance, "steps": float(found.steps)})
        return LabelGuess(tuple(sorted(found.labels or ())), "guessed", "best match", figures)
