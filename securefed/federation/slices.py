"""One round of several sums side by side: slices of one vector, each among those that hold it.

Clients are of public tiers.  One of tier k holds slices 1..k of the vector: with nested ranks, the
columns of B up to its own rank.  Each slice is summed by a round of its own (a
:class:`RoundSession`) among exactly the clients of its tier and
above: own digest, own pairwise and self masks, own survivors and floors, own noise.

- *Corrupt clients are counted whole.*  ``corrupt_fraction`` is of the cohort, and all of them may
  be in the top tier: every slice is made for floor(gamma n) corrupt ones, n the whole cohort.
- *Contributors are counted apart.*  A slice that fewer than its own floor survive in is dropped:
  its clients refuse to unmask it, and it stays closed.  The other slices go on.
- *Survivors may differ from slice to slice.*  No coordinate is in two slices, so no two sums of one
  round can be subtracted to leave one client's contribution: each coordinate is opened once, in a
  sum over at least its slice's floor.
- *One clip, one charge.*  A vector is clipped as a whole, and what all slices show together is one
  release (:mod:`securefed.privacy.slices`).
- *One agreement.*  Every slice's digest covers all slices and all tiers: clients that were told of
  other tiers are in no sum together, whichever slice it is.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import rfc8785
from numpy.typing import NDArray

from securefed.crypto.identity import IdentityPublicKey
from securefed.crypto.prg import NoiseGenerator
from securefed.errors import ConfigError, OverflowBoundError
from securefed.federation.session import RoundSession
from securefed.federation.slice_plans import LEAST_CONTRIBUTORS, SlicePlans
from securefed.federation.update_codec import (
    OnZeroed,
    UpdateCodec,
    clipped_update,
    sampled_sum,
)
from securefed.phases import Phase, unmeasured
from securefed.privacy.accounting import Adversary, PrivacyGuarantee
from securefed.privacy.clipping import L2Clip
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import Aggregation
from securefed.secagg.aggregator import SESSION_BYTES


@dataclass(frozen=True, kw_only=True)
class SlicedSession:
    """A sliced round's public description.  Every party builds it for itself.

    Args:
        session: 16 fresh random bytes naming this attempt.
        round: number of the round, >= 1.
        roster: identity keys; the client's own copy, not one the server sent.
        tiers: id to tier of each invited client, 1..m: it holds slices 1..tier.  From capability
            alone, never from data: it is public.
        widths: d_1..d_m, the length of each slice.
        policy: privacy settings of the whole; fractions are of the whole cohort.
        aggregation: how each sum is formed; not encrypted.
        model: SHA-256 (32 bytes) over what is trained, at the highest rank.
        least_contributors: survivors below which a slice is dropped, >= 2.

    Raises:
        ConfigError: these do not fit each other, a slice has too few members (the message names
            it: merge its tier into the one below, :func:`standing_slices`), or the policy is not
            covered.
        OverflowBoundError: a slice's sum might not fit the ring.

    Guarantees:
        - No client is in a slice above its tier, and every slice that is opened holds at least
          ``least_contributors`` survivors, 2 of them honest.
    """

    session: bytes
    round: int
    roster: Mapping[str, IdentityPublicKey]
    tiers: Mapping[str, int]
    widths: tuple[int, ...]
    policy: PrivacyPolicy
    aggregation: Aggregation
    model: bytes
    least_contributors: int = LEAST_CONTRIBUTORS

    def __post_init__(self) -> None:
        _ = self.plans
        if len(self.session) != SESSION_BYTES:
            raise ConfigError(f"session of {len(self.session)} bytes: must be {SESSION_BYTES}")
        if len(self.model) != hashlib.sha256().digest_size:
            raise ConfigError(f"model of {len(self.model)} bytes: must be a SHA-256, 32 bytes")
        _ = self.sessions

    @cached_property
    def plans(self) -> SlicePlans:
        """What follows from tiers, widths and policy, whatever the session."""
        return SlicePlans(
            tiers=self.tiers,
            widths=self.widths,
            policy=self.policy,
            aggregation=self.aggregation,
            least_contributors=self.least_contributors,
        )

    @property
    def cohort(self) -> tuple[str, ...]:
        """All invited clients, sorted."""
        return self.plans.cohort

    def members(self, number: int) -> tuple[str, ...]:
        """Clients that hold slice ``number`` (1-based), sorted."""
        return self.plans.members(number)

    def dimension(self, tier: int) -> int:
        """Length of the vector of a client of this tier."""
        return sum(self.widths[:tier])

    @cached_property
    def sessions(self) -> tuple[RoundSession, ...]:
        """The slices' own rounds, slice 1 first."""
        agreed = rfc8785.dumps(
            {
                "least_contributors": self.least_contributors,
                "model": self.model.hex(),
                "policy": asdict(self.policy),
                "tiers": [[name, self.tiers[name]] for name in self.cohort],
                "widths": list(self.widths),
            }
        )
        whole = hashlib.sha256(b"securefed/1/sliced session" + self.session + agreed).digest()
        made = []
        for number, width in enumerate(self.widths, start=1):
            own = hashlib.sha256(b"securefed/1/slice" + number.to_bytes(4, "little") + whole)
            try:
                session = RoundSession(
                    session=own.digest()[:SESSION_BYTES],
                    round=self.round,
                    cohort=self.members(number),
                    roster=self.roster,
                    dimension=width,
                    policy=self.plans.slices[number - 1].policy,
                    aggregation=self.plans.aggregation_of(number),
                    model=own.digest(),
                )
                _ = session.context
            except (ConfigError, OverflowBoundError) as error:
                raise type(error)(f"slice {number}: {error}") from error
            made.append(session)
        return tuple(made)

    @property
    def plaintext(self) -> bool:
        """Whether contributions reach the server unmasked."""
        return self.plans.plaintext

    def codec(self, tier: int) -> SlicedCodec:
        """From a vector of a client of this tier to its slices' ring vectors."""
        if not 1 <= tier <= len(self.widths):
            raise ConfigError(f"tier = {tier}: must be 1..{len(self.widths)}")
        return SlicedCodec(self.policy, [one.codec for one in self.sessions[:tier]])

    def guarantee(
        self, against: Adversary = "server", *, rounds: int | None = None
    ) -> PrivacyGuarantee:
        """What holds against one adversary over ``rounds`` rounds (default ``policy.rounds``)."""
        return self.plans.guarantee(
            against, rounds=self.policy.rounds if rounds is None else rounds
        )

    def priced(self) -> dict[str, object]:
        """All figures that the accounted epsilon follows from, as JSON values."""
        return self.plans.priced()

    def event(self) -> dict[str, object]:
        """What a client charges to its account for this attempt, once for all slices."""
        return self.priced() | {"round": self.round, "session": self.session.hex()}


