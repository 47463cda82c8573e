"""The report as a CycloneDX 1.6 bill of materials with declarations.

A machine that reads bills of materials finds here which model was made from what, which claims are
made of it, on which evidence, and which requirements of the crosswalk they answer.  Evidence that
shows nothing (void, stale, not run) is not cited for a claim; its claim's reasoning says so.
Nobody affirms anything: an affirmation is a person's, and there is none.

Source: CycloneDX 1.6, ECMA-424, JSON schema ``bom-1.6.schema.json``.
"""

from __future__ import annotations

import json
import re
import uuid
from typing import Any
from urllib.parse import quote

from securefed.reports.catalogue import Language
from securefed.reports.document import Report
from securefed.reports.judged import ClaimRow, EvidenceRow, Framework, ThreatModelPart
from securefed.reports.values import Value
from securefed.reports.wording import Wording, plain
from securefed.threats.verdicts import Reference

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:securefed:ledger")
_SUPPORTS = ("verified", "not_refuted", "manual")
_TOOL, _MODEL, _BASE, _TARGET, _ASSESSOR = (
    "securefed",
    "adapter",
    "base-model",
    "target-adapter",
    "assessor-software",
)

Json = dict[str, Any]


def render(report: Report, language: Language) -> str:
    """A report as CycloneDX JSON; the same report gives the same text.

    The serial number follows from the ledger's last hash.
    """
    words = Wording(language)
    identity = report.identity
    bill: Json = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, identity.head)}",
        "version": 1,
        "metadata": {
            "timestamp": identity.closed,
            "tools": {"components": [_tool(report)]},
            "component": _adapter(report, words),
        },
        "components": [_base_model(report), *_libraries(report)],
        "dependencies": _dependencies(report),
        "definitions": {"standards": [_standard(one, words) for one in report.crosswalk]},
        "declarations": _declarations(report, words),
    }
    return json.dumps(bill, indent=1, ensure_ascii=False) + "\n"


def _tool(report: Report) -> Json:
    name, _, version = report.identity.software.partition(" ")
    tool: Json = {"type": "application", "name": name}
    if version:
        tool["version"] = version
    if report.identity.source_sha256 is not None:
        tool["properties"] = [_property("source_sha256", report.identity.source_sha256)]
    return tool


def _adapter(report: Report, words: Wording) -> Json:
    identity = report.identity
    limitations = [_said(words, one) for one in report.limitations]
    card: Json = {
        "modelParameters": {
            "approach": {"type": "supervised"},
            "task": identity.task,
            "architectureFamily": "transformer with low-rank adapters (LoRA)",
        },
        "considerations": {"technicalLimitations": limitations},
    }
    metrics = _metrics(report)
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": identity.name,
        "version": identity.head[:16],
        "description": _said(words, report.system.purpose),
        "modelCard": card,
        "properties": [
            _property("ledger.genesis", identity.genesis),
            _property("ledger.head", identity.head),
            _property("ledger.records", str(identity.records)),
            _property("finished", str(identity.finished).lower()),
            _property("anchored", str(identity.anchored).lower()),
            *(_property(f"lora.{key}", _text(value)) for key, value in identity.lora.items()),
            *_privacy_properties(report, words),
        ],
    }


def _privacy_properties(report: Report, words: Wording) -> list[Json]:
    """Each differential-privacy statement as one property, never an epsilon alone."""
    found = []
    for one in report.privacy.statements:
        parts = {
            "protected": one.protected,
            "epsilon": one.epsilon.value,
            "delta": one.delta.value,
            "unit": _said(words, one.unit),
            "adjacency": _said(words, one.adjacency),
            "mechanism": _said(words, one.mechanism),
            "sampling": _said(words, one.sampling),
            "accountant": _said(words, one.accountant),
            "trust": [_said(words, trust) for trust in one.trust],
            "assumptions": [_said(words, assumption) for assumption in one.assumptions],
        }
        found.append(_property(f"privacy.{one.subject}.{one.against}", _text(parts)))
    return found


def _metrics(report: Report) -> list[Json]:
    found: list[Json] = []
    for row in report.utility.rounds[-1:]:
        for name, figure in (("perplexity", row.perplexity), ("accuracy", row.accuracy)):
            if figure.value is not None:
                found.append({"type": name, "value": str(figure.value), "slice": "held-out"})
    return found


def _base_model(report: Report) -> Json:
    base: Json = {
        "type": "machine-learning-model",
        "bom-ref": _BASE,
        "name": report.identity.model,
    }
    if report.identity.weights is not None:
        # Not a hash of a file, as CycloneDX means hashes: it is taken over tensors by name.
        base["properties"] = [_property("weights.fingerprint.sha256", report.identity.weights)]
    return base


def _libraries(report: Report) -> list[Json]:
    return [
        {
            "type": "library",
            "bom-ref": _library_ref(name, version),
            "name": name,
            "version": version,
            "purl": _library_ref(name, version),
        }
        for name, version in sorted(report.identity.dependencies.items())
    ]


def _library_ref(name: str, version: str) -> str:
    """The package URL: names of the Python Package Index are lower case with hyphens."""
    plain_name = re.sub(r"[-_.]+", "-", name).lower()
    return f"pkg:pypi/{quote(plain_name, safe='')}@{quote(version, safe='')}"


def _dependencies(report: Report) -> list[Json]:
    libraries = [_library_ref(*pair) for pair in sorted(report.identity.dependencies.items())]
    return [
        {"ref": _MODEL, "dependsOn": [_BASE, *libraries]},
        {"ref": _BASE},
        *({"ref": library} for library in libraries),
    ]


