"""What removing excess noise wins back and costs, by whole rounds through the real protocol.

Run by hand: ``python tests/bench/bench_excess_noise.py [--clients 100 --values 2000 --every 10]``.

For each number of missing clients: the std of the noise in the opened sum over that of the target
(the honest survivors' noise that the guarantee counts on), with and without removal, measured and
as planned; bytes that a client sends; CPU seconds of the server and, on average, of a client.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from securefed.config import STAGES
from securefed.crypto.identity import IdentityKey
from securefed.federation.client import ClientRound
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.secagg.aggregations import PairwiseAggregation
from securefed.secagg.aggregator import SESSION_BYTES


@dataclass(frozen=True)
class Measured:
    """One round: noise std over the target's, planned and measured, and what the round cost."""

    planned: float
    measured: float
    bytes_up: int
    server_seconds: float
    client_seconds: float


def bounds_of(clients: int, gamma: float, delta: float) -> CohortBounds:
    """The cohort's bounds."""
    return CohortBounds.of(_policy(gamma, delta, remove=False), clients)


def _policy(gamma: float, delta: float, *, remove: bool) -> PrivacyPolicy:
    return PrivacyPolicy(
        clip_norm=1.0,
        noise_multiplier=1.0,
        corrupt_fraction=gamma,
        dropout_fraction=delta,
        remove_excess_noise=remove,
    )


def measure(
    *, clients: int, values: int, missing: int, remove: bool, gamma: float = 0.1, delta: float = 0.3
) -> Measured:
    """One round of zeros, from which ``missing`` clients fall silent before their input."""
    cohort = tuple(f"client-{i:04}" for i in range(clients))
    identities = {name: IdentityKey.generate() for name in cohort}
    session = RoundSession(
        session=secrets.token_bytes(SESSION_BYTES),
        round=1,
        cohort=cohort,
        roster={name: key.public for name, key in identities.items()},
        dimension=values,
        policy=_policy(gamma, delta, remove=remove),
        aggregation=PairwiseAggregation(),
        model=hashlib.sha256(b"bench: zeros").digest(),
    )
    zeros = np.zeros(values)
    halves = {
        name: ClientRound(session, name, identities[name], lambda c, g: c.encode_update(zeros, g))
        for name in cohort
    }
    server, seconds = ServerRound(session), {"server": 0.0, "clients": 0.0}

    def timed(who: str, call: Callable[..., Any], *arguments: Any) -> Any:
        start = time.process_time()
        made = call(*arguments)
        seconds[who] += time.process_time() - start
        return made

    silent, sent = set(cohort[:missing]), dict.fromkeys(cohort, 0)
    inbox: dict[str, bytes | None] = dict.fromkeys(cohort)
    while (stage := server.stage) is not None:
        late = STAGES.index(stage) >= STAGES.index("masked_input")
        for name, reply in inbox.items():
            if late and name in silent:
                continue
            half = halves[name]
            message = (
                timed("clients", half.start)
                if reply is None
                else timed("clients", half.handle, reply)
            )
            sent[name] += len(message)
            timed("server", server.receive, name, message)
        inbox = dict(timed("server", server.advance))
    plan, bounds = session.plan, bounds_of(clients, gamma, delta)
    target = plan.honest_std * plan.resolution
    present = clients - missing
    planned = plan.retained_std(missing) * math.sqrt(present) * plan.resolution / target
    if present < bounds.survivor_floor:
        raise SystemExit(f"{present} survivors, at least {bounds.survivor_floor} are needed")
    return Measured(
        planned,
        float(server.sum.std()) / target,
        max(sent.values()),
        seconds["server"],
        seconds["clients"] / clients,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--values", type=int, default=65_536)
    parser.add_argument("--corrupt", type=float, default=0.1)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--every", type=int, default=1, help="step between numbers of missing ones")
    chosen = parser.parse_args()
    most = bounds_of(chosen.clients, chosen.corrupt, chosen.dropout).most_missing
    print(f"{chosen.clients} clients, {chosen.values} values, at most {most} missing")
    print("missing  kept: std planned  removed: std planned   variance   kB up        server s")
    for missing in range(0, most + 1, chosen.every):
        kept, removed = (
            measure(
                clients=chosen.clients,
                values=chosen.values,
                missing=missing,
                remove=remove,
                gamma=chosen.corrupt,
                delta=chosen.dropout,
            )
            for remove in (False, True)
        )
        print(
            f"{missing:7}  {kept.measured:9.3f} {kept.planned:7.3f}  {removed.measured:12.3f} "
            f"{removed.planned:7.3f}   x {(removed.measured / kept.measured) ** 2:.3f}   "
            f"{kept.bytes_up / 1e3:.0f} -> {removed.bytes_up / 1e3:.0f}   "
            f"{kept.server_seconds:.2f} -> {removed.server_seconds:.2f}   "
            f"(client {kept.client_seconds:.3f} -> {removed.client_seconds:.3f})"
        )


if __name__ == "__main__":
    main()
