"""A run whose clients are elsewhere: the server's rounds, over whatever carries bytes to nodes.

The rounds, their ledger and the end of a run are those of :class:`~securefed.engines.run.Run`.
What differs: messages travel by a courier; the data are not here; and a client's own account is not
here either.  The file ``clients/ID/budget.jsonl`` of such a run is the *server's copy*: it is
charged right before a client is asked for its masked input, so it is never below what that client
charged itself, and one that never answered counts as charged.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from securefed.config import RunConfig, Stage
from securefed.crypto.identity import IdentityKey, IdentityPublicKey
from securefed.engines.accounts import COPIES
from securefed.engines.cohort import SimulatedClient, SimulatedDecryptor
from securefed.engines.couriers import Courier, Greeted, over_agents
from securefed.engines.deployed import leaves_adapters
from securefed.engines.evaluations import Evaluations
from securefed.engines.events import Observer
from securefed.engines.figures import Figures
from securefed.engines.histogram_settings import Of
from securefed.engines.identities import Identities
from securefed.engines.in_process import Carried, Exchange, carry_by
from securefed.engines.metering import Meter
from securefed.engines.opening import Opening
from securefed.engines.parties import Parties
from securefed.engines.remote_witnesses import gather_from
from securefed.engines.results import RunResult
from securefed.engines.round_clock import RoundClock
from securefed.engines.round_halves import AnyServer, AnySession
from securefed.engines.run import Run
from securefed.engines.run_folder import RunFolder
from securefed.engines.settings import Settings
from securefed.engines.workbench import Workbench
from securefed.errors import (
    ConfigError,
    LedgerTampered,
    LocalProtocolError,
    ProtocolError,
    ThresholdNotMet,
)
from securefed.evidence.budget import ClientBudget
from securefed.evidence.chain import Record
from securefed.evidence.kinds import EVALUATION_FAILED, ROUND_APPLIED, ROUND_SUMMED
from securefed.evidence.ledger import Ledger, read_ledger
from securefed.evidence.roster import Roster
from securefed.evidence.witness import Witness
from securefed.federation.client import ClientRound
from securefed.federation.invitations import Ending, Invitation, answered
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.federation.sliced_rounds import SlicedClientRound
from securefed.lora.adapter import adapter_state
from securefed.privacy.policy import PrivacyPolicy


class RemoteClient(SimulatedClient):
    """A client elsewhere: the server's copy of its account, and no data or secret key of it.

    Whoever asks for ``data`` or ``identity`` gets an ``AttributeError``.
    """

    def __init__(
        self, client_id: str, budget: ClientBudget, policy: PrivacyPolicy, meter: Meter
    ) -> None:
        self.client_id, self.budget, self.policy = client_id, budget, policy
        self.meter, self.histograms = meter, None


class RemoteParties(Parties):
    """The cohort by its pinned public keys.

    Args:
        clients: the cohort, by id.
        min_clients: the server's own floor.
        roster: of the cohort.
        server: the server's identity.
        courier: reaches the nodes.
        nodes: by client.
        observer: told who does not sign a head, and why.
    """

    def __init__(
        self,
        clients: dict[str, SimulatedClient],
        min_clients: int,
        roster: Roster,
        server: IdentityKey,
        courier: Courier,
        nodes: Mapping[str, int],
        observer: Observer,
    ) -> None:
        super().__init__(clients, None, min_clients)
        self._pinned, self._server = roster, server
        self._courier, self._nodes, self._observer = courier, nodes, observer

    @property
    def roster(self) -> dict[str, IdentityPublicKey]:
        """Every client's identity key."""
        return dict(self._pinned.clients)

    def witness(self, ledger: Ledger, record: Record, *, absent: Collection[str] = ()) -> None:
        """Have the head at a record signed by the server, and by the clients that are there.

        Who does not sign is named to whoever watches; the head is then covered by a later one.

        Raises:
            LedgerError: it cannot be written.
        """
        gather_from(
            self._courier,
            {name: node for name, node in self._nodes.items() if name not in absent},
            ledger,
            record,
            self._server,
            {name: client.budget.ledger for name, client in self.clients.items()},
            self._pinned,
            self._observer,
        )


