"""The head of a run's ledger, signed by the server and co-signed by clients.

After every ``round_applied`` and after ``closed`` the server signs where its ledger stands::

    {"format": "securefed/head/1", "ledger": hash of the first record, "seq": n, "hash": hex,
     "kind": "round_applied" | "closed", "round": r, "session": hex}

(``session`` is empty in the last).  The hash chain makes this a statement about all lines up to
``seq``.  Clients sign the same document (:mod:`securefed.evidence.witness`), and all signatures are
put into the ledger as records of kind ``witnessed``, one envelope (DSSE) each.

**Quorum.**  With n clients in a round of which c may be corrupt, a head counts as witnessed when
more than (n + c) / 2 of them have signed it.  Two quorums share more than c clients, so at least
one honest one, and no honest client signs two heads of which neither extends the other.  So no two
forks of a ledger are both witnessed.  It is the threshold of a complete masking graph, for the same
reason (:mod:`securefed.secagg.parameters`).

**Fewer than that.**  Who fell silent does not sign.  The run goes on then: a signature that is
missing spends no privacy and shows nothing, and the next head that is witnessed covers all lines
before it.  Where that is the case up to the end, :mod:`securefed.engines.verify` calls the run
incomplete: of a fork that is signed by the server alone it cannot be told apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from securefed.crypto.identity import IdentityKey
from securefed.errors import RemoteProtocolError
from securefed.evidence.chain import Record
from securefed.evidence.kinds import CLOSED, SIGNED
from securefed.evidence.roster import SERVER, Roster
from securefed.evidence.signing import sign, signature, signers

HEAD_TYPE = "application/vnd.securefed.head+json"
"""Payload type of a signed head."""

FORMAT = "securefed/head/1"

MOST_SIGNATURES = 4096
"""Signatures of one record at most: 175 bytes each, and a line holds 1 MiB."""


@dataclass(frozen=True)
class HeadStatement:
    """Where a ledger stands; what is signed.

    Attributes:
        ledger: hash of the ledger's first record, which is its name.
        seq: of the record that is signed, and with it of all before.
        hash: of that record.
        kind: of that record.
        round: the round that was applied last.
        session: of that round's sum, hexadecimal; empty in a closing record.
    """

    ledger: str
    seq: int
    hash: str
    kind: Literal["round_applied", "closed"]
    round: int
    session: str

    @classmethod
    def of(cls, ledger: str, record: Record) -> HeadStatement:
        """The statement at one record.

        Raises:
            RemoteProtocolError: the head is not signed at records of that kind.
        """
        closing = record.kind == CLOSED
        fields: dict[str, Any] = {
            "ledger": ledger,
            "seq": record.seq,
            "hash": record.hash,
            "kind": record.kind,
            "round": record.body.get("rounds" if closing else "round"),
            "session": "" if closing else record.body.get("session"),
        }
        return cls._checked(fields)

    def to_document(self) -> dict[str, Any]:
        """The document that is signed."""
        return {"format": FORMAT} | asdict(self)

    @classmethod
    def of_document(cls, document: Mapping[str, Any]) -> HeadStatement:
        """The inverse of :meth:`to_document`.

        Raises:
            RemoteProtocolError: it is not that.
        """
        fields = dict(document)
        if fields.pop("format", None) != FORMAT:
            raise RemoteProtocolError(f"head: format must be {FORMAT!r}")
        return cls._checked(fields)

    @classmethod
    def _checked(cls, fields: dict[str, Any]) -> HeadStatement:
        types = {"ledger": str, "seq": int, "hash": str, "kind": str, "round": int, "session": str}
        for name, kind in types.items():
            if type(fields.get(name)) is not kind:
                raise RemoteProtocolError(f"head: {name} must be there, of type {kind.__name__}")
        if fields.keys() != types.keys() or fields["kind"] not in SIGNED or fields["seq"] < 1:
            raise RemoteProtocolError(f"head: kind must be one of {sorted(SIGNED)}, seq >= 1")
        return cls(**fields)


def signed_by_server(head: HeadStatement, key: IdentityKey) -> dict[str, Any]:
    """The envelope that clients are shown, and add their signatures to."""
    return sign(head.to_document(), key, payload_type=HEAD_TYPE)


def signed_by_client(head: HeadStatement, key: IdentityKey) -> dict[str, str]:
    """One client's signature for that envelope.

    What it signs is checked by :class:`securefed.evidence.witness.Witness`.
    """
    return signature(head.to_document(), key, payload_type=HEAD_TYPE)


def signed_head(
    envelope: Mapping[str, Any], roster: Roster
) -> tuple[HeadStatement, tuple[str, ...]]:
    """What an envelope states, and which clients have signed it.

    Args:
        envelope: of a record of kind ``witnessed``.
        roster: whose signatures count.

    Raises:
        RemoteProtocolError: the server has not signed it first, or any signature does not hold.
    """
    # A client may be called "server": the server's key has a name that no client has.
    keys = {"": roster.server, **roster.clients}
    document, names = signers(envelope, keys, payload_type=HEAD_TYPE, most=MOST_SIGNATURES)
    if names[0] != "":
        raise RemoteProtocolError(f"head: the first signature must be that of the {SERVER}")
    return HeadStatement.of_document(document), names[1:]


def quorum(members: int, corrupt: int) -> int:
    """The fewest of ``members`` clients whose signatures witness a head; see the module docstring.

    Args:
        members: n >= 1, clients of the round.
        corrupt: c >= 0 of them that may sign anything.

    Example:
        >>> quorum(6, 0), quorum(7, 2)
        (4, 5)
    """
    return (members + corrupt) // 2 + 1
