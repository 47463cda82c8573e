"""Threats, controls, evidence, verdict and residual risk: every threat model, judged."""

from __future__ import annotations

from collections.abc import Mapping

from securefed.reports.judged import (
    Actor,
    Asset,
    ClaimRow,
    EvidenceRow,
    Mapped,
    OutOfScope,
    ThreatModelPart,
    ThreatRow,
)
from securefed.reports.material import Material, ModelFile
from securefed.reports.recognised import recognised
from securefed.reports.values import Figure, Said, Text
from securefed.threats import model as files
from securefed.threats.verdicts import ClaimFinding, EvidenceFinding

_CATALOGUES = ("linddun", "stride", "nist_aml", "atlas", "owasp_ml")


def threat_models(material: Material) -> list[ThreatModelPart]:
    """Every threat model of the run; a claim that nobody judged is ``not_run``."""
    findings = (
        {}
        if material.judgement is None
        else {(finding.model, finding.claim): finding for finding in material.judgement.findings}
    )
    return [_part(one, findings) for one in material.models]


def text(words: files.Text) -> Text:
    """Words of a threat model."""
    return Text(en=words.en, ja=words.ja)


def _part(one: ModelFile, findings: Mapping[tuple[str, str], ClaimFinding]) -> ThreatModelPart:
    model = one.model
    return ThreatModelPart(
        id=model.id,
        file=one.path,
        sha256=one.sha256,
        title=text(model.title),
        assets=[
            Asset(id=asset.id, words=text(asset.description), unit=asset.privacy_unit)
            for asset in model.assets
        ],
        actors=[
            Actor(
                id=actor.id,
                role=actor.role,
                corruption=actor.corruption,
                colluding=actor.max_colluding_clients,
                view=list(actor.view),
                words=None if actor.goal is None else text(actor.goal),
            )
            for actor in model.actors
        ],
        threats=[
            ThreatRow(
                id=threat.id,
                title=text(threat.title),
                actor=threat.actor,
                asset=threat.asset,
                severity=threat.severity,
                mapped=[
                    Mapped(catalogue=name, entry=entry.id, exact=entry.match == "exact")
                    for name in _CATALOGUES
                    for entry in getattr(threat, name)
                ],
            )
            for threat in model.threats
        ],
        claims=[_claim(claim, findings.get((model.id, claim.id))) for claim in model.claims],
        out_of_scope=[
            OutOfScope(
                threat=text(left.threat),
                reason=text(left.reason),
                demonstrated_by=left.demonstrated_by,
            )
            for left in model.out_of_scope
        ],
    )


def _claim(claim: files.Claim, finding: ClaimFinding | None) -> ClaimRow:
    return ClaimRow(
        id=claim.id,
        threats=list(claim.threats),
        statement=text(claim.statement),
        kind=claim.kind,
        assumptions=[text(each) for each in claim.assumptions],
        controls=[control.code for control in claim.controls],
        evidence=[] if finding is None else [_evidence(each) for each in finding.evidence],
        verdict="not_run" if finding is None else finding.verdict,
        reason=Said(key="judged.by_nobody")
        if finding is None
        else recognised(finding.reason)
        if finding.reason
        else None,
        residual_level=claim.residual_risk.level,
        residual=text(claim.residual_risk.statement),
        crosswalk=sorted({name for control in claim.controls for name in control.crosswalk}),
    )


def _evidence(found: EvidenceFinding) -> EvidenceRow:
    value = None
    if found.value is not None:
        # Its references stand with the row: they are of what it was compared with, too.
        value = Figure(value=found.value, kind="figure", interval=found.interval)
    return EvidenceRow(
        type=found.type,
        cites=found.cites,
        verdict=found.verdict,
        reason=recognised(found.reason) if found.reason else None,
        value=value,
        allowed=found.allowed,
        references=found.references,
    )
