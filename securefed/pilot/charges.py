"""What all trials of a pilot on private data spend, on record before any of it is spent."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from securefed.errors import BudgetExceeded, ConfigError, LedgerTampered
from securefed.evidence.ledger import Ledger
from securefed.privacy.accounting import epsilon_text

FILE = "pilot-ledger.jsonl"
OPENED, CLOSED = "trial_opened", "trial_closed"


class PilotLedger:
    """The pilot's own account of its trials, which are added up by basic composition.

    A trial is opened with the epsilon and delta of all its rounds, and closed with those of the
    rounds that it charged.  One that was opened and not closed counts as opened.  Epsilons are
    against the adversary that runs account for; each run's ledger and its clients' accounts hold
    the same rounds one by one.

    Args:
        path: the file; begun if it is not there.
        budget: largest sum of epsilons.
        clock: gives RFC 3339 text.

    Raises:
        ConfigError: the ledger was begun with another budget.
        LedgerTampered: it does not verify.

    Guarantees:
        - :meth:`open` returns only once the opening is on disk.
        - The epsilons of all that was ever opened, those of closed trials as they were closed, sum
          to ``budget`` at most, if every trial keeps within what it was opened with.

    Source: Dwork and Roth 2014, "The Algorithmic Foundations of Differential Privacy", theorem
    3.16; Rogers et al. 2016, "Privacy Odometers and Filters" (1605.08294), for trials whose price
    depends on how earlier ones ended.
    """

    def __init__(self, path: Path, *, budget: float, clock: Callable[[], str]) -> None:
        self._budget = budget
        if path.exists():
            self._ledger = Ledger.open(path, clock=clock)
        else:
            self._ledger = Ledger.create(path, {"budget_epsilon": budget}, clock=clock)
        recorded = self._ledger.records[0].body.get("budget_epsilon")
        if recorded != budget:
            self._ledger.close()
            raise ConfigError(f"budget.epsilon = {budget:g}: {path} was begun with {recorded!r}")

    def close(self) -> None:
        """Give the file back."""
        self._ledger.close()

    @property
    def spent(self) -> tuple[float, float]:
        """Epsilon and delta of all trials so far, those without an end as they were opened."""
        counted: dict[str, tuple[float, float]] = {}
        for record in self._ledger.records:
            if record.kind in (OPENED, CLOSED):
                body = record.body
                counted[body["folder"]] = (float(body["epsilon"]), float(body["delta"]))
        epsilons, deltas = zip(*counted.values(), strict=True) if counted else ((), ())
        return math.fsum(epsilons), math.fsum(deltas)

    def opened(self, folder: str) -> float | None:
        """What the trial in a folder may spend in training; None if it was never opened."""
        for record in self._ledger.records:
            if record.kind == OPENED and record.body["folder"] == folder:
                return float(record.body["training_epsilon"])
        return None

    def closed(self, folder: str) -> bool:
        """Whether the trial in a folder has ended."""
        return any(r.kind == CLOSED and r.body["folder"] == folder for r in self._ledger.records)

    def open(self, folder: str, *, epsilon: float, delta: float, beside: float = 0.0) -> None:
        """Record what a trial may spend, before it begins.

        Args:
            folder: of its run, inside the pilot's; each is opened once.
            epsilon: after all its rounds, finite.
            delta: of all that it spends.
            beside: what its histograms of held-out figures add to epsilon.

        Raises:
            BudgetExceeded: the budget would be exceeded, or nothing is guaranteed at all; nothing
                was written, and the trial must not begin.
            LedgerError: the opening could not be made durable; the trial must not begin.
        """
        spent = self.spent[0]
        training, epsilon = epsilon, epsilon + beside
        if not spent + epsilon <= self._budget:  # an infinite one and NaN too
            raise BudgetExceeded(
                f"budget.epsilon = {self._budget:g}: {epsilon_text(spent)} is spent, and {folder} "
                f"may cost {epsilon_text(epsilon)}; it was not begun"
            )
        if self.opened(folder) is not None:
            raise LedgerTampered(f"{self._ledger.path}: {folder} is opened already")
        body = {"folder": folder, "training_epsilon": training, "epsilon": epsilon, "delta": delta}
        self._ledger.append(OPENED, body)

    def end(self, folder: str, *, epsilon: float, delta: float, charges: int) -> None:
        """Record what a trial has spent.

        Args:
            folder: of its run.
            epsilon: after the rounds that were charged, retries included.
            delta: that goes with it.
            charges: how many those were.
        """
        body = {"folder": folder, "epsilon": epsilon, "delta": delta, "charges": charges}
        self._ledger.append(CLOSED, body)
