"""A client's own privacy budget: charged durably before anything that spends it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
        epsilon_after: accounted epsilon after that many charges of ``event``.  Where units take
            part by a schedule (``event["separation"]``), after as many rounds as
            :func:`rounds_of_schedule` counts.
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
            if field not in recorded:
                raise ConfigError(
                    f"{field} = {value!r}: the account {ledger.path} does not name it; it was "
                    "begun by another version of securefed"
                )
            if recorded[field] != value:
                raise ConfigError(
                    f"{field} = {value!r}: the account {ledger.path} prices rounds with "
                    f"{recorded.get(field)!r}"
                )
        self._ledger = ledger
        self._event = dict(event)
        self._epsilon_after = epsilon_after
        self._limit = limit

    @property
    def ledger(self) -> Ledger:
        """The account itself."""
        return self._ledger

    @property
    def charges(self) -> int:
        """Masked inputs charged so far."""
        return len(self._charged())

    def _after(self, *further: int) -> float:
        """Epsilon once rounds of these numbers are charged as well."""
        separation = self._event.get("separation")
        if not isinstance(separation, int):
            return self._epsilon_after(self.charges + len(further))
        numbers = [int(record.body["round"]) for record in self._charged()]
        return self._epsilon_after(rounds_of_schedule([*numbers, *further], separation))

    def _charged(self) -> list[Record]:
        return [record for record in self._ledger.records if record.kind == CHARGE]

    def close(self) -> None:
        """Release the ledger's file."""
        self._ledger.close()

    def affords(self, more: int = 1) -> bool:
        """Whether ``more`` further charges stay within the limit."""
        if self._limit is None:
            return True
        charged = self._charged()
        last = int(charged[-1].body.get("round", 0)) if charged else 0
        return self._after(*range(last + 1, last + 1 + more)) <= self._limit

    def epsilon_with(self, number: int) -> float:
        """Epsilon once the round of this number, >= 1, is charged as well."""
        return self._after(number)

    def charge(self, event: Mapping[str, object]) -> None:
        """Record one masked input that is about to leave.

        Args:
            event: what is spent: the account's figures, and ``session``, which names the attempt;
                ``round`` too where units take part by a schedule.

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
        named = event.get("round")
        number = named if isinstance(named, int) else 0
        if self._event.get("separation") is not None and number < 1:
            raise LocalProtocolError(f"round = {named!r}: must be an int >= 1")
        if self._limit is not None and (after := self._after(number)) > self._limit:
            shown = epsilon_text(after) if math.isfinite(after) else "unbounded"
            raise BudgetExceeded(
                f"limit = {self._limit:g}: the next round would raise this client's epsilon to "
                f"{shown}; nothing was charged, nothing was sent"
            )
        self._ledger.append(CHARGE, dict(event))


def rounds_of_schedule(numbers: Sequence[int], separation: int) -> int:
    """How many rounds of one run cost what the charged ones cost, where units come in turn.

    A round that was missed moves the schedule on as well.  A number that does not rise is a round
    tried again or of another run: the schedule begins anew, with a whole cycle.

    Args:
        numbers: of the rounds charged, in that order, each >= 1.
        separation: B >= 1, rounds from one participation of a unit to its next.

    Guarantees:
        - No unit of the client took part in more rounds than ceil(result / B).

    Example:
        >>> rounds_of_schedule([1, 2, 9], separation=6), rounds_of_schedule([1, 2, 2], separation=6)
        (9, 8)
    """
    before = last = 0
    for number in numbers:
        if number <= last:
            before += -(-last // separation) * separation
        last = number
    return before + last


def read_charges(path: Path) -> list[Record]:
    """The verified charges of a client's budget file, oldest first.

    Raises:
        LedgerTampered: the file does not verify.
    """
    return [record for record in read_ledger(path) if record.kind == CHARGE]
