"""The decryptor's own ledger of what it opened, and how it is compared with the run's.

It is what makes a decryptor auditable: one record before each opening, flushed before the sum goes
out: who is in the sum, and hashes; nothing of a contribution.  In a simulation it lies in the run
folder, ``decryptor/openings.jsonl``; in a deployment the decryptor keeps it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from securefed.engines.attempts import History
from securefed.engines.comparing import require_same
from securefed.errors import LedgerTampered
from securefed.evidence.ledger import RECOVERED, Ledger, Record, read_ledger
from securefed.secagg.encryption import DECRYPTOR
from securefed.secagg.opening import Opening

OPENING = "opening"
OPENINGS = Path(DECRYPTOR) / "openings.jsonl"
"""Where the ledger lies in a run folder."""


def first_record(privacy: Mapping[str, Any]) -> dict[str, Any]:
    """What the ledger begins with: ``Settings.record()``, as in every client's account."""
    return {"party": DECRYPTOR, "privacy": dict(privacy)}


def noting(ledger: Ledger) -> Callable[[Opening], None]:
    """What a decryptor calls right before it gives a sum out.

    Raises:
        LedgerError: from the call: the record could not be made durable, nothing may be given out.
    """

    def note(opened: Opening) -> None:
        ledger.append(
            OPENING,
            {
                "round": opened.round,
                "session": opened.session.hex(),
                "survivors": list(opened.survivors),
                "ciphertexts": opened.ciphertexts_hash.hex(),
                "digest": opened.digest.hex(),
            },
        )

    return note


def check_openings(folder: Path, genesis: Mapping[str, Any], history: History) -> int:
    """Compare the decryptor's ledger with the run's.

    Args:
        folder: the run folder.
        genesis: body of the run ledger's first record.
        history: of the run's ledger.

    Returns:
        How many sums were opened.

    Raises:
        LedgerTampered: it is missing or another run's; it holds an opening of an attempt that was
            never begun, two of one attempt, or one of other clients than the sum on record; or a
            sum on record was never opened.

    Guarantees:
        - Each sum of the run's ledger has one opening here, of the same clients.  An opening
          without a sum is of an attempt that ended in between; but for sums of held-out figures
          without noise, which stand outside the guarantee, what was opened was charged.
        - An opening that the decryptor did not write down, of an attempt that has no sum on record,
          cannot be seen here: of that nobody else was a witness.
    """
    path = folder / OPENINGS
    if not path.is_file():
        raise LedgerTampered(f"{path} is missing: nothing shows what the decryptor opened")
    records = read_ledger(path)
    expected = first_record(genesis["privacy"])
    require_same(records[0].body, expected, f"{path}: first record")
    opened = set()
    for record in records[1:]:
        if record.kind == RECOVERED:
            continue
        where = f"{path}: line {record.seq + 1}"
        session, number, survivors = _figures(record, where)
        if session not in history.rounds:
            raise LedgerTampered(f"{where}: opens a sum of round {number} that was never begun")
        if session in opened:
            raise LedgerTampered(f"{where}: opens a second sum of one attempt at round {number}")
        # Held-out figures after a round are summed as the first thing of the next one.
        evaluation = session in history.unnoised or session in history.histograms
        if number != history.rounds[session] + evaluation:
            raise LedgerTampered(f"{where}: is of round {number}; its session is of another one")
        if survivors != history.survivors.get(session, survivors):
            raise LedgerTampered(f"{where}: other clients are in the sum than in the run's ledger")
        opened.add(session)
    unopened = [session for session in history.survivors if session not in opened]
    if unopened:
        raise LedgerTampered(
            f"{path}: lacks the opening of a sum of round {history.rounds[unopened[0]]}"
        )
    return len(opened)


def _figures(record: Record, where: str) -> tuple[str, int, frozenset[str]]:
    """Session, round and survivors of an opening; its hashes must be some."""
    if record.kind != OPENING:
        raise LedgerTampered(f"{where}: kind {record.kind!r} is none that a decryptor writes")
    try:
        body = record.body
        for name in ("ciphertexts", "digest"):
            if len(bytes.fromhex(body[name])) != hashlib.sha256().digest_size:
                raise LedgerTampered(f"{where}: {name} = {body[name]!r}: must be a SHA-256")
        return str(body["session"]), int(body["round"]), frozenset(body["survivors"])
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerTampered(f"{where}: lacks what it must hold ({error!r})") from None
