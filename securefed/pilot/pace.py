"""How long a trial would take, by those that are over."""

from __future__ import annotations

from collections.abc import Iterable

from securefed.config import RunConfig
from securefed.pilot.design import BASE, Planned
from securefed.pilot.records import Trial

_FULL_OF_ADAPTER = 3.0
"""A pass forward, one back to the inputs and one to all weights; an adapter of the last layers
alone takes little more than the first."""


class Pace:
    """Seconds of trials to come, from those of trials of the same kind.

    A run takes as long as the last one with the same aggregation (or else the base run), in
    proportion to rounds and, for ranks above the base's, to the rank: what is masked or encrypted
    grows with it.  A baseline takes as long as the base run's training on its own.  Rough, and
    rather too much than too little.

    Args:
        run: the pilot's run file.
        done: trials that are over.
        rates: how many learning rates full fine-tuning tries.
    """

    def __init__(self, run: RunConfig, done: Iterable[Trial], *, rates: int) -> None:
        self._run, self._rates = run, rates
        self._done: list[Trial] = []
        for trial in done:
            self.learn(trial)

    def learn(self, trial: Trial) -> None:
        """Note a trial that is done, with its seconds as they were."""
        self._done.append(trial)

    def seconds_left(self, planned: Iterable[Planned]) -> float | None:
        """Of all these trials; None before the base run is over."""
        if self._last(BASE) is None:
            return None
        return sum(self.seconds(each) for each in planned if not each.refused)

    def seconds(self, planned: Planned) -> float:
        """Of one trial; 0 where nothing is known yet."""
        base, same = self._last(BASE), self._last(planned.name)
        if same is not None:  # with another seed
            return same.seconds
        if base is None:
            return 0.0
        if planned.how == "federated":
            return self._run_seconds(planned, base)
        training = base.seconds
        if base.cost is not None and "train" in base.cost.client_seconds:
            # Clipping one by one is part of it; what hides a vector is not.
            share = sum(base.cost.client_seconds.get(p, 0.0) for p in ("train", "clip"))
            training = min(training, share * base.clients * base.rounds)
        return training * (_FULL_OF_ADAPTER * self._rates if planned.how == "full" else 1.0)

    def _run_seconds(self, planned: Planned, base: Trial) -> float:
        kind = self._kind(planned.changes.get("aggregation.kind"))
        like = base
        for trial in self._done:
            if trial.folder and self._kind(trial.varied.get("aggregation.kind")) == kind:
                like = trial
        ranks = float(planned.changes.get("lora.rank", 0)) / self._run.lora.rank
        rounds = self._run.training.rounds / max(like.rounds, 1)
        return like.seconds * max(1.0, rounds) * max(1.0, ranks)

    def _kind(self, changed: str | None) -> str:
        return self._run.aggregation.kind if changed is None else changed

    def _last(self, name: str) -> Trial | None:
        return next((trial for trial in reversed(self._done) if trial.name == name), None)
