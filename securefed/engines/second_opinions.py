"""A run's statements, held against what other accountants make of the events on record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securefed.engines.attempts import History
from securefed.engines.comparing import require_same
from securefed.engines.histogram_settings import histogram_guarantees
from securefed.engines.releases import histogram_release, release_records
from securefed.engines.settings import Settings
from securefed.errors import LedgerTampered, UnsupportedEvent
from securefed.privacy.accounting import ADVERSARIES, PrivacyGuarantee, epsilon_text
from securefed.privacy.releases import Release
from securefed.privacy.second_opinion import SecondOpinion, second_opinion


@dataclass(frozen=True)
class Second:
    """A statement, and what other accountants say of the same release.

    Attributes:
        of: ``"training"`` or ``"histograms"``.
        stated: the statement.
        release: what was priced.
        opinion: None where no other accountant has the event.
    """

    of: str
    stated: PrivacyGuarantee
    release: Release
    opinion: SecondOpinion | None


def second_opinions(
    ledger: Path,
    genesis: Mapping[str, Any],
    history: History,
    settings: Settings,
    *,
    charges: int,
    histogram_charges: int,
) -> list[Second]:
    """Check the releases on record, and every statement against two more accountants.

    Raises:
        LedgerTampered: a release on record is not the one that follows from the run's figures, or a
            statement is smaller than any that could be true of it.
    """
    planned = release_records(settings, settings.stated.rounds)
    _require(genesis["releases"], planned, f"{ledger}: line 1: releases")
    spent = release_records(settings, charges)
    if history.closed is not None:
        _require(history.closed["releases"], spent, f"{ledger}: closing record: releases")
        spent = dict(history.closed["releases"])
    found = []
    try:
        for who in ADVERSARIES:
            release = Release.of_record(spent[who])
            stated = settings.guarantee(who, charges)
            found.append(Second("training", stated, release, second_opinion(release)))
        counted = settings.histograms
        for who, stated in histogram_guarantees(counted, histogram_charges).items():
            if counted is not None:
                release = histogram_release(counted, who, histogram_charges)
                found.append(Second("histograms", stated, release, second_opinion(release)))
    except UnsupportedEvent as error:
        raise LedgerTampered(f"{ledger}: {error}") from None
    for each in found:
        if each.opinion is not None and each.opinion.refutes(each.stated.epsilon):
            raise LedgerTampered(
                f"{ledger}: {each.of}: epsilon against {each.stated.against} = "
                f"{each.stated.epsilon:g}: a second accountant finds that nothing below "
                f"{each.opinion.lower:g} is true of the event on record"
            )
    return found


def told_of_second(found: Second) -> str:
    """What other accountants say, in words."""
    who = found.stated.against
    of = "" if found.of == "training" else f"{found.of}: "
    if found.opinion is None:
        return (
            f"second accountant: {of}against {who}: none has this mechanism (Skellam noise); the "
            "epsilon above stands on the first alone"
        )
    if math.isinf(found.opinion.lower):
        return f"second accountant: {of}against {who}: nothing holds, as stated"
    looser = " (the statement is looser than that)"
    return (
        f"second accountant: {of}against {who}: the truth is at least {found.opinion.lower:.3g} "
        f"(optimistic distribution) and at most {epsilon_text(found.opinion.upper)} (Renyi)"
        + looser
        * (found.stated.epsilon > found.opinion.upper)
    )


def _require(found: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    if found.keys() != expected.keys():
        raise LedgerTampered(f"{where}: must be there for each of {', '.join(expected)}")
    for who, record in expected.items():
        require_same(found[who], record, f"{where}.{who}")
