"""Check who signed the heads of a run's ledger, and what clients' accounts hold of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securefed.engines.accounts import ACCOUNT
from securefed.engines.settings import Settings
from securefed.errors import ConfigError, LedgerTampered, RemoteProtocolError
from securefed.evidence.heads import HeadStatement, quorum, signed_head
from securefed.evidence.kinds import CLOSED, SIGNED, WITNESSED
from securefed.evidence.ledger import Record, read_ledger
from securefed.evidence.roster import SERVER, Roster
from securefed.evidence.witness import check_seen
from securefed.privacy.policy import CohortBounds


@dataclass(frozen=True)
class WitnessedHead:
    """A head that must be signed, and who has signed it.

    Attributes:
        seq: of its record; ``seq + 1`` is the line.
        kind: of that record.
        round: that was applied last.
        server: whether the server has signed it.
        signers: the clients that have, sorted.
        members: how many clients the round has (of a closing record: the run).
        counted: how many of the signers are among them.
        quorum: how many of them are needed.
    """

    seq: int
    kind: str
    round: int
    server: bool
    signers: tuple[str, ...]
    members: int
    counted: int
    quorum: int

    @property
    def witnessed(self) -> bool:
        """Whether no other fork of the ledger can be witnessed at this place."""
        return self.server and self.counted >= self.quorum


def recorded_roster(ledger: Path, genesis: Mapping[str, Any]) -> Roster:
    """The roster in a ledger's first record, of the run's cohort.

    Raises:
        LedgerTampered: it is none, or of others.
    """
    try:
        roster = Roster.of_record(genesis["roster"])
    except ConfigError as error:
        raise LedgerTampered(f"{ledger}: line 1: {error}") from None
    if sorted(roster.clients) != sorted(genesis["cohort"]):
        raise LedgerTampered(f"{ledger}: line 1: roster: its clients are not those of the cohort")
    return roster


def check_trusted(ledger: Path, recorded: Roster, trusted: Roster) -> None:
    """Compare a ledger's roster with the one that a reader trusts.

    Raises:
        LedgerTampered: names the first party whose keys differ.
    """
    differing = recorded.differing(trusted)
    if differing:
        raise LedgerTampered(
            f"{ledger}: line 1: the key of {differing[0]} is not the one in the roster file: "
            f"{len(differing)} of {len(trusted.parties())} differ; the ledger is another run's, or "
            "was written anew with other keys"
        )


def check_witnesses(
    folder: Path, records: Sequence[Record], roster: Roster, settings: Settings
) -> list[WitnessedHead]:
    """Check all signatures of a ledger, and compare them with the clients' accounts.

    Args:
        folder: the run folder.
        records: the ledger's verified records.
        roster: of its first record; its signatures show nothing more than that record does, until
            it is compared with one that the reader trusts.
        settings: what the run file means for the cohort.

    Returns:
        Every head that must be signed, in order, signed or not.

    Raises:
        LedgerTampered: names the ledger's line or the account, and what does not hold.

    Guarantees:
        - Every signature in the ledger holds, is by a party of the roster, and over the last
          record before it at which the head is signed.
        - Every head in a client's account is a line of this ledger, and every signature of a
          client in the ledger stands in its account.
    """
    ledger = folder / "ledger.jsonl"
    seen = {
        name: _account(folder / "clients" / name / ACCOUNT, records)
        for name in sorted(roster.clients)
    }
    found: list[WitnessedHead] = []
    due: Record | None = None
    signed: set[str] | None = None  # None while the server has not signed it
    for record in records:
        if record.kind in SIGNED:
            if due is not None:
                found.append(_head(due, signed, settings))
            due, signed = record, None
        elif record.kind == WITNESSED:
            names = _signers(ledger, record, records[0].hash, due, roster)
            again = set(names) & (signed or set())
            if again:
                raise LedgerTampered(
                    f"{ledger}: line {record.seq + 1}: client {min(again)!r} signs one head twice"
                )
            signed = (signed or set()) | set(names)
            for name in names:
                if due is not None and due.seq not in seen[name]:
                    raise LedgerTampered(
                        f"{folder / 'clients' / name / ACCOUNT}: holds no record of line "
                        f"{due.seq + 1} of the ledger, which {name} has signed: it was cut off"
                    )
    if due is not None:
        found.append(_head(due, signed, settings))
    return found


def _account(path: Path, records: Sequence[Record]) -> set[int]:
    try:
        return set(check_seen(str(path), read_ledger(path), records))
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerTampered(f"{path}: a record lacks what it must hold ({error})") from None


def _signers(
    ledger: Path, record: Record, name: str, due: Record | None, roster: Roster
) -> tuple[str, ...]:
    """Who has signed, in a record of kind ``witnessed``."""
    where = f"{ledger}: line {record.seq + 1}"
    try:
        head, names = signed_head(record.body, roster)
    except RemoteProtocolError as error:
        raise LedgerTampered(f"{where}: {error}") from None
    if due is None:
        raise LedgerTampered(f"{where}: signs a head before there is one")
    if head.ledger != name:
        raise LedgerTampered(f"{where}: the signatures are over a head of another ledger")
    if head != HeadStatement.of(name, due):
        raise LedgerTampered(
            f"{where}: the signatures are over another head than line {due.seq + 1} "
            f"({due.kind}): lines up to it were rewritten, or the signatures are of a fork"
        )
    return names


def _head(record: Record, signed: set[str] | None, settings: Settings) -> WitnessedHead:
    closing = record.kind == CLOSED
    number = int(record.body["rounds" if closing else "round"])
    cohorts = settings.cohorts
    members = cohorts.members(0 if closing else number)
    corrupt = CohortBounds.of(cohorts.policy_of(settings.sum_policy, members), len(members)).corrupt
    return WitnessedHead(
        seq=record.seq,
        kind=record.kind,
        round=number,
        server=signed is not None,
        signers=tuple(sorted(signed or ())),
        members=len(members),
        counted=len(set(members) & (signed or set())),
        quorum=quorum(len(members), corrupt),
    )


def told_of_witnesses(heads: Sequence[WitnessedHead]) -> list[str]:
    """Which heads are witnessed, in words."""
    if not heads:
        return ["witnesses: no round was applied, so no head was signed"]
    full = [head for head in heads if head.witnessed]
    lines = [
        f"witnesses: {len(full)} of {len(heads)} heads are signed by the {SERVER} and by clients "
        "enough that no fork could be too"
    ]
    for place, head in enumerate(heads):
        if head.witnessed:
            continue
        later = next((one for one in heads[place + 1 :] if one.witnessed), None)
        covered = "" if later is None else f"; it is covered by the head at line {later.seq + 1}"
        lines.append(f"  line {head.seq + 1} ({head.kind}): {missing(head)}{covered}")
    return lines


def missing(head: WitnessedHead) -> str:
    """What a head lacks, in words."""
    if not head.server:
        return f"not even the {SERVER} has signed it"
    return (
        f"signed by the {SERVER} and {head.counted} of {head.members} clients, {head.quorum} are "
        "needed"
    )


def unwitnessed_end(records: Sequence[Record], heads: Sequence[WitnessedHead]) -> str:
    """Why the end of a ledger is not witnessed; empty if it is.

    A witnessed head covers all lines before it, so only the last one counts.
    """
    if not heads or heads[-1].witnessed:
        return ""
    last = heads[-1]
    return (
        f"quorum missing: line {last.seq + 1} ({last.kind}): {missing(last)}; whoever holds the "
        f"{SERVER}'s key could have written another ledger up to there"
    )
