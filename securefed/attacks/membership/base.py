"""What a membership attack is given and gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.attacks.base import AdversaryView, PublicKnowledge, Verdict
from securefed.attacks.membership.seen import as_seen
from securefed.attacks.membership.shadows import Shadows
from securefed.errors import ConfigError
from securefed.training.data import Examples
from securefed.training.evaluate import check_task, example_losses


@dataclass(frozen=True, eq=False, kw_only=True)
class MembershipQuestion:
    """Which of these records were trained on?  All that the attacker has to answer it with.

    Args:
        view: what the attacker sees of the training.
        public: what everybody knows; ``public.model`` holds the adapter that training began with.
        candidates: n records.  The attacker knows what they say, not which of them are members.
        population: p records of the same kind that the attacker owns and knows to be no members.
        shadows: runs of the attacker's own, judged on the same candidates and population; None
            where it made none.
        micro_batch: records at a time, >= 1.

    Raises:
        ConfigError: there are no candidates, the task is unknown, or the shadows were judged on
            other numbers of records.
    """

    view: AdversaryView
    public: PublicKnowledge
    candidates: Examples
    population: Examples
    shadows: Shadows | None = None
    micro_batch: int = 32

    def __post_init__(self) -> None:
        check_task(self.public.task, self.candidates)
        if len(self.candidates) == 0:
            raise ConfigError("candidates: none; at least one record is needed")
        if self.shadows is not None:
            found = (self.shadows.losses.shape[1], self.shadows.population.shape[1])
            if found != (len(self.candidates), len(self.population)):
                raise ConfigError(
                    f"shadows: judged on {found[0]} candidates and {found[1]} other records; the "
                    f"question has {len(self.candidates)} and {len(self.population)}"
                )

    @cached_property
    def moved(self) -> bool:
        """Whether the view differs from the adapter that training began with."""
        return bool(np.any(self.view.reading(self.public)))

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """float64[n]: mean negative log-likelihood of each candidate in the model of the view."""
        with as_seen(self.view, self.public):
            return self._losses(self.candidates)

    @cached_property
    def population_losses(self) -> NDArray[np.float64]:
        """float64[p]: the same of the attacker's own records."""
        with as_seen(self.view, self.public):
            return self._losses(self.population)

    @cached_property
    def base_losses(self) -> NDArray[np.float64]:
        """float64[n]: of each candidate in the model that training began with."""
        return self._losses(self.candidates)

    def _losses(self, examples: Examples) -> NDArray[np.float64]:
        model = self.public.model
        device = next(model.parameters()).device
        return example_losses(
            model, examples, task=self.public.task, micro_batch=self.micro_batch, device=device
        )


@dataclass(frozen=True, eq=False)
class MembershipGuess:
    """How likely an attack thinks each candidate to be a member.

    Attributes:
        scores: float64[n], finite; the higher the likelier.  Their scale is the attack's own.
        verdict: ``"void"`` where the attack does not apply; all scores are then equal.
        reason: in words: why it does not apply.
        figures: what it measured on the way, by name.
    """

    scores: NDArray[np.float64] = field(repr=False)
    verdict: Verdict = "guessed"
    reason: str = ""
    figures: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or not np.isfinite(self.scores).all():
            raise ConfigError("scores: they must be float64[n] and finite")
        if self.verdict == "void" and np.ptp(self.scores) > 0.0:
            raise ConfigError("verdict = 'void': a void attack prefers no candidate")

    @classmethod
    def void(cls, question: MembershipQuestion, reason: str) -> MembershipGuess:
        """No guess, and why."""
        return cls(np.zeros(len(question.candidates)), "void", reason)


class MembershipAttack(Protocol):
    """A way to tell members from others."""

    @property
    def name(self) -> str:
        """Short and fixed: results are filed under it."""
        ...

    def run(self, question: MembershipQuestion, *, generator: torch.Generator) -> MembershipGuess:
        """Score the candidates.

        Args:
            question: all that the attacker has.
            generator: of all random choices; the same question and seed give the same scores.
        """
        ...


NO_SIGNAL = "the view holds the adapter that training began with: nothing was trained into it"


def confidence(losses: NDArray[np.float64], task: str) -> NDArray[np.float64]:
    """A loss turned into what is near a Gaussian over training runs, higher for a better fit.

    For classification log(p / (1 - p)) with p = exp(-loss); for a language model minus the mean
    loss of a token, a mean of many terms already.

    Args:
        losses: float64, >= 0.
        task: ``causal-lm`` or ``sequence-classification``.

    Source: Carlini et al. 2022, "Membership Inference Attacks From First Principles"
    (2112.03570), section IV-C.
    """
    check_task(task)
    if task == "causal-lm":
        return -losses
    kept = np.maximum(losses, _LEAST_LOSS)
    found: NDArray[np.float64] = -kept - np.log(-np.expm1(-kept))
    return found


_LEAST_LOSS = 1e-7  # float32 says no more about a probability near 1
