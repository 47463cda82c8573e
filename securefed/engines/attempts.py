"""What a run's ledger says of each attempt at a round, and what each client owes for it.

An attempt is opened, and ends in one of three ways::

    round_opened ──┬── round_summed ── round_applied
                   ├── round_failed
                   └── round_abandoned      (noted by the resume after a kill)

**The rule of counting.**  A client's charges are the sessions in its own account, and also the
session of an attempt that the ledger opened and that has no end.  The account alone cannot show
that nothing was sent in that attempt, since whoever can take the last charge from the file leaves a
file that verifies; so it counts for every client of the round's cohort.  Three records keep that
from ending: each end names who was charged, and the accounts must still hold those charges; a
resumed run first charges an attempt without an end to each of them whose account lacks it, durably,
and then records it as abandoned; and ``round_summed.charges`` fixes the highest count at that
moment.  The epsilon stated is therefore never below what may have left; a kill before the first
charge costs one round that was not spent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from securefed.engines.attempt import Attempt
from securefed.engines.comparing import require_same
from securefed.engines.figures import Figures
from securefed.engines.histogram_records import HistogramRecords
from securefed.engines.plan_records import check_slices
from securefed.engines.round_clock import checked_late
from securefed.engines.settings import Settings
from securefed.errors import ConfigError, LedgerTampered
from securefed.evidence.kinds import (
    CLOSED,
    EVALUATED,
    EVALUATION_FAILED,
    EVALUATION_OPENED,
    ROUND_ABANDONED,
    ROUND_APPLIED,
    ROUND_FAILED,
    ROUND_OPENED,
    ROUND_SUMMED,
    SOFTWARE,
    WITNESSED,
)
from securefed.evidence.ledger import RECOVERED, Record
from securefed.privacy.policy import CohortBounds, PrivacyPolicy


@dataclass
class History:
    """A run so far, by its ledger.

    Attributes:
        attempts: in the order in which they were opened; only the last can be without an end.
        applied: how many rounds were applied to the adapter.
        adapter: SHA-256 of the adapter after them, hexadecimal.
        policy: of the next round; its clip follows from the fractions of the rounds applied.
        unnoised: sums without noise that were begun, by session; the value says if it was opened.
        histograms: attempts at noised histograms, in the order in which they were opened.
        rounds: the number of the round of every session that was opened, of all kinds.
        survivors: who is in each sum on record, by session, of all kinds.
        software: name and version that wrote the last records.
        closed: the closing record's body; None for a run that is not finished.
    """

    applied: int
    adapter: str
    policy: PrivacyPolicy
    software: str
    attempts: dict[str, Attempt] = field(default_factory=dict)
    unnoised: dict[str, bool] = field(default_factory=dict)
    histograms: dict[str, Attempt] = field(default_factory=dict)
    rounds: dict[str, int] = field(default_factory=dict)
    survivors: dict[str, frozenset[str]] = field(default_factory=dict)
    closed: Mapping[str, Any] | None = None

    @property
    def open(self) -> Attempt | None:
        """The attempt without an end."""
        last = next(reversed(self.attempts.values()), None)
        return last if last is not None and last.charged is None else None

    @property
    def open_histogram(self) -> Attempt | None:
        """The attempt at a histogram that has no end."""
        last = next(reversed(self.histograms.values()), None)
        return last if last is not None and last.charged is None else None

    @property
    def unapplied(self) -> list[Attempt]:
        """The attempts whose sum is not in the adapter; what they were charged for stays spent."""
        last = {attempt.round: attempt.session for attempt in self.attempts.values()}
        applied = {session for number, session in last.items() if number <= self.applied}
        return [attempt for session, attempt in self.attempts.items() if session not in applied]


class _Reader:
    """Takes the records of one ledger in order and refuses what no run writes."""

    def __init__(self, path: Path, genesis: Mapping[str, Any], settings: Settings) -> None:
        self._path, self._settings = path, settings
        self._cohort = set(genesis["cohort"])
        self._summed: str | None = None
        self._measured: dict[str, str | None] = {}
        self._following = settings.sum_policy
        self._line = 1
        self.history = History(
            applied=0,
            adapter=str(genesis["adapter_sha256"]),
            policy=settings.sum_policy,
            software=str(genesis["software"]),
        )
        self._kinds: dict[str, Callable[[Mapping[str, Any]], None]] = {
            ROUND_OPENED: self._round_opened,
            ROUND_SUMMED: self._round_summed,
            ROUND_FAILED: self._round_ended,
            ROUND_ABANDONED: self._round_ended,
            ROUND_APPLIED: self._round_applied,
            EVALUATION_OPENED: self._evaluation_opened,
            EVALUATED: self._evaluated,
            EVALUATION_FAILED: self._evaluation_failed,
            WITNESSED: self._witnessed,
            RECOVERED: lambda body: None,
            SOFTWARE: self._software,
            CLOSED: self._closed,
        }
        self._kinds |= HistogramRecords(
            settings.histograms,
            self.history.histograms,
            refuse=self._refuse,
            new_session=self._new_session,
            check_present=self._check_present,
            check_round=self._check_round,
            check_names=lambda field, names: self._check_names(field, names, self._cohort),
            check_survivors=lambda body: self._check_survivors(body, self._cohort),
        ).kinds

    def take(self, record: Record) -> None:
        self._line = record.seq + 1
        if self.history.closed is not None and record.kind != WITNESSED:
            self._refuse(f"{record.kind} stands after the run was closed")
        if record.kind not in self._kinds:
            self._refuse(f"kind {record.kind!r} is none that a run writes")
        try:
            self._kinds[record.kind](record.body)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._refuse(f"{record.kind} lacks what it must hold ({error!r})")

    def _refuse(self, what: str) -> NoReturn:
        raise LedgerTampered(f"{self._path}: line {self._line}: {what}")

    def _new_session(self, body: Mapping[str, Any]) -> str:
        session, number = str(body["session"]), int(body["round"])
        if session in self.history.rounds:
            self._refuse("names a session again that was opened before")
        self.history.rounds[session] = number
        return session

    def _check_round(self, body: Mapping[str, Any]) -> None:
        opened = self.history.rounds[str(body["session"])]
        if body["round"] != opened:
            self._refuse(f"is of round {body['round']}; its session was opened for round {opened}")

    def _round_opened(self, body: Mapping[str, Any]) -> None:
        event = self._settings.round_event(self.history.policy)
        where = f"{self._path}: line {self._line}: round {body['round']}"
        require_same({key: body[key] for key in event}, event, where)
        self._new_session(body)
        following, last = self.history.applied + 1, self._settings.config.training.rounds
        if body["round"] != following or following > last:
            self._refuse(
                f"{ROUND_OPENED} for round {body['round']}, {self.history.applied} of {last} "
                "having been applied"
            )
        if self.history.open is not None:
            self._refuse("opens an attempt while the one before it has no end")
        self._summed = None
        self.history.attempts[str(body["session"])] = Attempt(event=body)

    def _round_ended(self, body: Mapping[str, Any]) -> None:
        attempt = self.history.attempts.get(str(body["session"]))
        if attempt is None:
            self._refuse(f"ends an attempt at round {body['round']} that was never opened")
        self._check_round(body)
        if attempt.charged is not None:
            self._refuse(f"an attempt at round {attempt.round} ended twice")
        members = self._members(attempt.round)
        self._check_names("charged", body["charged"], members)
        settings = self._settings
        try:
            checked_late(
                body,
                members,
                timed=settings.run_plan is not None,
                closes=settings.config.cohort.schedule.deadline is not None,
            )
        except ConfigError as error:
            self._refuse(str(error))
        attempt.charged = frozenset(body["charged"])

    def _round_summed(self, body: Mapping[str, Any]) -> None:
        self._round_ended(body)
        try:
            check_slices(body, self._settings.slices)
        except ConfigError as error:
            self._refuse(str(error))
        self._check_survivors(
            body, self._members(int(body["round"])), sliced=self._settings.slices is not None
        )
        uncharged = sorted(set(body["survivors"]) - set(body["charged"]))
        if uncharged:
            self._refuse(f"charged: lacks {uncharged[0]}, which is among the survivors")
        absent = sorted(self._cohort - set(body["charged"]))
        if absent and self._settings.stated.separation is not None:
            self._refuse(
                f"charged: lacks {absent[0]}; where examples take part by a schedule a round "
                "counts for every client"
            )
        # Ledgers of earlier versions do not say who fell silent afterwards.
        counts = {"silent": 0} | dict(body)
        for name in ("bytes_up", "bytes_down", "refused", "silent"):
            if not isinstance(counts[name], int) or counts[name] < 0:
                self._refuse(f"{name} = {counts[name]!r}: must be a count")
        try:
            self._following = self.history.policy.after(body.get("unclipped_fraction"))
        except (ConfigError, TypeError) as error:
            self._refuse(str(error))
        self._summed = str(body["session"])
        self.history.attempts[self._summed].charges = int(body["charges"])

    def _round_applied(self, body: Mapping[str, Any]) -> None:
        if self._summed is None or body["session"] != self._summed:
            self._refuse(f"applies round {body['round']} without a sum of its own")
        if body["round"] != self.history.attempts[self._summed].round:
            self._refuse(f"applies round {body['round']} from the sum of another one")
        next_clip = body.get("next_clip_norm")
        if next_clip != next_clip_norm(self._following):
            self._refuse(
                f"next_clip_norm = {next_clip!r}, recomputed {next_clip_norm(self._following)!r}"
            )
        values_down = body.get("values_down", 1)
        if not isinstance(values_down, int) or values_down < 1:
            self._refuse(f"values_down = {values_down!r}: must be a count")
        self._summed = None
        self.history.policy = self._following
        self.history.applied = int(body["round"])
        self.history.adapter = str(body["adapter_sha256"])

    def _evaluation_opened(self, body: Mapping[str, Any]) -> None:
        self._check_unguaranteed(body)
        if self._settings.histograms is not None:
            self._refuse("opens a sum without noise; evaluation.figures = 'histogram'")
        personal = self._settings.config.personal.told
        if body.get("of", "shared") not in ("shared", *(["personal"] if personal else [])):
            self._refuse(f"of = {body['of']!r}: this run has no such figures")
        self._check_present(body)
        session = self._new_session(body)
        self.history.unnoised[session], self._measured[session] = False, body.get("of")

    def _check_present(self, body: Mapping[str, Any]) -> None:
        if body["round"] != self.history.applied:
            self._refuse(
                f"held-out figures after round {body['round']}, {self.history.applied} having been "
                "applied"
            )

    def _evaluated(self, body: Mapping[str, Any]) -> None:
        session = str(body["session"])
        if session not in self.history.unnoised:
            self._refuse("holds figures of an evaluation that was never opened")
        if self.history.unnoised[session] or session not in self._measured:
            self._refuse("one evaluation ended twice")
        self._check_unguaranteed(body)
        self._check_round(body)
        if body.get("of") != self._measured[session]:
            self._refuse(f"of = {body.get('of')!r}; opened for {self._measured[session]!r}")
        self._check_survivors(body, self._cohort)
        Figures.from_record(body["figures"])
        self.history.unnoised[session] = True

    def _evaluation_failed(self, body: Mapping[str, Any]) -> None:
        session = str(body["session"])
        if self.history.unnoised.get(session, True) or session not in self._measured:
            self._refuse("fails an evaluation that was never opened, or has ended")
        self._check_unguaranteed(body)
        self._check_round(body)
        if body.get("of") != self._measured.pop(session):
            self._refuse(f"of = {body.get('of')!r}; it was opened for other figures")

    def _witnessed(self, body: Mapping[str, Any]) -> None:
        """What it signs is checked with all signatures, in :mod:`securefed.engines.witnesses`."""
        if self.history.applied == 0 and self.history.closed is None:
            self._refuse("signs a head before a round was applied")

    def _check_unguaranteed(self, body: Mapping[str, Any]) -> None:
        if body["guaranteed"] is not False:
            self._refuse("guaranteed: must be false for a sum without noise")

    def _software(self, body: Mapping[str, Any]) -> None:
        self.history.software = str(body["software"])

    def _closed(self, body: Mapping[str, Any]) -> None:
        applied, wanted = self.history.applied, self._settings.config.training.rounds
        if body["rounds"] != applied:
            self._refuse(f"closes with rounds = {body['rounds']}, {applied} were applied")
        if applied != wanted and not body["stopped"]:
            self._refuse(
                f"closes with rounds = {applied}, training.rounds = {wanted}, and no reason"
            )
        self.history.closed = body

    def _members(self, number: int) -> set[str]:
        return set(self._settings.cohorts.members(number))

    def _check_names(self, field_name: str, names: list[str], members: set[str]) -> None:
        unknown = sorted(set(names) - members)
        if unknown and unknown[0] in self._cohort:
            self._refuse(f"{field_name}: {unknown[0]!r} takes no part in this round by the plan")
        if unknown:
            self._refuse(f"{field_name}: {unknown[0]!r} is not in the cohort")
        if len(set(names)) != len(names):
            self._refuse(f"{field_name}: a client is named twice")

    def _check_survivors(
        self, body: Mapping[str, Any], members: set[str], *, sliced: bool = False
    ) -> None:
        self._check_names("survivors", body["survivors"], members)
        count = len(body["survivors"])
        self.history.survivors[str(body["session"])] = frozenset(body["survivors"])
        if sliced:  # slices have floors of their own, which were checked
            return
        policy = self._settings.cohorts.policy_of(self._settings.sum_policy, members)
        floor = CohortBounds.of(policy, len(members)).survivor_floor
        if count < floor:
            self._refuse(f"{count} survivor{'s' * (count != 1)}, at least {floor} are needed")


def read_history(path: Path, records: list[Record], settings: Settings) -> History:
    """Follow a run's ledger.

    Args:
        path: the ledger, for messages.
        records: its verified records.
        settings: what the run file means for the cohort.

    Returns:
        What happened so far.

    Raises:
        LedgerTampered: names the line, and what in it no run would have written.

    Guarantees:
        - Each round was opened under the run's privacy event, with the clip that follows from the
          fractions on record before, in turn, under a fresh session, and
          has at most one end; at most one sum a session; only a sum was applied, once.
        - Charged clients, survivors and those who were late are distinct members of the round's
          own cohort, survivors at least as many as its survivor floor; of each slice that was
          opened, clients that hold it, at least as many as its own.
        - A closing record is the last one, but for signatures over it, and names the rounds that
          were applied.
    """
    reader = _Reader(path, records[0].body, settings)
    for record in records[1:]:
        reader.take(record)
    return reader.history


def next_clip_norm(policy: PrivacyPolicy) -> float | None:
    """The clip of the next round, as a round's record holds it; None where it never changes."""
    return None if policy.adaptive_clip is None else policy.clip_norm


def told_on_resume(history: History, paid: Collection[Collection[str]]) -> str:
    """Where a resumed run goes on, and what was charged for sums that are not in the adapter.

    An attempt without an end is left out: what it was charged is not settled yet.

    Args:
        history: the run so far.
        paid: for each client the sessions that its account holds.
    """
    charged: dict[int, list[int]] = {}
    for attempt in history.unapplied:
        payers = sum(attempt.session in sessions for sessions in paid)
        if payers and attempt is not history.open:
            charged.setdefault(attempt.round, []).append(payers)
    parts = [f"resuming after round {history.applied}"]
    for number, counts in charged.items():
        many = len(counts) > 1
        parts.append(
            f"{len(counts)} earlier attempt{'s' * many} at round {number} "
            f"{'were' if many else 'was'} charged by {' and '.join(map(str, counts))} of "
            f"{len(paid)} clients and {'stay' if many else 'stays'} charged"
        )
    return "; ".join(parts)
