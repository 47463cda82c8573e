"""Reconstructing committed secrets when some holders reveal wrong shares."""

from __future__ import annotations

import hmac
import itertools
from collections.abc import Callable, Mapping, Sequence

from securefed.crypto.shamir import Reconstructor
from securefed.errors import RemoteProtocolError, ThresholdNotMet

_MOST_TRIES = 500


class Holders:
    """Reconstructs one owner's secret after another, and remembers which holders lied.

    A reconstruction that does not match the owner's commitment is tried again without one holder,
    then without two, and so on, as long as a threshold remains and at most 500 times in all.
    Holders whose absence made it right are left out of every later reconstruction.  Lagrange
    weights are kept for the last set of holders, which is the same for every owner of a complete
    graph.

    Args:
        threshold: shares that a reconstruction takes.

    Guarantees:
        - What ``secret`` returns matches its owner's commitment.
    """

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._tries = 0
        self._last: tuple[tuple[int, ...], Reconstructor] | None = None
        self.liars: set[int] = set()

    def secret(
        self,
        shares: Mapping[int, bytes],
        commitment: Callable[[bytes], bytes],
        promised: bytes,
        owner: str,
    ) -> bytes:
        """The 32-byte secret behind ``shares``.

        Args:
            shares: by index of the holder.
            commitment: recomputes the owner's commitment from a candidate.
            promised: what the owner committed to.
            owner: named if nothing matches.

        Raises:
            ThresholdNotMet: too few holders revealed a share.
            RemoteProtocolError: no choice of holders gives what the owner committed to.
        """
        trusted = sorted(holder for holder in shares if holder not in self.liars)
        if len(trusted) < self._threshold:
            raise ThresholdNotMet(
                f"unmask: {len(trusted)} holders revealed a share of {owner!r}, at least "
                f"{self._threshold} are needed"
            )
        found = self._attempt(trusted, shares)
        if found is not None and hmac.compare_digest(commitment(found), promised):
            return found
        for missing in range(1, len(trusted) - self._threshold + 1):
            for left_out in itertools.combinations(trusted, missing):
                self._tries += 1
                if self._tries > _MOST_TRIES:
                    break
                found = self._attempt([i for i in trusted if i not in left_out], shares)
                if found is not None and hmac.compare_digest(commitment(found), promised):
                    self.liars |= set(left_out)
                    return found
        raise RemoteProtocolError(
            f"a reconstructed secret of {owner!r} does not match what it committed to: it, or "
            "clients that held its shares, sent wrong ones"
        )

    def _attempt(self, holders: Sequence[int], shares: Mapping[int, bytes]) -> bytes | None:
        points = tuple(index + 1 for index in holders[: self._threshold])
        if self._last is None or self._last[0] != points:
            self._last = points, Reconstructor(points, self._threshold)
        try:
            return self._last[1].reconstruct({point: shares[point - 1] for point in points})
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
