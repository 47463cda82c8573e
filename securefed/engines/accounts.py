"""Clients' accounts, compared with the run's ledger by the rule of counting in :mod:`.attempts`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from securefed.engines.attempt import Attempt
from securefed.engines.attempts import History
from securefed.engines.cohorts import Cohorts
from securefed.engines.comparing import require_same
from securefed.errors import LedgerTampered
from securefed.evidence.budget import CHARGE
from securefed.evidence.ledger import read_ledger

ACCOUNT, HISTOGRAM_ACCOUNT = "budget.jsonl", "histograms.jsonl"
"""A client's accounts, in ``clients/ID``: of rounds, and of histograms of held-out figures."""

COPIES = "copies kept by the server"
"""What the first record says of the accounts of a run between machines, where a client's own stays
at the client."""


def check_accounts(
    folder: Path, genesis: Mapping[str, Any], history: History, cohorts: Cohorts
) -> dict[str, int]:
    """Compare each client's account with the run's ledger, by the rule of counting.

    Args:
        folder: the run folder.
        genesis: body of the ledger's first record.
        history: of the same ledger.
        cohorts: who is in which round.

    Returns:
        The charges of each client.

    Raises:
        LedgerTampered: an account is missing, is another client's, charges what was never opened,
            at another price or for a round that its client takes no part in, or lacks a charge
            that the ledger names.
    """
    return _check_accounts(
        folder,
        genesis,
        ACCOUNT,
        "privacy",
        history.attempts,
        lambda attempt: cohorts.members(attempt.round),
    )


def check_histogram_accounts(folder: Path, genesis: Mapping[str, Any], history: History) -> int:
    """The same for each client's account of histograms; 0 where the run has none.

    Raises:
        LedgerTampered: as there.
    """
    if "histograms" not in genesis:
        return 0
    everybody = genesis["cohort"]
    charged = _check_accounts(
        folder, genesis, HISTOGRAM_ACCOUNT, "histograms", history.histograms, lambda _: everybody
    )
    return max(charged.values())


def _check_accounts(
    folder: Path,
    genesis: Mapping[str, Any],
    file_name: str,
    priced: str,
    attempts: Mapping[str, Attempt],
    members_of: Callable[[Attempt], Collection[str]],
) -> dict[str, int]:
    accounts = folder / "clients"
    names = sorted(path.name for path in accounts.iterdir()) if accounts.is_dir() else []
    missing, foreign = (set(genesis["cohort"]) - set(names), set(names) - set(genesis["cohort"]))
    if missing:
        raise LedgerTampered(f"{accounts}: no account of {', '.join(sorted(missing))}")
    if foreign:
        found = ", ".join(sorted(foreign))
        raise LedgerTampered(f"{accounts}: {found}: not in the run's cohort")
    charged: dict[str, set[str]] = {}
    for name in names:
        path = accounts / name / file_name
        if not path.is_file():
            raise LedgerTampered(f"{path} is missing: no account of {name}")
        own = read_ledger(path)
        # Which ledger it was begun for is compared with the signatures (:mod:`.witnesses`).
        first = {key: value for key, value in own[0].body.items() if key != "ledger"}
        expected = {"client": name, "privacy": genesis[priced]}
        if file_name == ACCOUNT and "roster" in genesis:
            expected["size"] = genesis["client_sizes"][name]
        require_same(first, expected, f"{path}: first record")
        charges = [record.body for record in own if record.kind == CHARGE]
        sessions = [str(charge["session"]) for charge in charges]
        if len(set(sessions)) != len(sessions) or not set(sessions) <= set(attempts):
            raise LedgerTampered(f"{path}: charges a session twice, or one that was never opened")
        for charge in charges:
            attempt = attempts[str(charge["session"])]
            if name not in members_of(attempt):
                raise LedgerTampered(
                    f"{path}: charges round {attempt.round}, in which {name} takes no part by the "
                    "plan"
                )
            require_same(charge, attempt.event, f"{path}: charge for round {attempt.round}")
        charged[name] = set(sessions)
    so_far: set[str] = set()
    for attempt in attempts.values():
        so_far.add(attempt.session)
        for name in sorted(attempt.charged or ()):
            if attempt.session not in charged[name]:
                raise LedgerTampered(
                    f"{accounts / name}: no charge for round {attempt.round}, which the ledger "
                    "says that this client was charged for"
                )
        most = max(len(sessions & so_far) for sessions in charged.values())
        if attempt.charges is not None and attempt.charges != most:
            raise LedgerTampered(
                f"{folder / 'ledger.jsonl'}: round {attempt.round} was summed with charges = "
                f"{attempt.charges}, the accounts hold {most} up to then"
            )
    for session, attempt in attempts.items():
        if attempt.charged is None:
            for name in members_of(attempt):
                charged[name].add(session)
    return {name: len(sessions) for name, sessions in charged.items()}