def _standard(framework: Framework, words: Wording) -> Json:
    return {
        "bom-ref": f"standard:{framework.id}",
        "name": _said(words, framework.title),
        "version": framework.edition,
        "requirements": [
            {
                "bom-ref": _requirement_ref(framework, row.id),
                "identifier": row.id,
                "text": _said(words, row.requirement),
            }
            for row in framework.rows
        ],
        "externalReferences": [{"type": "documentation", "url": _address(framework.source)}],
    }


def _requirement_ref(framework: Framework, row: str) -> str:
    return f"requirement:{framework.id}:{row}"


def _declarations(report: Report, words: Wording) -> Json:
    pairs = [(part, claim) for part in report.threat_models for claim in part.claims]
    known = {f"{part.id}/{claim.id}": claim for part, claim in pairs}
    return {
        "assessors": [
            {
                "bom-ref": _ASSESSOR,
                "thirdParty": False,
                "organization": {"name": report.identity.software},
            }
        ],
        "attestations": [_attestation(one, known, words) for one in report.crosswalk],
        "claims": [_claim(part, claim, words) for part, claim in pairs],
        "evidence": [
            _evidence(part, claim, number, row, report, words)
            for part, claim in pairs
            for number, row in enumerate(claim.evidence)
        ],
        "targets": {
            "components": [
                {
                    "type": "machine-learning-model",
                    "bom-ref": _TARGET,
                    "name": report.identity.name,
                    "version": report.identity.head[:16],
                }
            ]
        },
    }


def _attestation(framework: Framework, known: dict[str, ClaimRow], words: Wording) -> Json:
    rows: list[Json] = []
    for row in framework.rows:
        there = [name for name in row.claims if name in known]
        entry: Json = {"requirement": _requirement_ref(framework, row.id)}
        shown = [f"claim:{name}" for name in there if known[name].verdict in _SUPPORTS]
        against = [f"claim:{name}" for name in there if known[name].verdict == "refuted"]
        if shown:
            entry["claims"] = shown
        if against:
            entry["counterClaims"] = against
        said: list[Value] = [row.why]
        said += [row.who] if row.who is not None else []
        said += [row.checked_against] if row.checked_against is not None else []
        reasons = " ".join(_said(words, one) for one in said)
        entry["conformance"] = {"rationale": f"{row.verdict}: {reasons}"}
        rows.append(entry)
    return {
        "summary": _said(words, framework.title),
        "assessor": _ASSESSOR,
        "map": rows,
    }


def _claim(part: ThreatModelPart, claim: ClaimRow, words: Wording) -> Json:
    numbered = list(enumerate(claim.evidence))
    reasons = [f"{claim.verdict}."]
    if claim.reason is not None:
        reasons.append(_said(words, claim.reason))
    reasons += [
        f"{row.cites}: {row.verdict}."
        for row in claim.evidence
        if row.verdict not in (*_SUPPORTS, "refuted")
    ]
    reasons.append(f"{claim.residual_level}: {_said(words, claim.residual)}")
    found: Json = {
        "bom-ref": f"claim:{part.id}/{claim.id}",
        "target": _TARGET,
        "predicate": _said(words, claim.statement),
        "reasoning": " ".join(reasons),
        "externalReferences": [
            {
                "type": "threat-model",
                "url": quote(f"threat_models/{part.file}"),
                "hashes": [{"alg": "SHA-256", "content": part.sha256}],
            }
        ],
    }
    supports = [_evidence_ref(part, claim, i) for i, row in numbered if row.verdict in _SUPPORTS]
    against = [_evidence_ref(part, claim, i) for i, row in numbered if row.verdict == "refuted"]
    if supports:
        found["evidence"] = supports
    if against:
        found["counterEvidence"] = against
    return found


def _evidence_ref(part: ThreatModelPart, claim: ClaimRow, number: int) -> str:
    return f"evidence:{part.id}/{claim.id}/{number}"


def _evidence(
    part: ThreatModelPart,
    claim: ClaimRow,
    number: int,
    row: EvidenceRow,
    report: Report,
    words: Wording,
) -> Json:
    content = {
        "type": row.type,
        "cites": row.cites,
        "verdict": row.verdict,
        "reason": None if row.reason is None else _said(words, row.reason),
        "value": None if row.value is None else row.value.value,
        "interval": None if row.value is None else row.value.interval,
        "allowed": row.allowed,
        "references": [one.model_dump(mode="json", exclude_none=True) for one in row.references],
    }
    attached = {"contentType": "application/json", "content": _text(content)}
    return {
        "bom-ref": _evidence_ref(part, claim, number),
        "propertyName": f"securefed:evidence:{row.type}",
        "description": row.cites,
        "data": [
            {"name": row.cites, "contents": {"attachment": attached}},
            *(_place(one) for one in row.references),
        ],
        "created": report.identity.closed,
    }


def _place(reference: Reference) -> Json:
    """A reference as data at an address inside the run folder or the package."""
    line = "" if reference.line is None else f"L{reference.line}"
    pointer = reference.pointer or ""
    inside = quote(f"{line}{pointer}", safe="/~")
    address = quote(reference.path) + (f"#{inside}" if inside else "")
    return {"name": reference.kind, "contents": {"url": address}}


def _said(words: Wording, value: Value) -> str:
    return plain(words.line(value))


def _property(name: str, value: str) -> Json:
    return {"name": f"securefed:{name}", "value": value}


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _address(text: str) -> str:
    return quote(text, safe="/:?#[]@!$&'()*+,;=%~-._")
