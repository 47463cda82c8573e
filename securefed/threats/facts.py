"""What is known of a run that claims are judged by; put together by whoever verified it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from securefed.config import RunConfig
from securefed.evidence.chain import Record
from securefed.evidence.results import AttackDocument
from securefed.threats.conditions import RUN_FACTS, UNKNOWN, look_up
from securefed.threats.ledger_names import LedgerName
from securefed.threats.ledger_values import Beside, LedgerValue, ledger_value
from securefed.threats.statements import SignedStatement
from securefed.threats.verdicts import Reference


@dataclass(frozen=True)
class MeasuredAttack:
    """A signed result of an attack, where it stands, and whether the reader knows the signer."""

    document: AttackDocument
    reference: Reference
    anchored: bool


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """A run, as far as it is known: with no records it is a run file alone.

    Attributes:
        config: the run file.
        records: of the run's ledger, verified.
        beside: counts of other files.
        source_sha256: of the code that made the run; None where nothing says.
        model_fingerprint: of the base weights; None where nothing says.
        attacks: results that were measured on it.
        statements: that people signed.
    """

    config: RunConfig
    records: Sequence[Record] = ()
    beside: Beside = field(default_factory=Beside)
    source_sha256: str | None = None
    model_fingerprint: str | None = None
    attacks: Sequence[MeasuredAttack] = field(default=())
    statements: Sequence[SignedStatement] = field(default=())

    @property
    def run(self) -> str | None:
        """What the run is called in signed statements: the hash of its ledger's first record."""
        return self.records[0].hash if self.records else None

    def value(self, path: str) -> Any:
        """As :class:`~securefed.threats.conditions.Facts` wants it."""
        if path not in RUN_FACTS:
            return look_up(self.config, path)
        if not self.records:
            return UNKNOWN
        first = self.records[0].body
        if path == "run.clients":
            return len(first["cohort"])
        if path == "run.rounds":
            return sum(record.kind == "round_summed" for record in self.records)
        return first["privacy"][path.removeprefix("run.")]

    def ledger_value(self, name: LedgerName) -> LedgerValue:
        """A value of the ledger."""
        return ledger_value(name, self.records, self.beside)

    def comparable(self) -> dict[str, JsonValue]:
        """The run file as results of attacks hold it; see :func:`comparable`."""
        return comparable(self.config.model_dump(mode="json", exclude_none=True))


def comparable(config: dict[str, Any]) -> dict[str, Any]:
    """A run file's values without what a measurement does not depend on.

    That is: what the run is called, and where model and data lie (a folder's last name is kept, as
    results keep it).
    """
    found = {name: value for name, value in config.items() if name != "output"}
    for section in ("model", "data"):
        found[section] = found[section] | {"source": Path(found[section]["source"]).name}
    return found
