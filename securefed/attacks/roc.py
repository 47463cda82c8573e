"""ROC curves of membership attacks, and what differential privacy allows of them.

No attack imports this module.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm

from securefed.attacks.results import Interval, clopper_pearson
from securefed.errors import ConfigError

_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Roc:
    """What can be had by guessing "member" from a threshold on.

    Attributes:
        false_positives: int64[k], others at or above each threshold; 0 first, then growing.
        true_positives: int64[k], members at or above it.
        thresholds: float64[k], falling; infinity first.
        others: how many records were no members, >= 1.
        members: how many were, >= 1.
    """

    false_positives: NDArray[np.int64] = field(repr=False)
    true_positives: NDArray[np.int64] = field(repr=False)
    thresholds: NDArray[np.float64] = field(repr=False)
    others: int
    members: int

    @classmethod
    def of(cls, scores: NDArray[np.float64], member: NDArray[np.bool_]) -> Roc:
        """The curve of scores, float64[n], against the truth, bool[n]; equal scores are one step.

        Raises:
            ConfigError: shapes differ, a score is not finite, or there is only one kind of record.
        """
        _check(scores, member)
        order = np.argsort(-scores, kind="stable")
        falling, truth = scores[order], member[order]
        last = np.append(falling[1:] != falling[:-1], True)
        hits, misses = np.cumsum(truth)[last], np.cumsum(~truth)[last]
        return cls(
            np.concatenate([[0], misses]).astype(np.int64),
            np.concatenate([[0], hits]).astype(np.int64),
            np.concatenate([[np.inf], falling[last]]),
            int((~member).sum()),
            int(member.sum()),
        )

    @property
    def fpr(self) -> NDArray[np.float64]:
        """float64[k], rates of false positives."""
        return self.false_positives / self.others

    @property
    def tpr(self) -> NDArray[np.float64]:
        """float64[k], rates of true positives."""
        return self.true_positives / self.members

    @property
    def auc(self) -> float:
        """Area under it: the chance that a member scores above another record, ties half."""
        return float(np.trapezoid(self.tpr, self.fpr))

    def points(self, most: int = 200) -> list[tuple[float, float]]:
        """(FPR, TPR) of the curve's corners, for a plot with logarithmic axes.

        Args:
            most: points, >= 3; low rates are kept first.
        """
        fpr, tpr = self.fpr, self.tpr
        # The last of equal FPRs is the upper corner.
        corner = np.append(fpr[1:] != fpr[:-1], True)
        kept = np.flatnonzero(corner)
        if len(kept) > most:
            places = np.unique(np.geomspace(1, len(kept), most).astype(int)) - 1
            kept = kept[places]
        return [(float(fpr[i]), float(tpr[i])) for i in kept]


@dataclass(frozen=True)
class RateAt:
    """The rate of true positives at a bound on false ones.

    Attributes:
        fpr: the bound, in (0, 1).
        false_positives: how many others are above the threshold, floor(fpr n) or (ties) fewer.
        value: the rate of members above it.
        interval: of Clopper and Pearson, for the threshold given and these very records: trials are
            counted as independent, and what other records would give is not in it.
        resolved: whether there are 1 / fpr other records or more; else the threshold lies above all
            of them, and the true rate of false positives at it is known up to about 3 / n only.
    """

    fpr: float
    false_positives: int
    value: float
    interval: Interval
    resolved: bool


def tpr_at(roc: Roc, fpr: float, *, confidence: float = 0.95) -> RateAt:
    """The rate of true positives at the lowest threshold that keeps false ones within ``fpr``.

    Raises:
        ConfigError: ``fpr`` is not in (0, 1).
    """
    if not 0.0 < fpr < 1.0:
        raise ConfigError(f"fpr = {fpr}; it must be in (0, 1)")
    allowed = math.floor(fpr * roc.others + 1e-9)
    place = int(np.searchsorted(roc.false_positives, allowed, side="right")) - 1
    hits = int(roc.true_positives[place])
    return RateAt(
        fpr=fpr,
        false_positives=int(roc.false_positives[place]),
        value=hits / roc.members,
        interval=clopper_pearson(hits, roc.members, confidence),
        resolved=roc.others * fpr >= 1.0,
    )


def auc_interval(
    scores: NDArray[np.float64],
    member: NDArray[np.bool_],
    records: NDArray[np.int64],
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the AUC over resampled records, each with all of its trials.

    Args:
        scores: float64[n].
        member: bool[n].
        records: int64[n], which record each is of: trials of one record are not independent.
        confidence: in (0, 1).
        seed: of the bootstrap.

    Where members and others do not overlap all resamples say the same, and their interval has no
    width.  Then it is that of Clopper and Pearson for half as many pairs, each of a member and
    another record, as there are records: pairs without a common record are independent.

    Source: Efron and Tibshirani 1993, chapter 13; Field and Welsh 2007, "Bootstrapping Clustered
    Data", for whole clusters.
    """
    _check(scores, member)
    names, owner = np.unique(records, return_inverse=True)
    order = np.argsort(scores, kind="stable")
    rising, truth, owner = scores[order], member[order], owner[order]
    starts = np.flatnonzero(np.concatenate([[True], rising[1:] != rising[:-1]]))
    even = np.full(len(names), 1.0 / len(names))
    drawn = np.random.default_rng(seed).multinomial(len(names), even, size=_RESAMPLES)
    weights = drawn[:, owner]
    positive = np.add.reduceat(weights * truth, starts, axis=1)
    negative = np.add.reduceat(weights * ~truth, starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    won = (positive * (below + 0.5 * negative)).sum(axis=1)
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    if not pairs.any():
        raise ConfigError(f"records: {len(names)}; too few to resample")
    found = won[pairs > 0] / pairs[pairs > 0]
    if found.min() == found.max() and found[0] in (0.0, 1.0):
        apart = min(len(names) // 2, int(truth.sum()), int((~truth).sum()))
        return clopper_pearson(round(found[0]) * apart, apart, confidence)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(found, [tail, 1.0 - tail])
    return float(low), float(high)


def private_tpr(fpr: NDArray[np.float64], epsilon: float, delta: float) -> NDArray[np.float64]:
    """The highest rate of true positives that (epsilon, delta)-DP allows.

        min(1, e^epsilon f + delta, 1 - e^-epsilon (1 - delta - f))

    Args:
        fpr: float64[k], f in [0, 1].
        epsilon: >= 0; infinity for no bound.
        delta: in [0, 1].

    Source: Kairouz, Oh and Viswanath 2015, "The Composition Theorem for Differential Privacy",
    Theorem 2.1.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        direct = np.exp(epsilon) * fpr + delta
        mirror = 1.0 - np.exp(-epsilon) * (1.0 - delta - fpr)
    found: NDArray[np.float64] = np.clip(np.fmin(direct, mirror), 0.0, 1.0)
    return found


def for_group(epsilon: float, delta: float, changes: int) -> tuple[float, float]:
    """What (epsilon, delta)-DP for one change promises for k of them.

        (k epsilon, delta (e^(k epsilon) - 1) / (e^epsilon - 1))

    Args:
        epsilon: >= 0, finite.
        delta: in [0, 1).
        changes: k >= 1.

    Returns:
        Epsilon, and delta cut at 1.

    Source: Vadhan 2017, "The Complexity of Differential Privacy", Lemma 2.2.
    """
    if not (math.isfinite(epsilon) and epsilon >= 0.0 and 0.0 <= delta < 1.0 and changes >= 1):
        raise ConfigError(
            f"epsilon = {epsilon}, delta = {delta}, changes = {changes}; allowed: finite and >= 0, "
            "in [0, 1), and >= 1"
        )
    terms = (math.exp(min(700.0, step * epsilon)) for step in range(changes))
    return changes * epsilon, min(1.0, delta * sum(terms))


def gaussian_tpr(fpr: NDArray[np.float64], mu: float) -> NDArray[np.float64]:
    """The highest rate of true positives under mu-Gaussian DP, Phi(Phi^-1(f) + mu).

    Args:
        fpr: float64[k], in [0, 1].
        mu: >= 0.

    Source: Dong, Roth and Su 2022, "Gaussian Differential Privacy" (1905.02383), section 2.2.
    """
    found: NDArray[np.float64] = norm.cdf(norm.ppf(fpr) + mu)
    return found


def epsilon_lower_bound(
    scores: NDArray[np.float64],
    member: NDArray[np.bool_],
    records: NDArray[np.int64],
    *,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """The epsilon below which these scores would not have been likely.

    A threshold and a direction are chosen on every second record and judged on the others, so that
    choosing costs no confidence: with intervals of Clopper and Pearson at half of the error each,

        epsilon >= log((TPR_low - delta) / FPR_high)   or the same of true and false negatives.

    Trials are counted as independent.  Those of one training run are not quite, so this is no
    audit; a value above the promise is a reason for one.

    Args:
        scores: float64[n].
        member: bool[n].
        records: int64[n], which record each is of.
        delta: in [0, 1).
        confidence: one-sided, in (0, 1).

    Returns:
        >= 0; 0 also where a half lacks members or others.

    Source: Jagielski, Ullman and Oprea 2020, "Auditing Differentially Private Machine Learning"
    (2006.07709), section 4.
    """
    _check(scores, member)
    if not 0.0 <= delta < 1.0:
        raise ConfigError(f"delta = {delta}; it must be in [0, 1)")
    first = np.unique(records, return_inverse=True)[1] % 2 == 0
    halves = (first, ~first)
    if any(not member[half].any() or member[half].all() for half in halves):
        return 0.0
    chosen = Roc.of(scores[first], member[first])
    tried = [_epsilons(chosen, flip, delta, confidence) for flip in (False, True)]
    mirrored, place = np.unravel_index(int(np.argmax(tried)), (2, len(tried[0])))
    above = scores[~first] >= chosen.thresholds[place]
    judged = Roc.of(above.astype(np.float64), member[~first])
    return float(_epsilons(judged, bool(mirrored), delta, confidence)[-2])


def _epsilons(curve: Roc, flip: bool, delta: float, confidence: float) -> NDArray[np.float64]:
    """float64[k]: the bound at each threshold, for positives or (``flip``) for negatives."""
    hits, members = curve.true_positives, curve.members
    misses, others = curve.false_positives, curve.others
    if flip:  # true negatives against false ones
        hits, members, misses, others = others - misses, others, members - hits, members
    # Of each two-sided interval (Clopper and Pearson) one end counts: they miss with 1 - confidence
    # together.
    tail = (1.0 - confidence) / 2.0
    low = np.where(hits > 0, beta.ppf(tail, np.maximum(hits, 1), members - hits + 1), 0.0)
    high = np.where(
        misses < others, beta.ppf(1.0 - tail, misses + 1, np.maximum(others - misses, 1)), 1.0
    )
    return np.log(np.maximum((low - delta) / high, 1.0))


def _check(scores: NDArray[np.float64], member: NDArray[np.bool_]) -> None:
    if scores.shape != member.shape or scores.ndim != 1 or not np.isfinite(scores).all():
        raise ConfigError(
            f"scores: {scores.shape} against {member.shape}; allowed are finite float64[n] and "
            "bool[n]"
        )
    if not member.any() or member.all():
        raise ConfigError("member: there must be members and others")
