"""Scores of single examples, and means of them with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from securefed.errors import DataError
from securefed.training.data import Examples
from securefed.training.evaluate import scored

CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class Scores:
    """n examples, scored by a model.

    Attributes:
        nll: float64[n], the sum of each example's negative log-likelihoods in nats.
        counted: int64[n], how many predictions that is of.
        correct: int64[n], how many of them had the target as the likeliest class.
        clusters: int64[n], which examples belong together (of one document, or of one user).
    """

    nll: NDArray[np.float64]
    counted: NDArray[np.int64]
    correct: NDArray[np.int64]
    clusters: NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """A figure with its interval.

    Attributes:
        value: the point estimate.
        low, high: the 95 % interval; NaN where there is none: one cluster, or all of them alike.
        n: how many predictions, records or documents it is of.
        clusters: how many documents or users these are of.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int

    def mapped(self, function: Callable[[float], float]) -> Measured:
        """The same under an increasing function."""
        return Measured(
            function(self.value), function(self.low), function(self.high), self.n, self.clusters
        )


def example_scores(
    model: nn.Module, examples: Examples, *, task: str, micro_batch: int, device: torch.device
) -> Scores:
    """Score a model example by example, with dropout off; arguments as ``evaluate`` has them.

    Raises:
        ConfigError, DataError: as there.
    """
    nll, counted, correct = [np.empty(0)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for found in scored(model, examples, task=task, micro_batch=micro_batch, device=device):
        nll.append(found.nll.double().sum(dim=1).cpu().numpy())
        counted.append(found.counted.sum(dim=1).cpu().numpy())
        correct.append(found.hit.sum(dim=1).cpu().numpy())
    users = examples.users
    clusters = np.arange(len(examples)) if users is None else users
    return Scores(np.concatenate(nll), np.concatenate(counted), np.concatenate(correct), clusters)


def ratio(
    sums: NDArray[np.float64], counts: NDArray[np.int64], clusters: NDArray[np.int64]
) -> Measured:
    """``R = sum(s) / sum(c)`` with an interval that lets examples of a cluster depend.

    With residuals ``e_g = sum of (s - R c)`` over cluster g of G, the variance of R is taken to be
    ``G / (G - 1) * sum(e_g^2) / sum(c)^2``, and the interval is R -+ t with G - 1 degrees of
    freedom.  It is wide for few clusters and, for very few, still too short.

    Args:
        sums: float64[n].
        counts: int64[n], >= 0.
        clusters: int64[n], which cluster each is of.

    Raises:
        DataError: nothing was counted.

    Example:
        >>> import numpy as np
        >>> found = ratio(np.array([1.0, 3.0]), np.array([1, 1]), np.array([0, 1]))
        >>> found.value, found.clusters
        (2.0, 2)

    Source: Cochran 1977, "Sampling Techniques", section 6.4 (a ratio) and 9A.1 (clusters).
    """
    total = int(counts.sum())
    if total == 0:
        raise DataError("the set: no prediction was scored; a figure needs one")
    value = float(sums.sum()) / total
    number = np.unique(clusters, return_inverse=True)[1]
    groups = int(number.max()) + 1
    if groups < 2:
        return Measured(value, math.nan, math.nan, total, groups)
    residuals = np.bincount(number, weights=sums - value * counts)
    variance = groups / (groups - 1) * float((residuals**2).sum()) / total**2
    if variance == 0.0:  # an interval of no width would claim what a few like ones do not show
        return Measured(value, math.nan, math.nan, total, groups)
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2, groups - 1)) * math.sqrt(variance)
    return Measured(value, value - half, value + half, total, groups)


def perplexity(scores: Scores) -> Measured:
    """``exp`` of the mean negative log-likelihood of a prediction."""
    return ratio(scores.nll, scores.counted, scores.clusters).mapped(_exp)


def accuracy(scores: Scores) -> Measured:
    """The share of right predictions: Wilson's interval where each is a cluster of its own."""
    found = ratio(scores.correct.astype(np.float64), scores.counted, scores.clusters)
    if found.clusters == found.n:
        test = stats.binomtest(int(scores.correct.sum()), found.n)
        interval = test.proportion_ci(CONFIDENCE, method="wilson")
        return Measured(found.value, float(interval.low), float(interval.high), found.n, found.n)
    return Measured(found.value, max(found.low, 0.0), min(found.high, 1.0), found.n, found.clusters)


def change(before: Scores, after: Scores, *, of: str) -> Measured:
    """How a figure changed between two models on the same examples, paired.

    Args:
        before: of one model.
        after: of the other.
        of: ``perplexity``: its ratio, after over before; ``accuracy``: the difference.
    """
    if of == "perplexity":
        return ratio(after.nll - before.nll, after.counted, after.clusters).mapped(_exp)
    moved = (after.correct - before.correct).astype(np.float64)
    return ratio(moved, after.counted, after.clusters)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
