"""Which rosters an agent has taken: an older one, or another of one serial, is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from securefed.errors import ConfigError
from securefed.evidence.ledger import Ledger
from securefed.evidence.signed_roster import SignedRoster

TAKEN = "roster"


def take_roster(folder: Path, found: SignedRoster, *, clock: Callable[[], str]) -> None:
    """Note a roster as taken, unless a later one was taken before.

    A server whose key is another one begins anew: an owner pins it anew in the policy.

    Args:
        folder: of the owner's accounts, which is there.
        found: the roster, checked.
        clock: gives RFC 3339 text.

    Raises:
        ConfigError: a later roster of this server was taken before, or another one with this
            serial; the message names both serials.
        LedgerTampered, LedgerError: the note cannot be read or written.
    """
    server = hashlib.sha256(found.roster.server.raw).hexdigest()[:32]
    body = {
        "serial": found.serial,
        "sha256": hashlib.sha256(found.roster.to_text().encode()).hexdigest(),
    }
    path = folder / f"roster-{server}.jsonl"
    if not path.exists():
        Ledger.create(path, body, clock=clock).close()
        return
    with Ledger.open(path, clock=clock) as taken:
        last = [r.body for r in taken.records if "serial" in r.body][-1]
        if found.serial < last["serial"]:
            raise ConfigError(
                f"roster: serial = {found.serial}: this agent has taken one of serial "
                f"{last['serial']}; that one or a later one is allowed"
            )
        if found.serial > last["serial"]:
            taken.append(TAKEN, body)
        elif body["sha256"] != last["sha256"]:
            raise ConfigError(
                f"roster: serial = {found.serial}: this agent has taken another roster of that "
                "serial; a changed one must have a higher serial"
            )