class RemoteOpening(Opening):
    """Opens a run whose clients are elsewhere."""

    pinned: Roster
    server: IdentityKey
    courier: Courier
    nodes: Mapping[str, int]

    def _genesis(self, roster: Roster, threat_models: dict[str, bytes]) -> dict[str, Any]:
        return super()._genesis(roster, threat_models) | {"accounts": COPIES}

    def _begin_roster(self, partial: RunFolder) -> Roster:
        return self._of_cohort()

    def _of_cohort(self) -> Roster:
        clients = {name: self.pinned.clients[name] for name in self._cohort}
        return Roster(self.pinned.server, clients)

    def _identities(self, roster: Roster) -> Identities:
        differing = roster.differing(self._of_cohort())
        if differing:
            raise ConfigError(
                f"resume: the roster has another key of {differing[0]} than the run began with"
            )
        return Identities(self.server, {})

    def _client(
        self, name: str, budget: ClientBudget, policy: PrivacyPolicy, identities: Identities
    ) -> SimulatedClient:
        return RemoteClient(name, budget, policy, Meter(memory=self._bench.memory))

    def _parties(
        self,
        clients: dict[str, SimulatedClient],
        decryptor: SimulatedDecryptor | None,
        identities: Identities,
        witnesses: Callable[[], dict[str, Witness]],
    ) -> Parties:
        if decryptor is not None:
            raise LocalProtocolError("decryptor: a run between machines has none")
        least = self._config.cohort.min_clients
        return RemoteParties(
            clients,
            least,
            self._of_cohort(),
            identities.server,
            self.courier,
            {name: node for name, node in self.nodes.items() if name in clients},
            self._observer,
        )


class RemoteEvaluations(Evaluations):
    """Held-out figures that each client measures at its own place."""

    def _measured(self, *, own: bool) -> dict[str, Any]:
        return {}

    def _sum(self, number: int, of: Of) -> Figures:
        try:
            return super()._sum(number, of)
        except ThresholdNotMet as error:  # owners may take part in no sum without noise
            opened = self._ledger.records[-1].body
            self._ledger.append(EVALUATION_FAILED, opened | {"why": type(error).__name__})
            why = "; ".join([str(error), *getattr(error, "__notes__", [])])
            self._observer.message(f"held-out figures after round {number}: none ({why})")
            return Figures.unmeasured()


