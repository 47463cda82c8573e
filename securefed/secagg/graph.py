"""Who masks with whom: all pairs, or a Harary graph on a ring that nobody could choose.

In a sparse round the cohort is placed on a ring in a random order, and a client's neighbours are
the ``degree / 2`` clients on each side (the Harary graph H(n, degree)).  Its witnesses, whose
signatures on the survivor list it asks for, are the clients within ``witnesses / 2`` of it.

The order follows from one fresh nonce of every client.  A client commits to its nonce when it
advertises its keys and reveals it only once it was told the hash of all commitments; so the order
was not known to anyone when the last commitment was made.  Whoever collects the nonces can still
leave out some that it does not like: against a server that does so at will, nothing is claimed
about the order (:mod:`securefed.secagg.parameters`).

Source: Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", the
part on graph generation.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.keys import derive, labelled
from securefed.crypto.prg import add_keystream

NONCE_BYTES = 16
HASH_BYTES = 32

_NONCE = b"securefed/1/round/graph-nonce"
_COMMITMENTS = b"securefed/1/round/graph-commitments"
_SEED = b"securefed/1/round/graph-seed"
_ORDER = b"securefed/1/round/graph-order"


class Graph:
    """Neighbours and witnesses of every client, by index in the cohort.

    Args:
        size: n, clients in the cohort.
        degree: neighbours of a client: even and below n - 1, or n - 1 for the complete graph.
        witnesses: clients, beside itself, whose signatures a client may count; likewise.
        order: int32[n], the index of the client at each place of the ring.
    """

    def __init__(self, size: int, degree: int, witnesses: int, order: NDArray[np.int32]) -> None:
        self._size, self._degree, self._witnesses = size, degree, witnesses
        self._order = order
        self._place = np.empty(size, dtype=np.int32)
        self._place[order] = np.arange(size, dtype=np.int32)

    @classmethod
    @functools.lru_cache(maxsize=4)
    def complete(cls, size: int) -> Graph:
        """Everyone is everyone's neighbour and witness."""
        return cls(size, size - 1, size - 1, np.arange(size, dtype=np.int32))

    @classmethod
    def from_seed(cls, seed: bytes, *, size: int, degree: int, witnesses: int) -> Graph:
        """The graph that a seed of 32 bytes determines.

        The order sorts 128-bit words of a keystream: uniform but for a repeated word, which has a
        probability below size^2 / 2^129.
        """
        words = np.zeros(4 * size, dtype=np.uint32)
        add_keystream(words, derive(seed, label=_ORDER, context=b""))
        keys = words.reshape(size, 4)
        order = np.lexsort((keys[:, 0], keys[:, 1], keys[:, 2], keys[:, 3]))
        return cls(size, degree, witnesses, order.astype(np.int32))

    def neighbours(self, index: int) -> list[int]:
        """Clients that ``index`` masks with and shares its secrets among, rising."""
        return self._around(index, self._degree)

    def witnesses(self, index: int) -> set[int]:
        """Clients whose signatures on the survivor list ``index`` counts, itself included."""
        return {index, *self._around(index, self._witnesses)}

    def _around(self, index: int, count: int) -> list[int]:
        if count >= self._size - 1:
            return [other for other in range(self._size) if other != index]
        half = count // 2
        steps = np.concatenate((np.arange(-half, 0), np.arange(1, half + 1)))
        places = (self._place[index] + steps) % self._size
        found: list[int] = np.sort(self._order[places]).tolist()
        return found

    def gives(self, sender: int, receiver: int) -> bool:
        """Whether ``sender`` makes the secret of its edge to ``receiver``.

        One end of every edge does.  On a ring it is the one before the other, in a complete graph
        the lower of two indices whose sum is odd and the higher where it is even: each client then
        makes about half of its edges' secrets, and sends no more than others do.
        """
        if self._degree >= self._size - 1:
            return (sender < receiver) == bool((sender + receiver) % 2)
        ahead = int(self._place[receiver] - self._place[sender]) % self._size
        return ahead <= self._degree // 2


def nonce_commitment(nonce: bytes, digest: bytes, index: int) -> bytes:
    """Binding and hiding (the nonce is uniform): what a revealed nonce must match."""
    context = digest + index.to_bytes(4, "big")
    return hashlib.sha256(labelled(_NONCE, context, nonce)).digest()


def nonce_commitments(nonces: Mapping[int, bytes], digest: bytes) -> dict[int, bytes]:
    """:func:`nonce_commitment` of every client: the same, made for a whole cohort."""
    # All that is before and between index and nonce is alike, so it is encoded once.
    zero = labelled(_NONCE, digest + bytes(4), bytes(NONCE_BYTES))
    head, between = zero[: -NONCE_BYTES - 12], zero[-NONCE_BYTES - 8 : -NONCE_BYTES]
    return {
        index: hashlib.sha256(head + index.to_bytes(4, "big") + between + nonce).digest()
        for index, nonce in nonces.items()
    }


def commitments_hash(commitments: Mapping[int, bytes]) -> bytes:
    """What a client signs before it reveals its nonce: everybody's commitment, by index."""
    return _listed(_COMMITMENTS, b"", commitments)


def graph_seed(digest: bytes, nonces: Mapping[int, bytes]) -> bytes:
    """From the revealed nonces to the ring's order.

    Each client's own fresh nonce is in it, so what is bound to the seed is bound to one attempt.
    """
    return _listed(_SEED, digest, nonces)


def _listed(label: bytes, context: bytes, items: Mapping[int, bytes]) -> bytes:
    parts = b"".join(index.to_bytes(4, "big") + items[index] for index in sorted(items))
    return hashlib.sha256(labelled(label, context, parts)).digest()
