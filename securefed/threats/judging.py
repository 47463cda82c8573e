"""What all claims of some threat models come to for one run.

**One piece of evidence** is judged by its type: a test by its stored result (below), an attack by
:mod:`securefed.threats.attack_evidence`, a ledger value by the bound on it, a manual statement by
its signature and dates.

**A claim.**  First match counts:

1. ``applies_when`` does not hold: ``not_applicable``; but where all that does not hold is a
   defence that is off, ``refuted``: a defence is never out of a run's scope because it is missing.
2. The worst of its controls and of the evidence that applies, in the order of ``WORST_FIRST``.  A
   control whose ``config`` does not hold is ``refuted``; an optional one ``void``, because what is
   not in force is shown by nothing; one that needs a setting which is not known before the run
   ``not_run``.
3. Only where all of it is ``verified`` or ``not_refuted``: ``verified`` if there is any test or
   ledger value among it, else ``not_refuted``.  So no attack adds to a verdict, and any can take
   from it.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence

from securefed.threats.attack_evidence import UNKNOWN_SIGNER, judge_attack
from securefed.threats.conditions import (
    ORDERED,
    UNKNOWN,
    is_off,
    shown,
    unknown,
    unmet,
)
from securefed.threats.facts import RunFacts
from securefed.threats.ledger_values import LedgerValue
from securefed.threats.model import (
    AttackEvidence,
    Bound,
    Claim,
    Control,
    Evidence,
    LedgerEvidence,
    ManualEvidence,
    TestEvidence,
    ThreatModel,
)
from securefed.threats.stored import StoredTests
from securefed.threats.verdicts import (
    ClaimFinding,
    EvidenceFinding,
    Judgement,
    Reference,
    Verdict,
)

WORST_FIRST: tuple[Verdict, ...] = (
    "refuted",
    "void",
    "stale",
    "not_run",
    "inconclusive",
    "manual",
)
"""What one piece of evidence makes of a claim, whatever the others are."""


def judge(
    models: Sequence[ThreatModel],
    facts: RunFacts,
    tests: StoredTests,
    *,
    now: datetime.datetime,
    software: str,
    source_sha256: str,
) -> Judgement:
    """Every claim of every model.

    Args:
        models: as loaded.
        facts: of the run.
        tests: stored results.
        now: the present time, with its zone.
        software: name and version of the code that judges.
        source_sha256: of that code.
    """
    findings = [
        judge_claim(model, claim, facts, tests, today=now.date())
        for model in models
        for claim in model.claims
    ]
    made = now.astimezone(datetime.UTC).replace(microsecond=0).isoformat()
    return Judgement(
        software=software,
        source_sha256=source_sha256,
        made=made.replace("+00:00", "Z"),
        findings=findings,
    )


def judge_claim(
    model: ThreatModel,
    claim: Claim,
    facts: RunFacts,
    tests: StoredTests,
    *,
    today: datetime.date,
) -> ClaimFinding:
    """One claim."""
    missing = unmet(claim.applies_when, facts)
    off = {path: found for path, found in missing.items() if is_off(path, found)}
    if missing and len(off) < len(missing):
        told = "; ".join(shown(p, found) for p, found in missing.items() if p not in off)
        evidence = [_not_applicable(item, told) for item in claim.evidence]
        return finding_of(model, claim, "not_applicable", f"is about other runs: {told}", evidence)
    evidence = [
        judge_evidence(model, claim, item, facts, tests, today=today) for item in claim.evidence
    ]
    if off:
        told = "; ".join(shown(path, found) for path, found in off.items())
        return finding_of(model, claim, "refuted", f"control is off: {told}", evidence)
    stopped, shown_by = _controls(claim.controls, facts), combine(evidence)
    if stopped is not None and _rank(stopped[0]) <= _rank(shown_by[0]):
        return finding_of(model, claim, *stopped, evidence)
    return finding_of(model, claim, *shown_by, evidence)


def combine(evidence: Sequence[EvidenceFinding]) -> tuple[Verdict, str]:
    """The verdict of pieces of evidence together, and what decided; rules 2 and 3 above."""
    counted = [each for each in evidence if each.verdict != "not_applicable"]
    if not counted:
        return "not_applicable", "no evidence is about such a run"
    for verdict in WORST_FIRST:
        found = [each for each in counted if each.verdict == verdict]
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            return verdict, f"{found[0].cites}: {found[0].reason}{more}"
    by_rule = [each for each in counted if each.verdict == "verified"]
    attacks = len(counted) - len(by_rule)
    beside = f"; {attacks} attacks did not refute it" if attacks else ""
    if by_rule:
        return "verified", f"{len(by_rule)} tests and ledger values hold{beside}"
    return "not_refuted", f"{attacks} attacks did not refute it, and nothing else was looked at"


def judge_evidence(
    model: ThreatModel,
    claim: Claim,
    item: Evidence,
    facts: RunFacts,
    tests: StoredTests,
    *,
    today: datetime.date,
) -> EvidenceFinding:
    """One piece of evidence."""
    missing = unmet(item.applies_when, facts)
    if missing:
        told = "; ".join(shown(path, found) for path, found in missing.items())
        if all(is_off(path, found) for path, found in missing.items()):
            return _plain(item, "refuted", f"control is off: {told}")
        return _not_applicable(item, told)
    if isinstance(item, TestEvidence):
        return judge_test(item, tests, facts.source_sha256)
    if isinstance(item, AttackEvidence):
        return judge_attack(item, facts)
    if isinstance(item, LedgerEvidence):
        return _judge_ledger(item, facts)
    return _judge_manual(model, claim, item, facts, today)


def judge_test(
    item: TestEvidence, tests: StoredTests, source_sha256: str | None
) -> EvidenceFinding:
    """A test by its stored result, which must be of this very code.

    Args:
        item: what is cited.
        tests: stored results.
        source_sha256: of the code that is judged; None where nothing says which.
    """
    stored = tests.of(item.test, source_sha256)
    if stored is None:
        return _plain(item, "not_run", "there is no result of it")
    result = stored.result
    signer = "" if stored.anchored else UNKNOWN_SIGNER
    verdict: Verdict = "verified"
    if reason := tests.why_stale(result, source_sha256):
        verdict = "stale"
    elif result.outcome == "failed":
        verdict, reason = "refuted", f"failed on {result.date}"
    elif result.outcome == "skipped":
        verdict, reason = "not_run", f"was skipped on {result.date}"
    else:
        cases = f", {result.cases} cases" if result.cases > 1 else ""
        reason = f"passed on {result.date}{cases}"
    return EvidenceFinding(
        type="test",
        cites=item.test,
        verdict=verdict,
        reason=f"{reason}{signer}",
        references=[stored.reference],
    )


def _controls(controls: Sequence[Control], facts: RunFacts) -> tuple[Verdict, str] | None:
    """What a control that is not in force makes of its claim; those that are off come first."""
    unset: list[tuple[Verdict, str]] = []
    for control in controls:
        missing = unmet(control.config, facts)
        options = [unmet(conditions, facts) for conditions in control.any_of]
        if not missing and options and all(options):
            missing = {path: found for each in options for path, found in each.items()}
        if missing:
            told = "; ".join(shown(path, found) for path, found in missing.items())
            if not control.optional:
                return "refuted", f"control is off: {told} ({control.code})"
            unset.append(("void", f"control is not set: {told} ({control.code})"))
            continue
        dark = unknown(control.config, facts)
        if dark:
            unset.append(("not_run", f"not known before the run: {', '.join(dark)}"))
    return min(unset, key=lambda each: _rank(each[0]), default=None)


def _rank(verdict: Verdict) -> int:
    return WORST_FIRST.index(verdict) if verdict in WORST_FIRST else len(WORST_FIRST)


def _judge_ledger(item: LedgerEvidence, facts: RunFacts) -> EvidenceFinding:
    found = facts.ledger_value(item.ledger)
    wanted, named, why = _wanted(item.accept, facts)
    allowed = f"{item.accept.op} {named}"
    references = [*found.references, *wanted.references]
    finite = found.value if found.value is not None and math.isfinite(found.value) else None
    verdict: Verdict
    if found.value is None:
        verdict, reason = "not_run", found.why
    elif wanted.value is None:
        verdict, reason = "not_run", why
    elif ORDERED[item.accept.op](found.value, wanted.value):
        verdict, reason = "verified", f"{_figure(found.value)} is within {allowed}"
    else:
        verdict, reason = "refuted", f"{_figure(found.value)} is not {allowed}"
    return EvidenceFinding(
        type="ledger",
        cites=item.ledger,
        verdict=verdict,
        reason=reason,
        value=finite,
        allowed=allowed,
        references=references,
    )


def _wanted(bound: Bound, facts: RunFacts) -> tuple[LedgerValue, str, str]:
    """What a value is compared with, in words, and why there is nothing to compare with."""
    if bound.ledger is not None:
        other = facts.ledger_value(bound.ledger)
        return other, f"{bound.ledger} = {_figure(other.value)}", other.why
    if bound.config is not None:
        value = facts.value(bound.config)
        if value is UNKNOWN or not isinstance(value, int | float):
            return LedgerValue(None), bound.config, shown(bound.config, None)
        where = Reference(kind="file", path="config.toml", pointer=f"/{bound.config}")
        where = where.model_copy(update={"pointer": "/" + bound.config.replace(".", "/")})
        return LedgerValue(float(value), (where,)), f"{bound.config} = {value:g}", ""
    return LedgerValue(bound.value), f"{bound.value:g}", ""


def _figure(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:.6g}" if math.isfinite(value) else "unprotected"


def _judge_manual(
    model: ThreatModel,
    claim: Claim,
    item: ManualEvidence,
    facts: RunFacts,
    today: datetime.date,
) -> EvidenceFinding:
    roles = {words.casefold() for words in (item.who.en, item.who.ja) if words}
    answers = [
        each
        for each in facts.statements
        if (each.statement.model, each.statement.claim, each.statement.manual)
        == (model.id, claim.id, item.manual)
        and each.statement.run == facts.run
        and each.statement.by.casefold() in roles
        and each.statement.signed_off <= today
    ]
    if not answers:
        return _plain(item, "not_run", f"no signed statement; asked: {item.who.en}")
    # By a signer whom the reader knows before any by others: those anybody may add.
    answers.sort(key=lambda each: (each.anchored, each.statement.signed_off))
    last = answers[-1]
    signer = "" if last.anchored else UNKNOWN_SIGNER
    said = f"{last.statement.by}, {last.statement.signed_off.isoformat()}"
    expires = last.statement.expires
    if expires is not None and expires < today:
        return _plain(item, "stale", f"expired on {expires.isoformat()} ({said})", last.reference)
    return _plain(item, "manual", f"{said}{signer}", last.reference)


def _not_applicable(item: Evidence, told: str) -> EvidenceFinding:
    return _plain(item, "not_applicable", f"is about other runs: {told}")


def _plain(
    item: Evidence, verdict: Verdict, reason: str, where: Reference | None = None
) -> EvidenceFinding:
    references = [] if where is None else [where]
    return EvidenceFinding(
        type=item.type, cites=item.cites, verdict=verdict, reason=reason, references=references
    )


def finding_of(
    model: ThreatModel,
    claim: Claim,
    verdict: Verdict,
    reason: str,
    evidence: list[EvidenceFinding],
) -> ClaimFinding:
    """A claim's verdict, and what it rests on."""
    return ClaimFinding(
        model=model.id,
        claim=claim.id,
        threats=list(claim.threats),
        verdict=verdict,
        reason=reason,
        evidence=evidence,
    )
