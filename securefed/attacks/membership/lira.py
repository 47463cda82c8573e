"""The likelihood-ratio attack."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from securefed.attacks.membership.base import (
    NO_SIGNAL,
    MembershipGuess,
    MembershipQuestion,
    confidence,
)
from securefed.attacks.membership.shadows import masked_mean

_OWN_VARIANCE = 32  # runs on a side from which each record has a variance of its own
_LEAST_STD = 1e-6


@dataclass(frozen=True)
class LikelihoodRatio:
    """LiRA: is a record's confidence that of runs with it, or of runs without it?

    Confidence phi of record x is taken to be Gaussian over runs.  Online the score is

        log N(phi; mu_in(x), s_in) - log N(phi; mu_out(x), s_out)

    with means and deviations from shadow runs with and without x.  Offline only runs without x are
    used, and the score is (phi - mu_out(x)) / s_out, of which the paper's probability is an
    increasing function.  Deviations are each record's own from 32 runs on a side, else one for all
    records, which is steadier with few runs.

    Args:
        online: whether runs with the candidates are used.

    Source: Carlini et al. 2022, "Membership Inference Attacks From First Principles" (2112.03570),
    Algorithm 1, section V-B and section VI-B for the common deviation.
    """

    online: bool = True

    @property
    def name(self) -> str:
        """``lira-online`` or ``lira-offline``."""
        return "lira-online" if self.online else "lira-offline"

    def run(self, question: MembershipQuestion, *, generator: torch.Generator) -> MembershipGuess:
        """As :class:`~securefed.attacks.membership.base.MembershipAttack`; nothing is random.

        Void without two shadow runs without each candidate, and online two with it.
        """
        if not question.moved:
            return MembershipGuess.void(question, NO_SIGNAL)
        shadows, task = question.shadows, question.public.task
        if shadows is None or not shadows.outside_enough:
            return MembershipGuess.void(question, "no two shadow runs without each candidate")
        if self.online and not shadows.inside_enough:
            return MembershipGuess.void(question, "no two shadow runs with each candidate")
        seen = confidence(question.losses, task)
        over_runs = confidence(shadows.losses, task)
        mean, std = _fit(over_runs, ~shadows.inside)
        scores = (seen - mean) / std
        if self.online:
            mean_in, std_in = _fit(over_runs, shadows.inside)
            scores = norm.logpdf(seen, mean_in, std_in) - norm.logpdf(seen, mean, std)
        return MembershipGuess(
            np.asarray(scores, dtype=np.float64),
            figures=MappingProxyType({"shadow_runs": float(len(shadows))}),
        )


def _fit(
    values: NDArray[np.float64], chosen: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Means and deviations, float64[n] each, of each column's chosen values."""
    mean, counts = masked_mean(values, chosen), chosen.sum(axis=0)
    squares = np.where(chosen, (values - mean) ** 2, 0.0).sum(axis=0)
    if counts.min() >= _OWN_VARIANCE:
        variance = squares / (counts - 1)
    else:
        variance = np.full(len(mean), squares.sum() / (counts - 1).sum())
    return mean, np.maximum(np.sqrt(variance), _LEAST_STD)
