"""Check a run folder: chains, charges, and epsilon recomputed from them.  Needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import securefed
from securefed.config import RunConfig, load_config
from securefed.engines.attempts import (
    ACCOUNT,
    HISTOGRAM_ACCOUNT,
    ROUND_SUMMED,
    History,
    check_accounts,
    check_histogram_accounts,
    read_history,
    require_same,
)
from securefed.engines.histogram_settings import histogram_guarantees
from securefed.engines.openings import OPENINGS, check_openings
from securefed.engines.recorded import check_measured, recorded_event
from securefed.engines.run_plan import RunPlan
from securefed.engines.settings import Settings, unit_name
from securefed.errors import ConfigError, LedgerTampered, OverflowBoundError
from securefed.evidence.chain import head_path, read_records
from securefed.evidence.ledger import Record, read_ledger
from securefed.lora.provenance import PROVENANCE_FILE
from securefed.privacy.accounting import ADVERSARIES, epsilon_text

_FIGURES = ("against", "epsilon", "delta", "rounds")
_NAMED = 6


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        finished: the run has a closing record.
        charges: most masked inputs any client charged, by the rule in :mod:`.attempts`.
        lines: findings in words.
    """

    finished: bool
    charges: int
    lines: list[str]


@dataclass(frozen=True)
class VerifiedRun:
    """A run folder whose parts fit each other.

    Attributes:
        records: of the ledger.
        settings: what the run file means for the cohort.
        history: the run so far.
        charged: charges of each client, by the same rule.
        histogram_charges: most histograms of held-out figures any client charged.
        opened: how many sums the decryptor opened; None where there is none.
        ignored: what a kill may have left and no record speaks of, in words.
    """

    records: list[Record]
    settings: Settings
    history: History
    charged: dict[str, int]
    histogram_charges: int
    opened: int | None
    ignored: list[str]

    @property
    def charges(self) -> int:
        """As in :class:`Verdict`."""
        return max(self.charged.values())


def verify_run(folder: Path) -> Verdict:
    """Verify a run's ledger and its clients' accounts, and recompute what the run claims.

    The verdict is "self-consistent": whoever can write the whole folder can write another one that
    is consistent too.  Which paths were not compared with anything is among the findings.

    Raises:
        ConfigError: the folder holds no run.
        LedgerTampered: a chain, a count or a claim does not hold; the message says which.
    """
    run = verified_run(folder)
    genesis, history, charges = run.records[0].body, run.history, run.charges
    unended = "; 1 attempt has no recorded end and counts for every client" if history.open else ""
    lines = [
        f"ledger: {len(run.records)} records, chain and head hold",
        f"clients' accounts: {len(genesis['cohort'])}, chains hold and fit the ledger; at most "
        f"{charges} rounds charged{unended}",
        _told_of_figures(run),
    ]
    if run.settings.ranks is not None:
        lines.append(_told_slices(run.records, run.settings.ranks.tiers.ranks))
    if run.opened is not None:
        lines.append(
            f"decryptor's ledger: chain holds; {run.opened} openings on record, one for each sum "
            f"of the ledger ({len(history.survivors)}) and none of one that was not begun (whether "
            "it wrote down all that it opened, this cannot show)"
        )
    files = sorted(history.closed["files"]) if history.closed is not None else []
    lines.extend(run.ignored)
    lines.append(f"files that hold what the ledger says: {', '.join(['config.toml', *files])}")
    covered = {"config.toml", *files, *_ledgers(genesis["cohort"], run.settings)}
    loose = ", ".join(uncovered(folder, covered))
    lines.append(f"paths that no check covers: {loose or 'none'}")
    for who in ADVERSARIES:
        statement = run.settings.guarantee(who, charges)
        lines.append(
            f"epsilon against {who}: {epsilon_text(statement.epsilon)} "
            f"({unit_name(run.settings.config)}, delta {statement.delta:g}), recomputed"
        )
    lines.extend(_participation(run))
    for who, spent in histogram_guarantees(run.settings.histograms, run.histogram_charges).items():
        lines.append(
            f"held-out figures: epsilon against {who}: {epsilon_text(spent.epsilon)} (one client, "
            f"delta {spent.delta:g}, {spent.rounds} histograms), recomputed"
        )
    finished = history.closed is not None
    resumable = run.settings.config.privacy.resumable
    unfinished = f"not finished{': resume it or leave it' * resumable}"
    lines.append("finished" if finished else unfinished)
    return Verdict(finished=finished, charges=charges, lines=lines)


