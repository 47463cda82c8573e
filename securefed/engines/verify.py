"""Check a run folder: chains, charges, and epsilon recomputed from them.  Needs no torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import securefed
from securefed.config import load_config
from securefed.engines.settings import Settings
from securefed.errors import ConfigError, LedgerTampered
from securefed.evidence.budget import CHARGE
from securefed.evidence.ledger import Record, read_ledger
from securefed.privacy.accounting import ADVERSARIES, epsilon_text

_FIGURES = ("against", "epsilon", "delta", "rounds")


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        finished: the run has a closing record.
        charges: most masked inputs any client charged.
        lines: findings in words.
    """

    finished: bool
    charges: int
    lines: list[str]


def verify_run(folder: Path) -> Verdict:
    """Verify a run's ledger and its clients' accounts, and recompute what the run claims.

    The verdict is "self-consistent": whoever can write the whole folder can write another one that
    is consistent too.

    Raises:
        ConfigError: the folder holds no run.
        LedgerTampered: a chain, a count or a claim does not hold; the message says which.
    """
    ledger = folder / "ledger.jsonl"
    for path in (ledger, folder / "config.toml"):
        if not path.is_file():
            raise ConfigError(f"{path} is missing; not a run folder")
    records = read_ledger(ledger)
    try:
        return _verify(folder, records)
    except (KeyError, TypeError, AttributeError) as error:
        raise LedgerTampered(f"{ledger}: a record lacks what it must hold ({error})") from None


def _verify(folder: Path, records: list[Record]) -> Verdict:
    ledger = folder / "ledger.jsonl"
    genesis = records[0].body
    text = (folder / "config.toml").read_bytes()
    if hashlib.sha256(text).hexdigest() != genesis["config_sha256"]:
        raise LedgerTampered(f"{folder / 'config.toml'}: is not the file that the ledger names")
    settings = Settings(
        load_config(folder / "config.toml"),
        sizes={str(name): int(size) for name, size in genesis["client_sizes"].items()},
        dimension=int(genesis["privacy"]["dimension"]),
    )
    _require_same(genesis["privacy"], settings.record(), f"{ledger}: privacy of the first record")
    charges = check_accounts(folder, records, settings.event())
    lines = [
        f"ledger: {len(records)} records, chain and head hold",
        f"clients' accounts: {len(genesis['cohort'])}, chains hold and fit the ledger; at most "
        f"{charges} rounds charged",
    ]
    closing = records[-1] if records[-1].kind == "closed" else None
    if closing is not None:
        if closing.body["charges"] != charges:
            raise LedgerTampered(
                f"{ledger}: closes with {closing.body['charges']} charges, the accounts hold "
                f"{charges}"
            )
        _check_files(folder, closing.body["files"])
        named = ", ".join(["config.toml", *sorted(closing.body["files"])])
        lines.append(f"files that hold what the ledger says: {named}")
        lines.append("files that no check covers: rounds.svg, costs.json, checkpoints/")
    for position, who in enumerate(ADVERSARIES):
        statement = settings.guarantee(who, charges)
        if closing is not None:
            claimed, found = closing.body["guarantees"][position], statement.to_record()
            if genesis["software"] != f"securefed {securefed.__version__}":
                # Another version may word a statement differently; its figures must be the same.
                claimed, found = ({k: r[k] for k in _FIGURES} for r in (claimed, found))
            _require_same(claimed, found, f"{ledger}: claim against {who}")
        lines.append(
            f"epsilon against {who}: {epsilon_text(statement.epsilon)} "
            f"({settings.stated.unit} level, delta {statement.delta:g}), recomputed"
        )
    lines.append("finished" if closing is not None else "not finished: resume it or leave it")
    return Verdict(finished=closing is not None, charges=charges, lines=lines)


def check_accounts(folder: Path, records: list[Record], event: Mapping[str, Any]) -> int:
    """Compare each client's account with the run's ledger.

    Args:
        folder: the run folder.
        records: its ledger, verified.
        event: the privacy event that every round of this run is.

    Returns:
        The most charges of any client.

    Raises:
        LedgerTampered: an account is missing, is another client's, charges what was never opened,
            or lacks a charge for a sum that the client is in.
    """
    genesis = records[0].body
    opened = {}
    for record in records:
        if record.kind == "round_opened":
            named = {key: record.body[key] for key in event}
            _require_same(named, dict(event), f"round {record.body['round']} of the ledger")
            opened[record.body["session"]] = record.body
    accounts = folder / "clients"
    names = sorted(path.name for path in accounts.iterdir()) if accounts.is_dir() else []
    if names != sorted(genesis["cohort"]):
        raise LedgerTampered(f"{accounts}: holds accounts of {names}, not of the run's cohort")
    charged: dict[str, set[str]] = {}
    for name in names:
        path = accounts / name / "budget.jsonl"
        if not path.is_file():
            raise LedgerTampered(f"{path} is missing")
        own = read_ledger(path)
        expected = {"client": name, "privacy": genesis["privacy"]}
        _require_same(own[0].body, expected, f"{path}: first record")
        sessions = [record.body["session"] for record in own if record.kind == CHARGE]
        if len(set(sessions)) != len(sessions) or not set(sessions) <= set(opened):
            raise LedgerTampered(f"{path}: charges a session twice, or one that was never opened")
        charged[name] = set(sessions)
    for record in records:
        if record.kind != "round_summed":
            continue
        session = record.body["session"]
        if session not in opened:
            raise LedgerTampered(f"ledger line {record.seq + 1}: sums a round never opened")
        for name in record.body["survivors"]:
            if session not in charged.get(name, set()):
                raise LedgerTampered(
                    f"{accounts / name}: no charge for round {record.body['round']}, whose sum "
                    "this client is in"
                )
    return max(len(sessions) for sessions in charged.values())


def released_files(folder: Path) -> dict[str, str]:
    """SHA-256 of what a finished run hands on, by path inside the run folder."""
    paths = [folder / "metrics.jsonl", *sorted((folder / "adapter").rglob("*"))]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file()
    }


def _check_files(folder: Path, recorded: Mapping[str, str]) -> None:
    found = released_files(folder)
    for name in sorted(set(found) | set(recorded)):
        if found.get(name) != recorded.get(name):
            raise LedgerTampered(f"{folder / name}: is not the file that the ledger names")


def _require_same(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Equal up to the last digits of a float: libraries round differently on other machines."""
    for key in sorted(set(found) | set(expected)):
        one, other = found.get(key), expected.get(key)
        if isinstance(one, float | int) and isinstance(other, float | int):
            same = math.isclose(one, other, rel_tol=1e-9)
        else:
            same = one == other
        if not same:
            raise LedgerTampered(f"{where}: {key} = {one!r}, recomputed {other!r}")
