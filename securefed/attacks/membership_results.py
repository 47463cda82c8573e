"""What trials of a membership attack show, with intervals.  No attack imports this module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from securefed.attacks.base import Verdict
from securefed.attacks.results import Interval, clopper_pearson
from securefed.attacks.roc import (
    RateAt,
    Roc,
    auc_interval,
    epsilon_lower_bound,
    for_group,
    private_tpr,
    tpr_at,
)
from securefed.errors import ConfigError

FALSE_POSITIVE_RATES = (0.001, 0.01, 0.05)
_LEAST_RUNS = 2


@dataclass(frozen=True, eq=False)
class MembershipTrial:
    """One attack on one training run, with the truth.

    Attributes:
        scores: float64[n] of the attack, of the same n records in every trial.
        member: bool[n], which of them the run was trained on.
        verdict: what the attack said of itself.
        seed: of the attack's random choices.
        seconds: that it took, shadow runs left out.
    """

    scores: NDArray[np.float64] = field(repr=False)
    member: NDArray[np.bool_] = field(repr=False)
    verdict: Verdict
    seed: int
    seconds: float


@dataclass(frozen=True)
class WorstRecord:
    """The record that is told best, over all training runs.

    Its advantage is TPR - FPR of the guess "member" at the median of all scores, a threshold that
    looks at no truth.

    Attributes:
        advantage: in [-1, 1].
        interval: that holds for all n records at once (each at 1 - (1 - confidence) / n), from
            those of Clopper and Pearson of the two rates; its upper end is cut at 1.
        inside: runs with it.
        outside: runs without it.
    """

    advantage: float
    interval: Interval
    inside: int
    outside: int


@dataclass(frozen=True)
class MembershipResult:
    """One attack on one view, over one or more training runs.

    Attributes:
        attack: its name.
        view: what it saw, in words.
        members: trials of records that were trained on; ``others``: of those that were not.
        auc: chance that a member scores above another record; 0.5 without any knowledge.
        auc_interval: at ``confidence``, over resampled records.
        rates: TPR at bounds on FPR.  Without knowledge it is the bound itself.
        advantage: mean over records of TPR - FPR at the median of all scores.
        worst: the record told best; None with fewer than two runs with and without each record.
        epsilon: of the promise that the runs were made under, for one record that is added or taken
            away; None for none.
        delta: of it.
        changes: by how many such changes a run with a record differs from one without it.
        epsilon_lower: lower bound that the scores give (``roc.epsilon_lower_bound``).
        violates: whether that exceeds what the promise comes to for so many changes.
        roc: (FPR, TPR) of the curve, low rates first.
        bound: (FPR, TPR) that the promise allows for so many changes, at the same rates; None
            without one.
        confidence: of each interval by itself.
        runs: training runs.
        seeds: of the attack in each run.
        seconds: mean of a run, shadow runs left out.
        shadow_runs: how many the attack had in each run.
        verdict: ``"void"`` if the attack said of every run that it does not apply.
        void: how many it said so of.
    """

    attack: str
    view: str
    members: int
    others: int
    auc: float
    auc_interval: Interval
    rates: tuple[RateAt, ...]
    advantage: float
    worst: WorstRecord | None
    epsilon: float | None
    delta: float
    changes: int
    epsilon_lower: float
    violates: bool
    roc: tuple[tuple[float, float], ...] = field(repr=False)
    bound: tuple[tuple[float, float], ...] | None = field(repr=False)
    confidence: float
    runs: int
    seeds: tuple[int, ...]
    seconds: float
    shadow_runs: int
    verdict: Verdict
    void: int

    @property
    def above_chance(self) -> bool:
        """Whether the interval of the AUC lies above one half."""
        return self.auc_interval[0] > 0.5

    def as_json(self) -> dict[str, object]:
        """Figures alone."""
        return asdict(self) | {"above_chance": self.above_chance}


def summarise_membership(
    attack: str,
    view: str,
    trials: Sequence[MembershipTrial],
    *,
    epsilon: float | None = None,
    delta: float = 0.0,
    changes: int = 2,
    shadow_runs: int = 0,
    confidence: float = 0.95,
    seed: int = 0,
) -> MembershipResult:
    """Curve, rates, worst record and the promise.

    Args:
        attack: its name.
        view: what it saw, in words.
        trials: one a training run, all over the same n records.
        epsilon: of the promise that the runs were made under, finite, >= 0; None for none.
        delta: of it, in [0, 1).
        changes: 2 where all runs train on equally many records, so that another one stands in a
            record's place where it is not; 1 where its place is empty.
        shadow_runs: how many the attack had.
        confidence: in (0, 1).
        seed: of the bootstrap.

    Raises:
        ConfigError: there is no trial, trials are of unlike numbers of records, no record was a
            member or all were, or an argument is out of range.
    """
    if not trials:
        raise ConfigError("trials: none; at least one is needed")
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence = {confidence}; it must be in (0, 1)")
    promise = (math.inf, delta) if epsilon is None else for_group(epsilon, delta, changes)
    count = len(trials[0].scores)
    if any(trial.scores.shape != (count,) or trial.member.shape != (count,) for trial in trials):
        raise ConfigError("trials: each must be of the same n records")
    scores = np.concatenate([trial.scores for trial in trials])
    member = np.concatenate([trial.member for trial in trials])
    records = np.tile(np.arange(count), len(trials))
    curve = Roc.of(scores, member)
    guessed = scores > np.median(scores)
    lower = 0.0
    if promise[1] < 1.0:
        lower = epsilon_lower_bound(
            scores, member, records, delta=promise[1], confidence=confidence
        )
    points = curve.points()
    bound = None
    if epsilon is not None:
        rates = np.array([fpr for fpr, _ in points])
        allowed = private_tpr(rates, *promise)
        bound = tuple((float(f), float(t)) for f, t in zip(rates, allowed, strict=True))
    is_void = [trial.verdict == "void" for trial in trials]
    return MembershipResult(
        attack=attack,
        view=view,
        members=curve.members,
        others=curve.others,
        auc=curve.auc,
        auc_interval=auc_interval(scores, member, records, confidence=confidence, seed=seed),
        rates=tuple(tpr_at(curve, fpr, confidence=confidence) for fpr in FALSE_POSITIVE_RATES),
        advantage=float(guessed[member].mean() - guessed[~member].mean()),
        worst=_worst(guessed.reshape(len(trials), count), member.reshape(-1, count), confidence),
        epsilon=epsilon,
        delta=delta,
        changes=changes,
        epsilon_lower=lower,
        violates=lower > promise[0],
        roc=tuple(points),
        bound=bound,
        confidence=confidence,
        runs=len(trials),
        seeds=tuple(trial.seed for trial in trials),
        seconds=float(np.mean([trial.seconds for trial in trials])),
        shadow_runs=shadow_runs,
        verdict="void" if all(is_void) else "guessed",
        void=sum(is_void),
    )


def _worst(
    guessed: NDArray[np.bool_], member: NDArray[np.bool_], confidence: float
) -> WorstRecord | None:
    inside, outside = member.sum(axis=0), (~member).sum(axis=0)
    if min(inside.min(), outside.min()) < _LEAST_RUNS:
        return None
    hits, misses = (guessed & member).sum(axis=0), (guessed & ~member).sum(axis=0)
    advantages = hits / inside - misses / outside
    worst = int(np.argmax(advantages))
    # Two rates of each of n records: a union bound over 2 n intervals.
    each = 1.0 - (1.0 - confidence) / (2 * len(advantages))
    hit = clopper_pearson(int(hits[worst]), int(inside[worst]), each)
    miss = clopper_pearson(int(misses[worst]), int(outside[worst]), each)
    return WorstRecord(
        advantage=float(advantages[worst]),
        interval=(hit[0] - miss[1], min(1.0, hit[1] - miss[0])),
        inside=int(inside[worst]),
        outside=int(outside[worst]),
    )
