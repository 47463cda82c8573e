"""Attacks on training texts, measured in one cell: fresh texts and a real round for each trial."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

from pydantic import JsonValue

from securefed.attacks.base import Attack, Limits
from securefed.attacks.results import AttackResult, Trial, summarise
from securefed.attacks.scoring import METRICS
from securefed.auditing.cells import Cell
from securefed.auditing.entries import Clock, Finding, Measure
from securefed.auditing.from_config import AuditedRun
from securefed.auditing.trials import attempt, capture
from securefed.evidence.results import Metric

HEADLINE = "token_recall"


def on_texts(make: Callable[[AuditedRun], Attack]) -> Measure:
    """Trials of an attack on training texts, scored against the unigram prior.

    Args:
        make: a new attack for each cell.
    """

    def measure(run: AuditedRun, cell: Cell, limits: Limits, clock: Clock) -> Finding:
        attack, bench, prior = make(run), cell.bench(run), run.prior()
        found: list[Trial] = []
        predicted: dict[str, JsonValue] | None = None
        at_limit = 0
        for seed in cell.seeds:
            if clock.over:
                break
            captured = capture(bench, run.texts, exposure=cell.captured, seed=seed)
            within = Limits(
                seconds=max(1.0, min(limits.seconds, clock.left)), max_tokens=limits.max_tokens
            )
            started = time.monotonic()
            trial = attempt(attack, captured, prior, limits=within)
            ended = time.monotonic() - started >= within.seconds
            if ended and within.seconds < limits.seconds:
                break  # the cell's time cut it off: a failure would be the clock's
            found.append(trial)
            at_limit += ended
            predicted = dict(asdict(captured.prediction))
            clock.trial(len(found), len(cell.seeds))
        if not found:
            return Finding.none("out_of_time", "no trial fitted the time")
        results = {name: summarise(attack.name, name, found) for name in METRICS}
        recall = results[HEADLINE]
        says = "the attack says itself that it does not apply"
        return Finding(
            metrics={name: _metric(each) for name, each in results.items()},
            headline=HEADLINE,
            seeds=recall.seeds,
            n=recall.n,
            verdict=recall.verdict,
            reason=f"{says} in {recall.void} of {recall.n} trials" if recall.void else "",
            void=recall.void,
            predicted=predicted,
            seconds_per_trial=recall.seconds,
            ended_by_time=at_limit,
        )

    return measure


def _metric(result: AttackResult) -> Metric:
    # Trials that are resampled from a single one are all alike: that is no interval.
    shown, paired = result.n > 1 or result.method == "exact", result.n > 1
    return Metric(
        value=result.value,
        interval=result.interval if shown else None,
        prior=result.prior,
        lift=result.lift,
        lift_interval=result.lift_interval if paired else None,
        method=result.method if shown else None,
    )
