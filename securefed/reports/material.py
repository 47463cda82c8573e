"""What a report is made from: facts of a run that were verified before, torch-free.

Whoever writes a report gathers them (``cli/reporting.py``): nothing here is believed that a file of
the run folder says of itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from securefed.config import RunConfig
from securefed.evidence.ledger import Record
from securefed.evidence.results import AttackDocument
from securefed.privacy.accounting import Adversary, PrivacyGuarantee
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.reports.values import Figure, FigureKind
from securefed.secagg.encryption import RoundEncryption
from securefed.secagg.parameters import PairwiseParameters
from securefed.threats.model import ThreatModel
from securefed.threats.verdicts import Judgement, Reference

LEDGER, CONFIG, METRICS, COSTS = "ledger.jsonl", "config.toml", "metrics.jsonl", "costs.json"
VERDICTS = "threats/verdicts.json"


@dataclass(frozen=True)
class AttackFile:
    """A signed result.

    Attributes:
        path: inside the run folder.
        document: what it holds.
        anchored: its signature is by a key that the reader named; else by whatever key lies beside
            it.
    """

    path: str
    document: AttackDocument
    anchored: bool


@dataclass(frozen=True)
class SecondEpsilon:
    """What two other accountants say of a guarantee; see ``Statement.second``.

    Attributes:
        subject, against: of the guarantee.
        least: no smaller epsilon can truly be stated.
        epsilon: what the other accountant states.
    """

    subject: Literal["training", "held_out"]
    against: Adversary
    least: float
    epsilon: float


@dataclass(frozen=True)
class ModelFile:
    """A threat model, and the file in the run folder that it is."""

    path: str
    sha256: str
    model: ThreatModel


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything.

    Attributes:
        config: the run file, and ``task`` and all else that it says.
        records: of the ledger, verified.
        finished, anchored: as of ``Identity``.
        incomplete: why the evidence is not whole, in the words of ``securefed verify``.
        shipped_models: the run keeps no threat models; those of the installation stand for them.
        policy: that statements are about, ``bounds`` of the whole cohort, ``parameters`` of the
            masked rounds, and ``encryption`` where contributions are encrypted.
        guarantees: of training, one for each adversary, recomputed.
        figures: the same of noised held-out figures; empty where there are none.
        second: other accountants' epsilons.
        metrics: lines of ``metrics.jsonl``, from the evaluation before round 1.
        costs: ``costs.json``; None where it was not written.
        attacks: results in the run folder.
        models: threat models that its claims are from.
        judgement: of their claims; None where nobody judged.
        judged_path: where the judgement stands, inside the run folder.
    """

    config: RunConfig
    records: Sequence[Record]
    finished: bool
    anchored: bool
    incomplete: Sequence[str] = ()
    policy: PrivacyPolicy
    bounds: CohortBounds
    parameters: PairwiseParameters
    encryption: RoundEncryption | None = None
    guarantees: Sequence[PrivacyGuarantee]
    figures: Sequence[PrivacyGuarantee] = ()
    second: Sequence[SecondEpsilon] = ()
    metrics: Sequence[Mapping[str, Any]] = ()
    costs: Mapping[str, Any] | None = None
    attacks: Sequence[AttackFile] = ()
    models: Sequence[ModelFile] = ()
    shipped_models: bool = False
    judgement: Judgement | None = None
    judged_path: str = VERDICTS

    @property
    def genesis(self) -> Record:
        """The first record."""
        return self.records[0]

    @property
    def closing(self) -> Record | None:
        """The closing record."""
        return next((record for record in self.records if record.kind == "closed"), None)

    def of_kind(self, kind: str) -> list[Record]:
        """Records of one kind."""
        return [record for record in self.records if record.kind == kind]


def in_ledger(record: Record, pointer: str = "") -> Reference:
    """A place in a record of the run's ledger."""
    return Reference(
        kind="ledger",
        path=LEDGER,
        line=record.seq + 1,
        pointer=pointer or None,
        sha256=record.hash,
    )


def in_file(path: str, pointer: str = "", *, line: int | None = None) -> Reference:
    """A place in a file of the run folder."""
    return Reference(kind="file", path=path, line=line, pointer=pointer or None)


def figure(value: float | str | None, kind: FigureKind, *references: Reference) -> Figure:
    """A figure and where it stands."""
    return Figure(value=value, kind=kind, references=list(references))


def recorded(record: Record, pointer: str, kind: FigureKind) -> Figure:
    """A figure out of a record; None where the record has none there."""
    value = resolve(record.body, pointer)
    return figure(value, kind, in_ledger(record, pointer))


def resolve(document: Any, pointer: str) -> Any:
    """What stands at a JSON pointer (RFC 6901); None where nothing does."""
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(document, Mapping):
            document = document.get(name)
        elif isinstance(document, list) and name.isdecimal() and int(name) < len(document):
            document = document[int(name)]
        else:
            return None
    return document
