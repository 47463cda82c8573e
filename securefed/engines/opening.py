"""How a run begins, and where one that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from securefed.config import RunConfig, dump_config
from securefed.engines.accounts import check_accounts, check_histogram_accounts
from securefed.engines.attempts import History, read_history, told_on_resume
from securefed.engines.cohort import SimulatedClient, SimulatedDecryptor
from securefed.engines.comparing import differing
from securefed.engines.events import Observer
from securefed.engines.histograms import abandon_histogram, begin_accounts, open_accounts
from securefed.engines.identities import Identities
from securefed.engines.metering import Meter
from securefed.engines.openings import check_openings, first_record
from securefed.engines.parties import Parties
from securefed.engines.releases import release_records
from securefed.engines.run_files import check_config
from securefed.engines.run_folder import RunFolder
from securefed.engines.settings import Settings
from securefed.engines.software import software
from securefed.engines.threat_model_files import THREAT_MODELS, check_threat_models
from securefed.engines.witnesses import check_witnesses, recorded_roster
from securefed.engines.witnessing import unwitnessed, witnesses_of
from securefed.engines.workbench import Workbench
from securefed.errors import ConfigError, LedgerTampered
from securefed.evidence.budget import CHARGE, ClientBudget
from securefed.evidence.kinds import ROUND_ABANDONED, SOFTWARE
from securefed.evidence.ledger import Ledger
from securefed.evidence.roster import Roster
from securefed.evidence.software import (
    dependencies,
    dependencies_sha256,
    source_sha256,
)
from securefed.evidence.witness import Witness, account_genesis
from securefed.federation.server_step import ServerStep
from securefed.privacy.policy import PrivacyPolicy
from securefed.threats.files import digests, shipped


@dataclass(frozen=True)
class Opened:
    """A run that can go on.

    Attributes:
        ledger: the run's, open for writing.
        history: the run so far.
        parties: the cohort, each with its own account, and the decryptor with its own ledger.
    """

    ledger: Ledger
    history: History
    parties: Parties


class Opening:
    """Makes a run folder, or takes one up again.

    Args:
        config: the run file.
        folder: where the run is kept.
        bench: model and clients' data.
        settings: what the run file means for the cohort.
        step: the server's, set to where the run stands.
        observer: told what is found.
        clock: gives RFC 3339 text for ledger records.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        bench: Workbench,
        settings: Settings,
        step: ServerStep,
        observer: Observer,
        clock: Callable[[], str],
    ) -> None:
        self._config = config
        self._folder, self._bench, self._settings = folder, bench, settings
        self._step, self._observer, self._clock = step, observer, clock
        self._cohort = tuple(sorted(bench.sizes))

    def _genesis(self, roster: Roster, threat_models: dict[str, bytes]) -> dict[str, Any]:
        text, versions = dump_config(self._config), dependencies()
        return (
            self._prepared()
            | self._plan()
            | {
                "software": software(),
                "source_sha256": source_sha256(),
                "dependencies": versions,
                "dependencies_sha256": dependencies_sha256(versions),
                "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
                "releases": release_records(self._settings, self._settings.stated.rounds),
                "roster": roster.to_record(),
                THREAT_MODELS: digests(threat_models),
            }
        )

    def _plan(self) -> dict[str, Any]:
        """What the run's plan is made from; a resumed run has it from the ledger."""
        plan = self._settings.run_plan
        return {} if plan is None else {"plan": plan.to_record()}

    def _prepared(self) -> dict[str, Any]:
        """What a run stands on besides its settings; a resumed one must find it again."""
        histograms = self._settings.histograms
        return {
            "model": self._bench.model_name,
            "model_fingerprint": self._bench.fingerprint,
            "adapter_sha256": self._bench.adapter_hash().hex(),
            "cohort": list(self._cohort),
            "client_sizes": {name: self._bench.sizes[name] for name in self._cohort},
            "privacy": self._settings.record(),
        } | ({} if histograms is None else {"histograms": histograms.record()})

    def begin(self) -> None:
        """Make the whole run folder beside its place, then move it there: all of it or nothing."""
        with self._folder.being_made(dump_config(self._config)) as partial:
            self._bench.save_initial(partial.initial)
            combining = self._bench.combining
            partial.save_checkpoint(0, self._step.state() | combining.server_state())
            partial.save_personal(lambda path: self._bench.save_kept(path, self._cohort, 0))
            threat_models = shipped()
            partial.write_threat_models(threat_models)
            genesis = self._genesis(self._begin_roster(partial), threat_models)
            with Ledger.create(partial.ledger, genesis, clock=self._clock) as ledger:
                begun = ledger.head.hash
            for name in self._cohort:
                account = account_genesis(
                    name,
                    self._settings.record(),
                    size=self._bench.sizes[name],
                    ledger=begun,
                )
                Ledger.create(partial.budget(name), account, clock=self._clock).close()
            begin_accounts(partial, self._cohort, self._settings.histograms, self._clock)
            if self._settings.aggregation.has_decryptor:
                first = first_record(self._settings.record())
                Ledger.create(partial.openings(), first, clock=self._clock).close()

    def open(self, held: ExitStack) -> Opened:
        """Where a run stands.  Whatever is opened here is closed by ``held``.

        Raises:
            ConfigError: the run was begun by another version that plans otherwise.
            LedgerTampered: folder, ledger and accounts do not fit each other.
        """
        self._bench.load_initial(self._folder.initial)
        ledger = held.enter_context(Ledger.open(self._folder.ledger, clock=self._clock))
        genesis = ledger.records[0].body
        check_config(self._folder.path, genesis)
        if "roster" not in genesis:
            raise ConfigError(
                f"--resume: {self._folder.ledger} was begun by an earlier version, which kept no "
                "identities and no witnesses; resume it with that version"
            )
        history = read_history(self._folder.ledger, ledger.records, self._settings)
        self._check_prepared(genesis, history)
        state = self._folder.load_checkpoint(history.applied)
        if state is None:
            raise LedgerTampered(
                f"{self._folder.checkpoints}: no state after round {history.applied}"
            )
        self._step.restore(state)
        self._bench.combining.restore(state)
        if self._bench.adapter_hash().hex() != history.adapter:
            raise LedgerTampered(
                f"{self._folder.checkpoints}: the state after round {history.applied} is not the "
                "one that the ledger names"
            )
        self._bench.load_kept(self._folder.personal, self._cohort, history.applied)
        check_accounts(self._folder.path, genesis, history, self._settings.cohorts)
        check_histogram_accounts(self._folder.path, genesis, history)
        check_threat_models(self._folder.path, genesis)
        roster = recorded_roster(self._folder.ledger, genesis)
        check_witnesses(self._folder.path, ledger.records, roster, self._settings)
        identities = self._identities(roster)
        decryptor = None
        if identities.decryptor is not None:
            check_openings(self._folder.path, genesis, history)
            openings = Ledger.open(self._folder.openings(), clock=self._clock)
            decryptor = SimulatedDecryptor(
                held.enter_context(openings),
                identities.decryptor,
                meter=Meter(memory=self._bench.memory),
            )
        accounts, clients = {}, {}
        for name in self._cohort:
            accounts[name] = Ledger.open(self._folder.budget(name), clock=self._clock)
            held.callback(accounts[name].close)
            budget = ClientBudget(
                accounts[name],
                event=self._settings.event(),
                epsilon_after=self._settings.epsilon_after,
                limit=self._settings.limit[1] if self._settings.limit else None,
            )
            clients[name] = self._client(name, budget, history.policy, identities)
        spent = open_accounts(self._folder, clients, self._settings.histograms, self._clock, held)
        self._observer.begun(self._folder.path)
        if len(ledger.records) > 1:
            paid = [_sessions(account) for account in accounts.values()]
            self._observer.message(told_on_resume(history, paid))
        parties = self._parties(
            clients,
            decryptor,
            identities,
            lambda: witnesses_of(identities, accounts, spent, genesis["config_sha256"]),
        )
        due = unwitnessed(ledger.records)
        if due is not None:  # a kill came between that record and the signatures over it
            parties.witness(ledger, due)
        if history.software != software():
            ledger.append(SOFTWARE, {"software": software()})
        self._abandon(ledger, history, accounts, clients)
        abandon_histogram(ledger, history, spent, clients, self._observer)
        return Opened(ledger, history, parties)

    # -- what is otherwise where the clients are elsewhere ---------------------------------

    def _begin_roster(self, partial: RunFolder) -> Roster:
        """Whose signatures count in a run that begins; their keys are made and kept here."""
        identities = Identities.make(
            self._cohort, decryptor=self._settings.aggregation.has_decryptor
        )
        identities.save(partial.keys)
        return identities.roster

    def _identities(self, roster: Roster) -> Identities:
        """The secret keys that are here."""
        self._folder.take_keys()
        return Identities.load(self._folder.keys, roster)

    def _client(
        self, name: str, budget: ClientBudget, policy: PrivacyPolicy, identities: Identities
    ) -> SimulatedClient:
        return SimulatedClient(
            name,
            self._bench.clients[name],
            budget,
            policy,
            identities.clients[name],
            meter=Meter(memory=self._bench.memory),
        )

    def _parties(
        self,
        clients: dict[str, SimulatedClient],
        decryptor: SimulatedDecryptor | None,
        identities: Identities,
        witnesses: Callable[[], dict[str, Witness]],
    ) -> Parties:
        least = self._config.cohort.min_clients
        return Parties(clients, decryptor, least, identities, witnesses())

    def _check_prepared(self, genesis: dict[str, Any], history: History) -> None:
        """Refuse to go on with another model, cohort or plan; another version may go on."""
        for key, value in self._prepared().items():
            found, expected = genesis[key], json.loads(json.dumps(value))
            if key in ("privacy", "histograms"):
                keys = differing(found, expected)
                if not keys:
                    continue
                key, found, expected = f"{key}.{keys[0]}", found.get(keys[0]), expected[keys[0]]
            if found == expected:
                continue
            if history.software != software():
                raise ConfigError(
                    f"--resume: {key} is {found!r} in {self._folder.ledger}, written by "
                    f"{history.software}, and {expected!r} for {software()}; a run goes on with "
                    "what it began with: resume it with that version"
                )
            raise LedgerTampered(
                f"{self._folder.ledger}: {key} is {found!r}, this run has {expected!r}"
            )

    def _abandon(
        self,
        ledger: Ledger,
        history: History,
        accounts: dict[str, Ledger],
        clients: dict[str, SimulatedClient],
    ) -> None:
        """Charge an attempt without an end to each of its clients that may not have recorded it."""
        attempt = history.open
        if attempt is None:
            return
        members = self._settings.cohorts.members(attempt.round)
        owing = [n for n in members if attempt.session not in _sessions(accounts[n])]
        for name in owing:
            clients[name].budget.charge(attempt.event)
        size = len(members)
        self._observer.message(
            f"an attempt at round {attempt.round} was begun and not ended: {size - len(owing)} of "
            f"{size} clients had charged it, and it counts as spent by all"
        )
        ledger.append(
            ROUND_ABANDONED,
            {"round": attempt.round, "session": attempt.session, "charged": list(members)},
        )


def _sessions(account: Ledger) -> set[str]:
    """The attempts that a client's account holds charges for."""
    return {str(record.body["session"]) for record in account.records if record.kind == CHARGE}
