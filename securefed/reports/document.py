"""``report.json``: all that a report says of a run, before it is said in a language.

It holds facts, and sentences as a key of the catalogue with the values that stand in them; a
rendering adds nothing.  Text of a threat model is there in the languages that the model has.  A
figure carries references to where it stands: a line of a ledger, or a place in a result file.

Nothing here is recomputed: :mod:`securefed.reports.build` fills it from facts that were verified.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from securefed.config.base import Section
from securefed.reports.judged import Framework, ThreatModelPart
from securefed.reports.values import Fact, Figure, Said, Words
from securefed.threats.verdicts import Digest, Finite, Reference

FORMAT: Literal["securefed/report/1"] = "securefed/report/1"

OpenKind = Literal["unmet", "void", "stale", "unshown", "unanswered", "unfinished", "unanchored"]
"""``unmet``: a claim is refuted, inconclusive or was not tried; ``unanswered``: software cannot."""


class OpenItem(Section):
    """What a reader must know first, and who must answer for it.

    Attributes:
        kind: of it.
        what: in a sentence.
        who: must answer.
        model, claim: ids, where it is about a claim.
        references: where it stands.
    """

    kind: OpenKind
    what: Words
    who: Words
    model: str | None = None
    claim: str | None = None
    detail: list[Words] = Field(default=[])
    references: list[Reference] = Field(default=[])


class Identity(Section):
    """Which run this is, and how far it can be relied on.

    Attributes:
        name: of the run file.
        finished: it has a closing record.
        anchored: its signatures were checked against keys that the reader trusts.
        model: source of the base model, and ``weights`` its digest.
        software: that made the run, ``source_sha256`` the digest of its code, and ``dependencies``
            name -> version of what it ran with; empty where the run did not write them down.
        genesis, head: hashes of the ledger's first and last record, ``records`` how many there are.
        begun, closed: when the first and the last record were written, RFC 3339.
        task: what the model was trained to do, as the run file names it.
        lora: settings of the adapter, by their names in the run file.
        facts: the rest, in the order in which it is shown.
    """

    name: str
    finished: bool
    anchored: bool
    model: str
    weights: Digest | None = None
    software: str
    source_sha256: Digest | None = None
    dependencies: dict[str, str] = Field(default={})
    genesis: Digest
    head: Digest
    records: Annotated[int, Field(ge=1)]
    begun: str
    closed: str
    task: str
    lora: dict[str, JsonValue] = Field(default={})
    facts: list[Fact]


class Role(Section):
    """A party: who it is, what it sees and whether it is trusted."""

    name: Words
    count: Figure | None = None
    sees: list[Words]
    trusted: Words


class Node(Section):
    """A box of the diagram; ``column`` and ``row`` are its place, from 0."""

    id: str
    label: Words
    column: Annotated[int, Field(ge=0)]
    row: Annotated[int, Field(ge=0)] = 0


class Flow(Section):
    """An arrow of the diagram: what goes from one node to another, and how it is protected.

    Attributes:
        number: on the arrow, from 1.
        source, target: ids of nodes.
        what: goes there, and ``how`` it is protected.
        protected: whether it is hidden from whoever carries it, or holds nothing of one client.
        views: how threat models name it.
        seen_by: actors of the threat models that see it, ``model/actor``.
    """

    number: Annotated[int, Field(ge=1)]
    source: str
    target: str
    what: Words
    protected: bool
    how: Words
    views: list[str]
    seen_by: list[str]


class Adversary(Section):
    """An actor of a threat model; ``name`` is ``model/actor``, and ``sees`` numbers of flows."""

    name: str
    role: Said
    corruption: Said
    sees: list[int]


class System(Section):
    """The parties and what flows between them; ``adversaries`` are those of the threat models."""

    purpose: Words
    roles: list[Role]
    nodes: list[Node]
    flows: list[Flow]
    adversaries: list[Adversary]
    facts: list[Fact]


class Statement(Section):
    """A differential-privacy statement against one adversary, with all that it rests on.

    ``subject``: ``"training"``, or ``"held_out"`` for figures on held-out data.  ``second`` is the
    epsilon that another accountant states; ``least`` what no accountant can truly stay below.  None
    where no other accountant has this mechanism.
    """

    subject: Literal["training", "held_out"]
    against: Literal["server", "release", "fellow_client"]
    protected: bool
    epsilon: Figure
    delta: Figure
    rounds: Figure
    unit: Words
    adjacency: Words
    mechanism: Words
    sampling: Words
    accountant: Words
    trust: list[Words]
    assumptions: list[Words]
    second: Figure | None = None
    least: Figure | None = None


class Privacy(Section):
    """What differential privacy the run has, in words, with its hazards."""

    hazards: list[Said]
    statements: list[Statement]


class RoundRow(Section):
    """What happened in one round: who was asked, who is in the sum, who was lost and where."""

    round: Figure
    cohort: Figure
    survivors: Figure
    lost: Figure
    late: Figure
    silent: Figure
    refused: Figure


class Aggregation(Section):
    """How single contributions are hidden, and what it took in each round."""

    kind: str
    statement: list[Said]
    parameters: list[Fact]
    rounds: list[RoundRow]


class AttackRow(Section):
    """What one attack was measured to do.

    Attributes:
        file: of the result, inside the run folder.
        attack, exposure, defence: as the result names them.
        anchored: it is signed by a key that the reader trusts.
        fits: it is of this run's model; None where that cannot be told.
        verdict, reason: of the result.
        metric: name of the headline metric.
        value: reached, with its interval; ``prior`` without seeing anything; ``lift`` over that.
        worst: of the worst record, ``average`` over all of them, where the result has both.
        n: trials, ``confidence`` of each interval.
        baseline: ``file`` of the same attack with the defence off; None where there is none, and
            for the baseline itself.
        bound: (epsilon, delta) that the defence promises here.
    """

    file: str
    attack: str
    kind: str
    exposure: str
    defence: str
    anchored: bool
    fits: bool | None
    verdict: str
    reason: Words | None = None
    metric: str | None = None
    value: Figure | None = None
    prior: Figure | None = None
    lift: Figure | None = None
    worst: Figure | None = None
    average: Figure | None = None
    n: Figure
    confidence: Finite
    time: str
    defended: bool
    baseline: str | None = None
    bound: tuple[Finite, Finite] | None = None
    settings: dict[str, JsonValue] = Field(default={})


class Curve(Section):
    """A receiver operating characteristic as (false, true) positive rates."""

    file: str
    attack: str
    exposure: str
    defence: str
    points: list[tuple[Finite, Finite]]
    bound: tuple[Finite, Finite] | None = None


class EpsilonBound(Section):
    """A lower bound on epsilon that canaries gave, beside what is promised at the same delta.

    ``of`` names the adversary, and whether a round or the whole run was looked at, as the result
    does; ``exceeded``: the bound is above the promise, which refutes it.
    """

    file: str
    attack: str
    defence: str
    of: str
    value: Figure
    promised: Figure
    exceeded: bool


class Leakage(Section):
    """What attacks found out, attack by attack."""

    attacks: list[AttackRow]
    bounds: list[EpsilonBound] = Field(default=[])
    curves: list[Curve]
    notes: list[Said]


class UtilityRow(Section):
    """The quality after a round."""

    round: Figure
    perplexity: Figure
    accuracy: Figure
    epsilon: Figure
    bytes_up: Figure
    bytes_down: Figure


class CostRow(Section):
    """A cost of the run."""

    label: Said
    value: Figure
    share: Finite | None = None


class Utility(Section):
    """What the run reached and what it took."""

    statement: list[Said]
    rounds: list[UtilityRow]
    costs: list[CostRow]
    notes: list[Said]


class Command(Section):
    """A command that makes something of this report again."""

    what: Said
    command: str


class Reproduce(Section):
    """How to make the report again, and from what."""

    commands: list[Command]
    facts: list[Fact]


class Report(Section):
    """The whole report, in the order in which it is read.

    Attributes:
        open_items: first of all.
        summary: the first page's figures, each with its reference.
        not_this: what a reader must not take it for.
    """

    format: Literal["securefed/report/1"] = FORMAT
    identity: Identity
    open_items: list[OpenItem]
    summary: list[Fact]
    not_this: list[Said]
    system: System
    privacy: Privacy
    aggregation: Aggregation
    leakage: Leakage
    utility: Utility
    threat_models: list[ThreatModelPart]
    crosswalk: list[Framework]
    limitations: list[Words]
    reproduce: Reproduce

    def to_text(self) -> str:
        """The file: the same report gives the same bytes."""
        values = self.model_dump(mode="json")
        return json.dumps(values, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def report_schema() -> str:
    """The JSON Schema of a report, as text; ``securefed/schemas/report.json`` is this."""
    schema = Report.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["$id"] = "urn:securefed:schema:report-1"
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"
