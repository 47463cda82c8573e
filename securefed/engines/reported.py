"""Whether ``report/report.json`` says what the run folder says.  Needs no torch.

The report is read as plain JSON and compared in two ways.  What it says of the run as a whole and
of each guarantee is compared with what ``verify`` recomputed.  And every figure in it is looked up
where it says that it stands: a figure is an object with ``value`` and ``references``, a reference a
line of a ledger or a file, and a JSON pointer.  Words are not compared here: they are made from the
figures by the package's own catalogue.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from securefed.engines.histogram_settings import histogram_guarantees
from securefed.engines.verified import VerifiedRun
from securefed.errors import LedgerTampered
from securefed.privacy.accounting import ADVERSARIES, PrivacyGuarantee

REPORT = Path("report") / "report.json"

_BYTES_LIMIT = 1 << 26
_MISSING = object()


@dataclass(frozen=True)
class ReportCheck:
    """A report that says what the run says.

    Attributes:
        anchored: it says that the keys behind it are anchored.
        looked_up: references that hold the figure that is shown beside them.
        outside: references to files outside the run folder, which were not looked up.
    """

    anchored: bool
    looked_up: int
    outside: int


def check_report(folder: Path, run: VerifiedRun) -> ReportCheck | None:
    """Compare the report in a run folder, if there is one.

    Args:
        folder: the run folder.
        run: what was verified.

    Returns:
        How much was compared; None where there is no report.

    Raises:
        LedgerTampered: names the place in the report, and what it should say.
    """
    path = folder / REPORT
    if not path.exists():
        return None
    try:
        with path.open("rb") as file:
            report = json.loads(_bounded(file.read(_BYTES_LIMIT + 1)))
    except (OSError, ValueError, RecursionError) as error:
        raise LedgerTampered(f"{path}: cannot be read as JSON ({type(error).__name__})") from None
    if not isinstance(report, dict):
        raise LedgerTampered(f"{path}: is no report")
    return compare_report(report, run, folder)


def compare_report(report: Mapping[str, Any], run: VerifiedRun, folder: Path) -> ReportCheck:
    """Compare a report with the run that it is about.

    Args:
        report: the content of ``report.json``.
        run: what was verified.
        folder: the run folder, in which references lie.

    Raises:
        LedgerTampered: names the place in the report, and what it should say.
    """
    return _Comparison(report, run, folder).findings()


def _bounded(data: bytes) -> bytes:
    if len(data) > _BYTES_LIMIT:
        raise ValueError("too long")
    return data


class _Comparison:
    def __init__(self, report: Mapping[str, Any], run: VerifiedRun, folder: Path) -> None:
        self._report, self._run, self._folder = report, run, folder
        self._read: dict[str, Any] = {}

    def findings(self) -> ReportCheck:
        anchored = self._check_identity()
        self._check_statements()
        looked_up = outside = 0
        for where, figure in _figures(self._report, ""):
            missed = self._check_figure(where, figure)
            looked_up += len(figure["references"]) - missed
            outside += missed
        return ReportCheck(anchored, looked_up, outside)

    def _refuse(self, where: str, what: str) -> NoReturn:
        raise LedgerTampered(f"{self._folder / REPORT}: {where}: {what}")

    def _same(self, where: str, found: object, expected: object) -> None:
        if not _equal(found, expected):
            self._refuse(where, f"says {found!r}, and {expected!r} is what was recomputed")

    def _check_identity(self) -> bool:
        """Returns whether the report says that it is anchored."""
        identity = self._report.get("identity")
        if not isinstance(identity, Mapping):
            self._refuse("/identity", "is missing")
        records = self._run.records
        genesis = records[0].body
        expected: dict[str, object] = {
            "genesis": records[0].hash,
            "head": records[-1].hash,
            "records": len(records),
            "finished": self._run.history.closed is not None,
            "model": genesis["model"],
            "weights": genesis.get("model_fingerprint"),
            "software": genesis["software"],
            "source_sha256": genesis.get("source_sha256"),
            "dependencies": genesis.get("dependencies", {}),
        }
        for name, value in expected.items():
            self._same(f"/identity/{name}", identity.get(name), value)
        return identity.get("anchored") is True

    def _statements(self) -> dict[tuple[str, str], PrivacyGuarantee]:
        run = self._run
        held = {
            ("training", str(who)): run.settings.guarantee(who, run.charges) for who in ADVERSARIES
        }
        counted = histogram_guarantees(run.settings.histograms, run.histogram_charges)
        return held | {("held_out", str(who)): one for who, one in counted.items()}

    def _check_statements(self) -> None:
        privacy = self._report.get("privacy")
        said = privacy.get("statements") if isinstance(privacy, Mapping) else None
        if not isinstance(said, list):
            self._refuse("/privacy/statements", "is missing")
        held = self._statements()
        for place, statement in enumerate(said):
            where = f"/privacy/statements/{place}"
            key = (str(_at(statement, "/subject")), str(_at(statement, "/against")))
            guarantee = held.pop(key, None)
            if guarantee is None:
                self._refuse(where, f"is about {key[0]} against {key[1]}: none or a second one")
            record = guarantee.to_record()
            for name in ("epsilon", "delta", "rounds"):
                self._same(f"{where}/{name}", _at(statement, f"/{name}/value"), record[name])
            self._same(f"{where}/protected", _at(statement, "/protected"), guarantee.protected)
            for name in ("unit", "adjacency", "mechanism", "sampling", "accountant"):
                words = _at(statement, f"/{name}/verbatim")
                if words is not _MISSING:
                    self._same(f"{where}/{name}", words, record[name])
        for subject, against in held:
            self._refuse("/privacy/statements", f"lacks that of {subject} against {against}")

    # -- references ------------------------------------------------------------------------

    def _check_figure(self, where: str, figure: Mapping[str, Any]) -> int:
        """Look a figure up; how many of its references are outside the run folder."""
        outside = 0
        for reference in figure["references"]:
            found = self._looked_up(where, reference)
            if found is _MISSING:
                outside += 1
            elif not _equal(found, figure["value"]):
                line = reference.get("line")
                place = f"{reference['path']}{f' line {line}' if line else ''}"
                self._refuse(
                    where,
                    f"says {figure['value']!r}, and {place} holds {found!r} at "
                    f"{reference.get('pointer') or 'that place'}",
                )
        return outside

    def _looked_up(self, where: str, reference: object) -> object:
        """What stands where a reference points; ``_MISSING`` outside the run folder."""
        if not isinstance(reference, Mapping) or not isinstance(reference.get("path"), str):
            self._refuse(where, "has a reference that names no path")
        name = reference["path"]
        path = (self._folder / name).resolve()
        if not path.is_relative_to(self._folder.resolve()) or not path.is_file():
            if reference.get("kind") == "ledger":
                self._refuse(where, f"refers to the ledger {name!r}, which is not there")
            return _MISSING
        pointer, digest = reference.get("pointer") or "", reference.get("sha256")
        if reference.get("kind") == "ledger":
            return self._in_ledger(where, path, reference.get("line"), pointer, digest)
        data = self._once(path, path.read_bytes)
        if digest is not None and hashlib.sha256(data).hexdigest() != digest:
            self._refuse(where, f"refers to a file {name!r} of another SHA-256")
        if not pointer:
            return hashlib.sha256(data).hexdigest()
        return self._in_file(where, path, reference.get("line"), pointer, data)

    def _in_ledger(
        self, where: str, path: Path, line: object, pointer: str, digest: object
    ) -> object:
        lines = self._once(path, lambda: path.read_bytes().splitlines())
        if not isinstance(line, int) or not 1 <= line <= len(lines):
            self._refuse(where, f"refers to line {line!r} of {path.name}, which has {len(lines)}")
        record = json.loads(lines[line - 1])
        if digest is not None and record.get("hash") != digest:
            self._refuse(where, f"refers to a line {line} of {path.name} with another hash")
        for document in (record.get("body"), record):
            found = _at(document, pointer)
            if found is not _MISSING:
                return found
        self._refuse(where, f"refers to {pointer} in line {line} of {path.name}: nothing is there")

    def _in_file(self, where: str, path: Path, line: object, pointer: str, data: bytes) -> object:
        try:
            if isinstance(line, int) and path.suffix == ".jsonl":
                document = json.loads(data.splitlines()[line - 1])
            elif path.suffix == ".toml":
                document = tomllib.loads(data.decode())
            elif path.suffix in (".json", ".jsonl"):
                document = json.loads(data)
            else:
                return _MISSING
        except (ValueError, IndexError):
            self._refuse(where, f"refers to {path.name}, which does not hold that")
        for content in (document, _payload(document)):
            found = _at(content, pointer)
            if found is not _MISSING:
                return found
        if isinstance(document, Mapping) and path.name == "config.toml":
            return self._in_config(where, pointer)
        self._refuse(where, f"refers to {pointer} in {path.name}: nothing is there")

    def _in_config(self, where: str, pointer: str) -> object:
        """A setting that the run file leaves to its default."""
        found = _at(self._run.settings.config.model_dump(mode="json"), pointer)
        if found is _MISSING:
            self._refuse(where, f"refers to {pointer} in config.toml: there is no such setting")
        return found

    def _once(self, path: Path, read: Callable[[], Any]) -> Any:
        key = str(path)
        if key not in self._read:
            self._read[key] = read()
        return self._read[key]


def _figures(value: object, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every figure in a report, and its JSON pointer."""
    if isinstance(value, Mapping):
        if "value" in value and "kind" in value and isinstance(value.get("references"), list):
            yield where, value
        for key, item in value.items():
            yield from _figures(item, f"{where}/{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _figures(item, f"{where}/{index}")


def _payload(document: object) -> object:
    """The payload of a signed document; whose signature it is, others check."""
    encoded = document.get("payload") if isinstance(document, Mapping) else None
    if not isinstance(encoded, str):
        return None
    try:
        return json.loads(base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError):
        return None


def _at(document: object, pointer: str) -> object:
    """What stands at a JSON pointer (RFC 6901), or ``_MISSING``."""
    for part in pointer.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(document, Mapping) and name in document:
            document = document[name]
        elif isinstance(document, list) and name.isdecimal() and int(name) < len(document):
            document = document[int(name)]
        else:
            return _MISSING
    return document


def _equal(found: object, expected: object) -> bool:
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected
    if isinstance(found, float | int) and isinstance(expected, float | int):
        return math.isclose(found, expected, rel_tol=1e-9)
    if isinstance(expected, float) and math.isinf(expected):
        return found == "unprotected"
    return found == expected
