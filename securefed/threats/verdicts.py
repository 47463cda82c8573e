"""What can be found about a claim: a closed list of verdicts, and the documents that hold them.

================  ==================================================================================
verified          deterministic evidence alone shows it: tests passed on this very code, or values
                  of the ledger are within what the claim allows.  Never from an attack.
not_refuted       an attack that works with the defence off stayed within what the claim allows
manual            a signed statement that has not expired says so; nothing was computed
not_applicable    the claim is about something that this run does not do
inconclusive      an interval straddles the bound, or there were too few trials
not_run           no result is there
stale             the result is of other code, another configuration or another model, or the
                  statement has expired
void              the attack's failure shows nothing: its baseline failed or is missing
refuted           the control is off, a bound is broken, or a cited test failed
================  ==================================================================================
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from securefed.config.base import Section

Verdict = Literal[
    "verified",
    "not_refuted",
    "refuted",
    "inconclusive",
    "void",
    "stale",
    "not_run",
    "not_applicable",
    "manual",
]
EvidenceType = Literal["test", "attack", "ledger", "manual"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Line = Annotated[int, Field(ge=1)]


class Reference(Section):
    """Where a figure stands: a line of a ledger, or a place in a file.

    Attributes:
        kind: ``ledger``: a line of a ledger of the run; ``file``: any other file.
        path: of the file, with ``/``: inside the run folder, or (tests, code, threat models) inside
            the package's repository.
        line: line of the file, from 1; of a ledger the record's ``seq`` + 1.
        pointer: JSON pointer (RFC 6901) inside the record's body, the file or its payload.
        sha256: of the file, or the hash of the ledger's record.
    """

    kind: Literal["ledger", "file"]
    path: Annotated[str, Field(min_length=1)]
    line: Line | None = None
    pointer: str | None = None
    sha256: Digest | None = None


class EvidenceFinding(Section):
    """What one piece of evidence of a claim came to.

    Attributes:
        type: of the evidence.
        cites: the test's node id, the attack's name, the ledger's path or the statement's name.
        verdict: of this piece alone.
        reason: in words, with the figures; empty where nothing is to be said.
        value: the figure that was compared, where there is one.
        interval: of the value, where it has one.
        allowed: what the value was compared with, in words (``"<= 0.05 (ci_upper)"``).
        references: where all of that stands.
    """

    type: EvidenceType
    cites: str
    verdict: Verdict
    reason: str = ""
    value: Finite | None = None
    interval: tuple[Finite, Finite] | None = None
    allowed: str | None = None
    references: list[Reference] = Field(default=[])


class ClaimFinding(Section):
    """What one claim came to.

    Attributes:
        model: id of the threat model.
        claim: id of the claim.
        threats: ids of the threats that it answers.
        verdict: of all its evidence together.
        reason: what decided.
        evidence: piece by piece, in the order of the threat model.
    """

    model: str
    claim: str
    threats: list[str]
    verdict: Verdict
    reason: str
    evidence: list[EvidenceFinding]


class Judgement(Section):
    """Every claim of a run, judged: ``threats/verdicts.json``.

    Attributes:
        software: name and version of the package that judged.
        source_sha256: digest of its source.
        made: RFC 3339.
        findings: by threat model and claim, in the order of the files.
    """

    format: Literal["securefed/judgement/1"] = "securefed/judgement/1"
    software: str
    source_sha256: Digest
    made: str
    findings: list[ClaimFinding]
