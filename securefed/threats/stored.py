"""Results of tests that claims cite: signed, dated, and bound to the code that they are about.

``pytest --threat-models --threat-evidence FILE --threat-key KEY`` writes one document; those that
come with the package lie in ``threat_models/evidence/``.

**What a result depends on.**  All source files of the package together (``source_sha256``, as in a
run's ledger) and the test's own file.  A test may use any module, so that a digest of less could
miss what changed it; one of all goes stale more often than it must, and never too late.  Not
covered: helpers that tests share, other packages, and the machine.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from securefed.config.base import Section
from securefed.crypto.identity import IdentityKey, IdentityPublicKey
from securefed.errors import RemoteProtocolError
from securefed.evidence.anchoring import read_signed
from securefed.evidence.signing import sign
from securefed.threats.verdicts import Digest, Reference

EVIDENCE_TYPE = "application/vnd.securefed.evidence+json"
"""Payload type of a signed document of results."""

Outcome = Literal["passed", "failed", "skipped"]


class TestResult(Section):
    """What one cited test came to, over all of its parameters.

    Attributes:
        test: the node id, as it is cited.
        outcome: ``passed`` only if every case did; ``skipped`` if any was skipped and none failed.
        cases: how many there were.
        seconds: of all of them.
        slow: whether it has that marker.
        date: when it ended, RFC 3339.
        source_sha256: of the package's source files.
        test_sha256: of the test's file.
    """

    __test__ = False

    test: Annotated[str, Field(min_length=1)]
    outcome: Outcome
    cases: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
    slow: bool
    date: str
    source_sha256: Digest
    test_sha256: Digest


class TestResults(Section):
    """A document of results."""

    __test__ = False

    format: Literal["securefed/test-results/1"] = "securefed/test-results/1"
    software: str
    results: list[TestResult]

    def signed(self, key: IdentityKey) -> dict[str, Any]:
        """The envelope that is stored."""
        return sign(self.model_dump(mode="json"), key, payload_type=EVIDENCE_TYPE)


@dataclass(frozen=True)
class Stored:
    """A result and where it stands."""

    result: TestResult
    reference: Reference
    anchored: bool


class StoredTests:
    """All stored results, by node id.

    Args:
        stored: several may be of one test; the last one of the asked code counts.
        root: of a clone, where tests' files can be compared with those that were run; None: they
            are not at hand, and are not compared.
    """

    def __init__(self, stored: Iterable[Stored] = (), *, root: Path | None = None) -> None:
        self._root = root
        self._by_test: dict[str, list[Stored]] = {}
        for each in sorted(stored, key=lambda each: _instant(each.result.date)):
            self._by_test.setdefault(each.result.test, []).append(each)

    def of(self, test: str, source_sha256: str | None) -> Stored | None:
        """The last result of a test, of this code if there is one of it; None: there is none."""
        every = self._by_test.get(test, [])
        same = [each for each in every if each.result.source_sha256 == source_sha256]
        return next(iter(reversed(same or every)), None)

    def why_stale(self, result: TestResult, source_sha256: str | None) -> str:
        """Why a result says nothing about this code; empty where it does."""
        if source_sha256 is None or result.source_sha256 != source_sha256:
            return f"the result of {result.date} is of other code"
        if self._root is not None:
            digest = test_sha256(self._root, result.test)
            if digest != result.test_sha256:
                return f"the result of {result.date} is of another version of the test's file"
        return ""

    def __iter__(self) -> Iterator[Stored]:
        return (each for every in self._by_test.values() for each in every)


def test_sha256(root: Path, test: str) -> str | None:
    """SHA-256 of the file of a test, hexadecimal; None where it is not there.

    Args:
        root: of the clone.
        test: the node id.
    """
    path = root / test.partition("::")[0]
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def read_stored(
    folder: Path,
    trusted: Collection[IdentityPublicKey] = (),
    *,
    shown: str = "",
    root: Path | None = None,
) -> StoredTests:
    """The signed results in a folder.

    Args:
        folder: need not be there.
        trusted: keys whose word counts; results by others are not anchored.
        shown: the folder's path in references; its own without it.
        root: as of :class:`StoredTests`.

    Raises:
        ConfigError, RemoteProtocolError: as :func:`read_signed`; or a document is no such one.
    """
    place = shown or folder.as_posix()
    found = []
    for file in read_signed(folder, trusted, payload_type=EVIDENCE_TYPE):
        try:
            document = TestResults.model_validate(file.document)
        except ValidationError as error:
            where = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise RemoteProtocolError(f"{folder / file.name}: {where} is not as must be") from None
        for number, result in enumerate(document.results):
            reference = Reference(
                kind="file",
                path=f"{place}/{file.name}",
                pointer=f"/results/{number}",
                sha256=file.sha256,
            )
            found.append(Stored(result, reference, file.anchored))
    return StoredTests(found, root=root)


def to_text(envelope: Mapping[str, Any]) -> str:
    """The content of a file of signed results."""
    return json.dumps(envelope, indent=1, sort_keys=True) + "\n"


def _instant(text: str) -> datetime.datetime:
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise RemoteProtocolError(f"date = {text[:40]!r}: is not RFC 3339") from None
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)
