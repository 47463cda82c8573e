"""A client's durable account for rounds that it is invited to, one kind of round an account."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from securefed.errors import ConfigError
from securefed.evidence.budget import ClientBudget
from securefed.evidence.ledger import Ledger
from securefed.federation.group_sums import GroupedSession
from securefed.federation.session import RoundSession
from securefed.federation.slices import SlicedSession
from securefed.privacy.accounting import Adversary


def _utc_minute() -> str:
    minute = datetime.datetime.now(datetime.UTC).replace(second=0, microsecond=0)
    return minute.isoformat().replace("+00:00", "Z")


def open_account(
    path: Path,
    session: RoundSession | SlicedSession | GroupedSession,
    client_id: str,
    *,
    limit: float | None = None,
    against: Adversary = "server",
    clock: Callable[[], str] = _utc_minute,
) -> ClientBudget:
    """Open a client's own account, or begin it, bound to the figures of rounds like this one.

    Run by: client, before each round; close it afterwards, or use it for the next one.

    Args:
        path: the account's ledger, kept by the client; its folder must be there.
        session: any round of the kind that the account prices; a sliced or grouped one costs one
            charge.
        client_id: whose account it is.
        limit: largest epsilon that this client will spend; None for no limit.
        against: whom epsilon speaks of, the owner's choice and never a round's.  Against the server
            nothing holds with ``mechanism="central"``: under a limit such a round is refused,
            unless the owner trusts that server and says ``"release"``.
        clock: gives RFC 3339 text; whole minutes by default, as durations tell of a sample.

    Guarantees:
        - No sampling of clients is credited: an account counts the rounds that its client was
          drawn for, and amplification is for a number of rounds that counts the others too.

    Raises:
        ConfigError: the account is another client's, speaks of another adversary, or prices rounds
            with other figures.
        LedgerTampered: the account does not verify.
        LedgerError: it cannot be written, or another process holds it.
    """
    priced = session.priced() | {"against": against}
    strategy = session.policy.strategy
    # The server may invite the same client to every round, whatever probability it names.
    whole = (
        replace(session, policy=replace(session.policy, sampling_probability=1.0))
        if session.policy.unit == "client"
        else session
    )

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
            event=session.priced(),
            epsilon_after=functools.lru_cache(maxsize=None)(
                lambda charges: whole.guarantee(against, rounds=settled(charges)).epsilon
            ),
            limit=limit,
        )
        recorded = ledger.records[0].body["privacy"].get("against")
        if recorded != against:
            raise ConfigError(
                f"against = {against!r}: the account {path} speaks of {recorded!r}; go on with that"
                if recorded
                else f"against = {against!r}: the account {path} does not name it; it was begun by "
                "another version of securefed"
            )
        ready = True
    finally:
        if not ready:
            ledger.close()
    return account
