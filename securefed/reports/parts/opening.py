"""The first page: what is open and who must answer it, then the figures that matter most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from securefed.reports.document import (
    AttackRow,
    EpsilonBound,
    OpenItem,
    OpenKind,
    Report,
    Statement,
)
from securefed.reports.judged import ClaimRow, ThreatModelPart
from securefed.reports.material import METRICS, Material, figure, in_file, in_ledger
from securefed.reports.parts.leakage import OFF, bounds
from securefed.reports.parts.threats import text
from securefed.reports.parts.utility import measured
from securefed.reports.recognised import recognised
from securefed.reports.values import Fact, Said, Value, Words
from securefed.reports.wording import known
from securefed.threats.model import ManualEvidence
from securefed.threats.verdicts import Reference, Verdict

_KINDS: dict[Verdict, OpenKind] = {
    "refuted": "unmet",
    "void": "void",
    "stale": "stale",
    "inconclusive": "unshown",
    "not_run": "unshown",
}
"""What leaves a claim open, worst first; ``manual`` stands by the statement that was signed."""

_ABSENT: tuple[Verdict, ...] = ("refuted", "void")
"""Of these a reader is told at once what the missing protection leaves."""

_UNANSWERED = (
    ("lawful_basis", "controller", "lawful-basis"),
    ("necessity", "controller", ""),
    ("consultation", "controller", "impact-assessment"),
    ("advice", "dpo", ""),
    ("rights", "controller", ""),
    ("sign_off", "controller", ""),
)
"""What no software can answer, who must, and the question of a threat model that asks the same."""


def open_items(material: Material, parts: list[ThreatModelPart]) -> list[OpenItem]:
    """All that is unmet, void, stale or unanswered, worst first."""
    items = list(_of_run(material))
    judged = list(_of_claims(material, parts))
    order = list(_KINDS)
    judged.sort(key=lambda found: order.index(found[0]))
    items += [item for _, item in judged]
    items += list(_asked(material))
    asked = {
        evidence.manual
        for one in material.models
        for claim in one.model.claims
        for evidence in claim.evidence
        if isinstance(evidence, ManualEvidence)
    }
    items += [
        _item("unanswered", f"open.{what}", who)
        for what, who, by_models in _UNANSWERED
        if by_models not in asked
    ]
    return items


def _item(kind: OpenKind, key: str, who: str, **values: Value) -> OpenItem:
    return OpenItem(kind=kind, what=Said(key=key, values=values), who=Said(key=f"who.{who}"))


def _of_run(material: Material) -> Iterator[OpenItem]:
    if not material.finished:
        yield _item("unfinished", "open.unfinished", "operator")
    if not material.anchored:
        yield _item("unanchored", "open.unanchored", "reader")
    for why in material.incomplete:
        yield OpenItem(kind="unmet", what=recognised(why), who=Said(key="who.operator"))
    if material.config.aggregation.kind == "plaintext":
        yield _item("unmet", "open.plaintext", "operator")
    for number, held in enumerate(material.guarantees):
        if held.protected:
            continue
        against = Said(key=f"against.{held.against}")
        item = _item("unmet", "open.no_guarantee", "operator", against=against)
        if material.closing is not None:
            place = in_ledger(material.closing, f"/guarantees/{number}/epsilon")
            item = item.model_copy(update={"references": [place]})
        yield item
    if not material.models:
        yield _item("unmet", "open.no_threat_model", "operator")
    elif material.judgement is None:
        yield _item("unmet", "open.not_judged", "operator")
    if material.shipped_models:
        yield _item("unmet", "open.shipped_models", "operator")
    for bound in _exceeded(material):
        yield _item(
            "unmet",
            "open.bound_exceeded",
            "operator",
            attack=bound.attack,
            of=known("bound_of", bound.of),
            value=bound.value,
            promised=bound.promised,
        )
    if not material.attacks:
        yield _item("unmet", "open.no_attack", "operator")
    elif not any(one.document.measurement.verdict == "guessed" for one in material.attacks):
        yield _item("void", "open.no_attack_worked", "operator")


def _of_claims(
    material: Material, parts: list[ThreatModelPart]
) -> Iterator[tuple[Verdict, OpenItem]]:
    places: Mapping[tuple[str, str], Reference] = {}
    if material.judgement is not None:
        places = {
            (one.model, one.claim): in_file(material.judged_path, f"/findings/{number}")
            for number, one in enumerate(material.judgement.findings)
        }
    for part, file in zip(parts, material.models, strict=True):
        untried: list[ClaimRow] = []
        for number, claim in enumerate(part.claims):
            if claim.verdict not in _KINDS:
                continue
            if claim.verdict == "not_run":
                untried.append(claim)
                continue
            line = file.model.line("claims", number, "statement", "en")
            references = [in_file(part.file, line=line)]
            if claim.verdict in _ABSENT:
                left = file.model.line("claims", number, "residual_risk", "statement", "en")
                references.append(in_file(part.file, line=left))
            if (part.id, claim.id) in places:
                references.append(places[part.id, claim.id])
            yield (
                claim.verdict,
                OpenItem(
                    kind=_KINDS[claim.verdict],
                    what=Said(
                        key=f"open.claim_{claim.verdict}",
                        values={"id": claim.id, "statement": claim.statement},
                    ),
                    who=Said(key="who.operator"),
                    model=part.id,
                    claim=claim.id,
                    detail=_detail(claim),
                    references=references,
                ),
            )
        if untried and material.judgement is not None:
            item = _item(
                "unshown",
                "open.claims_not_run",
                "operator",
                model=part.id,
                title=part.title,
                claims=[claim.id for claim in untried],
            )
            found = [places[part.id, c.id] for c in untried if (part.id, c.id) in places]
            yield "not_run", item.model_copy(update={"model": part.id, "references": found})


def _exceeded(material: Material) -> Iterator[EpsilonBound]:
    """Bounds above what is promised, measured where the defence is on."""
    for one in material.attacks:
        if one.document.measurement.defence != OFF:
            yield from (bound for bound in bounds(one) if bound.exceeded)


def _detail(claim: ClaimRow) -> list[Words]:
    """What decided; and, of a protection that is not there, what its absence leaves."""
    found: list[Words] = [] if claim.reason is None else [claim.reason]
    if claim.verdict in _ABSENT:
        found.append(Said(key="open.residual", values={"statement": claim.residual}))
    return found


def _asked(material: Material) -> Iterator[OpenItem]:
    """Questions of the threat models that only people can answer, and nobody has."""
    findings = (
        {}
        if material.judgement is None
        else {(one.model, one.claim): one for one in material.judgement.findings}
    )
    asked: dict[tuple[str, str], OpenItem] = {}
    for one in material.models:
        for claim in one.model.claims:
            found = findings.get((one.model.id, claim.id))
            if found is not None and found.verdict == "not_applicable":
                continue
            signed = {
                each.cites
                for each in (found.evidence if found is not None else [])
                if each.type == "manual" and each.verdict == "manual"
            }
            for evidence in claim.evidence:
                if not isinstance(evidence, ManualEvidence) or evidence.manual in signed:
                    continue
                asks, who = text(evidence.asks), text(evidence.who)
                asked.setdefault(
                    (asks.en, who.en),
                    OpenItem(
                        kind="unanswered", what=asks, who=who, model=one.model.id, claim=claim.id
                    ),
                )
    return iter(asked.values())


def summary(material: Material, report: Report) -> list[Fact]:
    """The first page's figures: privacy, who was in the sums, attacks, quality and cost.

    Args:
        material: of the run.
        report: all other parts, made before.
    """
    facts = [_privacy(material, number, s) for number, s in enumerate(report.privacy.statements)]
    found = [fact for fact in facts if fact is not None]
    if material.closing is None:
        found += _spent_so_far(material)
    rows = report.aggregation.rounds
    if rows:
        fewest = min(rows, key=lambda row: int(row.survivors.value or 0))
        found.append(
            _fact(
                "survivors",
                survivors=fewest.survivors,
                cohort=fewest.cohort,
                round=fewest.round,
            )
        )
    found.append(_attack(material, report.leakage.attacks))
    for metric in ("perplexity", "accuracy"):
        with_it = measured(report.utility.rounds, metric)
        if len(with_it) > 1:
            before, after = (getattr(row, metric) for row in (with_it[0], with_it[-1]))
            found.append(_fact(metric, before=before, after=after, round=with_it[-1].round))
    costs = {row.label.key: row.value for row in report.utility.costs}
    up, down = costs.get("cost.bytes_up"), costs.get("cost.bytes_down")
    if up is not None and down is not None:
        found.append(_fact("bytes", up=up, down=down))
    return found


def _fact(key: str, **values: Value) -> Fact:
    return Fact(
        label=Said(key=f"summary.label.{key}"), value=Said(key=f"summary.{key}", values=values)
    )


def _privacy(material: Material, number: int, statement: Statement) -> Fact | None:
    closing = material.closing
    if closing is None:
        return None
    trained = len(material.guarantees)
    pointer = (
        f"/guarantees/{number}"
        if statement.subject == "training"
        else f"/histograms/guarantees/{number - trained}"
    )
    key = "privacy" if statement.protected else "no_privacy"
    return Fact(
        label=Said(
            key=f"summary.label.{statement.subject}",
            values={"against": Said(key=f"against.{statement.against}")},
        ),
        value=Said(
            key=f"summary.{key}",
            values={
                "epsilon": statement.epsilon,
                "delta": statement.delta,
                "rounds": statement.rounds,
                "unit": statement.unit,
            },
        ),
        references=[in_ledger(closing, f"{pointer}/unit")],
    )


def _spent_so_far(material: Material) -> list[Fact]:
    for number in range(len(material.metrics), 0, -1):
        line = material.metrics[number - 1]
        if line["epsilon"] is None:
            continue
        values: dict[str, Value] = {
            "against": Said(key=f"against.{line['against']}"),
            "unit": Said(key=f"unit.{material.policy.unit}"),
            "epsilon": figure(
                line["epsilon"], "epsilon", in_file(METRICS, "/epsilon", line=number)
            ),
            "delta": figure(line["delta"], "probability", in_file(METRICS, "/delta", line=number)),
            "round": figure(line["round"], "count", in_file(METRICS, "/round", line=number)),
        }
        return [_fact("spent", **values)]
    return []


def _attack(material: Material, rows: list[AttackRow]) -> Fact:
    """The attack that got furthest where the defence is on; or that there is none to speak of.

    Results with all of the run's own defences come before those with some of them.
    """
    tried = [
        row
        for row in rows
        # A bound on epsilon has no prior that somebody would score without seeing anything.
        if row.defended and row.verdict == "guessed" and row.lift and row.kind != "epsilon"
    ]
    if not tried:
        return _fact("no_attack" if not rows else "no_attack_worked")
    own = ["noise"] * (material.policy.mechanism != "none")
    own += ["masks"] * (material.config.aggregation.kind != "plaintext")
    whole = [row for row in tried if row.defence == " and ".join(own)]
    row = max(whole or tried, key=_number)
    values: dict[str, Value] = {
        "attack": row.attack,
        "exposure": known("exposure", row.exposure),
        "defence": Said(key="as.defence", values={"name": row.defence}),
        "metric": Said(key="as.metric", values={"name": row.metric or ""}),
        "n": row.n,
    }
    if row.lift is not None:
        values["lift"] = row.lift
    return _fact("attack", **values)


def _number(row: AttackRow) -> float:
    value = row.lift.value if row.lift is not None else None
    return float(value) if isinstance(value, int | float) else 0.0
