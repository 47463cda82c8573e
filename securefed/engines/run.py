"""The rounds of one run and everything it writes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from securefed.config import RunConfig, Stage
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.arrangement import told, told_of_slices
from securefed.engines.attempts import next_clip_norm
from securefed.engines.cohort import Codec, Encoded, SimulatedClient
from securefed.engines.cost_records import CostRecords, What, hiding_phase
from securefed.engines.evaluations import Evaluations
from securefed.engines.events import Observer, RoundEvent
from securefed.engines.histogram_settings import evaluated_rounds
from securefed.engines.histograms import told_of_histograms
from securefed.engines.in_process import Carried, carry
from securefed.engines.metering import Meter
from securefed.engines.opening import Opening
from securefed.engines.parties import Parties
from securefed.engines.plan_records import values_down
from securefed.engines.recorded import Shown, read_shown, recorded_event, recorded_figures
from securefed.engines.releases import release_records
from securefed.engines.results import RunResult
from securefed.engines.round_clock import RoundClock
from securefed.engines.round_halves import AnyServer, AnySession, halves_of
from securefed.engines.run_files import released_files
from securefed.engines.run_folder import RunFolder
from securefed.engines.settings import Settings
from securefed.engines.timing import EncryptionSeconds
from securefed.engines.workbench import Workbench
from securefed.errors import (
    BudgetExceeded,
    LedgerError,
    SecureFedError,
)
from securefed.evidence.kinds import CLOSED, ROUND_APPLIED, ROUND_FAILED, ROUND_OPENED, ROUND_SUMMED
from securefed.evidence.ledger import Ledger
from securefed.federation.client import ClientRound
from securefed.federation.server import ServerRound
from securefed.federation.server_optimizer import ServerOptimizer
from securefed.federation.server_step import ServerStep
from securefed.federation.session import RoundSession
from securefed.federation.sliced_rounds import SlicedClientRound
from securefed.privacy.accounting import ADVERSARIES, epsilon_text
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import Aggregation
from securefed.secagg.aggregator import SESSION_BYTES

NON_FINITE = (
    "note: some client's training ended in NaN or infinity in this round or before, and it sent "
    "noise alone (said once, outside the guarantee, because evaluation.show_clients is set)"
)


class Run:
    """One run: from a prepared cohort to an adapter, with every step on record first."""

    _evaluating: type[Evaluations] = Evaluations

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        bench: Workbench,
        settings: Settings,
        observer: Observer,
        clock: Callable[[], str],
    ) -> None:
        self.config = config
        self.folder, self.bench, self.settings = folder, bench, settings
        self.observer, self.clock = observer, clock
        self.cohort = tuple(sorted(bench.sizes))
        self.step = ServerStep(
            bench.parts, lambda initial: ServerOptimizer.of(initial, config.training)
        )
        self.parties = Parties({}, None, config.cohort.min_clients)
        self._policy = settings.sum_policy  # the server's own, of the next round
        self.events: list[RoundEvent] = []
        self._shown: dict[str, Shown] = {}
        self._encryption = EncryptionSeconds()  # of the last round
        self._correlated = settings.correlated_release()
        self._halves = halves_of(
            settings,
            length=bench.combining.length,
            order=bench.ranked.order,
            correlated=self._correlated,
        )
        self._meter = Meter(memory=bench.memory)  # the server's
        self._costs = CostRecords(self.cohort)

    def go(self, *, resume: bool) -> RunResult:
        """Begin or resume, and train to the end.

        Raises:
            BudgetExceeded: not even the first round fits; the run folder was not made.
            ThresholdNotMet, LedgerError, LedgerTampered: the run stopped; what was spent is held.
        """
        limit = self.settings.limit
        if not resume and limit is not None and self.settings.epsilon_after(1) > limit[1]:
            raise BudgetExceeded(
                f"{limit[0]} = {limit[1]:g}: the first round alone costs "
                f"{epsilon_text(self.settings.epsilon_after(1))}; nothing was run. Raise it, or "
                + (
                    "privacy.noise_multiplier"
                    if self.config.privacy.target_epsilon is None
                    else "lower privacy.target_epsilon"
                )
            )
        opening = self._opening()
        for line in self._told():
            self.observer.message(line)
        if self.settings.histograms is not None:
            self.observer.message(told_of_histograms(self.settings.histograms))
        if not resume:
            opening.begin()
        try:
            with ExitStack() as held:
                opened = opening.open(held)
                self.parties = opened.parties
                self._policy = opened.history.policy
                self._shown = read_shown(self.folder.shown)
                return self._rounds(opened.ledger, opened.history.applied)
        except (OSError, SafetensorError) as error:
            raise LedgerError(
                f"run folder {self.folder.path}: cannot be written ({error}); what was charged "
                f"is held{', and the run can be resumed' * self.config.privacy.resumable}"
            ) from error

    def _opening(self) -> Opening:
        return Opening(
            self.config,
            self.folder,
            self.bench,
            self.settings,
            self.step,
            self.observer,
            self.clock,
        )

    def _told(self) -> list[str]:
        """How sums are formed, and with mixed ranks who trains at which."""
        settings = self.settings
        if settings.ranks is None or settings.slices is None:
            return [told(settings.aggregation, settings.plan, settings.bounds)]
        return [settings.ranks.told(), told_of_slices(settings.slices, settings.ranks.tiers)]

    # -- rounds ----------------------------------------------------------------------------

    def _rounds(self, ledger: Ledger, done: int) -> RunResult:
        total = self.config.training.rounds
        stopped = ""
        self._catch_up(ledger, done)
        last = done
        for number in range(done + 1, total + 1):
            limit = self.settings.limit
            if limit and not self.parties.afford(self.settings.cohorts.members(number)):
                stopped = (
                    f"{limit[0]} = {limit[1]:g}: round {number} would exceed it, so the run ends "
                    "here"
                )
                self.observer.message(stopped)
                break
            started = time.perf_counter()
            self._round(ledger, number)
            if self._evaluation_is_due(number):
                self._evaluate(ledger, number)
            self._report(ledger, number, time.perf_counter() - started)
            last = number
        evaluations = self._evaluations(ledger)
        before, after = evaluations.recorded(0), evaluations.at_the_end(last)
        if stopped:  # the last round's line was written before its figures were measured
            self.events[-1] = replace(
                self.events[-1], perplexity=after.perplexity, accuracy=after.accuracy
            )
            self.folder.rewrite_metrics([event.to_record() for event in self.events])
        self.folder.save_adapter(self.bench.save_adapter)
        self.folder.save_ranks(lambda path: self.bench.ranked.save(path, self.bench.save_adapter))
        self.folder.save_personal(self._save_own)
        personal = None
        if self.config.personal.told:
            personal = evaluations.at_the_end(last, "personal")
        gain = evaluations.gain(last)
        self._costs.write(self.folder, self.events, self.settings, self.bench.model_bytes)
        charges = self.parties.charges
        guarantees = {who: self.settings.guarantee(who, charges) for who in ADVERSARIES}
        closing = ledger.append(
            CLOSED,
            {
                "rounds": last,
                "charges": charges,
                "guarantees": [statement.to_record() for statement in guarantees.values()],
                "releases": release_records(self.settings, charges),
                "stopped": stopped,
                "files": released_files(self.folder.path),
            }
            | evaluations.closing(),
        )
        self.parties.witness(ledger, closing)
        return RunResult(
            folder=self.folder.path,
            rounds=last,
            charges=charges,
            guarantees=guarantees,
            noise_multiplier=self.settings.stated.noise_multiplier,
            before=before,
            after=after,
            events=self.events,
            stopped=stopped,
            personal=personal,
            gain=gain,
            histogram_charges=evaluations.charges,
            histogram_guarantees=evaluations.guarantees,
        )

    def _save_own(self, path: Path) -> None:
        """Write each client's own adapter: the one it uses, or the shared one with its own part."""
        if self.bench.own_adapters is None:
            self.bench.personal.save_adapters(path, self.cohort, self.bench.save_adapter)
            return
        for done, name in enumerate(self.cohort):
            self.observer.working("personal adapters", done, len(self.cohort))
            with self.parties.clients[name].meter.phase("personalise"):
                self.bench.personalise(name, path / name)

    def _catch_up(self, ledger: Ledger, done: int) -> None:
        """Make the lines of the rounds so far again from the ledger, whatever a kill left of them.

        A kill may also have come before the figures of the last round were measured.
        """
        if self._evaluation_is_due(done) and not recorded_figures(ledger.records, done):
            self._evaluate(ledger, done)
        self.events = [recorded_event(ledger.records, n, self.settings) for n in range(done + 1)]
        self.folder.rewrite_metrics([event.to_record() for event in self.events])
        self.observer.round_end(self.events[-1])

    def _evaluation_is_due(self, number: int) -> bool:
        return number in evaluated_rounds(self.config)

    def _round(self, ledger: Ledger, number: int) -> None:
        """One attempt at one round: recorded before, charged by each client, applied after."""
        self.bench.begin_round(number)
        combining, members = self.bench.combining, self.settings.cohorts.members(number)
        name = secrets.token_bytes(SESSION_BYTES)
        # Every party describes the round by its own policy; equal descriptions are made once.
        cohorts = self.settings.cohorts
        model = cohorts.binding(self.bench.model_hash())
        sessions = {
            policy: self._halves.session(
                name,
                number,
                cohorts.policy_of(policy, members),
                cohort=members,
                roster=self.parties.roster,
                model=model,
            )
            for policy in (
                self._policy,
                *(client.policy for client in self.parties.clients.values()),
            )
        }
        name_of: dict[str, Any] = {"round": number, "session": name.hex()}
        clock = RoundClock(self.settings, number, sessions[self._policy])
        ledger.append(ROUND_OPENED, self.settings.round_event(self._policy) | name_of)
        drop = {
            item.client: item.stage
            for item in self.config.cohort.simulated_dropouts
            if item.round == number
        }
        server = self._halves.server(sessions[self._policy])
        charged: list[str] = []
        contributions: dict[str, float] = {}
        finished = made = 0

        def charge(client: SimulatedClient) -> None:
            client.budget.charge(self.settings.round_event(client.policy) | name_of)
            charged.append(client.client_id)

        def client_round(client: SimulatedClient) -> ClientRound | SlicedClientRound:
            timed = client.timed(self.bench.encoder(self.settings, number, client.client_id))
            begun = 0.0

            def counted(codec: Codec[Encoded], generator: NoiseGenerator) -> Encoded:
                nonlocal begun, finished
                begun = time.perf_counter()
                encoded = timed(codec, generator)
                finished += 1
                self.observer.working("training", finished, len(members))
                return encoded

            def charge_itself() -> None:
                charge(client)
                contributions[client.client_id] = time.perf_counter() - begun

            def encrypted(done: int, of: int) -> None:
                nonlocal made
                made += 1
                self.observer.working("encrypting", made, of * len(members))

            return self._halves.client(
                sessions[client.policy],
                client,
                counted,
                charge=charge_itself,
                floors=self.parties.floors,
                on_encrypted=encrypted,
            )

        try:
            carried = self._carry_round(
                server, sessions[self._policy], client_round, charge, clock, drop
            )
        except SecureFedError as error:
            ledger.append(
                ROUND_FAILED,
                name_of
                | {"charged": sorted(charged), "why": type(error).__name__}
                | clock.to_record(),
            )
            raise
        opened = self._halves.opened(server)
        survivors = opened.survivors
        if self._correlated is not None:
            # The schedule moves on for those as well who were not heard of.
            for silent in sorted(set(self.cohort) - set(charged)):
                charge(self.parties.clients[silent])
        fraction = self.settings.unclipped_fraction(opened.count, survivors)
        # Written and flushed before the sum is used for anything.
        ledger.append(
            ROUND_SUMMED,
            name_of
            | {
                "survivors": list(survivors),
                "charged": sorted(charged),
                "charges": self.parties.charges,
                "bytes_up": sum(carried.bytes_up[name] for name in members),
                "bytes_down": sum(carried.bytes_down[name] for name in members),
                "refused": len(carried.refusals),
                "silent": len(set(survivors) & carried.unanswered - set(carried.refusals)),
            }
            | opened.record
            | ({} if fraction is None else {"unclipped_fraction": fraction})
            | clock.to_record(),
        )
        with self._meter.phase("apply"):
            gradient = combining.opened(
                opened.gradient(),
                number=number,
                share=self.settings.share(survivors),
            )
            changed = self.step.step(number, gradient, still=opened.still)
            # Who comes back after rounds without it is sent all that changed in between.
            sent = max(combining.values_down(changed), changed if clock.skips else 0)
        self.bench.take_over(survivors, charged)
        self.folder.save_personal(lambda path: self.bench.save_kept(path, self.cohort, number))
        self.folder.save_checkpoint(number, self.step.state() | combining.server_state())
        self._policy = self._policy.after(fraction)
        applied: dict[str, object] = {"adapter_sha256": self.bench.adapter_hash().hex()}
        if sent != combining.length:
            applied["values_down"] = sent
        if (clip := next_clip_norm(self._policy)) is not None:
            applied["next_clip_norm"] = clip
        # Who was not in the round, or fell silent in it, signs a later head over these lines too.
        absent = (set(self.cohort) - set(survivors)) | carried.unanswered
        self.parties.witness(ledger, ledger.append(ROUND_APPLIED, name_of | applied), absent=absent)
        for client in self.parties.clients.values():
            client.policy = client.policy.after(fraction)
        if self.settings.encryption is not None:
            self._encryption = EncryptionSeconds.of(carried, contributions)
        self._book("round", number, carried, self._adapter_bytes(members, sent, opened.record))

    def _session(
        self,
        name: bytes,
        number: int,
        policy: PrivacyPolicy,
        dimension: int,
        aggregation: Aggregation,
    ) -> RoundSession:
        return RoundSession(
            session=name,
            round=number,
            cohort=self.cohort,
            roster=self.parties.roster,
            dimension=dimension,
            policy=policy,
            aggregation=aggregation,
            model=self.settings.cohorts.binding(self.bench.model_hash()),
        )

    def _carry_round(
        self,
        server: AnyServer,
        session: AnySession,
        client_round: Callable[[SimulatedClient], ClientRound | SlicedClientRound],
        charge: Callable[[SimulatedClient], None],
        clock: RoundClock,
        drop: Mapping[str, Stage],
    ) -> Carried:
        """Carry a round's messages; who makes halves of its own here has them charge themselves."""
        return carry(
            server,
            clock.prepared(self.parties.halves(session, client_round)),
            drop=drop,
            keep_transcript=False,
            timing=clock.timing,
            client_work=self._hiding,
            server_work=self._summing,
        )

    # -- held-out figures ------------------------------------------------------------------

    def _evaluate(self, ledger: Ledger, number: int) -> None:
        self._evaluations(ledger).measure(number)

    def _evaluations(self, ledger: Ledger) -> Evaluations:
        return self._evaluating(
            self.settings,
            self.bench,
            self.folder,
            self.parties,
            ledger,
            self._shown,
            self.observer,
            describe=self._session,
            carrier=self._carry_figures,
            book=lambda number, carried: self._book("evaluation", number, carried),
        )

    def _carry_figures(
        self,
        server: ServerRound,
        session: RoundSession,
        client_round: Callable[[SimulatedClient], ClientRound],
    ) -> Carried:
        return carry(
            server,
            self.parties.halves(session, client_round),
            keep_transcript=False,
            client_work=self._hiding,
            server_work=self._summing,
        )

    # -- reporting -------------------------------------------------------------------------

    def _hiding(self, name: str) -> AbstractContextManager[None]:
        return self.parties.meters[name].phase(hiding_phase(self.settings.aggregation))

    def _summing(self, stage: str) -> AbstractContextManager[None]:
        return self._meter.phase("sum")

    def _adapter_bytes(
        self, members: tuple[str, ...], sent: int, record: Mapping[str, Any]
    ) -> dict[str, int]:
        """What each client that was in a round is sent of the adapter after it."""
        if self.settings.slices is None:
            return dict.fromkeys(members, 4 * sent)
        values = values_down(record, self.settings.slices)
        return {name: 4 * count for name, count in values.items()}

    def _book(
        self,
        what: What,
        number: int,
        carried: Carried,
        adapter_bytes: Mapping[str, int] | None = None,
    ) -> None:
        work = {name: meter.take() for name, meter in self.parties.meters.items()}
        self._costs.book(
            what, number, carried, work, self._meter.take(), adapter_bytes=adapter_bytes or {}
        )

    def _report(self, ledger: Ledger, number: int, seconds: float) -> None:
        event = replace(
            recorded_event(ledger.records, number, self.settings),
            client_seconds=self._costs.mean_seconds(number),
            seconds=seconds,
            encrypting_seconds=self._encryption.encrypting,
            adding_seconds=self._encryption.adding,
            opening_seconds=self._encryption.opening,
        )
        self.events.append(event)
        self.folder.append_metrics(event.to_record())
        self.observer.round_end(event)
        if self.config.evaluation.show_clients and self.bench.saw_non_finite:
            self.bench.saw_non_finite = False
            self.observer.message(NON_FINITE)