class SlicedCodec:
    """A client's vector, clipped as a whole, to the ring vectors of the slices that it holds.

    Args:
        policy: of the whole round.
        codecs: of the slices that the client holds, slice 1 first.

    Guarantees:
        - One unit changes the integers of all slices together, before noise, by at most
          ``joint_sensitivity``, except with probability ``ROUNDING_FAILURE`` a round: it is clipped
          over the whole vector before the vector is cut.
        - Each slice's ring vector carries fresh noise of its own.
        - One vector is made for all slices: rows are sampled once.
    """

    def __init__(self, policy: PrivacyPolicy, codecs: Sequence[UpdateCodec]) -> None:
        self.policy = policy
        self.phase: Phase = unmeasured
        self._codecs = list(codecs)
        self._ends = np.cumsum([codec.plan.dimension for codec in codecs])
        self._clip = L2Clip(policy.clip_norm)
        self.dimension = int(self._ends[-1])

    def measured(self, phase: Phase) -> SlicedCodec:
        """This codec, which says when it clips, encodes (rotates and rounds) and draws noise."""
        other = copy.copy(self)
        other.phase = phase
        other._codecs = [codec.measured(phase) for codec in self._codecs]
        return other

    def encode_update(
        self,
        update: NDArray[np.floating],
        generator: NoiseGenerator,
        *,
        on_zeroed: OnZeroed | None = None,
    ) -> tuple[NDArray[np.uint32], ...]:
        """One client's whole update.

        Args:
            update: float[d_1 + .. + d_k] for k slices, slice 1 first; zeros take its place if a
                value is not finite.
            generator: cryptographic source of rounding and noise.
            on_zeroed: called if zeros took its place; keep what it says on this machine.

        Returns:
            One ring vector for each slice that the client holds.

        Raises:
            ConfigError: wrong shape, or ``unit`` is not ``"client"``.
        """
        self._check(update.shape, (self.dimension,))
        with self.phase("clip"):
            clipped = clipped_update(update, self._clip, on_zeroed)
        # Each slice is clipped once more, by itself.  That shortens nothing but by float error.
        return tuple(
            codec.encode_update(part, generator)
            for codec, part in zip(self._codecs, self._cut(clipped), strict=True)
        )

    def encode_examples(
        self,
        rows: NDArray[np.floating],
        generator: NoiseGenerator,
        *,
        on_zeroed: OnZeroed | None = None,
    ) -> tuple[NDArray[np.uint32], ...]:
        """A secret Poisson sample of the rows, each clipped over its whole length, summed.

        Args:
            rows: float[n, d_1 + .. + d_k], one row an example or one a user.
            generator: also decides which rows are sampled.
            on_zeroed: called if a sampled row counts as zeros; keep what it says on this machine.

        Raises:
            ConfigError: wrong shape, more rows than ``max_examples``, or ``unit = "client"``.
        """
        self._check(rows.shape, (len(rows), self.dimension))
        most = self._codecs[0].plan.max_examples
        if len(rows) > most:
            raise ConfigError(f"{len(rows)} rows: at most max_examples = {most} are allowed")
        total = sampled_sum(rows, self._clip, self.policy, generator, on_zeroed)
        return self.encode_clipped_sum(total, generator, on_zeroed=on_zeroed)

    def encode_clipped_sum(
        self,
        total: NDArray[np.float64],
        generator: NoiseGenerator,
        *,
        on_zeroed: OnZeroed | None = None,
    ) -> tuple[NDArray[np.uint32], ...]:
        """A sum of units that were sampled, and clipped one by one over their whole length.

        Args:
            total: float64[d_1 + .. + d_k]; zeros take the place of all of it if a value is not
                finite.
            generator: cryptographic source of rounding and noise.
            on_zeroed: called if zeros took its place; keep what it says on this machine.

        Raises:
            ConfigError: wrong shape, or ``unit = "client"``.
        """
        self._check(total.shape, (self.dimension,))
        if not np.isfinite(total).all():  # the first slice alone would not say it of the others
            total = np.full(self.dimension, np.nan)
        return tuple(
            codec.encode_clipped_sum(part, generator, on_zeroed=on_zeroed)
            for codec, part in zip(self._codecs, self._cut(total), strict=True)
        )

    def _cut(self, vector: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        return np.split(vector, self._ends[:-1])

    @staticmethod
    def _check(found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            raise ConfigError(f"vector of shape {found}: must be {expected}")
