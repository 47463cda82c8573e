"""What an attack that was measured on a run says about a claim: never that it is verified.

A result counts only if it is of this run: of the same code, base weights and run file.  It counts
as a failure of the attack only if the same attack, measured under the same, worked with the defence
off.  Where the attack succeeded it needs no baseline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from securefed.evidence.results import Measurement, Metric
from securefed.threats.bounds import PLACES, figure, kept, words
from securefed.threats.facts import MeasuredAttack, RunFacts, comparable
from securefed.threats.model import AttackEvidence, Of
from securefed.threats.verdicts import EvidenceFinding, Reference, Verdict

UNKNOWN_SIGNER = "; the reader does not know the signer's key"


def judge_attack(item: AttackEvidence, facts: RunFacts) -> EvidenceFinding:
    """What the results of a run say.

    Returns:
        ``refuted``: the bound is broken.  ``void``: there is no baseline, or it did not work.
        ``stale``: there are results, of other code, weights or settings.  ``not_run``: there is
        none, or the attack could not be tried.  ``inconclusive``: too few trials, or an interval on
        both sides of the bound.  ``not_refuted``: none of these.
    """
    cell = (item.exposure, item.defence)
    main, why = _found(item, cell, facts)
    if main is None:
        return _told(item, "not_run", why)
    if why:
        return _told(item, "stale", why, main)
    measured = main.document.measurement
    if measured.verdict == "void":
        return _told(item, "void", measured.reason, main)
    if measured.verdict != "guessed":
        tried = measured.verdict.replace("_", " ")
        return _told(item, "not_run", f"{tried}: {measured.reason}", main)
    metric = measured.metrics.get(item.metric)
    if metric is None:
        known = ", ".join(sorted(measured.metrics))
        return _told(item, "not_run", f"the result has no {item.metric!r}: it has {known}", main)
    found = kept(item.accept, metric)
    if found == "broken":
        return _told(item, "refuted", f"{item.metric}: the bound is broken", main, metric)
    verdict, reason, references = _baseline(item, facts)
    if verdict is not None:
        return _told(item, verdict, reason, main, metric, references)
    if measured.n < item.min_trials:
        few = f"{measured.n} trials; at least {item.min_trials} are needed"
        return _told(item, "inconclusive", few, main, metric, references)
    if measured.confidence < item.confidence:
        low = f"intervals at {measured.confidence:g}; {item.confidence:g} is needed"
        return _told(item, "inconclusive", low, main, metric, references)
    if found == "unclear":
        both = (
            f"{item.metric}: the interval has values on both sides of the bound, or there is none"
        )
        return _told(item, "inconclusive", both, main, metric, references)
    return _told(item, "not_refuted", reason, main, metric, references)


def _baseline(item: AttackEvidence, facts: RunFacts) -> tuple[Verdict | None, str, list[Reference]]:
    """What is wrong with the baseline (None: nothing), in words, and where it stands."""
    wanted = item.baseline
    base, why = _found(item, (wanted.exposure, wanted.defence), facts)
    if base is None:
        return "void", f"with the defence off: {why}", []
    measured = base.document.measurement
    references = [_reference(base, item.metric, wanted.expect.of)]
    if why:
        return "stale", f"with the defence off: {why}", references
    if measured.verdict != "guessed":
        said = f"{measured.verdict.replace('_', ' ')} ({measured.reason})"
        return "void", f"with the defence off: {said}", references
    metric = measured.metrics.get(item.metric)
    if metric is None or kept(wanted.expect, metric) != "kept":
        value = None if metric is None else figure(metric, wanted.expect.of)[0]
        shown = "none" if value is None else f"{value:.4g}"
        return (
            "void",
            f"with the defence off the attack does not work: {item.metric} is {shown}, and "
            f"{words(wanted.expect)} is expected",
            references,
        )
    value = figure(metric, wanted.expect.of)[0] or 0.0
    works = f"with the defence off it works: {item.metric} {value:.4g} ({wanted.expect.of})"
    return None, works, references


def _found(
    item: AttackEvidence, cell: tuple[str, str], facts: RunFacts
) -> tuple[MeasuredAttack | None, str]:
    """The result that counts, and why it is not of this run (empty if it is)."""
    results = [
        each
        for each in facts.attacks
        if each.document.measurement.attack == item.attack
        and (each.document.measurement.exposure, each.document.measurement.defence) == cell
        and each.document.measurement.settings.get("batch") == item.batch
        and each.document.measurement.settings.get("clients") is None
    ]
    if not results:
        return None, f"there is no result of {item.attack} on {cell[0]}, {cell[1]}"
    results.sort(key=lambda each: each.document.about.time)
    reasons = [(each, why_stale(each.document.measurement, facts)) for each in results]
    fresh = [(each, why) for each, why in reasons if not why]
    return (fresh or reasons)[-1]


def why_stale(measured: Measurement, facts: RunFacts) -> str:
    """Why a result is not of this run; empty where it is."""
    settings = measured.settings
    code = settings.get("code")
    digest = code[1] if isinstance(code, list) and len(code) > 1 else None
    if facts.source_sha256 is None or digest != facts.source_sha256:
        return "the result is of other code than the run's"
    if facts.model_fingerprint is None or measured.model.fingerprint != facts.model_fingerprint:
        return "the result is of other base weights than the run's"
    config = settings.get("config")
    if not _has_sections(config):
        return "the result does not say of which run file it is"
    path = _differing(comparable(config), facts.comparable())
    return f"the result is of another run file: {path} differs" if path else ""


def _has_sections(config: object) -> TypeGuard[dict[str, Any]]:
    sections = [config.get(name) for name in ("model", "data")] if isinstance(config, dict) else []
    return bool(sections) and all(
        isinstance(each, dict) and isinstance(each.get("source"), str) for each in sections
    )


def _differing(one: Mapping[str, Any], other: Mapping[str, Any], above: str = "") -> str:
    for name in sorted({*one, *other}):
        here, there = one.get(name), other.get(name)
        if here == there:
            continue
        if isinstance(here, dict) and isinstance(there, dict):
            return _differing(here, there, f"{above}{name}.")
        return f"{above}{name}"
    return ""


def _reference(result: MeasuredAttack, metric: str, of: Of) -> Reference:
    """The very figure, where the result has it; else its metric, or all that was measured."""
    found = result.document.measurement.metrics.get(metric)
    pointer = "/measurement"
    if found is not None:
        pointer += f"/metrics/{metric}"
        pointer += PLACES[of] if figure(found, of)[0] is not None else ""
    return result.reference.model_copy(update={"pointer": pointer})


def _told(
    item: AttackEvidence,
    verdict: Verdict,
    reason: str,
    main: MeasuredAttack | None = None,
    metric: Metric | None = None,
    baseline: Sequence[Reference] = (),
) -> EvidenceFinding:
    value, interval = (None, None) if metric is None else figure(metric, item.accept.of)
    signer = "" if main is None or main.anchored else UNKNOWN_SIGNER
    return EvidenceFinding(
        type="attack",
        cites=item.cites,
        verdict=verdict,
        reason=f"{reason}{signer}",
        value=value,
        interval=interval,
        allowed=f"{item.metric} {words(item.accept)}",
        references=[
            *([] if main is None else [_reference(main, item.metric, item.accept.of)]),
            *baseline,
        ],
    )
