"""Held-out figures as a small vector that goes through the same secure sum.

They depend on data and carry no noise: they are outside the differential-privacy guarantee, and
every place that shows them says so.  Sums over changing survivors can be differenced, so a run
evaluates rarely and always with the whole cohort invited; ``evaluation.figures = "histogram"`` has
noised counts in their place (:mod:`.histogram_settings`), from which figures are estimates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from securefed.engines.noised_histogram import NoisedHistogram
from securefed.federation.client import Encode
from securefed.privacy.policy import PrivacyPolicy

_LARGEST = 9_000.0
_LARGEST_NLL = 20.0
_BOUND = 1.0e4
_QUARTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Figures:
    """Means over the clients that answered.

    Attributes:
        perplexity: mean of the clients' perplexities (each capped at 9000); None for classifiers.
            From a histogram: their geometric mean, estimated.
        nll: mean of the clients' mean negative log-likelihoods, in nats (each capped at 20); None
            for classifiers where figures come from a histogram.
        accuracy: mean of the clients' accuracies; None for language models.
        clients: how many answered; 0 where nothing was measured.
        worst: the highest perplexity (or lowest accuracy) of one client; only in a simulation that
            owns all its clients and asked for it.
        spread: likewise: least, lower quartile, median, upper quartile and largest over clients.
        histogram: what the figures were estimated from, if they were.
    """

    perplexity: float | None
    nll: float | None
    accuracy: float | None
    clients: int
    worst: float | None = None
    spread: tuple[float, ...] | None = None
    histogram: NoisedHistogram | None = None

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
        worst = spread = None
        if shown:
            values = [v[2] / 1000.0 if classifier else v[0] for v in shown.values()]
            spread = tuple(float(value) for value in np.quantile(values, _QUARTILES))
            worst = spread[0] if classifier else spread[-1]
        return cls(
            perplexity=None if classifier else perplexity,
            nll=nll / 100.0,
            accuracy=min(max(accuracy / 1000.0, 0.0), 1.0) if classifier else None,
            clients=clients,
            worst=worst,
            spread=spread,
        )

    @classmethod
    def from_histogram(cls, found: NoisedHistogram) -> Self:
        """Estimates from noised counts."""
        classifier = found.bins.scale == "accuracy"
        return cls(
            perplexity=None if classifier else found.mean,
            nll=None if classifier else math.log(found.mean),
            accuracy=found.mean if classifier else None,
            clients=found.clients,
            histogram=found,
        )

    @classmethod
    def unmeasured(cls) -> Self:
        """Where a budget left no room for an evaluation."""
        return cls(perplexity=None, nll=None, accuracy=None, clients=0)

    @staticmethod
    def of_vector(vector: NDArray[np.float64]) -> tuple[float, float | None]:
        """A client's mean negative log-likelihood and its accuracy (None for a language model)."""
        _, nll, accuracy = (float(value) for value in vector)
        return nll / 100.0, accuracy / 1000.0 if accuracy >= 0.0 else None

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
