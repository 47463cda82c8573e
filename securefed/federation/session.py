"""What is agreed before a round: public, the same for every party, bound into every key."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import rfc8785

from securefed.crypto.identity import IdentityPublicKey
from securefed.errors import ConfigError
from securefed.federation.update_codec import UpdateCodec
from securefed.privacy.accounting import Adversary, PrivacyGuarantee, guarantee
from securefed.privacy.mechanisms import RoundPlan, plan_round
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.secagg.aggregations import (
    Aggregation,
    HomomorphicAggregation,
    PlaintextAggregation,
    check_removal,
)
from securefed.secagg.aggregator import RoundContext

MAX_DIMENSION = 2**31
"""Far above what memory holds; every length on the wire fits 32 bits."""


_OF_THE_COHORT = ("corrupt_fraction", "dropout_fraction", "sample_is_secret")


@dataclass(frozen=True, kw_only=True)
class RoundSession:
    """A round's public description.  Every party builds it for itself from what it was told.

    Args:
        session: 16 fresh random bytes naming this attempt.
        round: number of the round, >= 1.
        cohort: ids of the invited clients, sorted.
        roster: identity keys; the client's own copy, not one the server sent.  With a decryptor
            its key too, under ``"decryptor"``.
        dimension: d, length of an update.
        policy: privacy settings.
        aggregation: how the sum is formed.
        model: SHA-256 (32 bytes) over what is trained, computed by each party for itself: base
            weights, adapter, settings.  A server that hands different models to different clients
            gets masks that do not cancel.
        stated: the policy that statements are about, where noise is in each client's training and
            the sum adds none: one with mechanism ``"local"``, beside a ``policy`` with ``"none"``.

    Raises:
        ConfigError, OverflowBoundError: the settings do not fit the cohort.
    """

    session: bytes
    round: int
    cohort: tuple[str, ...]
    roster: Mapping[str, IdentityPublicKey]
    dimension: int
    policy: PrivacyPolicy
    aggregation: Aggregation
    model: bytes
    stated: PrivacyPolicy | None = None

    def __post_init__(self) -> None:
        if self.policy.mechanism == "local":
            raise ConfigError(
                "mechanism = 'local': noise is added in each client's training, which a round does "
                "not see and would send without any; sum such updates with mechanism = 'none'"
            )
        if self.stated is not None and (self.stated.mechanism, self.policy.mechanism) != (
            "local",
            "none",
        ):
            raise ConfigError(
                f"stated = {self.stated.mechanism!r} with mechanism = {self.policy.mechanism!r}: "
                "another policy than the sum's is stated of local DP-SGD alone, 'local' with 'none'"
            )
        for name in _OF_THE_COHORT if self.stated is not None else ():
            said, summed = getattr(self.stated, name), getattr(self.policy, name)
            if said != summed:  # floors look at what is stated, thresholds follow from the sum's
                raise ConfigError(
                    f"stated.{name} = {said}: the sum's policy says {summed}, and both are of one "
                    "cohort; give the same"
                )
        if not 1 <= self.round < 2**32:
            raise ConfigError(f"round = {self.round}: must be in 1..2^32 - 1")
        if not 1 <= self.dimension <= MAX_DIMENSION:
            raise ConfigError(f"dimension = {self.dimension}: must be in 1..{MAX_DIMENSION}")
        if len(self.model) != hashlib.sha256().digest_size:
            raise ConfigError(f"model of {len(self.model)} bytes: must be a SHA-256, 32 bytes")

    @cached_property
    def plan(self) -> RoundPlan:
        """Scale, noise and ring that follow from the policy."""
        if self.policy.remove_excess_noise:
            check_removal(self.aggregation, self._bounds)
        return plan_round(
            self.policy,
            cohort_size=len(self.cohort),
            dimension=self.dimension,
            bits=self.aggregation.ring_bits(
                self.policy, cohort_size=len(self.cohort), dimension=self.dimension
            ),
        )

    @cached_property
    def context(self) -> RoundContext:
        """The protocol's view, with a digest over all of the above."""
        agreed: dict[str, Any] = {
            "aggregation": type(self.aggregation).__name__,
            "dimension": self.dimension,
            "model": self.model.hex(),
            "policy": asdict(self.policy),
            "resolution": self.plan.resolution,
        }
        if self.stated is not None:
            agreed["stated"] = asdict(self.stated)
        return RoundContext(
            session=self.session,
            round=self.round,
            cohort=self.cohort,
            roster=self.roster,
            length=self.plan.padded,
            bits=self.plan.bits,
            parameters=self.aggregation.parameters(self._bounds),
            binding=hashlib.sha256(b"securefed/1/session" + rfc8785.dumps(agreed)).digest(),
            noise_layers=self.plan.removable_stds,
            encryption=self.aggregation.encryption(self.plan, self._bounds),
        )

    @cached_property
    def codec(self) -> UpdateCodec:
        """Between updates and ring vectors; the rotation's signs follow from the context.

        With noise correlated over rounds they are the same in all rounds, or it would not cancel.
        No guarantee rests on the signs.
        """
        seed = hashlib.sha256(b"securefed/1/rotation" + self.context.digest).digest()
        if self.policy.separation is not None:
            run = rfc8785.dumps({"dimension": self.dimension, "policy": asdict(self.policy)})
            seed = hashlib.sha256(b"securefed/1/rotation of a run" + run).digest()
        return UpdateCodec(self.policy, self.plan, seed)

    def guarantee(
        self, against: Adversary = "server", *, rounds: int | None = None
    ) -> PrivacyGuarantee:
        """What holds against one adversary over ``rounds`` rounds (default ``policy.rounds``)."""
        return guarantee(
            self.promised,
            self.plan,
            cohort_size=len(self.cohort),
            against=against,
            rounds=rounds,
            plaintext=self.plaintext,
            ring_sigma=self.aggregation.ring_sigma(self._bounds),
            key_holder=self.aggregation.trusted_key_holder,
        )

    @property
    def promised(self) -> PrivacyPolicy:
        """What floors and accounts look at: where and how much noise is, and of which unit."""
        return self.policy if self.stated is None else self.stated

    @property
    def _bounds(self) -> CohortBounds:
        return CohortBounds.of(self.policy, len(self.cohort))

    def priced(self) -> dict[str, object]:
        """All figures that the accounted epsilon follows from, as JSON values.

        ``policy.rounds`` is not one of them: an account counts its own charges.  Nor is
        ``clip_norm`` where it adapts: noise and sensitivity are in proportion to it.
        """
        figures: dict[str, object] = asdict(self.promised)
        del figures["rounds"]
        if self.promised.adaptive_clip is not None:
            del figures["clip_norm"]
        aggregation = self.aggregation
        figures |= {
            "aggregation": type(aggregation).__name__,
            "bits": aggregation.bits,
            "cohort_size": len(self.cohort),
            "ring_sigma": aggregation.ring_sigma(self._bounds),
            "dimension": self.dimension,
        }
        if isinstance(aggregation, HomomorphicAggregation):
            # Whom the epsilon trusts: an account must not mix rounds that trust different parties.
            for name in ("scheme", "key_holder", "masked"):
                figures[name] = getattr(aggregation, name)
        return figures

    def event(self) -> dict[str, object]:
        """What a client charges to its account for this attempt."""
        return self.priced() | {
            "clip_norm": self.promised.clip_norm,
            "round": self.round,
            "session": self.session.hex(),
        }

    @property
    def plaintext(self) -> bool:
        """Whether contributions reach the server unmasked."""
        return isinstance(self.aggregation, PlaintextAggregation)