def _told_slices(records: list[Record], ranks: Sequence[int]) -> str:
    """How many slices were opened, each among survivors enough, and how many stayed closed."""
    summed = [record.body for record in records if record.kind == ROUND_SUMMED]
    closed = sum(len(body["closed"]) for body in summed)
    return (
        f"slices at ranks {', '.join(map(str, ranks))}: of {len(summed) * len(ranks)} sums in "
        f"{len(summed)} rounds {closed} stayed closed; the others hold survivors enough, each a "
        "client of that rank or above"
    )


def _told_of_figures(run: VerifiedRun) -> str:
    """How held-out figures were measured, in words."""
    history = run.history
    if run.settings.histograms is None:
        own = run.settings.config.personal.told
        return (
            f"held-out figures: {len(history.unnoised)} sums without noise were begun and "
            f"{sum(history.unnoised.values())} recorded; they stand outside the guarantee"
            + ", the last of adapters made from training data without noise"
            * own
        )
    return (
        f"held-out figures: {len(history.histograms)} noised histograms were begun, at most "
        f"{run.histogram_charges} charged by a client; accounts fit the ledger, and no exact "
        "figure was summed"
    )


def verified_run(folder: Path) -> VerifiedRun:
    """What :func:`verify_run` is made from.

    Raises:
        ConfigError, LedgerTampered: as there.
    """
    ledger = folder / "ledger.jsonl"
    for path in (ledger, folder / "config.toml"):
        if not path.is_file():
            raise ConfigError(f"{path} is missing; not a run folder")
    records = read_ledger(ledger)
    try:
        return _verified(folder, records)
    except ConfigError:  # it is a ValueError, and of the run file
        raise
    except (KeyError, TypeError, AttributeError) as error:
        raise LedgerTampered(f"{ledger}: a record lacks what it must hold ({error})") from None


def _verified(folder: Path, records: list[Record]) -> VerifiedRun:
    ledger, genesis = folder / "ledger.jsonl", records[0].body
    check_config(folder, genesis)
    config = load_config(folder / "config.toml")
    try:
        settings = Settings(
            config,
            sizes={str(name): int(size) for name, size in genesis["client_sizes"].items()},
            dimension=int(genesis["privacy"]["dimension"]),
            widths=genesis["privacy"].get("widths"),
            noise_multiplier=float(genesis["privacy"]["noise_multiplier"]),
            run_plan=recorded_plan(genesis, config),
        )
    except (ValueError, OverflowBoundError) as error:  # ConfigError is a ValueError
        raise LedgerTampered(f"{ledger}: figures of the first record: {error}") from None
    require_same(genesis["privacy"], settings.record(), f"{ledger}: privacy of the first record")
    require_same(
        genesis.get("histograms", {}),
        {} if settings.histograms is None else settings.histograms.record(),
        f"{ledger}: histograms of the first record",
    )
    history = read_history(ledger, records, settings)
    charged = check_accounts(folder, genesis, history, settings.cohorts)
    charges = max(charged.values())
    histogram_charges = check_histogram_accounts(folder, genesis, history)
    opened = (
        check_openings(folder, genesis, history) if settings.aggregation.has_decryptor else None
    )
    if history.closed is not None:
        _check_claims(ledger, history, settings, charges, histogram_charges)
        _check_files(folder, history.closed["files"])
        check_measured(ledger, records, history.applied, settings, histogram_charges)
        _check_shown(folder, records, history, settings)
    torn = _torn_tails(folder, genesis["cohort"], settings)
    if history.closed is not None and torn:
        raise LedgerTampered(f"{torn[0]}; the run was closed before it")
    ignored = [f"ignored: {tail}; a kill can leave it, and --resume cuts it off" for tail in torn]
    return VerifiedRun(records, settings, history, charged, histogram_charges, opened, ignored)


def _participation(run: VerifiedRun) -> list[str]:
    """What clients spent where a plan has some of them in some rounds only, in words."""
    plan, settings = run.settings.run_plan, run.settings
    if plan is None or not plan.skips:
        return []
    groups: dict[tuple[int, int], list[str]] = {}
    for name, count in sorted(run.charged.items()):
        groups.setdefault((plan.given(name).period, count), []).append(name)
    found = []
    for (period, count), names in sorted(groups.items()):
        who = ", ".join(names) if len(names) <= _NAMED else f"{len(names)} clients"
        turn = "every round" if period == 1 else f"one of {period} rounds"
        spent = epsilon_text(settings.epsilon_after(count))
        found.append(
            f"plan: {who} in {turn}: {count} charge{'s' * (count != 1)}, epsilon {spent} against "
            f"{settings.accounted} ({unit_name(settings.config)}, delta {settings.stated.delta:g})"
        )
    return found


