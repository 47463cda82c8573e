"""How far a run is, in progress or finished, by its ledger alone.  Needs no torch.

Nothing is written.  Clients' accounts are not compared with the ledger, which ``securefed verify``
does: a run in progress is often between the two.
"""

from __future__ import annotations

import datetime
import errno
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from securefed.config import RunConfig, load_config
from securefed.engines.attempts import History, read_history
from securefed.engines.events import RoundEvent
from securefed.engines.recorded import recorded_event
from securefed.engines.run_files import check_config
from securefed.engines.settings import Settings
from securefed.engines.verified import recorded_settings
from securefed.errors import ConfigError
from securefed.evidence.kinds import (
    CLOSED,
    EVALUATED,
    EVALUATION_OPENED,
    HISTOGRAM_OPENED,
    HISTOGRAM_SUMMED,
    ROUND_ABANDONED,
    ROUND_APPLIED,
    ROUND_FAILED,
    ROUND_OPENED,
    ROUND_SUMMED,
)
from securefed.evidence.ledger import Record, read_ledger
from securefed.privacy.accounting import ADVERSARIES, Adversary, PrivacyGuarantee

_STAGES = {
    "genesis": "begun; nothing is spent yet",
    ROUND_OPENED: "round {round}: clients train, clip, noise and mask",
    ROUND_SUMMED: "round {round}: the sum is open; the server applies it",
    ROUND_APPLIED: "round {round} is applied",
    ROUND_FAILED: "round {round} failed ({why}); what was charged stays charged",
    ROUND_ABANDONED: "round {round} was left without an end and counts as charged",
    EVALUATION_OPENED: "held-out figures after round {round} are measured",
    EVALUATED: "held-out figures after round {round} are on record",
    HISTOGRAM_OPENED: "a histogram of held-out figures after round {round} is measured",
    HISTOGRAM_SUMMED: "a histogram of held-out figures after round {round} is on record",
    CLOSED: "finished",
}


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        folder: the run folder.
        config: its run file.
        finished: whether it is closed.
        writing: whether a process holds the ledger; None where this cannot be seen.
        applied: rounds applied to the adapter, of ``rounds``.
        rounds: of the run.
        stage: what it is at, in words.
        charges: most rounds charged to any client; one without an end counts.
        guarantees: what holds against each adversary at ``charges``.
        events: the line of each applied round, the evaluation before the first included.
        minutes: from the first record to the last, by the ledger's own clock, cut to minutes.
        minutes_left: at the mean pace so far; None before a round was applied, and at the end.
    """

    folder: Path
    config: RunConfig
    finished: bool
    writing: bool | None
    applied: int
    rounds: int
    stage: str
    charges: int
    guarantees: dict[Adversary, PrivacyGuarantee]
    events: list[RoundEvent]
    minutes: float
    minutes_left: float | None

    @property
    def bytes_up(self) -> float:
        """Mean bytes that a client has sent in all applied rounds."""
        return sum(event.bytes_up for event in self.events)

    @property
    def bytes_down(self) -> float:
        """Mean bytes that a client was sent, adapters included."""
        return sum(event.bytes_down for event in self.events)


class RunWatch:
    """Reads one run's progress again and again; what never changes is worked out once.

    Args:
        folder: the run folder.

    Raises:
        ConfigError: it is no run folder.
        LedgerTampered: its ledger does not hold, or is not of its run file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._ledger = folder, folder / "ledger.jsonl"
        for path in (self._ledger, folder / "config.toml"):
            if not path.is_file():
                raise ConfigError(
                    f"{path} is missing: {folder} is not a run folder, or its run has not begun; "
                    "name the folder that `securefed run` printed"
                )
        genesis = read_ledger(self._ledger)[0].body
        check_config(folder, genesis)
        self._config = load_config(folder / "config.toml")
        self._settings = recorded_settings(self._ledger, genesis, self._config)
        self._guarantees = functools.lru_cache(maxsize=2)(self._stated)

    def progress(self) -> Progress:
        """Where the run stands now.

        Raises:
            LedgerTampered: the ledger does not hold.
        """
        records = read_ledger(self._ledger)
        history = read_history(self._ledger, records, self._settings)
        charges = charged_by_ledger(history, self._settings)
        finished = history.closed is not None
        minutes = _minutes(records)
        rounds = self._config.training.rounds
        left = None
        if history.applied and not finished:
            left = minutes / history.applied * (rounds - history.applied)
        shown = range(history.applied + 1)
        return Progress(
            folder=self._folder,
            config=self._config,
            finished=finished,
            writing=_is_written(self._ledger),
            applied=history.applied,
            rounds=rounds,
            stage=stage_of(records, self._config),
            charges=charges,
            guarantees=self._guarantees(charges),
            events=[recorded_event(records, number, self._settings) for number in shown],
            minutes=minutes,
            minutes_left=left,
        )

    def _stated(self, charges: int) -> dict[Adversary, PrivacyGuarantee]:
        return {who: self._settings.guarantee(who, charges) for who in ADVERSARIES}


def charged_by_ledger(history: History, settings: Settings) -> int:
    """The most rounds that any client was charged; an attempt without an end counts for all."""
    count: dict[str, int] = {}
    for attempt in history.attempts.values():
        members = settings.cohorts.members(attempt.round)
        for name in members if attempt.charged is None else attempt.charged:
            count[name] = count.get(name, 0) + 1
    return max(count.values(), default=0)


def stage_of(records: Sequence[Record], config: RunConfig) -> str:
    """What a run is at, by its last record that says so."""
    for record in reversed(records):
        if record.kind not in _STAGES:
            continue  # a signature, or a note of a recovery
        if record.kind == CLOSED:
            return str(record.body["stopped"]) or _STAGES[CLOSED]
        if record.kind == ROUND_APPLIED and record.body["round"] == config.training.rounds:
            return "all rounds are applied; it is measured and written down"
        return _STAGES[record.kind].format_map({"why": "", **record.body})
    return "begun"


def _minutes(records: Sequence[Record]) -> float:
    first, last = (
        datetime.datetime.fromisoformat(record.time) for record in (records[0], records[-1])
    )
    return max((last - first).total_seconds() / 60.0, 0.0)


def _is_written(ledger: Path) -> bool | None:
    """Whether another process holds the lock of a ledger; it is held for no longer than a look."""
    try:
        import fcntl  # Windows has none
    except ModuleNotFoundError:
        return None
    descriptor = os.open(ledger, os.O_RDONLY)
    try:
        # A shared lock: two who look do not take one another for the writer.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in (errno.EACCES, errno.EAGAIN) else None
    finally:
        os.close(descriptor)
    return False
