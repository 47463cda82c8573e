"""The owner's folder of accounts, opened as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from securefed.agent.policy import AgentPolicy
from securefed.agent.rosters import take_roster
from securefed.agent.runs import RunAccounts
from securefed.agent.spending import Spending
from securefed.evidence.signed_roster import SignedRoster


@contextmanager
def opened_accounts(
    folder: Path, policy: AgentPolicy, roster: SignedRoster, clock: Callable[[], str]
) -> Iterator[tuple[Spending, RunAccounts]]:
    """What was spent and what was done in each run, once the roster is no older than one before.

    Args:
        folder: is made for its owner alone, if it is missing.
        policy: whose accounts they are, and the budget.
        roster: is taken, and noted in the folder.
        clock: gives RFC 3339 text.

    Raises:
        ConfigError: the folder is open to others, or a later roster was taken before.
        LedgerError, LedgerTampered: an account cannot be opened, or does not verify.
    """
    with closing(Spending(folder, policy.client, policy.budget, clock)) as spending:
        take_roster(folder, roster, clock=clock)
        with closing(RunAccounts(folder / "runs", policy.client, clock)) as runs:
            yield spending, runs
