"""A client's own privacy budget: charged durably before anything that spends it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from securefed.errors import BudgetExceeded, LocalProtocolError
from securefed.evidence.ledger import Ledger, Record, read_ledger

CHARGE = "charge"


class ClientBudget:
    """One client's append-only account of what it has sent.

    Args:
        ledger: the client's own ledger, kept by the client.
        epsilon_after: epsilon against the server after that many charges.
        limit: largest epsilon this client will spend; None for no limit.

    Guarantees:
        - ``charge`` returns only once the charge is on disk; a crash afterwards counts as spent.
        - A charge that would exceed the limit is refused and nothing is written.
        - Every attempt is charged, opened or not, retries too.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        epsilon_after: Callable[[int], float],
        limit: float | None = None,
    ) -> None:
        self._ledger = ledger
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
            event: what is spent; ``session`` names the attempt.

        Raises:
            LocalProtocolError: this session was charged before: a server names it a second time.
            BudgetExceeded: the limit would be passed; nothing was written, nothing may be sent.
            LedgerError: the charge could not be made durable; nothing may be sent.
        """
        if event["session"] in {record.body["session"] for record in self._charged()}:
            raise LocalProtocolError("session: it was charged before; an attempt needs a new one")
        if not self.affords():
            after = self._epsilon_after(self.charges + 1)
            shown = f"{after:.4g}" if math.isfinite(after) else "unbounded"
            raise BudgetExceeded(
                f"budget.epsilon = {self._limit:g}: the next round would raise epsilon against the "
                f"server to {shown}; nothing was sent"
            )
        self._ledger.append(CHARGE, dict(event))


def read_charges(path: Path) -> list[Record]:
    """The verified charges of a client's budget file, oldest first.

    Raises:
        LedgerTampered: the file does not verify.
    """
    return [record for record in read_ledger(path) if record.kind == CHARGE]
