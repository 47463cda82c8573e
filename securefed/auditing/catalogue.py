"""Every attack that can be asked for by name, and how it is measured on a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

from pydantic import JsonValue

from securefed.attacks.base import Attack, Limits
from securefed.attacks.inversion.exact import SpanInversion
from securefed.attacks.results import AttackResult, Trial, summarise
from securefed.attacks.scoring import METRICS
from securefed.auditing.cells import Cell
from securefed.auditing.from_config import AuditedRun
from securefed.auditing.trials import attempt, capture
from securefed.errors import ConfigError
from securefed.evidence.results import Kind, Metric, Verdict

Cost = Literal["quick", "full"]

ROUND_EXPOSURES = (
    "control",
    "plain",
    "other",
    "masked",
    "sum",
    "masked with all others",
    "sum with all others",
)
"""What attacks on the texts of one round are tried on."""


class Clock(Protocol):
    """How much of a cell's time is left, and who hears of its trials."""

    @property
    def over(self) -> bool:
        """Whether no further trial may begin."""
        ...

    @property
    def left(self) -> float:
        """Seconds until then."""
        ...

    def trial(self, done: int, total: int) -> None:
        """One more trial is done."""
        ...


@dataclass(frozen=True)
class Finding:
    """What a cell's trials showed; the fields of a ``Measurement``, and seconds beside them."""

    metrics: Mapping[str, Metric]
    headline: str
    seeds: tuple[int, ...]
    n: int
    verdict: Verdict
    reason: str = ""
    void: int = 0
    predicted: Mapping[str, JsonValue] | None = None
    curve: tuple[tuple[float, float], ...] = ()
    seconds_per_trial: float | None = None
    ended_by_time: int = 0


Measure = Callable[[AuditedRun, Cell, Limits, Clock], Finding]


@dataclass(frozen=True)
class Entry:
    """One attack.

    Attributes:
        name: results are filed under it.
        kind: what it goes for.
        what: in words.
        cost: ``"quick"`` ones are in every audit, ``"full"`` ones in thorough ones alone.
        exposures: what it can be tried on.
        measure: runs the trials of one cell.
    """

    name: str
    kind: Kind
    what: str
    cost: Cost
    exposures: tuple[str, ...]
    measure: Measure = field(repr=False)

    @property
    def needs_baseline(self) -> bool:
        """Whether its cells are void unless it is seen to work on ``plain`` with the defence off.

        Games and audits of epsilon hold their own control inside the measurement.
        """
        return "plain" in self.exposures


def texts(make: Callable[[], Attack]) -> Measure:
    """Trials of an attack on training texts, scored against the unigram prior.

    Args:
        make: a new attack for each cell.
    """

    def measure(run: AuditedRun, cell: Cell, limits: Limits, clock: Clock) -> Finding:
        attack = make()
        bench = cell.bench(run)
        prior, found = run.prior(), list[Trial]()
        predicted: dict[str, JsonValue] | None = None
        at_limit = 0
        for seed in cell.seeds:
            if clock.over:
                break
            captured = capture(bench, run.texts, exposure=cell.captured, seed=seed)
            within = Limits(
                seconds=max(1.0, min(limits.seconds, clock.left)), max_tokens=limits.max_tokens
            )
            found.append(attempt(attack, captured, prior, limits=within))
            at_limit += found[-1].seconds >= within.seconds
            predicted = dict(asdict(captured.prediction))
            clock.trial(len(found), len(cell.seeds))
        if not found:
            return Finding({}, "token_recall", (), 0, "out_of_time", "no trial fitted the time")
        results = {name: summarise(attack.name, name, found) for name in METRICS}
        recall = results["token_recall"]
        return Finding(
            metrics={name: _metric(each) for name, each in results.items()},
            headline="token_recall",
            seeds=recall.seeds,
            n=recall.n,
            verdict=recall.verdict,
            reason="the attack says itself that it does not apply" if recall.void else "",
            void=recall.void,
            predicted=predicted,
            seconds_per_trial=recall.seconds,
            ended_by_time=at_limit,
        )

    return measure


def _metric(result: AttackResult) -> Metric:
    # Trials that are resampled from a single one are all alike: that is no interval.
    shown = result.n > 1 or result.method == "exact"
    paired = result.n > 1
    return Metric(
        value=result.value,
        interval=result.interval if shown else None,
        prior=result.prior,
        lift=result.lift,
        lift_interval=result.lift_interval if paired else None,
        method=result.method if shown else None,
    )


CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            "span-inversion",
            "texts",
            "exact inversion: span test, sparse decoding and assembly",
            "quick",
            ROUND_EXPOSURES,
            texts(SpanInversion),
        ),
        Entry(
            "span-test",
            "texts",
            "exact inversion by the span test alone",
            "full",
            ROUND_EXPOSURES,
            texts(lambda: SpanInversion(sparse=False)),
        ),
    )
}


def entry(name: str) -> Entry:
    """The attack of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in CATALOGUE:
        raise ConfigError(f"attack {name!r} is unknown; there are {', '.join(sorted(CATALOGUE))}")
    return CATALOGUE[name]
