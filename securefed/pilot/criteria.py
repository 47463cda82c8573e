"""What the customer asks for, held against a trial: met, not met, or not measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from securefed.config.pilot import PilotConfig
from securefed.pilot.projecting import Projection, project
from securefed.pilot.records import Metric, PilotRecord
from securefed.pilot.summaries import ALONE, FULL, Summary, baseline, most_of, terms_of
from securefed.pilot.words import Gain, Said

Outcome = Literal["met", "not_met", "not_measured"]

MEGABYTE = 10**6
GIBIBYTE = 2**30


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One criterion, held against one trial.

    Attributes:
        key: of the criterion.
        trial: its name.
        outcome: what is not measured is not met.
        figure: the trial's, of its worst seed; None where it is not measured.
        bound: that it is compared with; None where that is not measured.
    """

    key: str
    trial: str
    outcome: Outcome
    figure: float | None
    bound: float | None


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """One thing that is asked.

    Attributes:
        key: ``"improves"``, or the field of the pilot file's ``decision``.
        bound: None where what it would follow from was not measured.
        at_most: whether figures must not exceed the bound; otherwise they must not fall below it.
        strict: whether being equal to the bound is not enough.
        figure: a trial's, of its worst seed; None where it is not measured.
        write: how such a figure is written: an epsilon with its unit, delta and adversary.
        absent: what it means that a trial has no figure.
    """

    key: str
    bound: float | None
    at_most: bool
    figure: Callable[[Summary], float | None]
    write: Callable[[float], Said | Gain]
    strict: bool = False
    absent: Outcome = "not_measured"

    def judge(self, summary: Summary) -> Judged:
        """Whether ``summary`` meets it.  A figure that is no number is not measured."""
        figure = self.figure(summary)
        if figure is not None and math.isnan(figure):
            figure = None
        if self.bound is None:
            outcome: Outcome = "not_measured"
        elif figure is None:
            outcome = self.absent
        else:
            outcome = "met" if self._holds(figure, self.bound) else "not_met"
        return Judged(
            key=self.key, trial=summary.name, outcome=outcome, figure=figure, bound=self.bound
        )

    def shown(self, figure: float | None) -> Said | Gain:
        """A figure, or the bound, as it is to be written."""
        return Said("not_measured") if figure is None else self.write(figure)

    def closer(self, figure: float, other: float) -> bool:
        """Whether ``figure`` lies nearer to what is asked than ``other``, or further beyond it."""
        return figure < other if self.at_most else figure > other

    def _holds(self, figure: float, bound: float) -> bool:
        if math.isclose(figure, bound, rel_tol=1e-9, abs_tol=1e-12):  # but for the last bits
            return not self.strict
        return self.closer(figure, bound)


def criteria(
    record: PilotRecord, config: PilotConfig, found: Sequence[Summary]
) -> tuple[Criterion, ...]:
    """All that is asked: that training helps at all, and each field of ``decision`` that is given.

    ``improves``: the held-out figure is better than the untrained model's.  ``least_improvement``
    and ``share_of_full`` (of full fine-tuning's largest improvement over seeds; not measured where
    that is no improvement) are lower bounds of the improvement.  ``beats_local``: more than the
    largest improvement of clients alone.  ``epsilon``: a trial for which nothing holds does not
    meet it.  ``megabytes_per_round`` (10^6 bytes, both ways) and ``client_seconds_per_round`` are
    of a client and round, as measured or as projected to ``projection.clients``, whichever is more;
    ``memory_gib`` (2^30 bytes) as measured; ``cost`` of the whole projection.
    """
    asked = config.decision
    metric: Metric = next((one.gain.metric for one in found if one.gain), "perplexity")

    def gained(one: Summary) -> float | None:
        return None if one.improvement is None else one.improvement.least

    def gain(key: str, bound: float | None, *, strict: bool = False) -> Criterion:
        return Criterion(
            key=key,
            bound=bound,
            at_most=False,
            figure=gained,
            write=lambda value: Gain(metric, value),
            strict=strict,
        )

    def most(
        key: str, bound: float, figure: Callable[[Summary], float | None], kind: str, **more: object
    ) -> Criterion:
        return Criterion(
            key=key,
            bound=bound,
            at_most=True,
            figure=figure,
            write=lambda value: Said(f"as.{kind}", {"value": value} | more),
            absent="not_met" if key == "epsilon" else "not_measured",
        )

    def projected(one: Summary) -> Projection | None:
        to = config.projection
        return project(record, one, clients=to.clients, rounds=to.rounds, prices=config.prices)

    def bytes_each(one: Summary) -> float | None:
        whole = projected(one)
        return None if whole is None else _larger(most_of(one.bytes), whole.bytes_each)

    def seconds_each(one: Summary) -> float | None:
        whole = projected(one)
        return None if whole is None else _larger(most_of(one.client_seconds), whole.seconds_each)

    def cost(one: Summary) -> float | None:
        whole = projected(one)
        return None if whole is None else whole.money

    kept = [gain("improves", 0.0, strict=True)]
    if asked.least_improvement is not None:
        kept.append(gain("least_improvement", asked.least_improvement))
    if asked.share_of_full is not None:
        full = _most_gained(baseline(found, FULL))
        reachable = full is not None and full > 0.0
        kept.append(
            gain("share_of_full", asked.share_of_full * full if reachable and full else None)
        )
    if config.asks_to_beat_local:
        kept.append(gain("beats_local", _most_gained(baseline(found, ALONE)), strict=True))
    if asked.epsilon is not None:
        terms = epsilon_terms(found)
        kept.append(most("epsilon", asked.epsilon, lambda one: one.epsilon, "epsilon", terms=terms))
    if asked.megabytes_per_round is not None:
        bound = asked.megabytes_per_round * MEGABYTE
        kept.append(most("megabytes_per_round", bound, bytes_each, "bytes"))
    if asked.client_seconds_per_round is not None:
        bound = asked.client_seconds_per_round
        kept.append(most("client_seconds_per_round", bound, seconds_each, "seconds"))
    if asked.memory_gib is not None:
        bound = asked.memory_gib * GIBIBYTE
        kept.append(most("memory_gib", bound, lambda one: most_of(one.memory), "memory"))
    if asked.cost is not None:
        currency = config.prices.currency
        kept.append(most("cost", asked.cost, cost, "money", currency=currency))
    return tuple(kept)


def _larger(one: float | None, other: float | None) -> float | None:
    """None where either is: what is not known may be too much."""
    return None if one is None or other is None else max(one, other)


def epsilon_terms(found: Sequence[Summary]) -> Said:
    """What epsilons of the base run and its variations speak of, as the first one states it."""
    trials = (t for one in found if one.group in ("base", "sweep") for t in one.done)
    stated = next((trial for trial in trials if trial.epsilon is not None), None)
    return Said("epsilon.no_terms") if stated is None else terms_of(stated)


def _most_gained(summary: Summary | None) -> float | None:
    return None if summary is None else most_of(summary.improvement)
