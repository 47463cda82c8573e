"""A run folder whose parts fit each other: what is checked, in order.  Needs no torch.

What a verdict over this says, and does not say, stands in :mod:`securefed.engines.verify`.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    torn_tails,
)
from securefed.engines.run_plan import RunPlan
from securefed.engines.second_opinions import Second, second_opinions
from securefed.engines.settings import Settings
from securefed.engines.software import software
from securefed.engines.threat_model_files import check_threat_models, unlike_shipped
from securefed.engines.witnesses import (
    WitnessedHead,
    check_trusted,
    check_witnesses,
    recorded_roster,
    silent_at_end,
    unwitnessed_end,
)
from securefed.errors import ConfigError, LedgerTampered, OverflowBoundError
from securefed.evidence.ledger import Record, read_ledger
from securefed.evidence.roster import Roster, read_roster
from securefed.evidence.software import dependencies_sha256, source_sha256
from securefed.privacy.accounting import ADVERSARIES

_FIGURES = ("against", "unit", "adjacency", "epsilon", "delta", "rounds")
_NAMED = 6


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


def verified_run(folder: Path, roster: Path | None = None) -> VerifiedRun:
    """What :func:`verify_run` is made from.

    Raises:
        ConfigError, LedgerTampered: as there.
    """
    ledger = folder / "ledger.jsonl"
    for path in (ledger, folder / "config.toml"):
        if not path.is_file():
            raise ConfigError(
                f"{path} is missing: {folder} is not a run folder; name the folder that `securefed "
                "run` printed"
            )
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
    settings = recorded_settings(ledger, genesis, config)
    pinned = config.model.fingerprint
    if pinned is not None and genesis["model_fingerprint"] != pinned:
        raise LedgerTampered(
            f"{ledger}: line 1: model_fingerprint = {genesis['model_fingerprint']!r}, and the run "
            f"file pins model.fingerprint = {pinned!r}"
        )
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
    notes += unlike_shipped(genesis)
    roster = recorded_roster(ledger, genesis)
    if trusted is not None:
        check_trusted(ledger, roster, trusted)
    heads = check_witnesses(folder, records, roster, settings)
    end = unwitnessed_end(records, heads)
    notes += silent_at_end(heads, roster)
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


def recorded_settings(ledger: Path, genesis: Mapping[str, Any], config: RunConfig) -> Settings:
    """What a run file means for the cohort that a run's first record names.

    Raises:
        LedgerTampered: the record's figures and the run file do not fit.
    """
    try:
        return Settings(
            config,
            sizes={str(name): int(size) for name, size in genesis["client_sizes"].items()},
            dimension=int(genesis["privacy"]["dimension"]),
            widths=genesis["privacy"].get("widths"),
            noise_multiplier=float(genesis["privacy"]["noise_multiplier"]),
            run_plan=recorded_plan(genesis, config),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowBoundError) as error:
        # ConfigError is a ValueError
        raise LedgerTampered(f"{ledger}: figures of the first record: {error}") from None


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
