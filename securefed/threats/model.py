"""A threat model as its file says it: every part, its type and what may stand in it.

The JSON Schema that these classes give is published as ``securefed/schemas/threat-model.json``;
:mod:`securefed.threats.loading` reads files and points at the line of what is wrong.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from securefed.threats.conditions import Conditions, Strict
from securefed.threats.ledger_names import LedgerName
from securefed.threats.views import Corruption, Role, View
from securefed.threats.yaml_files import Document, Place

Words = Annotated[str, Field(min_length=1, max_length=4000)]
TestId = Annotated[str, Field(pattern=r"^tests/[^:]+\.py(::[^:]+)+$")]
Level = Literal["none-known", "low", "medium", "high"]
Of = Literal["point", "ci_lower", "ci_upper", "lift", "lift_lower", "lift_upper"]


class Text(Strict):
    """Words for people, in English and, where somebody has written them, in Japanese."""

    en: Words
    ja: Words | None = None


def _english(value: object) -> object:
    return {"en": value} if isinstance(value, str) else value


Said = Annotated[Text, BeforeValidator(_english, json_schema_input_type=Words | Text)]
"""Text; a bare string is English."""


class Taxonomies(Strict):
    """Which edition of each taxonomy the ids are of."""

    linddun: Words
    stride: Words
    nist_aml: Words
    atlas: Words
    owasp_ml: Words


class Cohort(Strict):
    """The cohort that a threat model was written for."""

    min_clients: Annotated[int, Field(ge=2)]
    threshold: Annotated[int, Field(ge=1)]
    max_dropout_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class System(Strict):
    """The system that a threat model was written for, and a run file that makes one like it."""

    protocol: Literal["pairwise", "homomorphic", "any"]
    arrangements: dict[str, Said] = Field(default={})
    cohort: Cohort
    rounds: Annotated[int, Field(ge=1)]
    config_ref: Annotated[str, Field(pattern=r"^[^/].*\.toml$")]


class Named(Strict):
    """A part that others refer to."""

    id: str


class Asset(Named):
    """What is to be protected."""

    id: Annotated[str, Field(pattern=r"^AS-[a-z0-9-]+$")]
    description: Said
    privacy_unit: Literal["example", "user", "client", "none"]


class Actor(Named):
    """Who may attack, and all that it sees."""

    id: Annotated[str, Field(pattern=r"^AC-[a-z0-9-]+$")]
    role: Role
    corruption: Corruption
    max_colluding_clients: Annotated[int, Field(ge=0)] = 0
    view: Annotated[list[View], Field(min_length=1)]
    goal: Said | None = None


Match = Literal["exact", "approximate"]


class Linddun(Strict):
    """A threat type of LINDDUN, and how well it fits."""

    id: Literal[
        "linking",
        "identifying",
        "non-repudiation",
        "detecting",
        "data-disclosure",
        "unawareness",
        "non-compliance",
    ]
    match: Match


class Stride(Strict):
    """A letter of STRIDE, and how well it fits."""

    id: Literal["S", "T", "R", "I", "D", "E"]
    match: Match


class NistAml(Strict):
    """An attack of NIST AI 100-2, and how well it fits."""

    id: Annotated[str, Field(pattern=r"^NISTAML\.0[0-9]{1,3}$")]
    match: Match


class Atlas(Strict):
    """A technique of MITRE ATLAS, and how well it fits."""

    id: Annotated[str, Field(pattern=r"^AML\.T[0-9]{4}(\.[0-9]{3})?$")]
    match: Match


class OwaspMl(Strict):
    """An item of OWASP's list for machine learning, and how well it fits."""

    id: Annotated[str, Field(pattern=r"^ML(0[1-9]|10):2023$")]
    match: Match


class Threat(Named):
    """What an actor may do to an asset."""

    id: Annotated[str, Field(pattern=r"^T-[a-z0-9-]+$")]
    title: Said
    actor: str
    asset: str
    linddun: list[Linddun]
    stride: list[Stride]
    nist_aml: list[NistAml]
    atlas: list[Atlas]
    owasp_ml: list[OwaspMl]
    severity: Literal["low", "medium", "high", "critical"]
    literature: list[Words] = Field(default=[])


class Control(Strict):
    """Code that stands against a threat, and what must be set for it to be in force.

    All of ``config`` must hold and, where ``any_of`` is there, all of one of its items.
    ``optional`` controls are off unless somebody asks for them.
    """

    code: Annotated[str, Field(pattern=r"^securefed(\.[a-z_0-9]+)+$")]
    config: Conditions = Field(default={})
    any_of: list[Conditions] = Field(default=[])
    optional: bool = False
    crosswalk: list[Words] = Field(default=[])


