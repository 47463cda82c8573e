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
from securefed.training.dp_sgd import PerExampleGradients
from securefed.training.evaluate import check_task, example_losses


@dataclass(frozen=True, eq=False, kw_only=True)
class Records:
    """Records in question and records of the attacker's own, whatever it sees of a training.

    Args:
        public: what everybody knows; ``public.model`` holds, whenever these records are asked
            about, the adapter that training began with.
        candidates: n records.  The attacker knows what they say, not which of them are members.
        population: p records of the same kind that the attacker owns and knows to be no members.
        micro_batch: records at a time, >= 1.

    Raises:
        ConfigError: there are no candidates, or the task is unknown.
    """

    public: PublicKnowledge
    candidates: Examples
    population: Examples
    micro_batch: int = 32

    def __post_init__(self) -> None:
        check_task(self.public.task, self.candidates)
        if len(self.candidates) == 0:
            raise ConfigError("candidates: none; at least one record is needed")

    @cached_property
    def base_losses(self) -> NDArray[np.float64]:
        """float64[n]: of each candidate in the model that training began with."""
        return self.losses(self.candidates)

    @cached_property
    def gradients(self) -> NDArray[np.float32]:
        """float32[n, d]: of each candidate's mean loss with respect to what travels, there."""
        return self._gradients(self.candidates)

    @cached_property
    def population_gradients(self) -> NDArray[np.float32]:
        """float32[p, d]: the same of the attacker's own records."""
        return self._gradients(self.population)

    def losses(self, examples: Examples) -> NDArray[np.float64]:
        """float64[k]: mean negative log-likelihood of each, in ``public.model`` as it is now."""
        return example_losses(
            self.public.model,
            examples,
            task=self.public.task,
            micro_batch=self.micro_batch,
            device=self._device,
        )

    def _gradients(self, examples: Examples) -> NDArray[np.float32]:
        found = PerExampleGradients(
            self.public.model,
            self.public.layout,
            task=self.public.task,
            micro_batch=self.micro_batch,
            device=self._device,
        )
        try:
            empty = np.empty((0, self.public.layout.size), dtype=np.float32)
            return np.concatenate([empty, *found.flat_rows(examples)])
        finally:
            found.close()

    @property
    def _device(self) -> torch.device:
        return next(self.public.model.parameters()).device


@dataclass(frozen=True, eq=False)
class MembershipQuestion:
    """Which of these records were trained on?  All that the attacker has to answer it with.

    Args:
        view: what the attacker sees of the training.
        records: in question, and of its own.
        shadows: runs of the attacker's own, judged on the same records; None where it made none.

    Raises:
        ConfigError: the shadows were judged on other numbers of records.
    """

    view: AdversaryView
    records: Records
    shadows: Shadows | None = None

    def __post_init__(self) -> None:
        if self.shadows is not None:
            found = (self.shadows.losses.shape[1], self.shadows.population.shape[1])
            wanted = (len(self.records.candidates), len(self.records.population))
            if found != wanted:
                raise ConfigError(
                    f"shadows: judged on {found[0]} candidates and {found[1]} other records; the "
                    f"question has {wanted[0]} and {wanted[1]}"
                )

    @property
    def public(self) -> PublicKnowledge:
        """What everybody knows."""
        return self.records.public

    @cached_property
    def moved(self) -> bool:
        """Whether the view differs from the adapter that training began with."""
        return bool(np.any(self.view.reading(self.public)))

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """float64[n]: mean negative log-likelihood of each candidate in the model of the view."""
        with as_seen(self.view, self.public):
            return self.records.losses(self.records.candidates)

    @cached_property
    def population_losses(self) -> NDArray[np.float64]:
        """float64[p]: the same of the attacker's own records."""
        with as_seen(self.view, self.public):
            return self.records.losses(self.records.population)


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
        return cls(np.zeros(len(question.records.candidates)), "void", reason)


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
