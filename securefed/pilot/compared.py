"""What changed since an earlier pilot: what makes the two incomparable first, then the figures.

With other data, another model or another evaluation no change of quality is called better or worse;
on another machine no change of seconds, nor of money, which follows from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, Literal

from securefed.pilot.costing import mean_price
from securefed.pilot.reading import Verdict, read_pilot
from securefed.pilot.records import PilotRecord
from securefed.pilot.settings import pilot_config
from securefed.pilot.summaries import Spread, Summary, summaries
from securefed.pilot.words import Said

Change = Literal["better", "worse", "same", "not_measured"]


_OF_DATA = ("data", "model", "evaluation")


@dataclass(frozen=True, kw_only=True)
class Moved:
    """One figure of one trial, then and now.

    Attributes:
        what: ``"quality"``, ``"bytes"``, ``"seconds"``, ``"epsilon"`` or ``"money"``.
        then, now: as they are to be written; None where not measured.
        change: whether now is better; ``"not_measured"`` too where the two cannot be compared.
    """

    what: str
    then: Any
    now: Any
    change: Change


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two pilots.

    Attributes:
        differences: what differs between them besides what came out, each in a sentence.
        then, now: their verdicts.
        trials: by name, for those that finished in both.
        only_then, only_now: names of those that finished in one.
    """

    differences: tuple[Said, ...]
    then: Verdict
    now: Verdict
    trials: Mapping[str, tuple[Moved, ...]]
    only_then: tuple[str, ...]
    only_now: tuple[str, ...]


def compare(now: PilotRecord, then: PilotRecord) -> Compared:
    """What differs and what moved, trial by trial of the same name; money at today's prices.

    Raises:
        ConfigError: a record holds no pilot file of this version.
    """
    prices = pilot_config(now).prices
    ours, theirs = _finished(now), _finished(then)
    unlike = _unlike(now, then)
    return Compared(
        differences=_differences(now, then, ours, theirs),
        then=read_pilot(then).verdict,
        now=read_pilot(now).verdict,
        trials={
            name: _comparable(
                unlike,
                _quality(old, new),
                _moved("bytes", old.bytes, new.bytes),
                _moved("seconds", old.client_seconds, new.client_seconds),
                _epsilons(old, new),
                _moved(
                    "money",
                    mean_price(old, prices),
                    mean_price(new, prices),
                    currency=prices.currency,
                ),
            )
            for name, new in ours.items()
            if (old := theirs.get(name)) is not None
        },
        only_then=tuple(name for name in theirs if name not in ours),
        only_now=tuple(name for name in ours if name not in theirs),
    )


def _unlike(now: PilotRecord, then: PilotRecord) -> frozenset[str]:
    """Figures of which neither pilot's is the better one, since they are of different things."""
    found: set[str] = set()
    sections = [{key: record.run.get(key) for key in _OF_DATA} for record in (now, then)]
    if sections[0] != sections[1] or now.public != then.public:
        found.add("quality")
    if dict(now.machine) != dict(then.machine):
        found |= {"seconds", "money"}
    return frozenset(found)


def _comparable(unlike: frozenset[str], *moved: Moved) -> tuple[Moved, ...]:
    return tuple(
        replace(one, change="not_measured") if one.what in unlike else one for one in moved
    )


def _finished(record: PilotRecord) -> dict[str, Summary]:
    return {one.name: one for one in summaries(record) if one.done}


def _moved(what: str, then: Spread | None, now: Spread | None, **more: Any) -> Moved:
    """A figure of which less is better."""
    before, after = (None if one is None else one.mean for one in (then, now))
    change: Change = "not_measured"
    if before is not None and after is not None:
        change = "same" if after == before else "better" if after < before else "worse"
    written = (
        None if value is None else Said(f"as.{what}", {"value": value} | more)
        for value in (before, after)
    )
    return Moved(what=what, then=next(written), now=next(written), change=change)


def _quality(then: Summary, now: Summary) -> Moved:
    before, after = then.gain, now.gain
    change: Change = "not_measured"
    if before is not None and after is not None and before.metric == after.metric:
        better = after.value > before.value
        change = "same" if after == before else "better" if better else "worse"
    return Moved(what="quality", then=before, now=after, change=change)


def _epsilons(then: Summary, now: Summary) -> Moved:
    """A guarantee is better than none, and a smaller epsilon than a larger one.

    Only for the same unit, delta and adversary: of two statements about different things neither
    is the better one.
    """
    before, after = then.epsilon, now.epsilon
    change: Change = "not_measured"
    if _terms(then) == _terms(now) or before is None or after is None:
        if before == after:
            change = "same"
        elif after is None or (before is not None and after > before):
            change = "worse"
        else:
            change = "better"
    return Moved(what="epsilon", then=then.privacy(), now=now.privacy(), change=change)


def _terms(summary: Summary) -> dict[str, Any]:
    return {key: value for key, value in summary.privacy().values.items() if key != "epsilon"}


def _differences(
    now: PilotRecord,
    then: PilotRecord,
    ours: Mapping[str, Summary],
    theirs: Mapping[str, Summary],
) -> tuple[Said, ...]:
    """Data and run settings first, since they make figures incomparable; then the rest."""
    found = []
    if now.public != then.public:
        found.append(Said("differs.public"))
    flat = [_flat(record.run) for record in (then, now)]
    for path in sorted(flat[0].keys() | flat[1].keys(), key=lambda p: (_rank(p), p)):
        before, after = (values.get(path) for values in flat)
        if before != after:
            key = "differs.data" if _rank(path) == 0 else "differs.run"
            found.append(Said(key, {"path": path, "then": _shown(before), "now": _shown(after)}))
    for name, new in ours.items():
        old = theirs.get(name)
        if old is not None and dict(old.varied) != dict(new.varied):
            found.append(Said("differs.trial", {"trial": name}))
        if old is not None and len(old.done) != len(new.done):
            values = {"trial": name, "then": len(old.done), "now": len(new.done)}
            found.append(Said("differs.seeds", values))
    if dict(now.machine) != dict(then.machine):
        found.append(Said("differs.machine"))
    if now.software != then.software:
        found.append(Said("differs.software", {"then": then.software, "now": now.software}))
    settings = [pilot_config(record) for record in (then, now)]
    for section in ("prices", "projection", "decision"):
        if getattr(settings[0], section) != getattr(settings[1], section):
            found.append(Said(f"differs.{section}"))
    return tuple(found)


def _shown(value: Any) -> Any:
    """A setting's value; of a folder on a machine the name alone."""
    if value is None:
        return Said("not_set")
    if isinstance(value, str) and PurePath(value).is_absolute():
        return PurePath(value).name
    return str(value)


def _rank(path: str) -> int:
    """0 for what decides the data and how it is read, 1 for the rest."""
    return 0 if path.partition(".")[0] in _OF_DATA else 1


def _flat(values: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{within}{key}.")
        else:
            found[f"{within}{key}"] = value
    return found
