"""The server's half of witnessing where clients are elsewhere: one exchange for all signatures."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from securefed.crypto.identity import IdentityKey
from securefed.engines.couriers import Courier, kind_of
from securefed.engines.events import Observer, StageEvent
from securefed.errors import ProtocolError, RemoteProtocolError
from securefed.evidence.budget import CHARGE
from securefed.evidence.chain import Record, line_of
from securefed.evidence.heads import MOST_SIGNATURES, HeadStatement, signed_by_server, signed_head
from securefed.evidence.kinds import WITNESSED
from securefed.evidence.ledger import Ledger
from securefed.evidence.roster import Roster
from securefed.evidence.signing import canonical
from securefed.federation.invitations import HeadRequest, answered

HEAD_STAGE = "head"


def gather_from(
    courier: Courier,
    nodes: Mapping[str, int],
    ledger: Ledger,
    record: Record,
    server: IdentityKey,
    copies: Mapping[str, Ledger],
    roster: Roster,
    observer: Observer,
) -> None:
    """Have a head signed by the server and by the clients at these nodes; put it into the ledger.

    Run by: the server.

    Args:
        courier: reaches the nodes.
        nodes: by client.
        ledger: the run's, open for writing.
        record: the one whose head it is; one of the ledger's own.
        server: the server's identity.
        copies: the server's copy of each client's account, open for writing.
        roster: of the cohort.
        observer: told who does not sign.

    Raises:
        LedgerError: a record could not be written.

    Guarantees:
        - Only signatures that hold enter the ledger; who does not sign does not stop the run.
        - Every signature in the ledger stands in the client's copy, written there before.
    """
    head = HeadStatement.of(ledger.records[0].hash, record)
    begun = signed_by_server(head, server)
    lines = [line_of(each) for each in ledger.records[: record.seq + 1]]
    requests = {}
    for name, node in nodes.items():
        first = _seen(copies[name]) + 1
        asked = HeadRequest(
            bytes.fromhex(head.ledger), canonical(begun), first, tuple(lines[first:])
        )
        requests[node] = asked.encode()
    begun_at = time.monotonic()
    replies = courier.exchange(requests, what=HEAD_STAGE) if requests else {}
    seconds = time.monotonic() - begun_at
    refused: dict[str, str] = {}
    signatures: list[dict[str, str]] = []
    for name, node in sorted(nodes.items()):
        if node not in replies:
            continue
        try:
            signature = _signature(answered(replies[node]), begun, name, roster)
        except ProtocolError as error:
            refused[name] = kind_of(error)
            observer.message(f"head at line {record.seq + 1}: {name} does not sign: {error}")
            continue
        _note(copies[name], head)
        signatures.append(signature)
    observer.stage_end(
        StageEvent(
            round=head.round,
            stage=HEAD_STAGE,
            asked=len(requests),
            answered=len(signatures),
            refused=refused,
            silent=tuple(name for name, node in sorted(nodes.items()) if node not in replies),
            seconds=seconds,
            bytes_up=sum(map(len, replies.values())),
            bytes_down=sum(map(len, requests.values())),
        )
    )
    room = MOST_SIGNATURES - 1
    for start in range(0, max(len(signatures), 1), room):
        more = signatures[start : start + room]
        ledger.append(WITNESSED, begun | {"signatures": [*begun["signatures"], *more]})


def _seen(copy: Ledger) -> int:
    """The place of the last head that the server knows a client to have signed; -1 before that."""
    found = [int(each.body["seq"]) for each in copy.records if each.kind == WITNESSED]
    return found[-1] if found else -1


def _signature(reply: bytes, begun: Mapping[str, Any], name: str, roster: Roster) -> dict[str, str]:
    """One client's signature, which holds.

    Raises:
        RemoteProtocolError: it is none, or is another's.
    """
    try:
        found = json.loads(reply)
    except (ValueError, RecursionError):
        raise RemoteProtocolError("its signature is not JSON") from None
    match found:
        case {"keyid": str(keyid), "sig": str(sig)} if len(found) == 2:
            signature = {"keyid": keyid, "sig": sig}
        case _:
            raise RemoteProtocolError("its signature needs a keyid and a sig")
    envelope = {**begun, "signatures": [*begun["signatures"], signature]}
    _, names = signed_head(envelope, roster)
    if names != (name,):
        raise RemoteProtocolError(f"its signature is by {names}")
    return signature


def _note(copy: Ledger, head: HeadStatement) -> None:
    """Write the head into the server's copy of a client's account, if a kill did not come since."""
    if _seen(copy) == head.seq:
        return
    charged = sum(each.kind == CHARGE for each in copy.records)
    copy.append(
        WITNESSED,
        {
            "ledger": head.ledger,
            "seq": head.seq,
            "hash": head.hash,
            "round": head.round,
            "charges": charged,
            "histograms": 0,
        },
    )
