"""A client's durable account for rounds that it is invited to, one kind of round an account."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable
from pathlib import Path

from securefed.errors import ConfigError
from securefed.evidence.budget import ClientBudget
from securefed.evidence.ledger import Ledger
from securefed.federation.session import RoundSession
from securefed.privacy.accounting import accounted_adversary


def _utc_minute() -> str:
    minute = datetime.datetime.now(datetime.UTC).replace(second=0, microsecond=0)
    return minute.isoformat().replace("+00:00", "Z")


def open_account(
    path: Path,
    session: RoundSession,
    client_id: str,
    *,
    limit: float | None = None,
    clock: Callable[[], str] = _utc_minute,
) -> ClientBudget:
    """Open a client's own account, or begin it, bound to the figures of rounds like this one.

    Run by: client, before each round; close it afterwards, or use it for the next one.

    Args:
        path: the account's ledger, kept by the client; its folder must be there.
        session: any round of the kind that the account prices.
        client_id: whose account it is.
        limit: largest epsilon that this client will spend, against the server (against the release
            where the server is trusted, ``mechanism="central"``); None for no limit.
        clock: gives RFC 3339 text; whole minutes by default, as durations tell of a sample.

    Raises:
        ConfigError: the account is another client's, or prices rounds with other figures.
        LedgerTampered: the account does not verify.
        LedgerError: it cannot be written, or another process holds it.
    """
    priced = session.priced()
    against = accounted_adversary(session.policy)
    strategy = session.policy.strategy

    def settled(charges: int) -> int:
        return charges if strategy is None else strategy.settled(charges)

    if path.exists():
        ledger = Ledger.open(path, clock=clock)
    else:
        ledger = Ledger.create(path, {"client": client_id, "privacy": priced}, clock=clock)
    ready = False
    try:
        owner = ledger.records[0].body.get("client")
        if owner != client_id:
            raise ConfigError(f"{path}: is the account of {owner!r}, not of {client_id!r}")
        account = ClientBudget(
            ledger,
            event=priced,
            epsilon_after=functools.lru_cache(maxsize=None)(
                lambda charges: session.guarantee(against, rounds=settled(charges)).epsilon
            ),
            limit=limit,
        )
        ready = True
    finally:
        if not ready:
            ledger.close()
    return account