def _torn_tails(folder: Path, cohort: list[str], settings: Settings) -> list[str]:
    """The ledgers that end in a line that is no record, in words."""
    found = []
    for name in sorted(_ledger_paths(cohort, settings)):
        records, torn = read_records(folder / name)
        if torn:
            found.append(f"{folder / name}: line {len(records) + 1}: {len(torn)} bytes, no record")
    return found


def check_config(folder: Path, genesis: Mapping[str, Any]) -> None:
    """Compare the settings in a run folder with those that its ledger names.

    Raises:
        LedgerTampered: the file is another one.
    """
    path = folder / "config.toml"
    if hashlib.sha256(path.read_bytes()).hexdigest() != genesis["config_sha256"]:
        raise LedgerTampered(f"{path}: is not the file that the ledger names")


def recorded_plan(genesis: Mapping[str, Any], config: RunConfig) -> RunPlan | None:
    """The plan that a run carries out, by its first record; None where the run file asks for none.

    Raises:
        ConfigError: there is none where there must be one, or the other way round; or it does not
            follow from its figures and the run file.
    """
    if ("plan" in genesis) != config.cohort.schedule.carry_out:
        raise ConfigError(
            f"plan: {'given' if 'plan' in genesis else 'missing'}, and cohort.schedule.carry_out = "
            f"{config.cohort.schedule.carry_out}"
        )
    return RunPlan.of_record(genesis["plan"], config) if "plan" in genesis else None


def _check_claims(
    ledger: Path, history: History, settings: Settings, charges: int, histogram_charges: int
) -> None:
    closed = history.closed or {}
    if closed["charges"] != charges:
        raise LedgerTampered(
            f"{ledger}: closes with {closed['charges']} charges, the accounts hold {charges}"
        )
    if len(closed["guarantees"]) != len(ADVERSARIES):
        raise LedgerTampered(
            f"{ledger}: closes with {len(closed['guarantees'])} statements, not {len(ADVERSARIES)}"
        )
    recomputed = [settings.guarantee(who, charges) for who in ADVERSARIES]
    claims = list(closed["guarantees"])
    if settings.histograms is not None:
        claimed_charges = closed["histograms"]["charges"]
        if claimed_charges != histogram_charges:
            raise LedgerTampered(
                f"{ledger}: closes with {claimed_charges} charged histograms, the accounts hold "
                f"{histogram_charges}"
            )
        recomputed += histogram_guarantees(settings.histograms, histogram_charges).values()
        claims += closed["histograms"]["guarantees"]
    if len(claims) != len(recomputed):
        raise LedgerTampered(f"{ledger}: closes with {len(claims)} statements in all")
    for claimed, statement in zip(claims, recomputed, strict=True):
        found = statement.to_record()
        if history.software != software():
            # Another version may word a statement differently; its figures must be the same.
            claimed, found = ({k: r[k] for k in _FIGURES} for r in (claimed, found))
        require_same(claimed, found, f"{ledger}: claim against {statement.against}")


def _check_shown(folder: Path, records: list[Record], history: History, settings: Settings) -> None:
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
    if json.loads(_text(path))["state_sha256"] != history.adapter:
        raise LedgerTampered(f"{path}: is not of the adapter that the ledger applied last")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise LedgerTampered(f"{path}: a finished run has it, and {error.strerror}") from None


def software() -> str:
    """Name and version of this package, as ledgers hold it."""
    return f"securefed {securefed.__version__}"


def released_files(folder: Path) -> dict[str, str]:
    """SHA-256 of what a finished run hands on or shows, by path inside the run folder."""
    paths = [
        folder / "metrics.jsonl",
        folder / "shown.json",
        *(folder / "adapter").rglob("*"),
        *(folder / "ranks").rglob("*"),
    ]
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(paths)
        if path.is_file()
    }


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


def _ledgers(cohort: list[str], settings: Settings) -> set[str]:
    paths = _ledger_paths(cohort, settings)
    return {path.as_posix() for ledger in paths for path in (ledger, head_path(ledger))}


def _check_files(folder: Path, recorded: Mapping[str, str]) -> None:
    found = released_files(folder)
    for name in sorted(set(found) | set(recorded)):
        if found.get(name) != recorded.get(name):
            raise LedgerTampered(f"{folder / name}: is not the file that the ledger names")
