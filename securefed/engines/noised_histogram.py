"""Public bins of a held-out figure, and what a noised count of clients in them shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Scale = Literal["accuracy", "perplexity", "gain"]

_MISSED = 0.05
_TWO_SIDED = float(norm.isf(_MISSED / 2.0))
# Of the adapter in use over the shared one: in points of accuracy, or nats of log perplexity.
_GAIN_OF_ACCURACY, _GAIN_IN_NATS = 0.5, 1.0


@dataclass(frozen=True)
class Bins:
    """Where a client's figure is counted.

    Attributes:
        scale: ``accuracy`` in [0, 1]; ``perplexity``, whose bins are equal in its logarithm; or
            ``gain``: accuracy, or minus the log perplexity, of the adapter in use less that of the
            shared one.
        edges: B + 1 of them, ascending; what lies beyond counts in the outermost bin.
    """

    scale: Scale
    edges: tuple[float, ...]

    @classmethod
    def of_accuracy(cls, count: int) -> Self:
        """``count`` equal bins of [0, 1]."""
        return cls("accuracy", _equal(0.0, 1.0, count))

    @classmethod
    def of_perplexity(cls, count: int, low: float, high: float) -> Self:
        """``count`` bins of [low, high], equal in the logarithm."""
        return cls("perplexity", tuple(np.exp(_equal(math.log(low), math.log(high), count))))

    @classmethod
    def of_gain(cls, count: int, *, classifier: bool) -> Self:
        """``count`` equal bins around no change."""
        most = _GAIN_OF_ACCURACY if classifier else _GAIN_IN_NATS
        return cls("gain", _equal(-most, most, count))

    def one_hot(self, value: float) -> NDArray[np.float64]:
        """float64[B]: 1 in the bin of a finite value, 0 elsewhere; its L2 norm is 1."""
        vector = np.zeros(len(self.edges) - 1)
        vector[int(np.searchsorted(self.edges[1:-1], value, side="right"))] = 1.0
        return vector

    @property
    def centres(self) -> NDArray[np.float64]:
        """float64[B]: middle of each bin; for perplexity of its logarithm."""
        edges = np.array(self.edges)
        edges = np.log(edges) if self.scale == "perplexity" else edges
        return np.asarray((edges[1:] + edges[:-1]) / 2.0)


@dataclass(frozen=True)
class NoisedHistogram:
    """How many clients are in each bin, with noise; all else follows from that.

    Attributes:
        bins: public.
        counts: float[B], noised; may be negative.
        clients: how many are counted, which is public.
        std: of the noise of each count, rounding included.
    """

    bins: Bins
    counts: tuple[float, ...]
    clients: int
    std: float

    @property
    def shares(self) -> tuple[float, ...]:
        """Estimated share of clients by bin, each cut to [0, 1]."""
        return tuple(min(max(count / self.clients, 0.0), 1.0) for count in self.counts)

    @property
    def bound(self) -> float:
        """What noise alone exceeds in some empty bin of the B with probability <= 5 %."""
        return self.std * float(norm.isf(_MISSED / len(self.counts)))

    @property
    def worst_bin(self) -> tuple[float, float] | None:
        """Edges of the worst bin whose count is beyond the noise's bound; None if none is.

        The worst is the highest of perplexity, the lowest of accuracy and gain.  A client alone in
        a bin goes unseen where one count is not beyond the bound.
        """
        seen = [place for place, count in enumerate(self.counts) if count > self.bound]
        if not seen:
            return None
        place = seen[-1] if self.bins.scale == "perplexity" else seen[0]
        return self.bins.edges[place], self.bins.edges[place + 1]

    @property
    def mean(self) -> float:
        """Estimated mean over clients; of perplexity the geometric one.

        With y_b the centre of bin b, c_b its count and s clients: the mean y plus
        sum_b (y_b - mean y) c_b / s, the least-squares estimate under sum_b n_b = s.
        """
        centres = self.bins.centres
        found = self._mean(centres)
        found = min(max(found, float(centres.min())), float(centres.max()))
        return math.exp(found) if self.bins.scale == "perplexity" else found

    @property
    def interval(self) -> tuple[float, float]:
        """Around the mean: 95 % of the noise, and half a bin on each side for what bins hide.

        Clients whose figure lies outside the edges may be further off than that.
        """
        centres = self.bins.centres
        around = np.linalg.norm(centres - centres.mean()) * self.std / self.clients
        half = _TWO_SIDED * float(around) + float(centres[1] - centres[0]) / 2.0
        found = self._mean(centres)
        low, high = found - half, found + half
        if self.bins.scale == "perplexity":
            return math.exp(low), math.exp(high)
        if self.bins.scale == "accuracy":  # no mean of shares lies outside
            return min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0)
        return low, high

    def _mean(self, centres: NDArray[np.float64]) -> float:
        middle = float(centres.mean())
        return middle + float((centres - middle) @ np.array(self.counts)) / self.clients

    def to_record(self) -> dict[str, Any]:
        """JSON types."""
        return {
            "scale": self.bins.scale,
            "edges": list(self.bins.edges),
            "counts": list(self.counts),
            "clients": self.clients,
            "std": self.std,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Back from ``to_record``."""
        bins = Bins(record["scale"], tuple(float(edge) for edge in record["edges"]))
        counts = tuple(float(count) for count in record["counts"])
        return cls(bins, counts, int(record["clients"]), float(record["std"]))


def _equal(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(float(edge) for edge in np.linspace(low, high, count + 1))
