"""What poisoned clients reach against one defence, with intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from securefed.attacks.results import Interval, Method, clopper_pearson
from securefed.federation.robust_mean import Rule
from securefed.privacy.policy import PrivacyPolicy

_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Defence:
    """How clients' updates are bounded and combined.

    Args:
        name: results are filed under it.
        clip_norm: C > 0 of the honest codec; far above all updates: no clip.
        noise_multiplier: z >= 0, of each sum; 0: no noise.
        groups: g >= 1, secure sums in a round.
        rule: how the means of the groups are combined.
        tolerated: groups that may be wrong, for the rule.
    """

    name: str
    clip_norm: float
    noise_multiplier: float = 0.0
    groups: int = 1
    rule: Rule = "mean"
    tolerated: int = 0

    def policy(self, corrupt_fraction: float) -> PrivacyPolicy:
        """Of a round in which no client may fall silent."""
        noised = self.noise_multiplier > 0.0
        return PrivacyPolicy(
            clip_norm=self.clip_norm,
            noise_multiplier=self.noise_multiplier,
            mechanism="distributed" if noised else "none",
            corrupt_fraction=corrupt_fraction,
            dropout_fraction=0.0,
        )


@dataclass(frozen=True, eq=False)
class Outcome:
    """One run, measured on held-out examples.

    Attributes:
        seed: of the run.
        correct: bool[n], the right class.
        fooled: bool[m], the attacker's class for a stamped text of another class.
        unstamped: bool[m], the attacker's class for the same texts without the trigger.
        norms: L2 norm of each honest update, as it was trained.
        seconds: of the whole run.
    """

    seed: int
    correct: NDArray[np.bool_]
    fooled: NDArray[np.bool_]
    unstamped: NDArray[np.bool_]
    norms: NDArray[np.float64]
    seconds: float


@dataclass(frozen=True)
class Rate:
    """A share of held-out examples, over runs.

    Attributes:
        value: mean over runs and examples.
        interval: for other runs and other examples at once: both are resampled.  Of one run, and
            where every example of every run says the same (then Clopper and Pearson's of one run's
            examples), it is for other examples alone: how far runs differ does not show in it.
        method: which of the two.
        runs: the share in each run.
        examples: of one run.
    """

    value: float
    interval: Interval
    method: Method
    runs: tuple[float, ...]
    examples: int

    @classmethod
    def of(cls, hits: NDArray[np.bool_], confidence: float = 0.95) -> Rate:
        """From bool[runs, examples].

        Source: a bootstrap of two factors that are crossed: Owen 2007, "The pigeonhole bootstrap"
        (0712.1111).
        """
        runs, examples = hits.shape
        value = float(hits.mean())
        shares = tuple(float(share) for share in hits.mean(axis=1))
        if value in (0.0, 1.0):
            found = clopper_pearson(round(value * examples), examples, confidence)
            return cls(value, found, "exact", shares, examples)
        rng = np.random.default_rng(0)
        means = np.empty(_RESAMPLES)
        for place in range(_RESAMPLES):
            rows, columns = rng.integers(runs, size=runs), rng.integers(examples, size=examples)
            means[place] = hits[np.ix_(rows, columns)].mean()
        tail = (1.0 - confidence) / 2.0
        low, high = np.quantile(means, [tail, 1.0 - tail])
        return cls(value, (float(low), float(high)), "bootstrap", shares, examples)


@dataclass(frozen=True)
class PoisoningResult:
    """What poisoned clients reach against one defence.

    Attributes:
        attack: its name; ``"none"``: the control, no client is poisoned.
        defence: what stood against it.
        aggregation: how sums were formed.
        clients: n.
        malicious: k of them are poisoned, in every round.
        rounds: of a run.
        accuracy: on held-out examples.
        success: how many stamped texts of other classes are given the attacker's class.
        base: the same without the trigger.
        seeds: of the runs.
        seconds: mean of a run.
    """

    attack: str
    defence: Defence
    aggregation: str
    clients: int
    malicious: int
    rounds: int
    accuracy: Rate
    success: Rate
    base: Rate
    seeds: tuple[int, ...]
    seconds: float

    def as_json(self) -> dict[str, object]:
        """Figures alone."""
        return asdict(self)
