"""A client's own privacy budget: charged durably before anything that spends it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from securefed.errors import BudgetExceeded, ConfigError, LocalProtocolError
from securefed.evidence.ledger import Ledger, Record, read_ledger
from securefed.privacy.accounting import epsilon_text

CHARGE = "charge"


class ClientBudget:
    """One client's append-only account of what it has sent, at one price.

    Args:
        ledger: the client's own ledger, kept by the client; ``privacy`` in its first record holds
            the figures that every charge is priced by.
        event: the figures that ``epsilon_after`` prices; every charge must show the same.
        epsilon_after: accounted epsilon after that many charges of ``event``.
        limit: largest epsilon this client will spend; None for no limit.

    Raises:
        ConfigError: the ledger was begun for other figures; the message names the first of them.

    Guarantees:
        - Only the event that the account was begun for is charged; a round at another price is
          refused by name, and nothing is written.
        - ``charge`` returns only once the charge is on disk; a crash afterwards counts as spent.
        - A charge that would exceed the limit is refused and nothing is written.
        - Every attempt is charged, opened or not, retries too.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        event: Mapping[str, object],
        epsilon_after: Callable[[int], float],
        limit: float | None = None,
    ) -> None:
        recorded = ledger.records[0].body.get("privacy")
        if not isinstance(recorded, Mapping):
            raise ConfigError(f"{ledger.path}: its first record prices no event (privacy)")
        for field, value in event.items():
            if field not in recorded or recorded[field] != value:
                raise ConfigError(
                    f"{field} = {value!r}: the account {ledger.path} prices rounds with "
                    f"{recorded.get(field)!r}"
                )
        self._ledger = ledger
        self._event = dict(event)
        self._epsilon_after = epsilon_after
        self._limit = limit

    @property
    def charges(self) -> int:
        """Masked inputs charged so far."""
        return len(self._charged())

    def _charged(self) -> list[Record]:
        return [record for record in self._ledger.records if record.kind == CHARGE]

    def close(self) -> None:
        """Release the ledger's file."""
        self._ledger.close()

    def affords(self, more: int = 1) -> bool:
        """Whether ``more`` further charges stay within the limit."""
        if self._limit is None:
            return True
        return self._epsilon_after(self.charges + more) <= self._limit

    def charge(self, event: Mapping[str, object]) -> None:
        """Record one masked input that is about to leave.

        Args:
            event: what is spent: the account's figures, and ``session``, which names the attempt.

        Raises:
            LocalProtocolError: a figure is missing or is not the one that the account prices, or
                this session was charged before: a server names it a second time.
            BudgetExceeded: the limit would be passed; nothing was written, nothing may be sent.
            LedgerError: the charge could not be made durable; nothing may be sent.
        """
        for field, value in self._event.items():
            if field not in event or event[field] != value:
                raise LocalProtocolError(
                    f"{field} = {event.get(field)!r}: this account prices rounds with {value!r}; "
                    "nothing was charged, nothing may be sent"
                )
        if "session" not in event:
            raise LocalProtocolError("session: missing; a charge names its attempt")
        if event["session"] in {record.body["session"] for record in self._charged()}:
            raise LocalProtocolError("session: it was charged before; an attempt needs a new one")
        if not self.affords():
            after = self._epsilon_after(self.charges + 1)
            shown = epsilon_text(after) if math.isfinite(after) else "unbounded"
            raise BudgetExceeded(
                f"budget.epsilon = {self._limit:g}: the next round would raise epsilon to "
                f"{shown}; nothing was sent"
            )
        self._ledger.append(CHARGE, dict(event))


def read_charges(path: Path) -> list[Record]:
    """The verified charges of a client's budget file, oldest first.

    Raises:
        LedgerTampered: the file does not verify.
    """
    return [record for record in read_ledger(path) if record.kind == CHARGE]
