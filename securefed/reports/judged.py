"""Parts of a report about threat models and frameworks: claims with their evidence, crosswalks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from securefed.config.base import Section
from securefed.reports.values import Figure, Said, Text, Words
from securefed.threats.verdicts import Digest, EvidenceType, Reference, Verdict

RowVerdict = Literal["evidenced", "partly", "organisational", "not_met", "not_applicable"]


class Actor(Section):
    """An adversary of a threat model, as its file says."""

    id: str
    role: str
    corruption: str
    colluding: int | None = None
    view: list[str]
    words: Text | None = None


class Asset(Section):
    """What is to be protected."""

    id: str
    words: Text
    unit: str


class Mapped(Section):
    """An entry of another catalogue of threats; ``exact`` or near to it."""

    catalogue: str
    entry: str
    exact: bool


class ThreatRow(Section):
    """A threat of a threat model."""

    id: str
    title: Text
    actor: str
    asset: str
    severity: str
    mapped: list[Mapped]


class EvidenceRow(Section):
    """A piece of evidence, and what it came to."""

    type: EvidenceType
    cites: str
    verdict: Verdict
    reason: Words | None = None
    value: Figure | None = None
    allowed: str | None = None
    references: list[Reference] = Field(default=[])


class ClaimRow(Section):
    """A claim with its threats, controls, evidence, verdict and residual risk."""

    id: str
    threats: list[str]
    statement: Text
    kind: str
    assumptions: list[Text]
    controls: list[str]
    evidence: list[EvidenceRow]
    verdict: Verdict
    reason: Words | None = None
    residual_level: str
    residual: Text
    crosswalk: list[str] = Field(default=[])


class OutOfScope(Section):
    """What a threat model leaves out, and why."""

    threat: Text
    reason: Text
    demonstrated_by: str | None = None


class ThreatModelPart(Section):
    """One threat model, judged; ``sha256`` is of its file."""

    id: str
    file: str
    sha256: Digest
    title: Text
    assets: list[Asset]
    actors: list[Actor]
    threats: list[ThreatRow]
    claims: list[ClaimRow]
    out_of_scope: list[OutOfScope]


class CrosswalkRow(Section):
    """A requirement of a framework, and what of it this run shows.

    Attributes:
        id: of the place in the framework's text.
        requirement: in short words of our own.
        verdict: of the row.
        why: what it is from.
        who: must answer what software cannot; None where nothing is left to anybody.
        claims: ``model/claim`` that stand for it.
        sections: keys of the report's parts that answer it.
        checked: the mapping was compared with the text as its issuer publishes it.
        checked_against: the text, or what there was of it, that it was compared with, and when;
            None where it was made from memory.
        references: where figures named in ``why`` stand.
    """

    id: str
    requirement: Text
    verdict: RowVerdict
    why: Words
    who: Words | None = None
    claims: list[str] = Field(default=[])
    sections: list[str] = Field(default=[])
    checked: bool
    checked_against: Words | None = None
    references: list[Reference] = Field(default=[])


class Framework(Section):
    """A framework of the crosswalk; ``source`` and ``edition`` say which text was meant.

    ``texts`` are those, or what there was of them, that the mapping was compared with.
    """

    id: str
    title: Text
    edition: str
    source: str
    note: Text | None = None
    texts: list[Said] = Field(default=[])
    rows: list[CrosswalkRow]
