"""The way from the pilot to all clients, with what must hold to enter, to stay and to go back.

Three stages: the pilot itself, a limited one, and the whole projection.  The limited stage has the
geometric mean of the pilot's and the projection's clients, and of their rounds, rounded up: as many
times more than the pilot as the whole is more than it.

Numbers come from ``decision`` where it holds one.  Where it does not, and only there:

- the gain that must be kept is ``KEPT`` of what the pilot's trial gained in its worst seed;
- bytes, seconds and money may be ``OVER`` times what was projected;
- epsilon may be the trial's own.

The share of clients that may be lost in a round is the run's ``privacy.dropout_fraction``: with
fewer survivors clients refuse to open a sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from securefed.config.pilot import PilotConfig
from securefed.pilot.criteria import MEGABYTE
from securefed.pilot.projecting import Projection, project
from securefed.pilot.reading import Reading
from securefed.pilot.records import Metric, PilotRecord
from securefed.pilot.settings import setting
from securefed.pilot.summaries import Summary
from securefed.pilot.words import Said

KEPT = 0.5
OVER = 1.5

StageName = Literal["pilot", "limited", "full"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage.

    Attributes:
        name: of it.
        clients, rounds: how many.
        enter, stop, back: what must hold to begin it, what ends it, and what is undone then.
    """

    name: StageName
    clients: int
    rounds: int
    enter: tuple[Said, ...]
    stop: tuple[Said, ...]
    back: tuple[Said, ...]


def stages(record: PilotRecord, config: PilotConfig, reading: Reading) -> tuple[Stage, ...]:
    """The three stages for the trial that ``reading`` speaks of; none where no trial finished."""
    trial = reading.trial
    if trial is None or trial.improvement is None or trial.before is None:
        return ()
    first, whole = trial.done[0], config.projection
    limited = (
        _between(first.clients, whole.clients),
        _between(first.rounds, whole.rounds),
    )
    decides = config.decision.decides
    back = _back(trial)
    return (
        Stage(
            name="pilot",
            clients=first.clients,
            rounds=first.rounds,
            enter=(Said("stage.is_done"),),
            stop=(Said(f"stage.verdict_is_{reading.verdict}"),),
            back=(Said("stage.nothing_to_undo"),),
        ),
        Stage(
            name="limited",
            clients=limited[0],
            rounds=limited[1],
            enter=(
                Said("stage.verdict_go", {"decides": decides}),
                *_replanned(record, config, trial, limited[1]),
            ),
            stop=_limits(record, config, trial, *limited),
            back=back,
        ),
        Stage(
            name="full",
            clients=whole.clients,
            rounds=whole.rounds,
            enter=(
                Said("stage.limited_held", {"decides": decides, "over": OVER - 1.0}),
                *_replanned(record, config, trial, whole.rounds),
            ),
            stop=_limits(record, config, trial, whole.clients, whole.rounds),
            back=back,
        ),
    )


def _between(few: int, many: int) -> int:
    return math.ceil(round(math.sqrt(few * many), 6))


def _epsilon_bound(config: PilotConfig, trial: Summary) -> float | None:
    return trial.epsilon if config.decision.epsilon is None else config.decision.epsilon


def _replanned(
    record: PilotRecord, config: PilotConfig, trial: Summary, rounds: int
) -> tuple[Said, ...]:
    """Epsilon is not extrapolated: it is planned again for the rounds to come."""
    bound = _epsilon_bound(config, trial)
    if bound is None:
        return (Said("stage.no_epsilon"),)
    held = setting(record, trial.varied, "privacy.target_epsilon") is not None
    key = "stage.replan_target" if held else "stage.replan_noise"
    return (Said(key, {"bound": bound, "rounds": rounds}),)


def _limits(
    record: PilotRecord, config: PilotConfig, trial: Summary, clients: int, rounds: int
) -> tuple[Said, ...]:
    asked, stop = config.decision, [_least_quality(config, trial)]
    bound = _epsilon_bound(config, trial)
    if bound is not None:
        stop.append(Said("stage.stop_epsilon", {"bound": bound, "privacy": trial.privacy()}))
    lost = setting(record, trial.varied, "privacy.dropout_fraction")
    if lost is not None:
        stop.append(Said("stage.stop_lost", {"share": lost, "clients": clients}))
    to = project(record, trial, clients=clients, rounds=rounds, prices=config.prices)
    if to is None:
        return tuple(stop)
    moved = asked.megabytes_per_round
    most = OVER * to.bytes_each if moved is None else moved * MEGABYTE
    stop.append(Said("stage.stop_bytes", {"bytes": most, "projected": to.bytes_each}))
    seconds = asked.client_seconds_per_round
    if seconds is None and to.seconds_each is not None:
        seconds = OVER * to.seconds_each
    if seconds is not None:
        values = {"seconds": seconds, "projected": to.seconds_each}
        stop.append(Said("stage.stop_seconds", values))
    if (said := _most_money(config, to, clients, rounds)) is not None:
        stop.append(said)
    return tuple(stop)


def _most_money(config: PilotConfig, to: Projection, clients: int, rounds: int) -> Said | None:
    """What is asked of the whole; of a part of it, and where nothing is asked, ``OVER`` times."""
    whole = (config.projection.clients, config.projection.rounds) == (clients, rounds)
    bound = config.decision.cost if whole else None
    if bound is None and to.money is not None:
        bound = OVER * to.money
        if config.decision.cost is not None:
            bound = min(bound, config.decision.cost)
    if bound is None:
        return None
    currency = config.prices.currency
    return Said("stage.stop_money", {"money": bound, "projected": to.money, "currency": currency})


def _least_quality(config: PilotConfig, trial: Summary) -> Said:
    """The held-out figure at which a stage has lost what it was entered for."""
    least, gain, before = config.decision.least_improvement, trial.improvement, trial.before
    metric: Metric = "perplexity" if trial.gain is None else trial.gain.metric
    kept = max(0.0, KEPT * (0.0 if gain is None else gain.least)) if least is None else least
    start = math.nan if before is None else before.mean
    figure = held_out_figure(metric, start, kept)
    return Said(f"stage.stop_{metric}", {"figure": figure, "before": start})


def held_out_figure(metric: Metric, before: float, improvement: float) -> float:
    """The figure that is an improvement of that much over ``before``."""
    if metric == "perplexity":
        return before * (1.0 - improvement)
    return before + improvement


def _back(trial: Summary) -> tuple[Said, ...]:
    before, worst = trial.before, trial.worst_before
    values = {"before": None if before is None else before.mean}
    metric = "perplexity" if trial.gain is None else trial.gain.metric
    found = [Said(f"stage.back_{metric}", values)]
    if worst is not None:
        found.append(Said(f"stage.back_worst_{metric}", {"before": worst.mean}))
    return (*found, Said("stage.back_how"))
