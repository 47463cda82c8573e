"""Check a run folder: chains, signatures, charges, and epsilon recomputed.  Needs no torch.

**What the verdict says.**  ``self-consistent, not anchored``: all that is in the folder fits
together, and whoever holds the parties' keys, or makes others, can write another folder that does
too.  ``verified``: the keys in the ledger are those in the roster file that the reader trusts
(``roster``), so whoever wrote another history would have needed the server's key and those of so
many clients that an honest one is among them (:mod:`securefed.evidence.heads`).

**What no verdict says.**  That the parties did what they signed.  A simulation holds all keys at
once: its owner can write any history.  That nothing follows: a run that was cut back to an earlier
head, in all files alike, is an unfinished run and looks like one; keep the last head elsewhere.

**Incomplete** (exit code 3): the run has no closing record, or the last head lacks a quorum of
clients, or the folder was written by a version that kept no witnesses.  **Notes** change nothing:
the code that verifies is another than the code that wrote; all figures are recomputed either way,
and a claim that comes out otherwise is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from securefed.engines.accounts import COPIES
from securefed.engines.histogram_settings import histogram_guarantees
from securefed.engines.reported import REPORT, check_report
from securefed.engines.run_files import (
    ledger_files,
    uncovered,
)
from securefed.engines.second_opinions import told_of_second
from securefed.engines.settings import unit_name
from securefed.engines.verified import VerifiedRun, verified_run
from securefed.engines.witnesses import (
    told_of_witnesses,
)
from securefed.evidence.kinds import ROUND_SUMMED
from securefed.evidence.ledger import Record
from securefed.privacy.accounting import ADVERSARIES, epsilon_text

__all__ = ["Verdict", "VerifiedRun", "verdict_on", "verified_run", "verify_run"]

_FIGURES = ("against", "epsilon", "delta", "rounds")
_NAMED = 6


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        finished: the run has a closing record.
        charges: most masked inputs any client charged, by the rule in :mod:`.attempts`.
        lines: findings in words; the last is the verdict.
        anchored: the keys that signed are those that the reader trusts.
        incomplete: why the evidence is not whole, in words; empty if it is.
    """

    finished: bool
    charges: int
    lines: list[str]
    anchored: bool
    incomplete: list[str]


def verify_run(folder: Path, roster: Path | None = None, *, report: bool = True) -> Verdict:
    """Verify a run's ledger and its clients' accounts, and recompute what the run claims.

    Args:
        folder: the run folder.
        roster: a file with the keys that the reader trusts; None for none.
        report: compare ``report/report.json`` with what was recomputed, if it is there.

    Which paths were not compared with anything is among the findings.

    Raises:
        ConfigError: the folder holds no run, or ``roster`` is no roster.
        LedgerTampered: a chain, a signature, a count, a claim or a figure of the report does not
            hold; the message says which.
    """
    return verdict_on(folder, verified_run(folder, roster), report=report)


def verdict_on(
    folder: Path, run: VerifiedRun, *, report: bool = True, incomplete: Sequence[str] = ()
) -> Verdict:
    """The verdict on a folder that was verified.

    Args:
        folder: the run folder.
        run: what was verified.
        report: as of :func:`verify_run`.
        incomplete: what more keeps the evidence from being whole, in words.

    Raises:
        LedgerTampered: the report says otherwise than what was recomputed.
    """
    compared = check_report(folder, run) if report else None
    lacking = [*run.incomplete, *incomplete]
    if compared and not run.anchored:
        lacking.append("the report says that its keys are anchored, and no roster was named")
    genesis, history, charges = run.records[0].body, run.history, run.charges
    unended = "; 1 attempt has no recorded end and counts for every client" if history.open else ""
    copies = genesis.get("accounts") == COPIES
    whose = (
        f"{COPIES} of clients' accounts, theirs stay with them" if copies else "clients' accounts"
    )
    lines = [
        f"ledger: {len(run.records)} records, chain and head hold",
        f"{whose}: {len(genesis['cohort'])}, chains hold and fit the ledger; at most "
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
    lines.extend(told_of_witnesses(run.heads) if "roster" in genesis else [])
    files = sorted(history.closed["files"]) if history.closed is not None else []
    lines.extend(run.ignored)
    files = sorted({"config.toml", *files, *run.threat_models})
    lines.append(f"files that hold what the ledger says: {', '.join(files)}")
    if compared is not None:
        lines.append(f"{REPORT.as_posix()}: its run and its statements are those recomputed")
    compared_paths = {REPORT.as_posix()} if compared is not None else set()
    covered = {*files, *compared_paths, *ledger_files(genesis["cohort"], run.settings)}
    loose = ", ".join(uncovered(folder, covered))
    lines.append(f"paths that no check covers: {loose or 'none'}")
    for who in ADVERSARIES:
        statement = run.settings.guarantee(who, charges)
        lines.append(
            f"epsilon against {who}: {epsilon_text(statement.epsilon)} "
            f"({unit_name(run.settings.config)}, delta {statement.delta:g}), recomputed"
        )
    lines.extend(told_of_second(each) for each in run.second)
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
    lines.extend(f"note: {note}" for note in run.notes)
    lines.append(_told_verdict(lacking, anchored=run.anchored))
    return Verdict(
        finished=finished,
        charges=charges,
        lines=lines,
        anchored=run.anchored,
        incomplete=lacking,
    )


def _told_verdict(incomplete: list[str], *, anchored: bool) -> str:
    """The verdict in words."""
    if incomplete:
        found = "INCOMPLETE: " + "; ".join(incomplete)
    else:
        found = "verified" if anchored else "self-consistent"
    if anchored:
        return f"verdict: {found}; anchored: the keys are those of the roster file"
    return (
        f"verdict: {found}, not anchored: the keys stand in the ledger itself; name those that you "
        "trust with --roster"
    )


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
