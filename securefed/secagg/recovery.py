"""Reconstructing committed secrets when some of their shares are wrong."""

from __future__ import annotations

import hmac
import itertools
from collections.abc import Callable, Mapping, Sequence

from securefed.crypto.shamir import Reconstructor
from securefed.crypto.shamir_decoding import correct
from securefed.errors import RemoteProtocolError, ThresholdNotMet

_MOST_TRIES = 500


class Holders:
    """Reconstructs one owner's secret after another, sparing wrong shares while it can.

    Where a reconstruction does not match the owner's commitment, up to floor((m - t) / 2) wrong
    ones among m shares are corrected.  If that does not match either, it is tried without one
    holder, then without two, and so on, as long as a threshold remains and at most 500 times in
    all.
    Nobody is shut out for a wrong share: the holder may have revealed another one than it got, or
    the owner may have dealt it so.  Holders of wrong shares are only asked last for later owners.
    Lagrange weights are kept for the last set of holders, which is the same for every owner of a
    complete graph.

    Args:
        threshold: shares that a reconstruction takes.

    Guarantees:
        - What ``secret`` returns matches its owner's commitment.
    """

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._tries = 0
        self._last: tuple[tuple[int, ...], Reconstructor] | None = None
        self.wrong: list[tuple[int, int]] = []
        """Holder and owner of each share that was found wrong: one of the two sent it so."""

    def secret(
        self,
        shares: Mapping[int, bytes],
        commitment: Callable[[bytes], bytes],
        promised: bytes,
        owner: int,
        name: str,
    ) -> bytes:
        """The 32-byte secret behind ``shares``.

        Args:
            shares: by index of the holder.
            commitment: recomputes the owner's commitment from a candidate.
            promised: what the owner committed to.
            owner: index of the client whose secret it is.
            name: its id, for messages.

        Raises:
            ThresholdNotMet: too few holders revealed a share.
            RemoteProtocolError: no choice of holders gives what the owner committed to.
        """
        suspects = {holder for holder, _ in self.wrong}
        trusted = sorted(shares, key=lambda holder: (holder in suspects, holder))
        if len(trusted) < self._threshold:
            raise ThresholdNotMet(
                f"unmask: {len(trusted)} holders revealed a share of {name!r}, at least "
                f"{self._threshold} are needed"
            )
        found = self._attempt(trusted, shares)
        if found is not None and hmac.compare_digest(commitment(found), promised):
            return found
        corrected = correct({i + 1: shares[i] for i in trusted}, threshold=self._threshold)
        if corrected is not None and hmac.compare_digest(commitment(corrected[0]), promised):
            self.wrong += [(point - 1, owner) for point in sorted(corrected[1])]
            return corrected[0]
        for missing in range(1, len(trusted) - self._threshold + 1):
            for left_out in itertools.combinations(trusted, missing):
                if not set(left_out) & set(trusted[: self._threshold]):
                    continue  # the same shares as before
                self._tries += 1
                if self._tries > _MOST_TRIES:
                    break
                found = self._attempt([i for i in trusted if i not in left_out], shares)
                if found is not None and hmac.compare_digest(commitment(found), promised):
                    self.wrong += [(holder, owner) for holder in sorted(left_out)]
                    return found
        raise RemoteProtocolError(
            f"a reconstructed secret of {name!r} does not match what it committed to: it, or "
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
