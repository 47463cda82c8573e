"""The robust membership attack: a record against a population."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from securefed.attacks.membership.base import NO_SIGNAL, MembershipGuess, MembershipQuestion
from securefed.attacks.membership.shadows import Shadows, masked_mean
from securefed.errors import ConfigError


@dataclass(frozen=True)
class RobustMembership:
    """RMIA: over how much of the population does a record's likelihood ratio lie?

    With p(x | view) = exp(-loss) and p(x) its mean over reference runs, the score of x is

        Pr_z [ (p(x | view) / p(x)) / (p(z | view) / p(z)) >= gamma ]

    over the attacker's own records z.  p(x) is the mean of runs with and of runs without x; where
    no run holds x, and for every z, it is ((1 + a) p_out + (1 - a)) / 2, which lifts the mean of
    runs without it towards what runs with it would give.

    For a given population the score is a growing function of p(x | view) / p(x), and records
    beyond all z tie: among equals that ratio decides.

    Args:
        online: whether runs with the candidates are used.
        gamma: > 0.
        offline_scale: a, in [0, 1].  Without it 0.3 for classification, as in the paper, and 1 for
            language models: their p(x) is far below 1, and 1 - a would hide it.

    Raises:
        ConfigError: an argument is outside that.

    Source: Zarifzadeh, Liu and Shokri 2024, "Low-Cost High-Power Membership Inference Attacks"
    (2312.03262), section 3 and, for runs without x alone, the appendix on offline attacks.
    """

    online: bool = True
    gamma: float = 2.0
    offline_scale: float | None = None

    def __post_init__(self) -> None:
        scale = 1.0 if self.offline_scale is None else self.offline_scale
        if not self.gamma > 0.0 or not 0.0 <= scale <= 1.0:
            raise ConfigError(
                f"gamma = {self.gamma}, offline_scale = {self.offline_scale}; allowed: > 0, and in "
                "[0, 1]"
            )

    @property
    def name(self) -> str:
        """``rmia-online`` or ``rmia-offline``."""
        return "rmia-online" if self.online else "rmia-offline"

    def run(self, question: MembershipQuestion, *, generator: torch.Generator) -> MembershipGuess:
        """As :class:`~securefed.attacks.membership.base.MembershipAttack`; nothing is random.

        Void without records of the attacker's own, or without shadow runs as LiRA needs them.
        """
        if not question.moved:
            return MembershipGuess.void(question, NO_SIGNAL)
        shadows = question.shadows
        if shadows is None or not shadows.outside_enough:
            return MembershipGuess.void(question, "no two shadow runs without each candidate")
        if self.online and not shadows.inside_enough:
            return MembershipGuess.void(question, "no two shadow runs with each candidate")
        if len(question.records.population) == 0:
            return MembershipGuess.void(question, "no records of the attacker's own")
        own = np.exp(-shadows.population).mean(axis=0)
        scale = self.offline_scale
        if scale is None:
            scale = 1.0 if question.public.task == "causal-lm" else 0.3
        ratios = np.exp(-question.losses) / self._reference(shadows, scale)
        others = np.sort(np.exp(-question.population_losses) / _lifted(own, scale))
        below = np.searchsorted(others, ratios / self.gamma, side="right") / len(others)
        order = rankdata(ratios) / (len(ratios) + 1)  # in (0, 1): less than one record z
        return MembershipGuess(below + order / len(others))

    def _reference(self, shadows: Shadows, scale: float) -> NDArray[np.float64]:
        likelihoods = np.exp(-shadows.losses)
        outside = masked_mean(likelihoods, ~shadows.inside)
        if not self.online:
            return _lifted(outside, scale)
        found: NDArray[np.float64] = 0.5 * (outside + masked_mean(likelihoods, shadows.inside))
        return np.maximum(found, _LEAST)


def _lifted(outside: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    return np.maximum(0.5 * ((1.0 + scale) * outside + 1.0 - scale), _LEAST)


_LEAST = 1e-300
