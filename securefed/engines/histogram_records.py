"""What a run's ledger says of each noised histogram; the rule of counting is that of rounds.

An attempt is opened, and ends in one of three ways::

    histogram_opened ──┬── histogram_summed
                       ├── histogram_failed
                       └── histogram_abandoned      (noted by the resume after a kill)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from securefed.engines.attempt import Attempt
from securefed.engines.histogram_settings import HistogramSettings, Of
from securefed.engines.noised_histogram import NoisedHistogram
from securefed.evidence.kinds import (
    HISTOGRAM_ABANDONED,
    HISTOGRAM_FAILED,
    HISTOGRAM_OPENED,
    HISTOGRAM_SUMMED,
)
from securefed.evidence.ledger import Record

_Body = Mapping[str, Any]


class HistogramRecords:
    """Takes the records of histograms, in order, and refuses what no run writes.

    Args:
        settings: what the run file's histograms mean; None where it has none.
        attempts: by session; each that is opened is added.
        refuse: raises, naming the line.
        new_session: of the reader of the whole ledger, as all below.
        check_present: that figures are of the round that was applied last.
        check_round: that an end is of the round that its session was opened for.
        check_names: that names under a key are distinct clients of the cohort.
        check_survivors: that those of a sum are, and are enough.
    """

    def __init__(
        self,
        settings: HistogramSettings | None,
        attempts: dict[str, Attempt],
        *,
        refuse: Callable[[str], NoReturn],
        new_session: Callable[[_Body], str],
        check_present: Callable[[_Body], None],
        check_round: Callable[[_Body], None],
        check_names: Callable[[str, list[str]], None],
        check_survivors: Callable[[_Body], None],
    ) -> None:
        self._settings, self._attempts = settings, attempts
        self._refuse, self._new_session = refuse, new_session
        self._check_present = check_present
        self._check_round, self._check_names = check_round, check_names
        self._check_survivors = check_survivors

    @property
    def kinds(self) -> dict[str, Callable[[_Body], None]]:
        """What takes a record, by its kind; none where the run has no histograms."""
        if self._settings is None:
            return {}
        return {
            HISTOGRAM_OPENED: self._opened,
            HISTOGRAM_SUMMED: self._summed,
            HISTOGRAM_FAILED: self._ended,
            HISTOGRAM_ABANDONED: self._ended,
        }

    def _opened(self, body: _Body) -> None:
        event = self._known.event()
        found = {key: body[key] for key in event}
        if found != event:
            self._refuse(f"priced at {found}, the run file says {event}")
        allowed = ("shared", "personal", "gain")[: self._known.at_the_end]
        if body["of"] not in allowed:
            self._refuse(f"of = {body['of']!r}: must be one of {allowed}")
        if any(attempt.charged is None for attempt in self._attempts.values()):
            self._refuse("opens a histogram while the one before it has no end")
        self._check_present(body)
        self._attempts[self._new_session(body)] = Attempt(event=body)

    def _ended(self, body: _Body) -> None:
        attempt = self._attempts.get(str(body["session"]))
        if attempt is None:
            self._refuse("ends a histogram that was never opened")
        self._check_round(body)
        if attempt.charged is not None:
            self._refuse("one histogram ended twice")
        if body["of"] != attempt.event["of"]:
            self._refuse(f"of = {body['of']!r}; its session was opened for {attempt.event['of']!r}")
        self._check_names("charged", body["charged"])
        attempt.charged = frozenset(body["charged"])

    def _summed(self, body: _Body) -> None:
        self._ended(body)
        self._check_survivors(body)
        uncharged = sorted(set(body["survivors"]) - set(body["charged"]))
        if uncharged:
            self._refuse(f"charged: lacks {uncharged[0]}, which is among the survivors")
        found = NoisedHistogram.from_record(body["histogram"])
        expected = self._known.histogram(
            body["of"], found.counts, clients=len(body["survivors"])
        ).to_record()
        if not _close(found.to_record(), expected) or len(found.counts) != self._known.section.bins:
            self._refuse("histogram: its bins, noise or clients are not those of the run file")
        self._attempts[str(body["session"])].charges = int(body["charges"])

    @property
    def _known(self) -> HistogramSettings:
        if self._settings is None:
            self._refuse("is of a histogram, and the run file asks for none")
        return self._settings


def recorded_histogram(
    records: list[Record], number: int, of: Of = "shared"
) -> NoisedHistogram | None:
    """The last histogram after round ``number`` on record; None where there is none."""
    for record in reversed(records):
        if record.kind == HISTOGRAM_SUMMED:
            body = record.body
            if body["round"] == number and body["of"] == of:
                return NoisedHistogram.from_record(body["histogram"])
    return None


def _close(found: object, expected: object) -> bool:
    """Equal up to the last digits of a float."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return set(found) == set(expected) and all(_close(found[k], expected[k]) for k in found)
    if isinstance(found, list) and isinstance(expected, list):
        return len(found) == len(expected) and all(map(_close, found, expected))
    if isinstance(found, float | int) and isinstance(expected, float | int):
        return math.isclose(found, expected, rel_tol=1e-9)
    return found == expected
