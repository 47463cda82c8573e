"""A client as a witness of the ledger that it is in: what it checks before it signs a head.

A client keeps in its own account which head it signed last.  A new head is signed only if it
extends that one by lines that fit what the client knows by itself::

    server                                     client
    head, signed; the lines since
    the client's last one            -------->  chain, first record, own size, own charges
                                                its account: ``witnessed``, on disk
                                     <--------  signature

Source: the gossip and witness co-signing of transparency logs (Syta et al. 2016, "Keeping
Authorities 'Honest or Bust' with Decentralized Witness Cosigning"); the checks of a client's own
charges are our own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from securefed.crypto.identity import IdentityKey
from securefed.errors import ConfigError, LedgerTampered, RemoteProtocolError
from securefed.evidence.budget import CHARGE
from securefed.evidence.chain import GENESIS, NO_HASH, Record, decode_record
from securefed.evidence.heads import HeadStatement, signed_by_client, signed_head
from securefed.evidence.kinds import CHARGED, SIGNED, WITNESSED
from securefed.evidence.ledger import Ledger
from securefed.evidence.roster import Roster


def account_genesis(
    client: str, privacy: Mapping[str, Any], *, size: int, ledger: str
) -> dict[str, Any]:
    """What a client's account begins with.

    Args:
        client: its name.
        privacy: the figures that rounds are priced by (``Settings.record()``).
        size: how many units it has, by its own count; public.
        ledger: hash of the first record of the run's ledger.
    """
    return {"client": client, "privacy": dict(privacy), "size": size, "ledger": ledger}


@dataclass(frozen=True)
class Seen:
    """The head that a client signed last; seq -1 before the first.

    Attributes:
        seq, hash: of its record.
        charges: how many charges of the client's account are settled in the lines up to it.
        histograms: likewise of its account of histograms.
    """

    seq: int = -1
    hash: str = NO_HASH
    charges: int = 0
    histograms: int = 0


class Witness:
    """One client's half of witnessing.

    Run by: each client, at the end of a round and of the run.

    Args:
        client: its name.
        key: its identity.
        account: its own ledger of charges, open for writing; begun by :func:`account_genesis`.
        roster: whose signatures the client has agreed to.
        config_sha256: of the run file that it has agreed to.
        histograms: its account of histograms of held-out figures, if it has one.
        counted_more: whether the ledger may count more to it than it charged itself: a server that
            is elsewhere counts whoever it asked, also where the question or the answer was lost.
        decode: decodes a line; another one may remember what it decoded.

    Raises:
        ConfigError: the account was begun by a version that kept no witnesses, or for another
            client; or the roster names another key for it.

    Guarantees:
        - What is signed extends what was signed before, also after a restart: the account holds a
          head, on disk, before its signature leaves, and no two heads of one place.
        - The server has signed the head.
        - The ledger's first record is the one that the account was begun for, and holds the
          client's own size and prices, its roster and its run file.
        - Each charge of the client's own account stands in the lines up to the head as charged to
          it, at the same figures; and no other is charged to it there, unless ``counted_more``.
        - A refusal changes nothing.
    """

    def __init__(
        self,
        client: str,
        key: IdentityKey,
        account: Ledger,
        *,
        roster: Roster,
        config_sha256: str,
        histograms: Ledger | None = None,
        counted_more: bool = False,
        decode: Callable[[bytes], Record] = decode_record,
    ) -> None:
        begun = account.records[0].body
        if begun.get("client") != client or "ledger" not in begun or "size" not in begun:
            raise ConfigError(
                f"{account.path}: its first record names no client {client!r} with its size and "
                "ledger; it was begun by another version of securefed, or for another client"
            )
        if roster.clients.get(client) != key.public:
            raise ConfigError(f"roster: client {client!r} has another key there than its own")
        self._client, self._key, self._roster = client, key, roster
        self._account, self._histograms = account, histograms
        self._begun, self._config_sha256 = begun, config_sha256
        self._counted_more, self._decode = counted_more, decode

    @property
    def seen(self) -> Seen:
        """The head that was signed last, by the account."""
        for record in reversed(self._account.records):
            if record.kind == WITNESSED:
                body = record.body
                return Seen(body["seq"], body["hash"], body["charges"], body["histograms"])
        return Seen()

    def sign(self, envelope: Mapping[str, Any], lines: Sequence[bytes]) -> dict[str, str]:
        """Check a head and sign it.

        Args:
            envelope: the head, signed by the server.
            lines: of the ledger, newline included, from the one after :attr:`seen` (from the first
                one, before the first head) up to the head; none are needed to sign the same head
                again.

        Returns:
            The client's signature, for the envelope.

        Raises:
            RemoteProtocolError: names the client, and what in the head or the lines it does not
                put its name to.
            LedgerError: the account could not be written; nothing was signed.
        """
        seen = self.seen
        head = self._stated(envelope)
        if head.seq == seen.seq:
            if head.hash != seen.hash:
                self._refuse(
                    f"line {head.seq + 1} is another one than that which it signed: the ledger was "
                    "forked or rewritten"
                )
            return signed_by_client(head, self._key)
        if head.seq < seen.seq:
            self._refuse(
                f"the head is at line {head.seq + 1}, and it has signed line {seen.seq + 1} "
                "already: the tail was cut off"
            )
        records = self._chained(lines, seen, head)
        if seen.seq < 0:
            self._check_first(records[0])
        charges = self._settled(self._account, seen.charges)
        histograms = self._settled(self._histograms, seen.histograms)
        self._check_charges(records, charges + histograms)
        self._account.append(
            WITNESSED,
            {
                "ledger": head.ledger,
                "seq": head.seq,
                "hash": head.hash,
                "round": head.round,
                "charges": seen.charges + len(charges),
                "histograms": seen.histograms + len(histograms),
            },
        )
        return signed_by_client(head, self._key)

    def _refuse(self, what: str) -> NoReturn:
        raise RemoteProtocolError(f"client {self._client!r} does not sign the head: {what}")

    def _stated(self, envelope: Mapping[str, Any]) -> HeadStatement:
        """What the server has signed."""
        try:
            head, _ = signed_head(envelope, self._roster)
        except RemoteProtocolError as error:
            self._refuse(str(error))
        if head.ledger != self._begun["ledger"]:
            self._refuse("it is of another ledger than the one that its account was begun for")
        return head

    def _chained(self, lines: Sequence[bytes], seen: Seen, head: HeadStatement) -> list[Record]:
        """The records from the last head to this one, each the next of the one before."""
        records: list[Record] = []
        seq, before = seen.seq, seen.hash
        for line in lines:
            try:
                record = self._decode(line)
            except ValueError as error:
                self._refuse(f"line {seq + 2}: {error}")
            if record.seq != seq + 1 or record.prev != before:
                signed = (
                    f"line {seen.seq + 1}, which it signed" if not records else "the one before"
                )
                self._refuse(f"line {seq + 2} does not follow {signed}: forked or rewritten")
            seq, before = record.seq, record.hash
            records.append(record)
        if (seq, before) != (head.seq, head.hash) or not records:
            self._refuse(
                f"the lines end at {seq + 1}, the head is at line {head.seq + 1} or is another one"
            )
        if records[-1].kind not in SIGNED or HeadStatement.of(head.ledger, records[-1]) != head:
            self._refuse(f"line {seq + 1} is not what the head says of it")
        return records

    def _check_first(self, first: Record) -> None:
        body = first.body
        if first.kind != GENESIS or first.hash != self._begun["ledger"]:
            self._refuse("line 1 is not the first record that its account was begun for")
        sizes = body.get("client_sizes")
        known: dict[str, tuple[object, object]] = {
            "config_sha256": (body.get("config_sha256"), self._config_sha256),
            "privacy": (body.get("privacy"), self._begun["privacy"]),
            "roster": (body.get("roster"), self._roster.to_record()),
            f"client_sizes.{self._client}": (
                sizes.get(self._client) if isinstance(sizes, Mapping) else None,
                self._begun["size"],
            ),
        }
        for field, (found, own) in known.items():
            if found != own:
                shown = "" if isinstance(own, dict) else f" = {found!r}, by its own account {own!r}"
                self._refuse(f"line 1: {field}{shown} is not what it knows")

    def _settled(self, account: Ledger | None, before: int) -> list[Record]:
        """The charges of an account that no signed line has settled yet."""
        if account is None:
            return []
        return [record for record in account.records if record.kind == CHARGE][before:]

    def _check_charges(self, records: Sequence[Record], own: Sequence[Record]) -> None:
        opened = {r.body.get("session"): r for r in records if r.kind in CHARGED}
        charged: dict[object, Record] = {
            record.body.get("session"): record
            for record in records
            if self._client in _names(record.body.get("charged"))
        }
        mine = {charge.body.get("session"): charge for charge in own}
        for session, record in charged.items():
            if session not in mine and not self._counted_more:
                self._refuse(
                    f"line {record.seq + 1} says that it was charged for round "
                    f"{record.body.get('round')}; its account holds no such charge"
                )
        for session, charge in mine.items():
            number = charge.body.get("round")
            if session not in charged or session not in opened:
                self._refuse(
                    f"its account holds a charge for an attempt at round {number} that the ledger "
                    "does not hold: an attempt was taken out"
                )
            said = opened[session]
            for field, value in charge.body.items():
                if said.body.get(field) != value:
                    self._refuse(
                        f"line {said.seq + 1}: {field} = {said.body.get(field)!r}; it was charged "
                        f"for round {number} with {value!r}"
                    )


def check_seen(path: str, account: Sequence[Record], records: Sequence[Record]) -> list[int]:
    """Compare the heads that a client's account holds with a ledger.

    Args:
        path: of the account, for messages.
        account: its verified records.
        records: the ledger's verified records.

    Returns:
        The places (seq) of the heads that it signed.

    Raises:
        LedgerTampered: it was begun for another ledger, or signed a line that the ledger does not
            hold, or holds otherwise.
    """
    if account[0].body.get("ledger") != records[0].hash:
        raise LedgerTampered(
            f"{path}: was begun for a ledger with another first record: line 1 of the ledger was "
            "rewritten, or the account is another run's"
        )
    found: list[int] = []
    for record in account:
        if record.kind != WITNESSED:
            continue
        seq, digest = int(record.body["seq"]), str(record.body["hash"])
        start = found[-1] + 2 if found else 1
        if seq >= len(records):
            raise LedgerTampered(
                f"{path}: line {record.seq + 1}: signed line {seq + 1} of the ledger, which has "
                f"{len(records)}: its tail was cut off"
            )
        if records[seq].hash != digest:
            raise LedgerTampered(
                f"{path}: line {record.seq + 1}: signed another line {seq + 1} than the ledger "
                f"holds: its lines {start} to {seq + 1} were rewritten, or it is a fork"
            )
        found.append(seq)
    return found


def _names(charged: object) -> Sequence[object]:
    return charged if isinstance(charged, list) else ()
