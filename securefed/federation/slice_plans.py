"""What a sliced round asks of its cohort, whatever the session: plans, statement and price.

Needs neither a roster nor a key, so an auditor computes it from what a ledger holds.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from securefed.config import share_of
from securefed.errors import ConfigError, OverflowBoundError
from securefed.federation.session import MAX_DIMENSION
from securefed.privacy.accounting import Adversary, PrivacyGuarantee
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.privacy.slices import SliceTerms, check_sliced, sliced_guarantee
from securefed.secagg.aggregations import (
    Aggregation,
    HomomorphicAggregation,
    PairwiseAggregation,
    PlaintextAggregation,
)

MAX_SLICES = 64
LEAST_CONTRIBUTORS = 3
"""Default floor: with two survivors each would learn the other's contribution from the sum."""


def slice_policy(
    policy: PrivacyPolicy, *, cohort: int, members: int, least_contributors: int
) -> PrivacyPolicy:
    """One slice's policy: for all the cohort's corrupt clients, and no fewer survivors than asked.

    Args:
        policy: of the whole round; its fractions are of the cohort.
        cohort: n, clients of the round.
        members: clients that hold the slice.
        least_contributors: survivors below which the slice is dropped, >= 2.

    Raises:
        ConfigError: the slice has too few members for that.
    """
    corrupt = share_of(policy.corrupt_fraction, cohort)
    floor = max(members - share_of(policy.dropout_fraction, members), least_contributors)
    if members < floor or floor - corrupt < 2:
        raise ConfigError(
            f"{members} clients hold this slice: with {corrupt} of all {cohort} clients corrupt "
            f"(corrupt_fraction) and a floor of {floor} survivors, at least "
            f"{max(floor, corrupt + 2)} are needed, 2 of the survivors honest"
        )
    return replace(
        policy,
        # Never less than of the cohort, which a client's own floor is compared with.
        corrupt_fraction=max(policy.corrupt_fraction, corrupt / members),
        dropout_fraction=(members - floor) / members,
    )


def standing_slices(
    members: Sequence[int],
    *,
    policy: PrivacyPolicy,
    aggregation: Aggregation,
    least_contributors: int = LEAST_CONTRIBUTORS,
) -> int:
    """How many slices have clients enough: tiers above are to be merged into the highest of these.

    Run by: every party for itself, before training, from public sizes only.  A tier in the middle
    with few clients of its own stands as long as enough clients are of that tier or above: they
    are the contributors of its slice.

    Args:
        members: clients that hold each slice, never rising.
        policy: of the whole round.
        aggregation: of the whole round.
        least_contributors: as for :func:`slice_policy`.

    Returns:
        m' <= len(members) such that slices 1..m' stand.

    Raises:
        ConfigError: not even the first slice does, or ``members`` is empty or rises.
    """
    if not members or any(a < b for a, b in itertools.pairwise(members)):
        raise ConfigError(f"members = {list(members)}: must be at least one number, never rising")
    standing = 0
    for count in members:
        try:
            own = slice_policy(
                policy, cohort=members[0], members=count, least_contributors=least_contributors
            )
            for_members(aggregation, count).parameters(CohortBounds.of(own, count))
        except ConfigError:
            if not standing:
                raise
            break
        standing += 1
    return standing


def for_members(aggregation: Aggregation, members: int) -> Aggregation:
    """The same choice for fewer clients: a degree that was asked for may exceed what there are."""
    if isinstance(aggregation, PairwiseAggregation) and aggregation.degree is not None:
        return replace(aggregation, degree=min(aggregation.degree, members - 1))
    return aggregation


