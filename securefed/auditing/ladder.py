"""What a defence leaves: what the strongest of several attackers gets past it.

The largest of several means over the same trials is biased upwards.  So the strongest attacker is
chosen on every second trial and what it gets is reported on the others, which had no part in the
choice: that interval is of its confidence as if there had been one attacker.  All attackers are
reported on all trials as well, each at the confidence that Bonferroni's correction asks for, so
that all of these intervals hold together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from securefed.attacks.base import Attack, Limits
from securefed.attacks.results import AttackResult, Trial, summarise
from securefed.attacks.scoring import UnigramPrior
from securefed.auditing.defences import Defence
from securefed.auditing.rounds import Bench
from securefed.auditing.trials import trials
from securefed.errors import ConfigError

METRIC = "token_recall"


@dataclass(frozen=True)
class Left:
    """What a defence leaves.

    Attributes:
        defence: its name.
        strongest: the attacker with the largest mean lift on the choosing trials; a void attacker's
            lift is 0.
        result: of that attacker on the other trials.
        every: of each attacker on all trials, intervals widened by Bonferroni's correction.
    """

    defence: str
    strongest: str
    result: AttackResult
    every: tuple[AttackResult, ...]


@dataclass(frozen=True)
class Ladder:
    """A defence and those who try to get past it.

    Args:
        defence: that is judged.
        attackers: weakest first, by different names; a plain one too, for comparison.

    Raises:
        ConfigError: there is no attacker, or two have one name.
    """

    defence: Defence
    attackers: Sequence[Attack]

    def __post_init__(self) -> None:
        names = [attacker.name for attacker in self.attackers]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"attackers: {', '.join(names) or 'none'}; names must differ")

    def climb(
        self,
        bench: Bench,
        texts: Sequence[Sequence[int]],
        prior: UnigramPrior,
        *,
        exposure: str,
        seeds: Sequence[int],
        limits: Limits,
        confidence: float = 0.95,
        done: Callable[[str, Trial], None] = lambda attacker, trial: None,
    ) -> Left:
        """Try all attackers on the same texts.

        Args:
            bench: of :meth:`Defence.bench`.
            texts: as for :func:`~securefed.auditing.trials.trials`, like the arguments below.
            prior: made of other texts.
            exposure: what is seen.
            seeds: of the trials, two or more; the first, third and so on choose.
            limits: of one trial.
            confidence: of the result's interval, and of all others together.
            done: told of each trial as it ends.

        Raises:
            ConfigError: there are fewer than two seeds, or one is there twice.
        """
        if len(seeds) < 2 or len(set(seeds)) < len(seeds):
            raise ConfigError(f"seeds: {len(seeds)}; two or more different ones are needed")
        tried: dict[str, list[Trial]] = {}
        for attacker in self.attackers:
            name = attacker.name
            tried[name], _ = trials(
                attacker,
                bench,
                texts,
                prior,
                exposure=exposure,
                seeds=seeds,
                limits=limits,
                done=partial(done, name),
            )
        return judged(self.defence.name, tried, confidence)


def judged(defence: str, tried: dict[str, list[Trial]], confidence: float = 0.95) -> Left:
    """Choose on every second trial and report on the others.

    Args:
        defence: its name.
        tried: by attacker, weakest first, its trials, of the same seeds in the same order.
        confidence: as for :meth:`Ladder.climb`.
    """
    seeds = {tuple(trial.seed for trial in found) for found in tried.values()}
    if len(seeds) != 1 or len(next(iter(seeds))) < 2:
        raise ConfigError("tried: all attackers need the same seeds, two or more")
    lifts = {
        name: summarise(name, METRIC, found[::2], confidence=confidence).lift
        for name, found in tried.items()
    }
    strongest = max(lifts, key=lambda name: lifts[name])
    each = 1.0 - (1.0 - confidence) / len(tried)
    return Left(
        defence,
        strongest,
        summarise(strongest, METRIC, tried[strongest][1::2], confidence=confidence),
        tuple(summarise(name, METRIC, found, confidence=each) for name, found in tried.items()),
    )