class RemoteRun(Run):
    """One run over a courier.

    Args:
        config, folder, bench, settings, observer, clock: as of ``Run``; the bench holds no data.
        courier: reaches the nodes.
        greeted: who is where.
        roster: everybody's public key.
        server: the server's own identity.
    """

    _evaluating = RemoteEvaluations

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        bench: Workbench,
        settings: Settings,
        observer: Observer,
        clock: Callable[[], str],
        *,
        courier: Courier,
        greeted: Greeted,
        roster: Roster,
        server: IdentityKey,
    ) -> None:
        super().__init__(config, folder, bench, settings, observer, clock)
        self._courier, self._greeted = courier, greeted
        self._roster, self._server = roster, server
        self._fractions: tuple[float, ...] = ()

    def go(self, *, resume: bool) -> RunResult:
        """As of ``Run``; then clients that make adapters of their own are handed the shared one."""
        result = super().go(resume=resume)
        if leaves_adapters(self.config):
            self._hand_out(result.rounds)
        return result

    def hand_out_again(self, last: int) -> None:
        """Hand the shared adapter of a finished run to those who have not taken it yet.

        Args:
            last: the last round.

        Raises:
            LedgerTampered: the adapter after it is not in the run folder.
        """
        self.bench.load_initial(self.folder.initial)
        state = self.folder.load_checkpoint(last)
        if state is None:
            raise LedgerTampered(f"{self.folder.checkpoints}: no state after round {last}")
        self.step.restore(state)
        self._hand_out(last)

    def _hand_out(self, last: int) -> None:
        """Say that the run is over; who does not hear it has no adapter of its own."""
        records = read_ledger(self.folder.ledger)
        ending = Ending(
            ledger=bytes.fromhex(records[0].hash),
            round=last,
            summed=_last_sums(records),
            adapter=save(adapter_state(self.bench.model)),
        ).encode(self._server)
        nodes = {name: node for name, node in self._greeted.nodes.items() if name in self.cohort}
        replies = self._courier.exchange(dict.fromkeys(nodes.values(), ending), what="ending")
        for name, node in sorted(nodes.items()):
            try:
                answered(replies.get(node, b""))
            except ProtocolError as error:
                why = error if node in replies else "silent"
                self.observer.message(f"ending: {name} has not taken the adapter: {why}")

    def _save_own(self, path: Path) -> None:
        """Adapters of clients' own are at the clients."""

    def _opening(self) -> Opening:
        opening = RemoteOpening(
            self.config,
            self.folder,
            self.bench,
            self.settings,
            self.step,
            self.observer,
            self.clock,
        )
        opening.pinned, opening.server = self._roster, self._server
        opening.courier, opening.nodes = self._courier, self._greeted.nodes
        return opening

    def _round(self, ledger: Ledger, number: int) -> None:
        self._fractions = _fractions(ledger)
        super()._round(ledger, number)

    def _carry_round(
        self,
        server: AnyServer,
        session: AnySession,
        client_round: Callable[[SimulatedClient], ClientRound | SlicedClientRound],
        charge: Callable[[SimulatedClient], None],
        clock: RoundClock,
        drop: Mapping[str, Stage],
    ) -> Carried:
        if not isinstance(session, RoundSession):
            raise LocalProtocolError("session: it has slices")
        exchange = self._exchange(session, charge, figures=False)
        return self._carried(exchange, server, session)

    def _carry_figures(
        self,
        server: ServerRound,
        session: RoundSession,
        client_round: Callable[[SimulatedClient], ClientRound],
    ) -> Carried:
        exchange = self._exchange(session, lambda client: None, figures=True)
        return self._carried(exchange, server, session)

    def _carried(self, exchange: Exchange, server: AnyServer, session: RoundSession) -> Carried:
        return carry_by(
            exchange, server, session.cohort, keep_transcript=False, server_work=self._summing
        )

    def _exchange(
        self,
        session: RoundSession,
        charge: Callable[[SimulatedClient], None],
        *,
        figures: bool,
    ) -> Exchange:
        """How one round's messages reach the agents."""
        records = read_ledger(self.folder.ledger)
        control = self.bench.combining.server_state()
        invitation = Invitation(
            run=self._greeted.run,
            ledger=bytes.fromhex(records[0].hash),
            round=session.round,
            session=session.session,
            figures=figures,
            sizes=self.bench.sizes,
            noise_multiplier=self.settings.stated.noise_multiplier,
            fractions=self._fractions,
            adapter=save(adapter_state(self.bench.model)),
            summed=_last_sums(records),
            control=save(control) if control else b"",
        ).encode(self._server)
        return over_agents(
            self._courier,
            self._greeted.nodes,
            invitation,
            session,
            charge=lambda name: charge(self.parties.clients[name]),
            observer=self.observer,
            of="figures" if figures else "updates",
        )


def _fractions(ledger: Ledger) -> tuple[float, ...]:
    """The noised share of units within the clip of each round that was applied, if it adapts."""
    summed: dict[str, float] = {}
    found: list[float] = []
    for record in ledger.records:
        if record.kind == ROUND_SUMMED and "unclipped_fraction" in record.body:
            summed[str(record.body["session"])] = float(record.body["unclipped_fraction"])
        if record.kind == ROUND_APPLIED and str(record.body["session"]) in summed:
            found.append(summed[str(record.body["session"])])
    return tuple(found)


def _last_sums(records: Sequence[Record]) -> dict[str, str]:
    """For each client the session of the last sum with it that was applied."""
    survivors: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    for record in records:
        if record.kind == ROUND_SUMMED:
            survivors[str(record.body["session"])] = list(record.body["survivors"])
        elif record.kind == ROUND_APPLIED:
            session = str(record.body["session"])
            found |= dict.fromkeys(survivors[session], session)
    return found
