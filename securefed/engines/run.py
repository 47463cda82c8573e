"""The rounds of one run and everything it writes."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from securefed.config import Mechanism, RunConfig
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.attempts import (
    CLOSED,
    EVALUATED,
    EVALUATION_OPENED,
    ROUND_APPLIED,
    ROUND_FAILED,
    ROUND_OPENED,
    ROUND_SUMMED,
    next_clip_norm,
)
from securefed.engines.cohort import SimulatedClient
from securefed.engines.events import Observer, RoundEvent
from securefed.engines.figures import Figures, figures_policy
from securefed.engines.in_process import carry
from securefed.engines.opening import Opening
from securefed.engines.recorded import read_shown, recorded_event, recorded_figures
from securefed.engines.results import RunResult, costs
from securefed.engines.run_folder import RunFolder, write_whole
from securefed.engines.settings import Settings
from securefed.engines.verify import released_files
from securefed.engines.workbench import Workbench
from securefed.errors import (
    BudgetExceeded,
    LedgerError,
    SecureFedError,
)
from securefed.evidence.ledger import Ledger
from securefed.federation.client import ClientRound
from securefed.federation.floors import ClientFloors
from securefed.federation.server import ServerRound
from securefed.federation.server_optimizer import ServerOptimizer
from securefed.federation.session import RoundSession
from securefed.federation.update_codec import UpdateCodec
from securefed.privacy.accounting import ADVERSARIES, epsilon_text
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregator import SESSION_BYTES

NON_FINITE = (
    "note: some client's training ended in NaN or infinity in this round or before, and it sent "
    "noise alone (said once, outside the guarantee, because evaluation.show_clients is set)"
)


class Run:
    """One run: from a prepared cohort to an adapter, with every step on record first."""

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
        self.cohort = tuple(sorted(bench.clients))
        training = self.config.training
        self.optimizer = ServerOptimizer(
            bench.flat(),
            kind=training.server_optimizer,
            learning_rate=training.server_learning_rate,
        )
        self._floors = ClientFloors(
            min_clients=config.cohort.min_clients,
            mechanisms=get_args(Mechanism),
            allow_plaintext=True,
            allow_ring=True,
            allow_conditional_rounding=True,
        )
        self.clients: dict[str, SimulatedClient] = {}
        self._policy = settings.sum_policy  # the server's own, of the next round
        self.events: list[RoundEvent] = []
        self._shown: dict[str, float] = {}
        self._correlated = settings.correlated_release()

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
                f"{epsilon_text(self.settings.epsilon_after(1))}; nothing was run"
            )
        opening = Opening(
            self.config,
            self.folder,
            self.bench,
            self.settings,
            self.optimizer,
            self.observer,
            self.clock,
        )
        if not resume:
            opening.begin()
        try:
            with ExitStack() as held:
                opened = opening.open(held)
                self.clients, self._policy = opened.clients, opened.history.policy
                self._shown = read_shown(self.folder.shown)
                return self._rounds(opened.ledger, opened.history.applied)
        except (OSError, SafetensorError) as error:
            raise LedgerError(
                f"run folder {self.folder.path}: cannot be written ({error}); what was charged "
                f"is held{', and the run can be resumed' * self.config.privacy.resumable}"
            ) from error

    # -- rounds ----------------------------------------------------------------------------

    def _rounds(self, ledger: Ledger, done: int) -> RunResult:
        total = self.config.training.rounds
        stopped = ""
        self._catch_up(ledger, done)
        last = done
        for number in range(done + 1, total + 1):
            limit = self.settings.limit
            if limit and not all(client.budget.affords() for client in self.clients.values()):
                stopped = (
                    f"{limit[0]} = {limit[1]:g}: round {number} would exceed it, so the run ends "
                    "here"
                )
                self.observer.message(stopped)
                break
            started, worked_before = time.perf_counter(), self._client_seconds()
            self._round(ledger, number)
            worked = (self._client_seconds() - worked_before) / len(self.cohort)
            if self._evaluation_is_due(number):
                self._evaluate(ledger, number)
            self._report(ledger, number, time.perf_counter() - started, worked)
            last = number
        before, after = self._figures(ledger, 0), self._figures(ledger, last)
        if stopped:  # the last round's line was written before its figures were measured
            now, was = recorded_event(ledger.records, last, self.settings), self.events[-1]
            self.events[-1] = replace(now, client_seconds=was.client_seconds, seconds=was.seconds)
            self.folder.rewrite_metrics([event.to_record() for event in self.events])
        self.folder.save_adapter(self.bench.save_adapter)
        write_whole(
            self.folder.costs,
            json.dumps(costs(self.events, self.settings), indent=1, sort_keys=True) + "\n",
        )
        charges = self._charges()
        guarantees = {who: self.settings.guarantee(who, charges) for who in ADVERSARIES}
        ledger.append(
            CLOSED,
            {
                "rounds": last,
                "charges": charges,
                "guarantees": [statement.to_record() for statement in guarantees.values()],
                "stopped": stopped,
                "files": released_files(self.folder.path),
            },
        )
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
        )

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
        every = self.config.evaluation.every
        return number in (0, self.config.training.rounds) or bool(every and number % every == 0)

    def _round(self, ledger: Ledger, number: int) -> None:
        """One attempt at one round: recorded before, charged by each client, applied after."""
        name, dimension = secrets.token_bytes(SESSION_BYTES), self.bench.layout.size
        # Every party describes the round by its own policy; equal descriptions are made once.
        sessions = {
            policy: self._session(name, number, policy, dimension)
            for policy in (self._policy, *(client.policy for client in self.clients.values()))
        }
        name_of = {"round": number, "session": name.hex()}
        ledger.append(ROUND_OPENED, self.settings.round_event(self._policy) | name_of)
        drop = {
            item.client: item.stage
            for item in self.config.cohort.simulated_dropouts
            if item.round == number
        }
        server = ServerRound(sessions[self._policy], correlated=self._correlated)
        charged: list[str] = []
        finished = 0

        def client_round(client: SimulatedClient) -> ClientRound:
            timed = client.timed(self.bench.encoder(self.settings, number, client.client_id))

            def counted(codec: UpdateCodec, generator: NoiseGenerator) -> NDArray[np.uint32]:
                nonlocal finished
                encoded = timed(codec, generator)
                finished += 1
                self.observer.working("training", finished, len(self.cohort))
                return encoded

            def charge() -> None:
                client.budget.charge(self.settings.round_event(client.policy) | name_of)
                charged.append(client.client_id)

            return ClientRound(
                sessions[client.policy],
                client.client_id,
                client.identity,
                counted,
                charge=charge,
                floors=self._floors,
            )

        try:
            carried = carry(
                server,
                {name: client_round(client) for name, client in self.clients.items()},
                drop=drop,
                keep_transcript=False,
            )
        except SecureFedError as error:
            ledger.append(
                ROUND_FAILED, name_of | {"charged": sorted(charged), "why": type(error).__name__}
            )
            raise
        survivors = server.survivors
        if self._correlated is not None:
            # The schedule moves on for those as well who were not heard of.
            for silent in sorted(set(self.cohort) - set(charged)):
                client = self.clients[silent]
                client.budget.charge(self.settings.round_event(client.policy) | name_of)
                charged.append(silent)
        fraction = self.settings.unclipped_fraction(server.count, survivors)
        # Written and flushed before the sum is used for anything.
        ledger.append(
            ROUND_SUMMED,
            name_of
            | {
                "survivors": list(survivors),
                "charged": sorted(charged),
                "charges": self._charges(),
                "bytes_up": sum(carried.bytes_up.values()),
                "bytes_down": sum(carried.bytes_down.values()),
                "refused": len(carried.refusals),
                "silent": len(set(survivors) - carried.last - set(carried.refusals)),
            }
            | ({} if fraction is None else {"unclipped_fraction": fraction}),
        )
        parameters = self.optimizer.step(self.settings.gradient(server.sum, survivors))
        self.bench.load_flat(parameters)
        self.folder.save_checkpoint(number, self.optimizer.state())
        self._policy = self._policy.after(fraction)
        applied: dict[str, object] = {"adapter_sha256": self.bench.adapter_hash().hex()}
        if (clip := next_clip_norm(self._policy)) is not None:
            applied["next_clip_norm"] = clip
        ledger.append(ROUND_APPLIED, name_of | applied)
        for client in self.clients.values():
            client.policy = client.policy.after(fraction)

    def _session(
        self, name: bytes, number: int, policy: PrivacyPolicy, dimension: int
    ) -> RoundSession:
        return RoundSession(
            session=name,
            round=number,
            cohort=self.cohort,
            roster={name: client.identity.public for name, client in self.clients.items()},
            dimension=dimension,
            policy=policy,
            aggregation=self.settings.aggregation,
            model=self.bench.model_hash(),
        )

    # -- held-out figures ------------------------------------------------------------------

    def _evaluate(self, ledger: Ledger, number: int) -> Figures:
        """Each client measures its own held-out text; only the sum over clients is opened."""
        policy = figures_policy(self.settings.sum_policy)
        session = self._session(
            secrets.token_bytes(SESSION_BYTES), number + 1, policy, Figures.DIMENSION
        )
        name_of = {"round": number, "session": session.session.hex(), "guaranteed": False}
        own: dict[str, NDArray[np.float64]] = {}
        for done, name in enumerate(self.cohort):
            self.observer.working("evaluating", done, len(self.cohort))
            own[name] = self.bench.figures(name)
        self.observer.working("evaluating", len(self.cohort), len(self.cohort))
        ledger.append(EVALUATION_OPENED, name_of)
        server = ServerRound(session)
        carry(
            server,
            {
                name: ClientRound(
                    session,
                    name,
                    client.identity,
                    _encode_figures(own[name]),
                    floors=self._floors,
                )
                for name, client in self.clients.items()
            },
            keep_transcript=False,
        )
        shown = own if self.config.evaluation.show_clients else None
        figures = Figures.from_sum(server.sum, len(server.survivors), shown)
        if figures.worst is not None:
            self._shown[str(number)] = figures.worst
            self.folder.write_shown(self._shown)
        record = {"survivors": list(server.survivors), "figures": figures.to_record()}
        ledger.append(EVALUATED, name_of | record)
        return figures

    def _figures(self, ledger: Ledger, number: int) -> Figures:
        """What was measured after a round, or is measured now."""
        found = recorded_figures(ledger.records, number, self._shown)
        return self._evaluate(ledger, number) if found is None else found

    # -- reporting -------------------------------------------------------------------------

    def _charges(self) -> int:
        return max(client.budget.charges for client in self.clients.values())

    def _client_seconds(self) -> float:
        return sum(client.seconds for client in self.clients.values())

    def _report(self, ledger: Ledger, number: int, seconds: float, worked: float) -> None:
        recorded = recorded_event(ledger.records, number, self.settings)
        event = replace(recorded, client_seconds=worked, seconds=seconds)
        self.events.append(event)
        self.folder.append_metrics(event.to_record())
        self.observer.round_end(event)
        if self.config.evaluation.show_clients and self.bench.saw_non_finite:
            self.bench.saw_non_finite = False
            self.observer.message(NON_FINITE)


def _encode_figures(
    values: NDArray[np.float64],
) -> Callable[[UpdateCodec, NoiseGenerator], NDArray[np.uint32]]:
    return lambda codec, generator: codec.encode_update(values, generator)
