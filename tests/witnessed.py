"""A small ledger with clients that witness it, without a model: what a run writes, by hand."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

from securefed.crypto.identity import IdentityKey
from securefed.engines.identities import Identities
from securefed.evidence.budget import CHARGE
from securefed.evidence.chain import Record, line_of
from securefed.evidence.heads import HeadStatement, signed_by_server
from securefed.evidence.ledger import Ledger
from securefed.evidence.witness import Witness, account_genesis

NAMES = ("ann", "bob", "eve")
PRIVACY = {"noise_multiplier": 1.5}
CONFIG = hashlib.sha256(b"the run file").hexdigest()


def clock() -> str:
    return "2026-11-29T12:00:00Z"


class Runs:
    """One ledger and the accounts of its clients, in a folder."""

    def __init__(self, folder: Path, identities: Identities | None = None, **genesis) -> None:
        self.folder = folder
        self.keys = identities or Identities.make(NAMES, decryptor=False)
        self._sessions = (f"{number:032x}" for number in itertools.count(1))
        body = {
            "config_sha256": CONFIG,
            "privacy": PRIVACY,
            "client_sizes": dict.fromkeys(NAMES, 10),
            "roster": self.keys.roster.to_record(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.ledger = Ledger.create(folder / "ledger.jsonl", body | genesis, clock=clock)
        self.accounts = {
            name: Ledger.create(
                folder / f"{name}.jsonl",
                account_genesis(name, PRIVACY, size=10, ledger=self.ledger.head.hash),
                clock=clock,
            )
            for name in NAMES
        }

    def witness(self, name: str, **changes) -> Witness:
        arguments = {"roster": self.keys.roster, "config_sha256": CONFIG} | changes
        return Witness(name, self.keys.clients[name], self.accounts[name], **arguments)

    @property
    def witnesses(self) -> dict[str, Witness]:
        return {name: self.witness(name) for name in NAMES}

    def round(self, number: int, *, charge: bool = True, **changes) -> Record:
        """An attempt that is opened, charged by everybody, summed and applied."""
        session = next(self._sessions)
        of = {"round": number, "session": session}
        self.ledger.append("round_opened", PRIVACY | of | changes)
        for account in self.accounts.values() if charge else ():
            account.append(CHARGE, PRIVACY | of)
        self.ledger.append("round_summed", of | {"charged": list(NAMES)})
        return self.ledger.append("round_applied", of | {"adapter_sha256": "00"})

    def head(self, record: Record, key: IdentityKey | None = None) -> dict:
        statement = HeadStatement.of(self.ledger.records[0].hash, record)
        return signed_by_server(statement, key or self.keys.server)

    def lines(self, witness: Witness, record: Record) -> list[bytes]:
        records = self.ledger.records[witness.seen.seq + 1 : record.seq + 1]
        return [line_of(each) for each in records]

    def sign(self, name: str, record: Record, **changes) -> dict:
        witness = self.witness(name, **changes)
        return witness.sign(self.head(record), self.lines(witness, record))
