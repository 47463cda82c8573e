"""Held-out figures as a small vector that goes through the same secure sum.

They depend on data and carry no noise: they are outside the differential-privacy guarantee, and
every place that shows them says so.  Sums over changing survivors could be differenced, so a run
evaluates rarely and always with the whole cohort invited.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from securefed.federation.client import Encode
from securefed.privacy.policy import PrivacyPolicy

_LARGEST = 9_000.0
_LARGEST_NLL = 20.0
_BOUND = 1.0e4


@dataclass(frozen=True)
class Figures:
    """Means over the clients that answered.

    Attributes:
        perplexity: mean of the clients' perplexities (each capped at 9000); None for classifiers.
        nll: mean of the clients' mean negative log-likelihoods, in nats (each capped at 20).
        accuracy: mean of the clients' accuracies; None for language models.
        clients: how many answered.
        worst: the highest perplexity (or lowest accuracy) of one client; only in a simulation that
            owns all its clients and asked for it.
    """

    perplexity: float | None
    nll: float
    accuracy: float | None
    clients: int
    worst: float | None = None

    DIMENSION: ClassVar[int] = 3

    @staticmethod
    def vector(*, nll: float, accuracy: float | None) -> NDArray[np.float64]:
        """One client's figures, float64[3], bounded.

        A figure that is not finite counts as the worst there is: it must neither end the run for
        everyone nor flatter the mean.
        """
        capped = min(max(nll, 0.0), _LARGEST_NLL) if math.isfinite(nll) else _LARGEST_NLL
        perplexity = 0.0 if accuracy is not None else min(math.exp(capped), _LARGEST)
        share = -1.0
        if accuracy is not None:
            share = min(max(accuracy, 0.0), 1.0) if math.isfinite(accuracy) else 0.0
        return np.array([perplexity, capped * 100.0, share * 1000.0])

    @classmethod
    def from_sum(
        cls,
        total: NDArray[np.float64],
        clients: int,
        shown: Mapping[str, NDArray[np.float64]] | None,
    ) -> Self:
        """Means from the opened sum."""
        perplexity, nll, accuracy = (float(value) / clients for value in total)
        classifier = accuracy >= -1e-3
        worst = None
        if shown:
            values = [v[2] / 1000.0 if classifier else v[0] for v in shown.values()]
            worst = float(min(values) if classifier else max(values))
        return cls(
            perplexity=None if classifier else perplexity,
            nll=nll / 100.0,
            accuracy=min(max(accuracy / 1000.0, 0.0), 1.0) if classifier else None,
            clients=clients,
            worst=worst,
        )

    def to_record(self) -> dict[str, Any]:
        """JSON types; the worst client stays out: a record speaks of sums only."""
        return {
            "perplexity": self.perplexity,
            "nll": self.nll,
            "accuracy": self.accuracy,
            "clients": self.clients,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Back from ``to_record``."""
        return cls(**record)


def figures_policy(policy: PrivacyPolicy) -> PrivacyPolicy:
    """The policy of a secure sum of figures: same thresholds, no noise, a bound that holds."""
    return policy.without_noise(_BOUND)


def encode_figures(values: NDArray[np.float64]) -> Encode:
    """How a client makes its contribution to that sum."""
    return lambda codec, generator: codec.encode_update(values, generator)