@dataclass(frozen=True, kw_only=True)
class SlicePlans:
    """The slices of one kind of round.

    Args:
        tiers, widths, policy, aggregation, least_contributors: as of
            :class:`SlicedSession`.

    Raises:
        ConfigError, OverflowBoundError: as there.
    """

    tiers: Mapping[str, int]
    widths: tuple[int, ...]
    policy: PrivacyPolicy
    aggregation: Aggregation
    least_contributors: int = LEAST_CONTRIBUTORS

    def __post_init__(self) -> None:
        check_sliced(self.policy)
        if isinstance(self.aggregation, HomomorphicAggregation):
            raise ConfigError(
                "aggregation = homomorphic with rank slices: only pairwise (and plaintext) sums "
                "are formed slice by slice"
            )
        if not 1 <= len(self.widths) <= MAX_SLICES:
            raise ConfigError(f"widths: {len(self.widths)} slices, must be 1..{MAX_SLICES}")
        if self.least_contributors < 2:
            raise ConfigError(f"least_contributors = {self.least_contributors}: must be >= 2")
        for client_id, tier in self.tiers.items():
            if not 1 <= tier <= len(self.widths):
                raise ConfigError(
                    f"tiers[{client_id!r}] = {tier}: must be 1..{len(self.widths)}, the number of "
                    "slices"
                )
        _ = self.slices

    @property
    def cohort(self) -> tuple[str, ...]:
        """All invited clients, sorted."""
        return tuple(sorted(self.tiers))

    def members(self, number: int) -> tuple[str, ...]:
        """Clients that hold slice ``number`` (1-based), sorted."""
        return tuple(name for name in self.cohort if self.tiers[name] >= number)

    @property
    def plaintext(self) -> bool:
        """Whether contributions reach the server unmasked."""
        return isinstance(self.aggregation, PlaintextAggregation)

    def aggregation_of(self, number: int) -> Aggregation:
        """How the sum of slice ``number`` is formed."""
        return for_members(self.aggregation, len(self.members(number)))

    @cached_property
    def slices(self) -> tuple[SliceTerms, ...]:
        """Each slice's own policy and plan, slice 1 first."""
        return tuple(self._terms(number) for number in range(1, len(self.widths) + 1))

    def _terms(self, number: int) -> SliceTerms:
        members, dimension = len(self.members(number)), self.widths[number - 1]
        try:
            if not 1 <= dimension <= MAX_DIMENSION:
                raise ConfigError(f"dimension = {dimension}: must be in 1..{MAX_DIMENSION}")
            policy = slice_policy(
                self.policy,
                cohort=len(self.tiers),
                members=members,
                least_contributors=self.least_contributors,
            )
            aggregation = self.aggregation_of(number)
            bounds = CohortBounds.of(policy, members)
            aggregation.parameters(bounds)  # refuses members that leave no safe threshold
            return SliceTerms(
                policy=policy,
                plan=plan_round(
                    policy,
                    cohort_size=members,
                    dimension=dimension,
                    bits=aggregation.ring_bits(policy, cohort_size=members, dimension=dimension),
                ),
                members=members,
                ring_sigma=aggregation.ring_sigma(bounds),
            )
        except (ConfigError, OverflowBoundError) as error:
            raise type(error)(f"slice {number}: {error}") from error

    def guarantee(self, against: Adversary, *, rounds: int) -> PrivacyGuarantee:
        """What holds against one adversary over ``rounds`` charged rounds."""
        return sliced_guarantee(
            self.slices, against=against, rounds=rounds, plaintext=self.plaintext
        )

    def price(self) -> dict[str, object]:
        """What the accounted epsilon follows from besides the policy, as JSON values.

        Of all slices, for clients of every tier: a lower tier is in fewer, at no more.
        """
        return {
            "least_contributors": self.least_contributors,
            "slices": [
                {
                    "clients": one.members,
                    "dimension": one.plan.dimension,
                    "ring_sigma": one.ring_sigma,
                }
                for one in self.slices
            ],
        }

    def priced(self) -> dict[str, object]:
        """All figures that the accounted epsilon follows from, as JSON values."""
        figures: dict[str, object] = asdict(self.policy)
        del figures["rounds"]
        return (
            figures
            | {"aggregation": type(self.aggregation).__name__, "bits": self.aggregation.bits}
            | self.price()
        )
