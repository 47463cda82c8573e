"""Who takes part when, without sampling: each client's units in batches that come in turn.

A client divides its units once into B batches, and uses batch (t - 1) mod B whole in round t.  So a
unit takes part in every B-th round, whatever it holds, and nothing about that is secret.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.prg import add_keystream
from securefed.errors import ConfigError


def cyclic_batch(
    client_id: str, count: int, *, separation: int, round: int, seed: int = 0
) -> NDArray[np.int64]:
    """Which of a client's units are in its batch of one round.

    Units are put in an order that follows from the client's name and the seed, both public, and
    dealt out to the batches in turn, beginning with another batch for each client.

    Run by: client.

    Args:
        client_id: whose units.
        count: n, how many it holds, >= 0.
        separation: B >= 1, rounds from one participation of a unit to its next.
        round: t >= 1.
        seed: the same in every round of a run, >= 0.

    Returns:
        int64[m], ascending positions in 0..n - 1, m = floor(n / B) or that plus one.

    Raises:
        ConfigError: an argument is outside that.

    Guarantees:
        - The batches of any B rounds that follow one another are a partition of the units.
        - A unit's batch depends on its position and on n, never on what any unit holds.
    """
    for name, value, least in (
        ("count", count, 0),
        ("separation", separation, 1),
        ("round", round, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} = {value}: must be >= {least}")
    named = f"securefed/1/cyclic\0{seed}\0{client_id}".encode()
    key = hashlib.sha256(named).digest()
    words = np.zeros(count, dtype=np.uint32)
    add_keystream(words, key)
    order = np.argsort(words, kind="stable")
    first = int.from_bytes(hashlib.sha256(named + b"\0first").digest(), "big")
    return np.sort(order[(round - 1 + first) % separation :: separation]).astype(np.int64)


def largest_batch(count: int, separation: int) -> int:
    """The most units in one batch of a client that holds ``count``: ceil(count / separation)."""
    return -(-count // separation)
