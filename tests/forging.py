"""A run folder written anew by someone who can write all of it, and holds some of the keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from ledgers import Records
from tiny import write_run

from securefed import Federation
from securefed.engines.identities import Identities
from securefed.engines.verify import verify_run
from securefed.errors import LedgerTampered
from securefed.evidence.heads import HeadStatement, signed_by_client, signed_by_server
from securefed.evidence.ledger import Ledger, read_ledger
from securefed.evidence.roster import read_roster

Change = Callable[[Records], Records]

LEDGER = "ledger.jsonl"
SITES = [f"site-{number}" for number in range(6)]


def run_with_dropouts(base: Path) -> Path:
    """A run of two rounds; one client is silent in the first, another after its masked input."""
    drops = [
        {"round": 1, "client": "site-1", "stage": "masked_input"},
        {"round": 2, "client": "site-4", "stage": "unmask"},
    ]
    path = write_run(base, training={"rounds": 2}, cohort={"simulated_dropouts": drops})
    return Federation.from_config(path).run(base / "out").folder


def roster_of(run: Path) -> Path:
    return run.with_name(run.name + ".keys") / "roster.json"


def tampered(folder: Path, words: str, roster: Path | None = None) -> None:
    with pytest.raises(LedgerTampered, match=words):
        verify_run(folder, roster)


def clock() -> str:
    return "2026-01-01T00:00:00Z"


def keys_of(run: Path) -> Identities:
    folder = run.with_name(run.name + ".keys")
    return Identities.load(folder, read_roster(folder / "roster.json"))


def forge(
    folder: Path,
    change: Change = lambda records: records,
    *,
    accounts: Change | None = lambda records: records,
    server: Identities | None = None,
    clients: Identities | None = None,
    same_first: bool = False,
) -> None:
    """Rebuild the run's ledger from changed records, and each account so that it fits.

    Args:
        folder: the run folder.
        change: of the ledger's (kind, body) pairs.
        accounts: of each account's; None leaves the accounts as they are, in the clients' hands.
        server: whose server key signs the heads anew; without it old signatures stay.
        clients: whose client keys co-sign them, too: of those whose accounts say that they did.
        same_first: the ledger's first record stays as it is, its time too.
    """
    before = read_ledger(folder / "ledger.jsonl")
    records = change([(r.kind, dict(r.body)) for r in before])
    old = [r.seq for r in before if signed(r.kind)]
    first = iter([before[0].time] if same_first else [])
    ledger = anew(folder / "ledger.jsonl", records[0][1], lambda: next(first, clock()))
    heads = []
    for kind, body in records[1:]:
        if kind == "witnessed" and server is not None:
            head = HeadStatement.of(ledger.records[0].hash, heads[-1])
            body = signed_by_server(head, server.server)
            for name in present(folder, old[len(heads) - 1]) if clients else ():
                body["signatures"].append(signed_by_client(head, clients.clients[name]))
        record = ledger.append(kind, body)
        if signed(kind):
            heads.append(record)
    ledger.close()
    if accounts is None:
        return
    for path in sorted(folder.glob("clients/*/budget.jsonl")):
        kept = accounts([(r.kind, dict(r.body)) for r in read_ledger(path)])
        account = anew(path, kept[0][1] | {"ledger": read_ledger(folder / "ledger.jsonl")[0].hash})
        for kind, body in kept[1:]:
            if kind == "witnessed":
                head = heads[old.index(body["seq"])]
                body = body | {"ledger": account.records[0].body["ledger"]}
                body = body | {"seq": head.seq, "hash": head.hash}
            account.append(kind, body)
        account.close()


def present(folder: Path, seq: int) -> list[str]:
    """The clients whose accounts hold that they signed a line."""
    found = []
    for path in sorted(folder.glob("clients/*/budget.jsonl")):
        heads = [r.body["seq"] for r in read_ledger(path) if r.kind == "witnessed"]
        found += [path.parent.name] * (seq in heads)
    return found


def signed(kind: str) -> bool:
    return kind in ("round_applied", "closed")


def anew(path: Path, genesis: dict, clock: Callable[[], str] = clock) -> Ledger:
    path.unlink()
    path.with_name(f"{path.stem}.head.json").unlink()
    return Ledger.create(path, genesis, clock=clock)


def setting(kind: str, at: int = 0, **fields) -> Change:
    """Change fields in the body of the record of a kind that stands at a place among its like."""

    def change(records: Records) -> Records:
        place = [place for place, (found, _) in enumerate(records) if found == kind][at]
        records[place] = (kind, records[place][1] | fields)
        return records

    return change
