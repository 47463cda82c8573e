"""The server's half of witnessing: it signs the head and gathers the clients' signatures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from securefed.crypto.identity import IdentityKey
from securefed.engines.accounts import ACCOUNT, HISTOGRAM_ACCOUNT
from securefed.engines.identities import Identities
from securefed.errors import LedgerTampered, RemoteProtocolError
from securefed.evidence.chain import Record, decode_record, line_of
from securefed.evidence.heads import (
    MOST_SIGNATURES,
    HeadStatement,
    signed_by_server,
    signed_head,
)
from securefed.evidence.kinds import SIGNED, WITNESSED
from securefed.evidence.ledger import Ledger
from securefed.evidence.roster import Roster
from securefed.evidence.witness import Witness


def unwitnessed(records: Iterable[Record]) -> Record | None:
    """The last record whose head must be signed, if no record of kind ``witnessed`` follows it."""
    due: Record | None = None
    for record in records:
        if record.kind in SIGNED:
            due = record
        elif record.kind == WITNESSED:
            due = None
    return due


def gather(
    ledger: Ledger,
    record: Record,
    server: IdentityKey,
    witnesses: Mapping[str, Witness],
    roster: Roster,
) -> None:
    """Have a head signed by the server and by these clients, and put it into the ledger.

    Run by: the server.

    Args:
        ledger: the run's, open for writing.
        record: the one whose head it is; one of the ledger's own.
        server: the server's identity.
        witnesses: the clients that are there, by id.
        roster: everybody's public key.

    Raises:
        LedgerTampered: a client does not sign, or what it gives is no signature of its own; the
            message says who, and what it found.
        LedgerError: a record could not be written.

    Guarantees:
        - A client is sent the lines since the head that it signed last, and no others.
        - Above 4095 clients there are several envelopes, each signed by the server.
    """
    head = HeadStatement.of(ledger.records[0].hash, record)
    begun = signed_by_server(head, server)
    starts = {name: witness.seen.seq + 1 for name, witness in witnesses.items()}
    first = min(starts.values(), default=0)
    lines = [line_of(each) for each in ledger.records[first : record.seq + 1]]
    signatures = []
    for name, witness in sorted(witnesses.items()):
        try:
            signatures.append(witness.sign(begun, lines[starts[name] - first :]))
        except RemoteProtocolError as error:
            raise LedgerTampered(f"{ledger.path}: {error}") from None
    room = MOST_SIGNATURES - 1
    for start in range(0, max(len(signatures), 1), room):
        more = signatures[start : start + room]
        envelope = begun | {"signatures": [*begun["signatures"], *more]}
        try:
            signed_head(envelope, roster)
        except RemoteProtocolError as error:
            raise LedgerTampered(f"{ledger.path}: {error}") from None
        ledger.append(WITNESSED, envelope)


def witnesses_of(
    identities: Identities,
    accounts: Mapping[str, Ledger],
    histograms: Mapping[str, Ledger],
    config_sha256: str,
) -> dict[str, Witness]:
    """The clients' halves in a simulation, which decode each line once for all of them.

    Args:
        identities: everybody's keys.
        accounts: each client's own, open for writing.
        histograms: each client's account of histograms; empty where there are none.
        config_sha256: of the run file.

    Raises:
        ConfigError: as of :class:`~securefed.evidence.witness.Witness`.
    """
    decode = functools.lru_cache(maxsize=256)(decode_record)
    roster = identities.roster
    return {
        name: Witness(
            name,
            identities.clients[name],
            account,
            roster=roster,
            config_sha256=config_sha256,
            histograms=histograms.get(name),
            decode=decode,
        )
        for name, account in accounts.items()
    }


def witness_closing(folder: Path, keys: Path, clock: Callable[[], str]) -> bool:
    """Have the closing record of a finished run signed, if a kill came before that.

    Args:
        folder: of a run that verifies and is closed.
        keys: the folder of its parties' keys.
        clock: gives RFC 3339 text for records.

    Returns:
        Whether there was anything to sign.

    Raises:
        ConfigError: the parties' keys are missing.
        LedgerTampered, LedgerError: as of :func:`gather`.
    """
    with ExitStack() as held:

        def opened(path: Path) -> Ledger:
            return held.enter_context(Ledger.open(path, clock=clock))

        ledger = opened(folder / "ledger.jsonl")
        due, genesis = unwitnessed(ledger.records), ledger.records[0].body
        if due is None or "roster" not in genesis:
            return False
        identities = Identities.load(keys, Roster.of_record(genesis["roster"]))
        places = {name: folder / "clients" / name for name in sorted(identities.clients)}
        accounts = {name: opened(place / ACCOUNT) for name, place in places.items()}
        counted = {
            name: opened(place / HISTOGRAM_ACCOUNT)
            for name, place in places.items()
            if (place / HISTOGRAM_ACCOUNT).is_file()
        }
        witnesses = witnesses_of(identities, accounts, counted, genesis["config_sha256"])
        gather(ledger, due, identities.server, witnesses, identities.roster)
    return True
