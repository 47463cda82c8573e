"""What a run has to show, and how it is made again from the run's ledger.  Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from securefed.engines.attempts import (
    CLOSED,
)
from securefed.engines.events import RoundEvent
from securefed.engines.figures import Figures
from securefed.engines.recorded import read_shown, recorded_event, recorded_figures
from securefed.engines.settings import Settings
from securefed.engines.verify import verified_run
from securefed.errors import LedgerTampered
from securefed.evidence.ledger import read_ledger
from securefed.privacy.accounting import ADVERSARIES, Adversary, PrivacyGuarantee


@dataclass(frozen=True)
class RunResult:
    """What a finished run has to show.

    Attributes:
        folder: the run folder.
        rounds: rounds applied to the adapter.
        charges: most masked inputs any client charged (retries included); epsilon counts these.
        guarantees: what holds against each adversary.
        noise_multiplier: of the run, whether it was given or followed from a target.
        before: held-out figures of the untouched model, and ``after``: of the last adapter.
        events: one a round.
        stopped: why the run ended early; empty if it did not.
    """

    folder: Path
    rounds: int
    charges: int
    guarantees: dict[Adversary, PrivacyGuarantee]
    noise_multiplier: float
    before: Figures
    after: Figures
    events: list[RoundEvent] = field(repr=False)
    stopped: str = ""


def recorded_result(folder: Path) -> RunResult | None:
    """What a finished run had to show, once more; None if the run is not finished.

    Raises:
        ConfigError, LedgerTampered: the folder does not verify.
    """
    if read_ledger(folder / "ledger.jsonl")[-1].kind != CLOSED:
        return None  # another process may be writing it
    run = verified_run(folder)
    closed = run.history.closed or {}
    rounds = run.history.applied
    shown = read_shown(folder / "shown.json")
    before, after = (recorded_figures(run.records, number, shown) for number in (0, rounds))
    if before is None or after is None:
        raise LedgerTampered(f"{folder / 'ledger.jsonl'}: closes without held-out figures")
    return RunResult(
        folder=folder,
        rounds=rounds,
        charges=run.charges,
        guarantees={who: run.settings.guarantee(who, run.charges) for who in ADVERSARIES},
        noise_multiplier=run.settings.stated.noise_multiplier,
        before=before,
        after=after,
        events=[recorded_event(run.records, n, run.settings) for n in range(rounds + 1)],
        stopped=str(closed["stopped"]),
    )


def costs(events: list[RoundEvent], settings: Settings) -> dict[str, Any]:
    """Means over the rounds of a run; seconds are over those since the last resume."""
    rounds = [event for event in events if event.round > 0]
    timed = [event for event in rounds if event.seconds > 0]

    def mean(of: list[RoundEvent], value: Callable[[RoundEvent], float]) -> float:
        return float(np.mean([value(event) for event in of])) if of else 0.0

    found: dict[str, Any] = {
        "aggregation": settings.config.aggregation.kind,
        "rounds": len(rounds),
        "clients": settings.cohort_size,
        "trainable_parameters": settings.plan.dimension,
        "bytes_up_per_client_and_round": mean(rounds, lambda event: event.bytes_up),
        "bytes_down_per_client_and_round": mean(rounds, lambda event: event.bytes_down),
        "client_seconds_per_round": mean(timed, lambda event: event.client_seconds),
        "seconds_per_round": mean(timed, lambda event: event.seconds),
        "note": "client seconds are means over the cohort of a simulation; a deployment does "
        "not send them, because they tell the size of a secret sample",
    }
    encryption = settings.encryption
    if encryption is None:
        return found
    return found | {
        "encryption": {
            "key_holder": encryption.key_holder,
            "masked": encryption.masked,
            "ciphertexts_per_contribution": encryption.count,
            "bytes_per_contribution": encryption.input_bytes,
            "bytes_per_value": encryption.input_bytes / settings.plan.dimension,
            "client_seconds_encrypting": mean(timed, lambda event: event.encrypting_seconds),
            "server_seconds_adding": mean(timed, lambda event: event.adding_seconds),
            "key_holder_seconds_opening": mean(timed, lambda event: event.opening_seconds),
            "note": "seconds a round: a client's for the answer with its contribution, making and "
            "charging that left out; the server's for all of these; one key holder's.  They depend "
            "on no sample",
        }
    }
