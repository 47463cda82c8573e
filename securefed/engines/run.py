"""The rounds of one run and everything it writes."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

import securefed
from securefed.config import Mechanism, RunConfig, dump_config
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.cohort import SimulatedClient
from securefed.engines.events import Observer, RoundEvent
from securefed.engines.figures import Figures, figures_policy
from securefed.engines.in_process import Carried, carry
from securefed.engines.run_folder import RunFolder, write_whole
from securefed.engines.settings import Settings
from securefed.engines.verify import check_accounts, released_files
from securefed.engines.workbench import Workbench
from securefed.errors import (
    BudgetExceeded,
    ConfigError,
    LedgerError,
    LedgerTampered,
    SecureFedError,
)
from securefed.evidence.budget import ClientBudget
from securefed.evidence.ledger import Ledger
from securefed.federation.client import ClientRound
from securefed.federation.floors import ClientFloors
from securefed.federation.server import ServerRound
from securefed.federation.server_optimizer import ServerOptimizer
from securefed.federation.session import RoundSession
from securefed.federation.update_codec import UpdateCodec
from securefed.privacy.accounting import ADVERSARIES, Adversary, PrivacyGuarantee
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregator import SESSION_BYTES


@dataclass(frozen=True)
class RunResult:
    """What a finished run has to show.

    Attributes:
        folder: the run folder.
        rounds: rounds applied to the adapter.
        charges: most masked inputs any client charged (retries included); epsilon counts these.
        guarantees: what holds against each adversary.
        before: held-out figures of the untouched model, and ``after``: of the last adapter.
        events: one a round.
        stopped: why the run ended early; empty if it did not.
    """

    folder: Path
    rounds: int
    charges: int
    guarantees: dict[Adversary, PrivacyGuarantee]
    before: Figures
    after: Figures
    events: list[RoundEvent] = field(repr=False)
    stopped: str = ""


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
        )
        self.clients: dict[str, SimulatedClient] = {}
        self.events: list[RoundEvent] = []
        self.before: Figures | None = None
        self.after: Figures | None = None

    def go(self, *, resume: bool) -> RunResult:
        """Begin or resume, and train to the end.

        Raises:
            BudgetExceeded: not even the first round fits; the run folder was not made.
            ThresholdNotMet, LedgerError, LedgerTampered: the run stopped; what was spent is held.
        """
        limit = self.config.budget.epsilon
        if not resume and limit is not None and self.settings.epsilon_after(1) > limit:
            raise BudgetExceeded(
                f"budget.epsilon = {limit:g}: the first round alone costs "
                f"{self.settings.epsilon_after(1):.4g}; nothing was run"
            )
        if not resume:
            self._begin()
        ledger, done = self._open()
        with ledger:
            try:
                return self._rounds(ledger, done)
            except (OSError, SafetensorError) as error:
                raise LedgerError(
                    f"run folder {self.folder.path}: cannot be written ({error}); what was charged "
                    "is held, and the run can be resumed"
                ) from error
            finally:
                for client in self.clients.values():
                    client.budget.close()

    # -- beginning and resuming ------------------------------------------------------------

    def _genesis(self) -> dict[str, Any]:
        text = dump_config(self.config)
        return {
            "software": f"securefed {securefed.__version__}",
            "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "model": self.bench.model_name,
            "model_fingerprint": self.bench.fingerprint,
            "adapter_sha256": self.bench.adapter_hash().hex(),
            "cohort": list(self.cohort),
            "client_sizes": {name: self.bench.sizes[name] for name in self.cohort},
            "privacy": self.settings.record(),
        }

    def _begin(self) -> None:
        """Make the whole run folder beside its place, then move it there: all of it or nothing."""
        config = dump_config(self.config)
        with self.folder.being_made(config) as partial:
            self.bench.save_initial(partial.initial)
            partial.save_checkpoint(0, self.optimizer.state())
            Ledger.create(partial.ledger, self._genesis(), clock=self.clock).close()
            for name in self.cohort:
                account = {"client": name, "privacy": self.settings.record()}
                Ledger.create(partial.budget(name), account, clock=self.clock).close()

    def _open(self) -> tuple[Ledger, int]:
        """Where a run stands: its ledger, and how many rounds were applied."""
        self.bench.load_initial(self.folder.initial)
        ledger = Ledger.open(self.folder.ledger, clock=self.clock)
        if ledger.records[-1].kind == "closed":
            ledger.close()
            raise ConfigError(
                f"--resume: the run in {self.folder.path} is finished; there is nothing left to do"
            )
        genesis = ledger.records[0].body
        for key, value in self._genesis().items():
            if json.loads(json.dumps(value)) != genesis[key]:
                raise LedgerTampered(
                    f"{self.folder.ledger}: {key} is {genesis[key]!r}, this run has {value!r}"
                )
        done, adapter = 0, genesis["adapter_sha256"]
        for record in ledger.records:
            if record.kind == "round_applied":
                done, adapter = int(record.body["round"]), record.body["adapter_sha256"]
        state = self.folder.load_checkpoint(done)
        if state is None:
            raise LedgerTampered(f"{self.folder.checkpoints}: no state after round {done}")
        self.optimizer.restore(state)
        self.bench.load_flat(self.optimizer.parameters)
        if self.bench.adapter_hash().hex() != adapter:
            raise LedgerTampered(
                f"{self.folder.checkpoints}: the state after round {done} is not the one that the "
                "ledger names"
            )
        for name in self.cohort:
            self._add_client(name, Ledger.open(self.folder.budget(name), clock=self.clock))
        check_accounts(self.folder.path, ledger.records, self.settings.event())
        try:
            recorded = [RoundEvent.from_record(line) for line in self.folder.read_metrics()]
        except TypeError as error:
            raise LedgerTampered(f"{self.folder.metrics}: {error}") from None
        self.events += [event for event in recorded if event.round <= done]
        # A line torn by the kill would swallow the next one appended to it.
        self.folder.rewrite_metrics([event.to_record() for event in self.events])
        if len(ledger.records) > 1:
            self.observer.message(f"resuming after round {done}")
        self._record_roster(ledger)
        return ledger, done

    def _add_client(self, name: str, ledger: Ledger) -> None:
        budget = ClientBudget(
            ledger,
            event=self.settings.event(),
            epsilon_after=self.settings.epsilon_after,
            limit=self.config.budget.epsilon,
        )
        self.clients[name] = SimulatedClient(name, self.bench.clients[name], budget)

    def _record_roster(self, ledger: Ledger) -> None:
        roster = {name: client.identity.public.raw.hex() for name, client in self.clients.items()}
        ledger.append("roster", {"keys": roster})

    # -- rounds ----------------------------------------------------------------------------

    def _rounds(self, ledger: Ledger, done: int) -> RunResult:
        total = self.config.training.rounds
        stopped = ""
        self.before = self._recorded_figures(ledger, 0)
        if self.before is None:
            self.before = self._evaluate(ledger, 0)
            self._report(0, None, self.before, 0.0)
        last = done
        for number in range(done + 1, total + 1):
            if not all(client.budget.affords() for client in self.clients.values()):
                stopped = (
                    f"budget.epsilon = {self.config.budget.epsilon:g}: round {number} would exceed "
                    "it, so the run ends here"
                )
                self.observer.message(stopped)
                break
            started = time.perf_counter()
            seconds_before = self._client_seconds()
            carried, survivors = self._round(ledger, number)
            worked = (self._client_seconds() - seconds_before) / len(self.cohort)
            every = self.config.evaluation.every
            figures = None
            if number == total or (every and number % every == 0):
                figures = self.after = self._evaluate(ledger, number)
            elapsed = time.perf_counter() - started
            self._report(number, (carried, len(survivors), worked), figures, elapsed)
            last = number
        if self.after is None or stopped:
            self.after = self._recorded_figures(ledger, last) or self._evaluate(ledger, last)
        self.bench.save_adapter(self.folder.adapter)
        self._write_costs()
        charges = self._charges()
        guarantees = {who: self.settings.guarantee(who, charges) for who in ADVERSARIES}
        ledger.append(
            "closed",
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
            before=self.before,
            after=self.after,
            events=self.events,
            stopped=stopped,
        )

    def _round(self, ledger: Ledger, number: int) -> tuple[Carried, tuple[str, ...]]:
        """One attempt at one round: recorded before, charged by each client, applied after."""
        session = self._session(number, self.settings.sum_policy, self.bench.layout.size)
        event = self.settings.event() | {"round": number, "session": session.session.hex()}
        ledger.append("round_opened", event)
        encode = self.bench.encoder(self.settings, number)
        drop = {
            item.client: item.stage
            for item in self.config.cohort.simulated_dropouts
            if item.round == number
        }
        server = ServerRound(session)
        finished = 0

        def client_round(client: SimulatedClient) -> ClientRound:
            timed = client.timed(encode)

            def counted(codec: UpdateCodec, generator: NoiseGenerator) -> NDArray[np.uint32]:
                nonlocal finished
                encoded = timed(codec, generator)
                finished += 1
                self.observer.working("training", finished, len(self.cohort))
                return encoded

            return ClientRound(
                session,
                client.client_id,
                client.identity,
                counted,
                charge=lambda: client.budget.charge(event),
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
                "round_failed",
                {"round": number, "session": event["session"], "why": type(error).__name__},
            )
            raise
        survivors = server.survivors
        # Written and flushed before the sum is used for anything.
        ledger.append(
            "round_summed",
            {
                "round": number,
                "session": event["session"],
                "survivors": list(survivors),
                "charges": self._charges(),
            },
        )
        parameters = self.optimizer.step(self.settings.gradient(server.sum, survivors))
        self.bench.load_flat(parameters)
        self.folder.save_checkpoint(number, self.optimizer.state())
        ledger.append(
            "round_applied",
            {"round": number, "adapter_sha256": self.bench.adapter_hash().hex()},
        )
        return carried, survivors

    def _session(self, number: int, policy: PrivacyPolicy, dimension: int) -> RoundSession:
        return RoundSession(
            session=secrets.token_bytes(SESSION_BYTES),
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
        session = self._session(number + 1, policy, Figures.DIMENSION)
        own: dict[str, NDArray[np.float64]] = {}
        for done, name in enumerate(self.cohort):
            self.observer.working("evaluating", done, len(self.cohort))
            own[name] = self.bench.figures(name)
        self.observer.working("evaluating", len(self.cohort), len(self.cohort))
        server = ServerRound(session)
        carry(
            server,
            {
                name: ClientRound(session, name, client.identity, _encode_figures(own[name]))
                for name, client in self.clients.items()
            },
            keep_transcript=False,
        )
        shown = own if self.config.evaluation.show_clients else None
        figures = Figures.from_sum(server.sum, len(server.survivors), shown)
        ledger.append(
            "evaluated", {"round": number, "guaranteed": False, "figures": figures.to_record()}
        )
        return figures

    @staticmethod
    def _recorded_figures(ledger: Ledger, number: int) -> Figures | None:
        found = None
        for record in ledger.records:
            if record.kind == "evaluated" and record.body["round"] == number:
                found = Figures.from_record(record.body["figures"])
        return found

    # -- reporting -------------------------------------------------------------------------

    def _charges(self) -> int:
        return max(client.budget.charges for client in self.clients.values())

    def _client_seconds(self) -> float:
        return sum(client.seconds for client in self.clients.values())

    def _report(
        self,
        number: int,
        outcome: tuple[Carried, int, float] | None,
        figures: Figures | None,
        seconds: float,
    ) -> None:
        size = len(self.cohort)
        carried, survivors, worked = outcome or (Carried(), size, 0.0)
        adapter_bytes = 4 * self.bench.layout.size if outcome else 0
        epsilon = self.settings.epsilon_after(self._charges())
        note = "" if survivors == size else f"{size - survivors} dropped out"
        if carried.refusals:
            note += f"; {len(carried.refusals)} refused"
        event = RoundEvent(
            round=number,
            rounds=self.config.training.rounds,
            survivors=survivors,
            cohort=size,
            epsilon=epsilon if np.isfinite(epsilon) else None,
            delta=self.config.privacy.delta,
            perplexity=figures.perplexity if figures else None,
            accuracy=figures.accuracy if figures else None,
            bytes_up=sum(carried.bytes_up.values()) / size,
            bytes_down=sum(carried.bytes_down.values()) / size + adapter_bytes,
            client_seconds=worked,
            seconds=seconds,
            note=note,
        )
        self.events.append(event)
        self.folder.append_metrics(event.to_record())
        self.observer.round_end(event)

    def _write_costs(self) -> None:
        rounds = [event for event in self.events if event.round > 0]
        timed = [event for event in rounds if event.seconds > 0]  # since the last resume

        def mean(values: list[float]) -> float:
            return float(np.mean(values)) if values else 0.0

        costs = {
            "rounds": len(rounds),
            "clients": len(self.cohort),
            "trainable_parameters": self.bench.layout.size,
            "bytes_up_per_client_and_round": mean([event.bytes_up for event in rounds]),
            "bytes_down_per_client_and_round": mean([event.bytes_down for event in rounds]),
            "client_seconds_per_round": mean([event.client_seconds for event in timed]),
            "seconds_per_round": mean([event.seconds for event in timed]),
            "note": "client seconds are means over the cohort of a simulation; a deployment does "
            "not send them, because they tell the size of a secret sample",
        }
        write_whole(self.folder.costs, json.dumps(costs, indent=1, sort_keys=True) + "\n")


def _encode_figures(
    values: NDArray[np.float64],
) -> Callable[[UpdateCodec, NoiseGenerator], NDArray[np.uint32]]:
    return lambda codec, generator: codec.encode_update(values, generator)
