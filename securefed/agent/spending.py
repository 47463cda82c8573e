"""All that one data owner ever spends: an account for each kind of round, and one sum over them.

Rounds of one kind are composed exactly, by their own accountant.  Kinds differ in noise, sampling
or cohort, and no accountant here composes them; so their epsilons and their deltas are added up.
The sum is a ledger of its own (``total.jsonl``), written before the account that it is about: a
kill between the two leaves more on record than was spent, never less.

Source: basic composition, Dwork and Roth 2014, "The Algorithmic Foundations of Differential
Privacy", Theorem 3.16.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from pathlib import Path

from securefed.agent.policy import BudgetSection
from securefed.errors import BudgetExceeded, ConfigError, LedgerTampered, SecureFedError
from securefed.evidence.budget import CHARGE, ClientBudget, read_charges
from securefed.evidence.ledger import Ledger
from securefed.evidence.signing import canonical
from securefed.federation.account import open_account
from securefed.federation.session import RoundSession
from securefed.operations.log import UNPROTECTED
from securefed.operations.private_folder import private_folder
from securefed.privacy.accounting import epsilon_text

TOTAL = "total.jsonl"
SPENDS = "spends"

_ACCOUNT = re.compile(r"[0-9a-f]{32}\.jsonl")
_MOST_OPEN = 16


class Spending:
    """A data owner's accounts, in one folder that no other process writes.

    Args:
        folder: is made, for its owner alone.
        client: whose accounts they are.
        budget: what may be spent in all.
        clock: gives RFC 3339 text, cut to the minute: durations tell of a sample.

    Raises:
        ConfigError: the folder holds the accounts of another client, unit or adversary, or others
            have access to it.
        LedgerTampered: an account does not verify, or the sum lacks what an account holds: one of
            them is older than the other.
        LedgerError: it cannot be written, or another agent holds it.

    Guarantees:
        - ``charge`` returns only once the round is on disk, in its account and in the sum.
        - No round is charged that would bring the sum of epsilons over ``budget.epsilon``, or the
          sum of deltas over ``budget.delta``; nothing is written then.
        - A charge that the sum holds and its account lost is charged to that account again.
        - Rounds without noise, which only an owner whose floors list ``"none"`` takes part in, are
          counted, and no epsilon holds for them.
    """

    def __init__(
        self, folder: Path, client: str, budget: BudgetSection, clock: Callable[[], str]
    ) -> None:
        self._folder, self._client, self._budget, self._clock = folder, client, budget, clock
        self._accounts: dict[str, ClientBudget] = {}
        self._unnoised = False  # whether a round without noise was ever charged
        private_folder(folder, "accounts")
        first = {
            "client": client,
            "unit": budget.unit,
            "adjacency": budget.adjacency,
            "against": budget.against,
        }
        path = folder / TOTAL
        self._total = (
            Ledger.open(path, clock=clock)
            if path.exists()
            else Ledger.create(path, first, clock=clock)
        )
        found = self._total.records[0].body
        for field, value in first.items():
            if found.get(field) != value:
                self._total.close()
                raise ConfigError(
                    f"{field} = {value!r}: the accounts in {folder} are of {found.get(field)!r}"
                )

        try:
            self._check_complete()
        except SecureFedError:
            self._total.close()
            raise

    def _check_complete(self) -> None:
        """Whether the sum holds every charge of every account: it is written first."""
        summed = {
            (record.body["account"], record.body["session"])
            for record in self._total.records
            if record.kind == SPENDS
        }
        for path in sorted(self._folder.glob("*.jsonl")):
            if not _ACCOUNT.fullmatch(path.name):
                continue
            for charge in read_charges(path):
                noised = charge.body.get("mechanism") != "none"
                self._unnoised = self._unnoised or not noised
                if noised and (path.stem, charge.body["session"]) not in summed:
                    raise LedgerTampered(
                        f"{self._total.path}: lacks a charge of {path.name}: it was removed, or "
                        "replaced by an older copy"
                    )

    def close(self) -> None:
        """Release all files."""
        for account in self._accounts.values():
            account.close()
        self._accounts = {}
        self._total.close()

    def spent(self) -> tuple[float, float]:
        """Epsilon and delta over all that is on record, by basic composition.

        Epsilon is infinite once a round without noise was charged.
        """
        latest = self._latest()
        epsilon = math.inf if self._unnoised else sum(e for e, _ in latest.values())
        return epsilon, sum(d for _, d in latest.values())

    def terms(self) -> dict[str, str | float]:
        """What is spent in all and what may be, with their terms, as a log has them."""
        epsilon, delta = self.spent()
        budget = self._budget
        return {
            "epsilon_in_all": epsilon if math.isfinite(epsilon) else UNPROTECTED,
            "delta_in_all": delta,
            "unit": budget.unit,
            "adjacency": budget.adjacency,
            "against": budget.against,
            "epsilon_budget": budget.epsilon,
            "delta_budget": budget.delta,
        }

    def holds(self, session: str) -> bool:
        """Whether a charge with noise for this attempt, by its hexadecimal name, is in the sum."""
        return any(
            record.kind == SPENDS and record.body.get("session") == session
            for record in self._total.records
        )

    def check(self, session: RoundSession) -> None:
        """Refuse a round that ``charge`` would refuse for what it costs, before any work on it.

        Raises:
            BudgetExceeded: the round would exceed the budget.
            ConfigError: its account prices other rounds.
        """
        self._priced(session)

    def charge(self, session: RoundSession) -> None:
        """Charge a round, right before its masked input leaves.

        Raises:
            BudgetExceeded: the round would exceed the budget; nothing was written.
            LocalProtocolError: the session was charged before.
            LedgerError: it cannot be made durable; nothing may be sent.
        """
        name, account, epsilon = self._priced(session)
        if epsilon is not None:
            spends = {"account": name, "epsilon": epsilon, "delta": session.policy.delta}
            named = {"round": session.round, "session": session.session.hex()}
            self._total.append(SPENDS, spends | named)
        else:
            self._unnoised = True
        account.charge(session.event())

    def _priced(self, session: RoundSession) -> tuple[str, ClientBudget, float | None]:
        """The round's account, by name, and its epsilon after the round; None without noise."""
        name = hashlib.sha256(canonical(session.priced())).hexdigest()[:32]
        account = self._accounts.get(name)
        if account is None:
            account = self._opened(name, session)
        if session.promised.mechanism == "none":
            return name, account, None
        epsilon = account.epsilon_with(session.round)
        others = [pair for key, pair in self._latest().items() if key != name]
        in_all = epsilon + sum(e for e, _ in others)
        deltas = session.policy.delta + sum(d for _, d in others)
        if not in_all <= self._budget.epsilon or deltas > self._budget.delta:
            raise BudgetExceeded(
                f"budget.epsilon = {self._budget.epsilon:g}, budget.delta = "
                f"{self._budget.delta:g}: this round would bring what is spent in all to epsilon "
                f"{epsilon_text(in_all)}, delta {deltas:g}"
            )
        return name, account, epsilon

    def _opened(self, name: str, session: RoundSession) -> ClientBudget:
        """The account of rounds like this one, with all that the sum holds of it."""
        while len(self._accounts) >= _MOST_OPEN:  # how many kinds there are is up to the server
            self._accounts.pop(next(iter(self._accounts))).close()
        account = open_account(
            self._folder / f"{name}.jsonl",
            session,
            self._client,
            against=self._budget.against,
            clock=self._clock,
        )
        self._accounts[name] = account
        charged = {r.body["session"] for r in account.ledger.records if r.kind == CHARGE}
        for record in self._total.records:
            body = record.body
            if record.kind != SPENDS or body["account"] != name or body["session"] in charged:
                continue
            lost = {"round": body.get("round", session.round), "session": body["session"]}
            account.charge(session.event() | lost)
            charged.add(body["session"])
        return account

    def _latest(self) -> dict[str, tuple[float, float]]:
        """The most that is on record of each account."""
        found: dict[str, tuple[float, float]] = {}
        for record in self._total.records:
            if record.kind == SPENDS:
                name, now = record.body["account"], record.body
                before = found.get(name, (0.0, 0.0))
                found[name] = max(before[0], now["epsilon"]), max(before[1], now["delta"])
        return found
