"""A stored report, compared with the one that the run folder gives now.  Needs no torch."""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from securefed.cli.reporting import material
from securefed.engines.reported import REPORT
from securefed.errors import ConfigError, LedgerTampered
from securefed.evidence.anchoring import FILE_LIMIT
from securefed.evidence.reading import read_bounded
from securefed.evidence.software import source_sha256
from securefed.reports.build import build
from securefed.reports.document import Report
from securefed.reports.tracing import trace
from securefed.threats.statements import read_statements

if TYPE_CHECKING:
    from securefed.crypto.identity import IdentityPublicKey
    from securefed.engines.verify import VerifiedRun

_SHOWN = 80
_MOST_EXPIRIES = 16


def check_rebuilt(
    folder: Path, run: VerifiedRun, trusted: Collection[IdentityPublicKey] = ()
) -> list[str]:
    """Make the report of a run once more and compare it with the stored one, word for word.

    Every reference beside a figure is followed, and every other value (verdicts, sentences, rows)
    must be what the same verified facts give.

    Args:
        folder: a run folder that holds a report.
        run: what its verification gave.
        trusted: keys whose signatures on results and statements count.

    Returns:
        Why the comparison is not whole, in words; empty if the reports are the same.

    Raises:
        LedgerTampered: the report is no report, a figure does not stand where it says, or a value
            is another than the facts give; the message names its place.
        ConfigError, RemoteProtocolError: a document of the run is not as it must be.
    """
    path = folder / REPORT
    try:
        data = read_bounded(path, FILE_LIMIT)
        stored = Report.model_validate_json(data)
    except ConfigError as error:
        raise LedgerTampered(str(error)) from None
    except ValidationError as error:
        where = "/".join(str(part) for part in error.errors()[0]["loc"])
        raise LedgerTampered(f"{path}: /{where}: is not as a report has it") from None
    trace(folder, stored)
    made = build(material(folder, run, trusted))
    found, expected = (json.loads(one.to_text()) for one in (stored, made))
    place = next(_differing(found, expected, ""), None)
    if place is None:
        return []
    for date in _expiries(folder, trusted):
        then = datetime.datetime.combine(date, datetime.time(12), tzinfo=datetime.UTC)
        if build(material(folder, run, trusted, now=then)) == stored:
            return [f"{path}: is as of {date.isoformat()}; a signed statement has expired since"]
    pointer, one, other = place
    what = f"{path}: {pointer} is {_shown(one)}, and what was recomputed is {_shown(other)}"
    if _anchors(found) and not _anchors(found) <= _anchors(expected):
        return [
            "the report was made with keys that were not named here (name them by --roster and "
            f"--signer), and differs in that: {what}"
        ]
    if run.records[0].body.get("source_sha256") != source_sha256():
        return [f"{what}; the run was made with other code, and the report perhaps too"]
    raise LedgerTampered(what)


def _expiries(folder: Path, trusted: Collection[IdentityPublicKey]) -> list[datetime.date]:
    """The last days of statements that are over, the latest first."""
    today = datetime.datetime.now(datetime.UTC).date()
    found = {each.statement.expires for each in read_statements(folder, trusted)}
    over = sorted((date for date in found if date is not None and date < today), reverse=True)
    return over[:_MOST_EXPIRIES]


def _differing(one: Any, other: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """The places where two JSON values differ, in order."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in [*one, *(key for key in other if key not in one)]:
            yield from _differing(one.get(key), other.get(key), f"{where}/{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from _differing(left, right, f"{where}/{index}")
    elif one != other:
        yield where, one, other


def _anchors(value: Any, where: str = "") -> set[str]:
    """The places at which a report says that a signature is by a key that the reader named."""
    if isinstance(value, Mapping):
        own = {where} if value.get("anchored") is True else set()
        return own.union(*(_anchors(item, f"{where}/{key}") for key, item in value.items()))
    if isinstance(value, list):
        return set().union(*(_anchors(item, f"{where}/{i}") for i, item in enumerate(value)))
    return set()


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
