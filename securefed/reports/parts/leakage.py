"""What attacks were measured to find out, each beside the same one with the defence off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from securefed.evidence.results import Metric
from securefed.reports.document import AttackRow, Curve, EpsilonBound, Leakage
from securefed.reports.material import AttackFile, Material, figure, in_file
from securefed.reports.recognised import recognised
from securefed.reports.values import Figure, FigureKind, Said

OFF = "off"
WORST, AVERAGE = "worst_record_advantage", "advantage"
"""Metrics of a result on membership: of the record told best, and of all records."""

_BOUND = "epsilon_lower_"
"""What metrics are called that bound an epsilon; the rest of the name says whose and of what."""

_SHOWN = ("batch", "clients", "z", "seconds")
_ROOT = "/measurement"


def leakage(material: Material) -> Leakage:
    """Every attack result of a run, and the curves among them."""
    files = sorted(material.attacks, key=lambda one: (_undefended(one), one.path))
    rows = [_row(material, one, files) for one in files]
    notes = [Said(key="leakage.no_attack")] if not rows else [Said(key="leakage.attacks_say")]
    if any(not row.anchored for row in rows):
        notes.append(Said(key="leakage.unanchored"))
    if any(row.fits is False for row in rows):
        notes.append(Said(key="leakage.other_model"))
    if any(row.defended and row.verdict == "guessed" and row.baseline is None for row in rows):
        notes.append(Said(key="leakage.no_baseline"))
    if rows and not any(row.worst for row in rows):
        notes.append(Said(key="leakage.no_worst"))
    curves = [
        Curve(
            file=row.file,
            attack=row.attack,
            exposure=row.exposure,
            defence=row.defence,
            points=list(one.document.measurement.curve),
            bound=row.bound,
        )
        for row, one in zip(rows, files, strict=True)
        if one.document.measurement.curve
    ]
    found = [bound for one in files for bound in bounds(one)]
    return Leakage(attacks=rows, bounds=found, curves=curves, notes=notes)


def bounds(one: AttackFile) -> Iterator[EpsilonBound]:
    """Every lower bound on epsilon in a result, for each adversary and span."""
    found = one.document.measurement
    if found.attacks != "epsilon":
        return
    for name, metric in sorted(found.metrics.items()):
        of = name.removeprefix(_BOUND)
        if of == name or metric.prior is None:
            continue
        place = f"{_ROOT}/metrics/{name}"
        yield EpsilonBound(
            file=one.path,
            attack=found.attack,
            defence=found.defence,
            of=of,
            value=figure(metric.value, "figure", in_file(one.path, f"{place}/value")),
            promised=figure(metric.prior, "epsilon", in_file(one.path, f"{place}/prior")),
            exceeded=metric.shows_lift,
        )


def _undefended(one: AttackFile) -> bool:
    return one.document.measurement.defence == OFF


def _row(material: Material, one: AttackFile, files: Iterable[AttackFile]) -> AttackRow:
    found, main = one.document.measurement, one.document.measurement.main
    weights = material.genesis.body.get("model_fingerprint")
    known = found.model.fingerprint is not None and weights is not None
    return AttackRow(
        file=one.path,
        attack=found.attack,
        kind=found.attacks,
        exposure=found.exposure,
        defence=found.defence,
        anchored=one.anchored,
        fits=found.model.fingerprint == weights if known else None,
        verdict=found.verdict,
        reason=recognised(found.reason) if found.reason else None,
        metric=found.headline,
        value=_of(one, found.headline, main, "value"),
        prior=_of(one, found.headline, main, "prior"),
        lift=_of(one, found.headline, main, "lift"),
        worst=_of(one, WORST, found.metrics.get(WORST), "value"),
        average=_of(one, AVERAGE, found.metrics.get(AVERAGE), "value"),
        n=figure(found.n, "count", in_file(one.path, f"{_ROOT}/n")),
        confidence=found.confidence,
        time=one.document.about.time,
        defended=not _undefended(one),
        baseline=None if _undefended(one) else _baseline(one, files),
        bound=_bound(found.predicted),
        settings={k: found.settings[k] for k in _SHOWN if found.settings.get(k) is not None},
    )


def _of(one: AttackFile, name: str | None, metric: Metric | None, field: str) -> Figure | None:
    """A field of a metric, with its interval."""
    value = None if metric is None else getattr(metric, field)
    if metric is None or name is None or value is None:
        return None
    intervals = {"value": metric.interval, "lift": metric.lift_interval}
    kind: FigureKind = "figure"
    places = [in_file(one.path, f"{_ROOT}/metrics/{name}/{field}")]
    if intervals.get(field) is not None:
        place = "interval" if field == "value" else "lift_interval"
        places.append(in_file(one.path, f"{_ROOT}/metrics/{name}/{place}"))
    return Figure(value=value, kind=kind, interval=intervals.get(field), references=places)


def _baseline(one: AttackFile, files: Iterable[AttackFile]) -> str | None:
    """The same attack with the defence off: on the same exposure, else on the bare update."""
    mine = one.document.measurement

    def alike(other: AttackFile) -> bool:
        found = other.document.measurement
        return (
            _undefended(other)
            and found.attack == mine.attack
            and found.settings.get("batch") == mine.settings.get("batch")
            and found.model.fingerprint == mine.model.fingerprint
        )

    candidates = [other for other in files if alike(other)]
    for exposure in (mine.exposure, "plain"):
        for other in candidates:
            if other.document.measurement.exposure == exposure:
                return other.path
    return candidates[0].path if candidates else None


def _bound(predicted: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """Epsilon and delta that are promised of what was attacked."""
    epsilon, delta = ((predicted or {}).get(name) for name in ("epsilon", "delta"))
    if isinstance(epsilon, int | float) and isinstance(delta, int | float):
        return float(epsilon), float(delta)
    return None
