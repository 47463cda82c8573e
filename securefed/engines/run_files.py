"""The files of a run folder, compared with what the run's ledger says of them.  Needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from securefed.engines.accounts import ACCOUNT, HISTOGRAM_ACCOUNT
from securefed.engines.attempts import History
from securefed.engines.comparing import require_same
from securefed.engines.openings import OPENINGS
from securefed.engines.recorded import recorded_event
from securefed.engines.settings import Settings
from securefed.errors import LedgerTampered
from securefed.evidence.chain import head_path, read_records
from securefed.evidence.ledger import Record
from securefed.evidence.reading import open_regular
from securefed.lora.provenance import PROVENANCE_FILE


def check_config(folder: Path, genesis: Mapping[str, Any]) -> None:
    """Compare the settings in a run folder with those that its ledger names.

    Raises:
        LedgerTampered: the file is another one.
    """
    path = folder / "config.toml"
    try:
        found = _sha256(path)
    except OSError as error:
        raise LedgerTampered(f"{path}: cannot be read ({error.strerror})") from None
    if found != genesis["config_sha256"]:
        raise LedgerTampered(f"{path}: is not the file that the ledger names")


def released_files(folder: Path) -> dict[str, str]:
    """SHA-256 of what a finished run hands on or shows, by path inside the run folder."""
    paths = [
        folder / "metrics.jsonl",
        folder / "shown.json",
        *(folder / "adapter").rglob("*"),
        *(folder / "ranks").rglob("*"),
    ]
    return {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in sorted(paths)
        if path.is_file()
    }


def _sha256(path: Path) -> str:
    """Of a file of any length, a piece at a time."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def uncovered(folder: Path, covered: set[str]) -> list[str]:
    """What lies in a folder besides the files named.

    Args:
        folder: the folder.
        covered: paths of files inside it, with ``/``.

    Returns:
        Sorted paths inside the folder.  A folder without a covered file stands as one, with a
        ``/`` at its end; so does an empty one.  Links are not followed, and no link is covered.
    """
    found: list[str] = []

    def walk(path: Path, inside: str) -> None:
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            name = inside + entry.name
            if entry.is_dir(follow_symlinks=False):
                if any(file.startswith(f"{name}/") for file in covered):
                    walk(path / entry.name, f"{name}/")
                else:
                    found.append(f"{name}/")
            elif name not in covered or entry.is_symlink():
                found.append(name)

    walk(folder, "")
    # A name with a line break in it must not look like a finding.
    return [name if name.isprintable() else ascii(name) for name in found]


def _ledger_paths(cohort: list[str], settings: Settings) -> list[Path]:
    names = (ACCOUNT, *([HISTOGRAM_ACCOUNT] if settings.histograms is not None else []))
    accounts = [Path("clients") / name / account for name in cohort for account in names]
    return [
        Path("ledger.jsonl"),
        *accounts,
        *([OPENINGS] if settings.aggregation.has_decryptor else []),
    ]


def ledger_files(cohort: list[str], settings: Settings) -> set[str]:
    """Paths of all ledgers of a run and their heads, inside the run folder, with ``/``."""
    paths = _ledger_paths(cohort, settings)
    return {path.as_posix() for ledger in paths for path in (ledger, head_path(ledger))}


def check_files(folder: Path, recorded: Mapping[str, str]) -> None:
    """Compare what a finished run hands on with the hashes in its ledger.

    Raises:
        LedgerTampered: names the first file that is not the same.
    """
    found = released_files(folder)
    for name in sorted(set(found) | set(recorded)):
        if found.get(name) != recorded.get(name):
            raise LedgerTampered(f"{folder / name}: is not the file that the ledger names")


def check_shown(folder: Path, records: list[Record], history: History, settings: Settings) -> None:
    """Compare the lines and the adapter that a finished run shows with its ledger.

    Raises:
        LedgerTampered: a line says otherwise than the ledger, or the adapter is not the state that
            was applied last.
    """
    path = folder / "metrics.jsonl"
    lines = _text(path).splitlines()
    if len(lines) != history.applied + 1:
        raise LedgerTampered(f"{path}: {len(lines)} lines, {history.applied + 1} rounds are shown")
    for number, line in enumerate(lines):
        expected = json.loads(json.dumps(recorded_event(records, number, settings).to_record()))
        require_same(json.loads(line), expected, f"{path}: line {number + 1}")
    path = folder / "adapter" / PROVENANCE_FILE
    provenance = json.loads(_text(path))
    if provenance["state_sha256"] != history.adapter:
        raise LedgerTampered(f"{path}: is not of the adapter that the ledger applied last")
    if provenance["base_fingerprint"] != records[0].body["model_fingerprint"]:
        raise LedgerTampered(f"{path}: is of other base weights than the ledger's first record")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise LedgerTampered(f"{path}: a finished run has it, and {error.strerror}") from None


def torn_tails(folder: Path, cohort: list[str], settings: Settings) -> list[str]:
    """The ledgers that end in a line that is no record, in words."""
    found = []
    for name in sorted(_ledger_paths(cohort, settings)):
        records, torn = read_records(folder / name)
        if torn:
            found.append(f"{folder / name}: line {len(records) + 1}: {len(torn)} bytes, no record")
    return found
