"""What one client did in each run, in ledgers of its own, and its signature over a run's ledger.

The owner's spending is in :mod:`securefed.agent.spending`.  Here is the account that a run's ledger
is compared with before its head is signed (:mod:`securefed.evidence.witness`): one a run, named by
the hash of the first record of the run's ledger.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from securefed.agent.ended import EndedRuns
from securefed.agent.kept import KeptStates
from securefed.crypto.identity import IdentityKey
from securefed.errors import ConfigError, LocalProtocolError, WireError
from securefed.evidence.budget import CHARGE
from securefed.evidence.ledger import Ledger
from securefed.evidence.roster import Roster
from securefed.evidence.signing import canonical
from securefed.evidence.witness import Witness, account_genesis
from securefed.federation.invitations import HeadRequest
from securefed.operations.private_folder import private_folder

_COHORT = "cohort"


class RunAccounts:
    """A client's accounts of runs, in one folder that no other process writes.

    Args:
        folder: is made, for its owner alone.  One that others have access to is a ConfigError.
        client: whose accounts they are.
        clock: gives RFC 3339 text.

    Attributes:
        kept: what the client keeps from round to round of each run.
        ended: what runs that are over left to the client.

    Guarantees:
        - A head that was signed stands in the run's account, on disk, before the signature leaves.
    """

    def __init__(self, folder: Path, client: str, clock: Callable[[], str]) -> None:
        private_folder(folder, "accounts of runs")
        self.kept = KeptStates(folder / "kept", client)
        self.ended = EndedRuns(folder / "ended")
        self._folder, self._client, self._clock = folder, client, clock
        self._open: dict[str, Ledger] = {}

    def close(self) -> None:
        """Release all files."""
        for account in self._open.values():
            account.close()
        self._open = {}

    def join(
        self, ledger: str, privacy: Mapping[str, Any], *, cohort: Collection[str], size: int
    ) -> None:
        """Begin the account of a run, or find it begun as it would be now.

        Args:
            ledger: hash of the first record of the run's ledger, hexadecimal.
            privacy: the run's figures, as this client computes them.
            cohort: the clients of the run.
            size: how many units this client holds.

        Raises:
            ConfigError: it was begun otherwise.
        """
        first = account_genesis(self._client, privacy, size=size, ledger=ledger)
        first = json.loads(canonical(first | {_COHORT: sorted(cohort)}))
        account = self._account(ledger)
        if account is None:
            path = self._path(ledger)
            self._open[ledger] = Ledger.create(path, first, clock=self._clock)
            return
        for field, value in first.items():
            if account.records[0].body.get(field) != value:
                raise ConfigError(
                    f"{field}: of run {ledger} the account {account.path} was begun with another"
                )

    def charge(self, ledger: str, event: Mapping[str, Any]) -> None:
        """Note a masked input that is about to leave, at the figures of the round.

        Raises:
            LocalProtocolError: the run was not joined.
            LedgerError: it cannot be made durable; nothing may be sent.
        """
        account = self._account(ledger)
        if account is None:
            raise LocalProtocolError(f"run {ledger}: this client is not in it")
        account.append(CHARGE, dict(event))

    def charged(self, ledger: str, session: str) -> Mapping[str, Any] | None:
        """The charge for an attempt, by its hexadecimal name, in a run's account; None without."""
        account = self._account(ledger)
        for record in () if account is None else reversed(account.records):
            if record.kind == CHARGE and record.body.get("session") == session:
                return record.body
        return None

    def sign(self, asked: HeadRequest, identity: IdentityKey, roster: Roster, config: str) -> bytes:
        """Check where a run's ledger stands, and sign it.

        Args:
            asked: the head and the lines since the one signed last.
            identity: of this client.
            roster: as the owner pinned it.
            config: SHA-256 of the resolved run file, hexadecimal.

        Returns:
            The signature, as JSON.

        Raises:
            LocalProtocolError: this client is not in that run, or one of its clients was revoked.
            RemoteProtocolError: names what in the head or the lines it does not put its name to.
            LedgerError: its account cannot be written.
        """
        account = self._account(asked.ledger.hex())
        if account is None:
            raise LocalProtocolError(f"run {asked.ledger.hex()}: this client is not in it")
        try:
            envelope = json.loads(asked.envelope)
        except (ValueError, RecursionError):
            raise WireError("envelope: is not JSON") from None
        if not isinstance(envelope, dict):
            raise WireError("envelope: is no object")
        cohort = account.records[0].body[_COHORT]
        gone = [name for name in cohort if name not in roster.clients]
        if gone:
            raise LocalProtocolError(
                f"cohort: {gone[0]!r} of run {asked.ledger.hex()} is no longer in the roster"
            )
        own = Roster(roster.server, {name: roster.clients[name] for name in cohort})
        witness = Witness(
            self._client,
            identity,
            account,
            roster=own,
            config_sha256=config,
            counted_more=True,
        )
        # An answer may have been lost: then this client has signed more than the server knows.
        known = max(0, witness.seen.seq + 1 - asked.first)
        return canonical(witness.sign(envelope, asked.lines[known:]))

    def _account(self, ledger: str) -> Ledger | None:
        if ledger not in self._open:
            self.close()  # one is open at a time: how many runs there are is up to the server
            path = self._path(ledger)
            if path.exists():
                account = Ledger.open(path, clock=self._clock)
                found = account.records[0].body.get("ledger")
                if found != ledger:  # a server names ledgers as it likes, and a file by half a name
                    account.close()
                    raise LocalProtocolError(f"run {ledger}: {path} is the account of run {found}")
                self._open[ledger] = account
        return self._open.get(ledger)

    def _path(self, ledger: str) -> Path:
        return self._folder / f"{ledger[:32]}.jsonl"
