"""From figures to a verdict: go, improve or stop, by a rule that is written down.

Candidates are the base run and the trials of the sweep; baselines and trials of single protections
are there to compare with, not to go on with.  A criterion (:mod:`securefed.pilot.criteria`) is met
by a candidate if its worst seed meets it; what is not measured is not met.

**Stop** if one of these holds:

- ``no_gain``: no finished candidate's mean held-out figure is better than the untrained model's
  (so too if none finished).
- ``not_beyond_alone``: ``decision.beats_local`` is asked, clients alone were measured, and no
  candidate's mean improvement exceeds theirs.
- ``no_epsilon``: ``decision.epsilon`` is asked, no finished candidate's epsilon is at most that,
  and no skipped candidate was to be held to it.
- ``no_lever``: some criterion was measured and is met by no candidate, no trial of the sweep came
  closer to it than the base run, every key of the sweep was tried, and none was skipped.

**Go** if none of these holds and one single candidate meets all that is asked.  The base run is
named if it does, else the one that gains most in its worst seed.

**Improve** otherwise: each criterion is met by some candidate but all by none, or the gap is named:
with the trial of the sweep that came closest and what it varied, with the keys that were not tried,
or with what was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from securefed.config.pilot import PilotConfig
from securefed.pilot.criteria import Criterion, Judged, criteria, epsilon_terms
from securefed.pilot.projecting import project
from securefed.pilot.records import PilotRecord
from securefed.pilot.settings import pilot_config, setting
from securefed.pilot.summaries import ALONE, Summary, baseline, summaries
from securefed.pilot.words import Said

Verdict = Literal["go", "improve", "stop"]


@dataclass(frozen=True, kw_only=True)
class Lever:
    """What came closest to a criterion that no trial meets.

    Attributes:
        trial: of the sweep.
        varied: what it changed, by path.
        before, after: the figure of the base run, and of this trial.
    """

    trial: str
    varied: Mapping[str, Any]
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A criterion and all candidates' answers to it.

    Attributes:
        criterion: what is asked.
        judged: by candidate, in their order.
        lever: what moved the figure, where no candidate meets it.
    """

    criterion: Criterion
    judged: tuple[Judged, ...]
    lever: Lever | None

    @property
    def met_by(self) -> tuple[str, ...]:
        """Names of the candidates that meet it."""
        return tuple(one.trial for one in self.judged if one.outcome == "met")

    @property
    def measured(self) -> bool:
        """Whether any candidate was held against it."""
        return any(one.outcome != "not_measured" for one in self.judged)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a pilot says.

    Attributes:
        verdict: by the rule at the head of this module.
        trial: the candidate that the page speaks of: the one to go with, else the base run, else
            the first that finished; None where none did.
        sentences: verdict, reasons, and who decides.
        asked: each criterion.
    """

    verdict: Verdict
    trial: Summary | None
    sentences: tuple[Said, Said, Said]
    asked: tuple[Asked, ...]


def read_pilot(record: PilotRecord) -> Reading:
    """The verdict on a pilot, by the rule at the head of this module.

    Raises:
        ConfigError: the record holds no pilot file of this version.
    """
    config, found = pilot_config(record), summaries(record)
    candidates = [one for one in found if one.group in ("base", "sweep")]
    finished = [one for one in candidates if one.done]
    asked = tuple(_ask(criterion, finished) for criterion in criteria(record, config, found))
    base = next((one for one in finished if one.group == "base"), None)
    spoken_of = base or next(iter(finished), None)
    decides = Said("reason.decides", {"decides": config.decision.decides})
    if stops := _stops(record, config, found, asked):
        return Reading(
            verdict="stop",
            trial=spoken_of,
            sentences=(Said("verdict.stop"), Said("reason.because", {"why": stops}), decides),
            asked=asked,
        )
    if going := [one for one in finished if all(one.name in each.met_by for each in asked)]:
        chosen = going[0] if going[0].group == "base" else max(going, key=_least_gain)
        return Reading(
            verdict="go",
            trial=chosen,
            sentences=(
                Said("verdict.go", {"trial": chosen.name}),
                _figures(record, config, chosen),
                decides,
            ),
            asked=asked,
        )
    gaps = tuple(_gap(each, config) for each in asked if not each.met_by)
    why = Said("reason.because", {"why": gaps}) if gaps else _nowhere_together(asked, finished)
    return Reading(
        verdict="improve",
        trial=spoken_of,
        sentences=(Said("verdict.improve"), why, decides),
        asked=asked,
    )


def _ask(criterion: Criterion, finished: Sequence[Summary]) -> Asked:
    judged = tuple(criterion.judge(one) for one in finished)
    lever = None
    if not any(one.outcome == "met" for one in judged):
        lever = _lever(criterion, finished)
    return Asked(criterion=criterion, judged=judged, lever=lever)


def _lever(criterion: Criterion, finished: Sequence[Summary]) -> Lever | None:
    """The trial of the sweep that came closest to the criterion, if closer than the base run."""
    base = next((one for one in finished if one.group == "base"), None)
    before = None if base is None else criterion.figure(base)
    if before is None or criterion.bound is None:
        return None
    best = None
    for one in finished:
        figure = criterion.figure(one)
        if one.group == "sweep" and figure is not None and criterion.closer(figure, before):
            if best is None or criterion.closer(figure, best.after):
                best = Lever(trial=one.name, varied=one.varied, before=before, after=figure)
    return best


def _stops(
    record: PilotRecord, config: PilotConfig, found: Sequence[Summary], asked: Sequence[Asked]
) -> tuple[Said, ...]:
    """Every reason to stop that holds."""
    candidates = [one for one in found if one.group in ("base", "sweep")]
    gains = [one.improvement.mean for one in candidates if one.improvement is not None]
    reasons = []
    if not any(gain > 0.0 for gain in gains):
        reasons.append(Said("stop.no_gain" if gains else "stop.nothing_finished"))
    alone = baseline(found, ALONE)
    if config.asks_to_beat_local and alone is not None and alone.improvement is not None:
        theirs = alone.improvement.mean
        if not any(gain > theirs for gain in gains):
            reasons.append(Said("stop.not_beyond_alone", {"alone": alone.gain}))
    bound = config.decision.epsilon
    epsilon = Said("as.epsilon", {"value": bound, "terms": epsilon_terms(found)})
    if bound is not None and not _epsilon_can_be_had(record, candidates, bound):
        reasons.append(Said("stop.no_epsilon", {"bound": epsilon}))
    if not _untried(config) and not any(one.skipped for one in candidates):
        stuck = [each for each in asked if each.measured and not each.met_by and not each.lever]
        reasons += [
            Said("stop.no_lever", {"what": _what(each.criterion)})
            for each in stuck
            if each.criterion.key != "improves"
        ]
    return tuple(reasons)


def _epsilon_can_be_had(record: PilotRecord, candidates: Sequence[Summary], bound: float) -> bool:
    for one in candidates:
        if one.epsilon is not None and one.epsilon <= bound:
            return True
        target = setting(record, one.varied, "privacy.target_epsilon")
        if one.skipped and target is not None and target <= bound:
            return True
    return False


def _untried(config: PilotConfig) -> tuple[str, ...]:
    """Keys of the sweep without a value."""
    return tuple(key for key in type(config.sweep).model_fields if not getattr(config.sweep, key))


def _least_gain(summary: Summary) -> float:
    return -1.0 if summary.improvement is None else summary.improvement.least


def _figures(record: PilotRecord, config: PilotConfig, chosen: Summary) -> Said:
    to = config.projection
    whole = project(record, chosen, clients=to.clients, rounds=to.rounds, prices=config.prices)
    moved, seconds = chosen.bytes, chosen.client_seconds
    figures = {
        "bytes": (None if moved is None else moved.mean, "bytes"),
        "seconds": (None if seconds is None else seconds.mean, "seconds"),
        "more_bytes": (None if whole is None else whole.bytes_each, "bytes"),
        "more_seconds": (None if whole is None else whole.seconds_each, "seconds"),
    }
    written = {
        name: None if value is None else Said(f"as.{kind}", {"value": value})
        for name, (value, kind) in figures.items()
    }
    more = {"gain": chosen.gain, "clients": to.clients, "privacy": chosen.privacy()}
    return Said("reason.figures", written | more)


def _what(criterion: Criterion) -> Said:
    return Said(f"asked.{criterion.key}")


def _nowhere_together(asked: Sequence[Asked], finished: Sequence[Summary]) -> Said:
    """Who meets most of what is asked, what it misses, and who meets that."""

    def most(one: Summary) -> tuple[int, float]:
        return sum(one.name in each.met_by for each in asked), _least_gain(one)

    closest = max(finished, key=most).name
    each = tuple(
        Said("reason.met_by", {"what": _what(one.criterion), "trials": one.met_by})
        for one in asked
        if closest not in one.met_by
    )
    return Said("reason.not_together", {"trial": closest, "each": each})


def _gap(each: Asked, config: PilotConfig) -> Said:
    """A criterion that no candidate meets: what is lacking, and what could be done about it."""
    criterion = each.criterion
    if not each.measured:
        why = "gap.no_bound" if criterion.bound is None else "gap.no_figure"
        return Said(why, {"what": _what(criterion), "how": Said(f"how.{criterion.key}")})
    figures = [one.figure for one in each.judged if one.figure is not None]
    best = None
    for figure in figures:
        if best is None or criterion.closer(figure, best):
            best = figure
    values = {
        "what": _what(criterion),
        "bound": criterion.shown(criterion.bound),
        "best": criterion.shown(best),
    }
    if each.lever is not None:
        lever = {
            "trial": each.lever.trial,
            "before": criterion.shown(each.lever.before),
            "after": criterion.shown(each.lever.after),
        }
        return Said("gap.lever", values | lever)
    untried = tuple(Said(f"key.{key}") for key in _untried(config))
    return (
        Said("gap.untried", values | {"untried": untried})
        if untried
        else Said("gap.skipped", values)
    )
