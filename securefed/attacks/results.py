"""What a number of trials of an attack show, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from securefed.attacks.base import Verdict
from securefed.attacks.scoring import METRICS, Score
from securefed.errors import ConfigError

Method = Literal["bootstrap", "exact"]
Interval = tuple[float, float]

_RESAMPLES = 2000


@dataclass(frozen=True)
class AttackResult:
    """One metric over n trials.

    Attributes:
        attack: its name.
        metric: one of ``METRICS``.
        value: mean over the trials, in [0, 1]; a void trial counts 0.
        interval: of the mean, at ``confidence``.
        prior: mean of the guess that sees no update, on the same texts.
        lift: mean over the trials of score less prior.  A void trial leaves the adversary with its
            prior, and counts 0.
        lift_interval: of the lift; the trials of both are paired.
        method: ``"exact"``: Clopper and Pearson, where every trial is 0 or 1; else a bootstrap over
            trials.
        confidence: of each interval by itself.
        n: trials.
        seeds: of the trials.
        seconds: mean of a trial, of the processor.
        verdict: ``"void"`` if the attack said of every trial that it does not apply: then the value
            shows nothing about a defence.
        void: how many trials it said so of.
    """

    attack: str
    metric: str
    value: float
    interval: Interval
    prior: float
    lift: float
    lift_interval: Interval
    method: Method
    confidence: float
    n: int
    seeds: tuple[int, ...]
    seconds: float
    verdict: Verdict
    void: int

    @property
    def shows_lift(self) -> bool:
        """Whether the lift's interval lies above 0."""
        return self.lift_interval[0] > 0.0

    def as_json(self) -> dict[str, object]:
        """Figures alone."""
        return asdict(self)


@dataclass(frozen=True)
class Trial:
    """One run of an attack, scored.

    Attributes:
        score: of the guess.
        prior: of the prior's guess on the same texts.
        verdict: what the attack said of itself.
        seed: of the attack's random choices.
        seconds: of the processor that it took.
    """

    score: Score
    prior: Score
    verdict: Verdict
    seed: int
    seconds: float


def summarise(
    attack: str, metric: str, trials: Sequence[Trial], *, confidence: float = 0.95, seed: int = 0
) -> AttackResult:
    """Mean, intervals and lift of one metric.

    Args:
        attack: its name.
        metric: one of ``METRICS``.
        trials: one or more.
        confidence: in (0, 1).
        seed: of the bootstrap.

    Raises:
        ConfigError: there is no trial, the metric is unknown, or the confidence is out of range.
    """
    if not trials:
        raise ConfigError("trials: none; at least one is needed")
    if metric not in METRICS:
        raise ConfigError(f"metric = {metric!r}; allowed: {', '.join(map(repr, METRICS))}")
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"confidence = {confidence}; it must be in (0, 1)")
    values = np.array([getattr(trial.score, metric) for trial in trials], dtype=np.float64)
    priors = np.array([getattr(trial.prior, metric) for trial in trials], dtype=np.float64)
    exact = bool(np.isin(values, (0.0, 1.0)).all())
    interval = (
        clopper_pearson(int(values.sum()), len(values), confidence)
        if exact
        else bootstrap(values, confidence, seed)
    )
    is_void = np.array([trial.verdict == "void" for trial in trials])
    void = int(is_void.sum())
    lifts = np.where(is_void, 0.0, values - priors)
    lift_interval = bootstrap(lifts, confidence, seed)
    if exact and not priors.any():
        lift_interval = interval
    return AttackResult(
        attack=attack,
        metric=metric,
        value=float(values.mean()),
        interval=interval,
        prior=float(priors.mean()),
        lift=float(lifts.mean()),
        lift_interval=lift_interval,
        method="exact" if exact else "bootstrap",
        confidence=confidence,
        n=len(trials),
        seeds=tuple(trial.seed for trial in trials),
        seconds=float(np.mean([trial.seconds for trial in trials])),
        verdict="void" if void == len(trials) else "guessed",
        void=void,
    )


def clopper_pearson(successes: int, n: int, confidence: float) -> Interval:
    """Exact interval of a proportion.

    Source: Clopper and Pearson 1934.
    """
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(beta.ppf(1.0 - tail, successes + 1, n - successes))
    return low, high


def bootstrap(values: NDArray[np.float64], confidence: float, seed: int) -> Interval:
    """Percentile interval of a mean, over resampled trials.

    Source: Efron and Tibshirani 1993, chapter 13.
    """
    chosen = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values[chosen].mean(axis=1), [tail, 1.0 - tail])
    return float(low), float(high)
