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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securefed.config import RunConfig, load_config
from securefed.engines.accounts import ACCOUNT, check_accounts, check_histogram_accounts
from securefed.engines.attempts import History, read_history
from securefed.engines.comparing import require_same
from securefed.engines.histogram_settings import histogram_guarantees
from securefed.engines.openings import check_openings
from securefed.engines.recorded import check_measured
from securefed.engines.run_files import (
    check_config,
    check_files,
    check_shown,
    ledger_files,
    torn_tails,
    uncovered,
)
from securefed.engines.run_plan import RunPlan
from securefed.engines.second_opinions import Second, second_opinions, told_of_second
from securefed.engines.settings import Settings, unit_name
from securefed.engines.software import software
from securefed.engines.threat_model_files import check_threat_models
from securefed.engines.witnesses import (
    WitnessedHead,
    check_trusted,
    check_witnesses,
    recorded_roster,
    told_of_witnesses,
    unwitnessed_end,
)
from securefed.errors import ConfigError, LedgerTampered, OverflowBoundError
from securefed.evidence.kinds import ROUND_SUMMED
from securefed.evidence.ledger import Record, read_ledger
from securefed.evidence.roster import Roster, read_roster
from securefed.evidence.software import dependencies_sha256, source_sha256
from securefed.privacy.accounting import ADVERSARIES, epsilon_text

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
        anchored: the keys that signed were compared with a roster that the reader trusts.
        heads: every head that must be signed, and who has signed it; none in folders of versions
            that kept no witnesses.
        second: what other accountants say of each statement; none in such folders.
        incomplete: why the evidence is not whole, in words; empty if it is.
        notes: what changes nothing, in words.
        threat_models: paths of the threat models inside the folder.
    """

    records: list[Record]
    settings: Settings
    history: History
    charged: dict[str, int]
    histogram_charges: int
    opened: int | None
    ignored: list[str]
    anchored: bool
    heads: list[WitnessedHead]
    second: list[Second]
    incomplete: list[str]
    notes: list[str]
    threat_models: set[str]

    @property
    def charges(self) -> int:
        """As in :class:`Verdict`."""
        return max(self.charged.values())


def verify_run(folder: Path, roster: Path | None = None) -> Verdict:
    """Verify a run's ledger and its clients' accounts, and recompute what the run claims.

    Args:
        folder: the run folder.
        roster: a file with the keys that the reader trusts; None for none.

    Which paths were not compared with anything is among the findings.

    Raises:
        ConfigError: the folder holds no run, or ``roster`` is no roster.
        LedgerTampered: a chain, a signature, a count or a claim does not hold; the message says
            which.
    """
    run = verified_run(folder, roster)
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
    lines.extend(told_of_witnesses(run.heads) if "roster" in genesis else [])
    files = sorted(history.closed["files"]) if history.closed is not None else []
    lines.extend(run.ignored)
    files = sorted({"config.toml", *files, *run.threat_models})
    lines.append(f"files that hold what the ledger says: {', '.join(files)}")
    covered = {*files, *ledger_files(genesis["cohort"], run.settings)}
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
    lines.append(told_verdict(run))
    return Verdict(
        finished=finished,
        charges=charges,
        lines=lines,
        anchored=run.anchored,
        incomplete=run.incomplete,
    )


def told_verdict(run: VerifiedRun) -> str:
    """The verdict in words."""
    if run.incomplete:
        found = "INCOMPLETE: " + "; ".join(run.incomplete)
    else:
        found = "verified" if run.anchored else "self-consistent"
    if run.anchored:
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


def verified_run(folder: Path, roster: Path | None = None) -> VerifiedRun:
    """What :func:`verify_run` is made from.

    Raises:
        ConfigError, LedgerTampered: as there.
    """
    ledger = folder / "ledger.jsonl"
    for path in (ledger, folder / "config.toml"):
        if not path.is_file():
            raise ConfigError(f"{path} is missing; not a run folder")
    trusted = None if roster is None else read_roster(roster)
    records = read_ledger(ledger)
    try:
        return _verified(folder, records, trusted)
    except ConfigError:  # it is a ValueError, and of the run file
        raise
    except (KeyError, TypeError, AttributeError) as error:
        raise LedgerTampered(f"{ledger}: a record lacks what it must hold ({error})") from None


def _verified(folder: Path, records: list[Record], trusted: Roster | None) -> VerifiedRun:
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
        check_files(folder, history.closed["files"])
        check_measured(ledger, records, history.applied, settings, histogram_charges)
        check_shown(folder, records, history, settings)
    torn = torn_tails(folder, genesis["cohort"], settings)
    if history.closed is not None and torn:
        raise LedgerTampered(f"{torn[0]}; the run was closed before it")
    ignored = [f"ignored: {tail}; a kill can leave it, and --resume cuts it off" for tail in torn]
    evidence = _evidence(folder, records, settings, trusted)
    second = []
    if "roster" in genesis:
        second = second_opinions(
            ledger,
            genesis,
            history,
            settings,
            charges=charges,
            histogram_charges=histogram_charges,
        )
    if history.closed is None:
        evidence.incomplete.insert(0, "the run is not finished")
    return VerifiedRun(
        records=records,
        settings=settings,
        history=history,
        charged=charged,
        histogram_charges=histogram_charges,
        opened=opened,
        ignored=ignored,
        anchored=evidence.anchored,
        heads=evidence.heads,
        second=second,
        incomplete=evidence.incomplete,
        notes=evidence.notes,
        threat_models=evidence.threat_models,
    )


@dataclass
class _Evidence:
    """What binds a run to code, threat models and keys."""

    anchored: bool
    heads: list[WitnessedHead]
    incomplete: list[str]
    notes: list[str]
    threat_models: set[str]


def _evidence(
    folder: Path, records: list[Record], settings: Settings, trusted: Roster | None
) -> _Evidence:
    ledger, genesis = folder / "ledger.jsonl", records[0].body
    if "roster" not in genesis:
        _check_early(folder, genesis)
        why = "written by an earlier version: no witnesses, so that nothing shows who wrote it"
        return _Evidence(False, [], [why], [], set())
    found = dependencies_sha256(genesis["dependencies"])
    if genesis["dependencies_sha256"] != found:
        raise LedgerTampered(
            f"{ledger}: line 1: dependencies_sha256 = {genesis['dependencies_sha256']!r}, "
            f"recomputed {found!r}"
        )
    notes = []
    if genesis["source_sha256"] != source_sha256():
        notes.append(
            f"the run was begun by {genesis['software']} with sources {genesis['source_sha256']}, "
            f"and is verified by {software()} with sources {source_sha256()}"
        )
    threat_models = check_threat_models(folder, genesis)
    roster = recorded_roster(ledger, genesis)
    if trusted is not None:
        check_trusted(ledger, roster, trusted)
    heads = check_witnesses(folder, records, roster, settings)
    end = unwitnessed_end(records, heads)
    return _Evidence(trusted is not None, heads, [end] if end else [], notes, threat_models)


def _check_early(folder: Path, genesis: Mapping[str, Any]) -> None:
    """Refuse a ledger whose roster was taken out: accounts of such runs name what it had."""
    for name in genesis["cohort"]:
        path = folder / "clients" / name / ACCOUNT
        if "ledger" in read_ledger(path)[0].body:
            raise LedgerTampered(
                f"{folder / 'ledger.jsonl'}: line 1: lacks roster, and {path} was begun for a "
                "ledger that had one"
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
