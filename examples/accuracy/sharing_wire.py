"""What a vector of a given length costs on its way: one real masked round of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from bench import Cohort
from numpy.typing import NDArray
from sharing_rounds import Tiered, policy_of
from sharing_tasks import Task

from securefed.encoding.wire import packed_size
from securefed.engines.in_process import Carried, carry
from securefed.errors import ProtocolError
from securefed.federation.client import ClientRound
from securefed.federation.server import ServerRound
from securefed.federation.sliced_rounds import SlicedClientRound, SlicedServerRound
from securefed.secagg.aggregator import AggregationClient


def wire(task: Task, values: int, tiers: Tiered | None = None) -> dict[str, Any]:
    """One masked round of a task's cohort, every client with the same random vector.

    Args:
        task: whose cohort size and policy hold.
        values: d, or that of the highest tier.
        tiers: of unlike ranks, by names of ``cohort_of``.

    Returns:
        ``bytes_up``: sent by a client in all stages, mean and, with tiers, by rank;
        ``masked_bytes``: of which the masked vector; ``client_seconds``: CPU seconds of a client,
        mean, of clipping, encoding, keys and masks.

    Raises:
        ProtocolError: the opened sum is not that of the vectors.
    """
    cohort = cohort_of(task)
    vector = np.random.default_rng(0).standard_normal(values, dtype=np.float32)
    vector *= np.float32(0.1 * task.clip_norm / np.sqrt(values))
    spent = dict.fromkeys(cohort.names, 0.0)

    @contextmanager
    def measured(name: str) -> Iterator[None]:
        started = time.process_time()
        yield
        spent[name] += time.process_time() - started

    clients: Mapping[str, AggregationClient]
    if tiers is None:
        session = cohort.session(1, policy_of(task), values)
        server = ServerRound(session)
        clients = {
            name: ClientRound(
                session, name, key, lambda codec, noise: codec.encode_update(vector, noise)
            )
            for name, key in cohort.identities.items()
        }
        carried = carry(server, clients, keep_transcript=False, client_work=measured)
        _check(server.sum, vector, len(server.survivors))
        masked = packed_size(session.plan.padded, session.plan.bits)
    else:
        sliced = tiers.session(cohort, 1, policy_of(task))
        parts = SlicedServerRound(sliced)
        clients = {
            name: SlicedClientRound(
                sliced,
                name,
                key,
                lambda codec, noise: codec.encode_update(vector[: codec.dimension], noise),
            )
            for name, key in cohort.identities.items()
        }
        carried = carry(parts, clients, keep_transcript=False, client_work=measured)
        start, sizes = 0, []
        for place, one in enumerate(sliced.sessions):
            stop = start + sliced.widths[place]
            holders = len(parts.survivors[place + 1])
            _check(parts.sums[place + 1], vector[start:stop], holders)
            sizes += [packed_size(one.plan.padded, one.plan.bits)] * len(one.cohort)
            start = stop
        masked = round(sum(sizes) / len(cohort.names))
    found = {
        "values": values,
        "clients": len(cohort.names),
        "bytes_up": round(_mean(carried.bytes_up)),
        "masked_bytes": masked,
        "client_seconds": _mean(spent),
    }
    if tiers is not None:
        found["bytes_by_rank"] = _by_rank(carried, tiers)
    return found


def cohort_of(task: Task) -> Cohort:
    """Clients without data, as many as train."""
    return Cohort.of(tuple(f"client-{place:02}" for place in range(task.clients)))


def _check(found: NDArray[np.float64], vector: NDArray[np.float32], holders: int) -> None:
    if holders < 2 or not np.allclose(found, holders * vector, atol=1e-4):
        raise ProtocolError(f"the masked sum of {holders} clients is not that of their vectors")


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values())))


def _by_rank(carried: Carried, tiers: Tiered) -> dict[str, int]:
    return {
        str(rank): next(carried.bytes_up[n] for n, own in tiers.ranks.items() if own == rank)
        for rank in tiers.layout.tiers.ranks
    }