class Bound(Strict):
    """What a figure is compared with: a number, a setting of the run file or a ledger value.

    ``of`` says which figure of an attack's metric: the value, an end of its interval, its lift over
    the prior, or an end of the lift's interval.
    """

    op: Literal["<", "<=", ">", ">="]
    value: Annotated[float, Field(allow_inf_nan=False)] | None = None
    config: str | None = None
    ledger: LedgerName | None = None
    of: Of = "point"

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        given = [n for n in ("value", "config", "ledger") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"needs one of value, config and ledger; it has {given or 'none'}")
        return self


class MeasuredBound(Bound):
    """A bound on an attack's metric, which is a number."""

    @model_validator(mode="after")
    def _is_a_number(self) -> Self:
        if self.value is None:
            raise ValueError("of an attack needs a value: a number")
        return self


class Baseline(Strict):
    """The same attack with the defence off, which must be seen to work."""

    exposure: Words
    defence: Literal["off"]
    expect: MeasuredBound


class _Evidence(Strict):
    """What all evidence has: when it counts, and what it is there for.

    ``role``: ``baseline``: it shows the attack working where the defence is off; it must hold too.
    """

    applies_when: Conditions = Field(default={})
    role: Literal["shows", "baseline"] = "shows"


class TestEvidence(_Evidence):
    """A test; without brackets it is all of its parameters.  ``slow``: it has that marker."""

    __test__ = False  # no test class, whatever pytest takes its name for

    type: Literal["test"]
    test: TestId
    slow: bool = False

    @property
    def cites(self) -> str:
        """The node id."""
        return self.test


class AttackEvidence(_Evidence):
    """An attack that was measured on the run, and the same one with the defence off."""

    type: Literal["attack"]
    attack: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    exposure: Words
    defence: Words
    batch: Annotated[int, Field(ge=1)] = 1
    metric: Words
    accept: MeasuredBound
    baseline: Baseline
    min_trials: Annotated[int, Field(ge=1)] = 1
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95

    @property
    def cites(self) -> str:
        """The cell, as ``securefed audit`` names it."""
        return f"{self.attack} on {self.exposure}, {self.defence}"


class LedgerEvidence(_Evidence):
    """A value of the run's ledger."""

    type: Literal["ledger"]
    ledger: LedgerName
    accept: Bound

    @property
    def cites(self) -> str:
        """The value's name."""
        return self.ledger


class ManualEvidence(_Evidence):
    """What no software can answer: a signed statement of whoever must.

    ``manual`` is its short name, ``asks`` the question, ``who`` the role that must answer.
    """

    type: Literal["manual"]
    manual: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    asks: Said
    who: Said

    @property
    def cites(self) -> str:
        """The statement's short name."""
        return self.manual


Evidence = Annotated[
    TestEvidence | AttackEvidence | LedgerEvidence | ManualEvidence, Field(discriminator="type")
]


class ResidualRisk(Strict):
    """What is left when the claim holds."""

    level: Level
    statement: Said
    accepted_by: Words | None = None


class Claim(Named):
    """What is said to hold against some threats, and what shows it."""

    id: Annotated[str, Field(pattern=r"^C-[a-z0-9-]+$")]
    threats: Annotated[list[str], Field(min_length=1)]
    statement: Said
    kind: Literal["cryptographic", "differential-privacy", "empirical", "procedural"]
    applies_when: Conditions = Field(default={})
    assumptions: Annotated[list[Said], Field(min_length=1)]
    controls: list[Control]
    evidence: Annotated[list[Evidence], Field(min_length=1)]
    residual_risk: ResidualRisk


class OutOfScope(Strict):
    """A threat that nothing is claimed against; ``threat`` is an id or words."""

    threat: Said
    reason: Said
    demonstrated_by: TestId | None = None


class ThreatModel(Strict):
    """One adversary's whole file."""

    schema_version: Literal[2]
    id: Annotated[str, Field(pattern=r"^TM-[a-z0-9-]+$")]
    title: Said
    taxonomies: Taxonomies
    system: System
    assets: Annotated[list[Asset], Field(min_length=1)]
    actors: Annotated[list[Actor], Field(min_length=1)]
    threats: Annotated[list[Threat], Field(min_length=1)]
    claims: Annotated[list[Claim], Field(min_length=1)]
    out_of_scope: Annotated[list[OutOfScope], Field(min_length=1)]

    _source: Document | None = PrivateAttr(default=None)

    @property
    def name(self) -> str:
        """Of its file; its id where it is from none."""
        return self.id if self._source is None else self._source.name

    def where(self, *place: str | int) -> str:
        """``file:line`` of a place in it."""
        at: Place = place
        return self.id if self._source is None else self._source.where(at)

    def line(self, *place: str | int) -> int | None:
        """The line of a place in its file, from 1."""
        return None if self._source is None else self._source.line(place)


def threat_model_schema() -> str:
    """The JSON Schema, as text; ``securefed/schemas/threat-model.json`` is this."""
    schema: dict[str, Any] = ThreatModel.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["$id"] = "urn:securefed:schema:threat-model-2"
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"
