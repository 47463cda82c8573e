"""Whether ``report/report.json`` says of a run and its guarantees what was recomputed.

The report is read as plain JSON.  Its other values are compared by making it anew
(:mod:`securefed.cli.rebuilt`), which needs what reports are made with.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from securefed.engines.histogram_settings import histogram_guarantees
from securefed.engines.verified import VerifiedRun
from securefed.errors import LedgerTampered
from securefed.evidence.reading import read_regular
from securefed.evidence.strict_json import loads_once
from securefed.privacy.accounting import ADVERSARIES, PrivacyGuarantee

REPORT = Path("report") / "report.json"

_BYTES_LIMIT = 1 << 26


def check_report(folder: Path, run: VerifiedRun) -> bool | None:
    """Compare the report in a run folder, if there is one.

    Args:
        folder: the run folder.
        run: what was verified.

    Returns:
        Whether it says that the keys behind it are anchored; None where there is no report.

    Raises:
        LedgerTampered: names the place in the report, and what it should say.
    """
    path = folder / REPORT
    if not path.exists():
        return None
    try:
        report = loads_once(read_regular(path, _BYTES_LIMIT))
    except OSError as error:
        raise LedgerTampered(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise LedgerTampered(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(report, dict):
        raise LedgerTampered(f"{path}: is no report")
    return compare_report(report, run)


def compare_report(report: Mapping[str, Any], run: VerifiedRun) -> bool:
    """Compare what a report says of its run as a whole, and of each guarantee.

    Args:
        report: the content of ``report.json``.
        run: what was verified.

    Returns:
        Whether it says that the keys behind it are anchored.

    Raises:
        LedgerTampered: names the place in the report, and what it should say.
    """
    _check_identity(report.get("identity"), run)
    privacy = report.get("privacy")
    _check_statements(privacy.get("statements") if isinstance(privacy, Mapping) else None, run)
    return report["identity"].get("anchored") is True


def _refuse(where: str, what: str) -> NoReturn:
    raise LedgerTampered(f"{REPORT.as_posix()}: {where}: {what}")


def _require(where: str, found: object, expected: object) -> None:
    if not _equal(found, expected):
        _refuse(where, f"says {reprlib.repr(found)}, and {expected!r} is what was recomputed")


def _check_identity(identity: object, run: VerifiedRun) -> None:
    if not isinstance(identity, Mapping):
        _refuse("/identity", "is missing")
    records = run.records
    genesis = records[0].body
    expected: dict[str, object] = {
        "genesis": records[0].hash,
        "head": records[-1].hash,
        "records": len(records),
        "finished": run.history.closed is not None,
        "model": genesis["model"],
        "weights": genesis.get("model_fingerprint"),
        "software": genesis["software"],
        "source_sha256": genesis.get("source_sha256"),
        "dependencies": genesis.get("dependencies", {}),
    }
    for name, value in expected.items():
        _require(f"/identity/{name}", identity.get(name), value)


def _check_statements(said: object, run: VerifiedRun) -> None:
    if not isinstance(said, list):
        _refuse("/privacy/statements", "is missing")
    held: dict[tuple[object, object], PrivacyGuarantee] = {
        ("training", who): run.settings.guarantee(who, run.charges) for who in ADVERSARIES
    }
    counted = histogram_guarantees(run.settings.histograms, run.histogram_charges)
    held |= {("held_out", who): one for who, one in counted.items()}
    for place, statement in enumerate(said):
        where = f"/privacy/statements/{place}"
        if not isinstance(statement, Mapping):
            _refuse(where, "is no statement")
        key = (statement.get("subject"), statement.get("against"))
        guarantee = held.pop(key, None)
        if guarantee is None:
            _refuse(where, f"is about {key[0]!r} against {key[1]!r}: none, or a second one")
        record = guarantee.to_record()
        for name in ("epsilon", "delta", "rounds"):
            figure = statement.get(name)
            value = figure.get("value") if isinstance(figure, Mapping) else None
            _require(f"{where}/{name}", value, record[name])
        _require(f"{where}/protected", statement.get("protected"), guarantee.protected)
        for name in ("unit", "adjacency", "mechanism", "sampling", "accountant"):
            words = statement.get(name)
            if isinstance(words, Mapping) and "verbatim" in words:
                _require(f"{where}/{name}", words["verbatim"], record[name])
    for subject, against in held:
        _refuse("/privacy/statements", f"lacks that of {subject} against {against}")


def _close(found: object, expected: object) -> bool:
    """Equal numbers but for rounding; an integer that no float holds is none of them."""
    if not (isinstance(found, float | int) and isinstance(expected, float | int)):
        return False
    try:
        return math.isclose(found, expected, rel_tol=1e-9)
    except OverflowError:
        return False


def _equal(found: object, expected: object) -> bool:
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected
    if isinstance(found, float) or isinstance(expected, float):
        return _close(found, expected)
    return found == expected
