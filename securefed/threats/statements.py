"""Signed statements of people, for what no software can answer.

A statement is a file of a run (``statements/*.json``).  It says who speaks by role; a name is not
needed, the key is what counts.  It may expire: what somebody said about an organisation once is not
true for ever.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from securefed.config.base import Section
from securefed.crypto.identity import IdentityKey, IdentityPublicKey
from securefed.errors import RemoteProtocolError
from securefed.evidence.anchoring import read_signed
from securefed.evidence.signing import sign
from securefed.threats.verdicts import Reference

STATEMENT_TYPE = "application/vnd.securefed.statement+json"
"""Payload type of a signed statement."""

STATEMENTS = "statements"
"""Their folder in a run folder."""

_RUN = r"^[0-9a-f]{64}$"


class Statement(Section):
    """What somebody answers to a claim that only people can answer.

    Attributes:
        run: hash of the first record of the run's ledger: a statement is about one run.
        model: id of the threat model.
        claim: id of the claim.
        manual: short name of the question, as the claim has it.
        statement: the answer.
        by: the role of who answers.
        signed_off: the date of it.
        expires: the last date on which it counts; None: it does not expire.
    """

    format: Literal["securefed/statement/1"] = "securefed/statement/1"
    run: Annotated[str, Field(pattern=_RUN)]
    model: str
    claim: str
    manual: str
    statement: Annotated[str, Field(min_length=1, max_length=4000)]
    by: Annotated[str, Field(min_length=1, max_length=200)]
    signed_off: datetime.date
    expires: datetime.date | None = None

    def signed(self, key: IdentityKey) -> dict[str, Any]:
        """The envelope that is stored."""
        return sign(self.model_dump(mode="json"), key, payload_type=STATEMENT_TYPE)


@dataclass(frozen=True)
class SignedStatement:
    """A statement and where it stands."""

    statement: Statement
    reference: Reference
    anchored: bool


def read_statements(
    folder: Path, trusted: Collection[IdentityPublicKey] = ()
) -> list[SignedStatement]:
    """The signed statements of a run.

    Args:
        folder: the run folder.
        trusted: keys whose word counts; statements by others are not anchored.

    Raises:
        ConfigError, RemoteProtocolError: as :func:`read_signed`; or a document is no such one.
    """
    found = []
    for file in read_signed(folder / STATEMENTS, trusted, payload_type=STATEMENT_TYPE):
        name = f"{STATEMENTS}/{file.name}"
        try:
            statement = Statement.model_validate(file.document)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise RemoteProtocolError(f"{folder / name}: {where} is not as must be") from None
        reference = Reference(kind="file", path=name, pointer="/statement", sha256=file.sha256)
        found.append(SignedStatement(statement, reference, file.anchored))
    return found
