"""Reconstructing committed secrets when some holders reveal wrong shares."""

from __future__ import annotations

import hmac
import itertools
from collections.abc import Callable, Mapping

from securefed.crypto.shamir import Reconstructor
from securefed.errors import RemoteProtocolError

_MOST_TRIES = 500


class Holders:
    """The clients that revealed shares, and which of them lied.

    A reconstruction that does not match the owner's commitment is tried again without one holder,
    then without two, and so on, as long as a threshold remains and at most 500 times in all.
    Holders whose absence made it right are left out of every later reconstruction.

    Args:
        present: indices of the clients that revealed.
        threshold: shares that a reconstruction takes.

    Guarantees:
        - What ``secret`` returns matches its owner's commitment.
    """

    def __init__(self, present: list[int], threshold: int) -> None:
        self._threshold = threshold
        self._trusted = sorted(present)
        self._tries = 0
        self._reconstructor = self._for(self._trusted)
        self.liars: set[int] = set()

    def _for(self, holders: list[int]) -> Reconstructor:
        return Reconstructor([index + 1 for index in holders], self._threshold)

    def secret(
        self,
        shares: Mapping[int, bytes],
        commitment: Callable[[bytes], bytes],
        promised: bytes,
        owner: str,
    ) -> bytes:
        """The 32-byte secret behind ``shares``.

        Args:
            shares: by index of the holder; every present holder has one.
            commitment: recomputes the owner's commitment from a candidate.
            promised: what the owner committed to.
            owner: named if nothing matches.

        Raises:
            RemoteProtocolError: no choice of holders gives what the owner committed to.
        """
        found = self._attempt(self._reconstructor, self._trusted, shares)
        if found is not None and hmac.compare_digest(commitment(found), promised):
            return found
        for missing in range(1, len(self._trusted) - self._threshold + 1):
            for left_out in itertools.combinations(self._trusted, missing):
                self._tries += 1
                if self._tries > _MOST_TRIES:
                    break
                fewer = [index for index in self._trusted if index not in left_out]
                reconstructor = self._for(fewer)
                found = self._attempt(reconstructor, fewer, shares)
                if found is not None and hmac.compare_digest(commitment(found), promised):
                    self.liars |= set(left_out)
                    self._trusted, self._reconstructor = fewer, reconstructor
                    return found
        raise RemoteProtocolError(
            f"a reconstructed secret of {owner!r} does not match what it committed to: it, or "
            "clients that held its shares, sent wrong ones"
        )

    @staticmethod
    def _attempt(
        reconstructor: Reconstructor, holders: list[int], shares: Mapping[int, bytes]
    ) -> bytes | None:
        try:
            return reconstructor.reconstruct({index + 1: shares[index] for index in holders})
        except RemoteProtocolError:
            return None  # a share that is no field element, or a value of more than 32 bytes


def check_commitment(found: bytes, promised: bytes, owner: str) -> None:
    """Compare a recomputed commitment with the one that its owner signed.

    Raises:
        RemoteProtocolError: they differ; names the owner.
    """
    if not hmac.compare_digest(found, promised):
        raise RemoteProtocolError(
            f"an edge secret of {owner!r} does not match what it committed to"
        )
