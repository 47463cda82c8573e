"""Who is in which round, and what that means for its policy and for statements about the run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import replace

from securefed.engines.run_plan import RunPlan
from securefed.errors import ConfigError
from securefed.privacy.accounting import Adversary, PrivacyGuarantee
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.privacy.unlike_rounds import RoundKind, policy_of_members, unlike_guarantee
from securefed.secagg.aggregations import (
    Aggregation,
    HomomorphicAggregation,
    PlaintextAggregation,
    check_removal,
)


class Cohorts:
    """The cohorts of a run's rounds: everybody in each, or as its plan says.

    Args:
        run_plan: None where everybody is in every round.
        clients: of the run.
        aggregation: how sums are formed; under a plan in the plan's ring.
        dimension: length of what is summed in a round.
        summed: from the policy that statements are about to that of the sum.

    Attributes:
        aggregation: in the ring of all rounds.
        kinds: what accounting needs of each size of cohort, once the noise is settled; none
            without a plan, or where rounds have slices.
    """

    def __init__(
        self,
        run_plan: RunPlan | None,
        clients: Collection[str],
        aggregation: Aggregation,
        dimension: int,
        summed: Callable[[PrivacyPolicy], PrivacyPolicy],
    ) -> None:
        self.aggregation = aggregation
        self._plan, self._everybody = run_plan, tuple(sorted(clients))
        self._dimension, self._summed = dimension, summed
        self.kinds: tuple[RoundKind, ...] = ()
        if run_plan is not None:
            if isinstance(aggregation, HomomorphicAggregation):
                raise ConfigError("aggregation: a plan is carried out in 'pairwise' rounds only")
            if tuple(sorted(run_plan.profiles)) != self._everybody:
                raise ConfigError(
                    f"plan: is for {sorted(run_plan.profiles)}, the clients are "
                    f"{list(self._everybody)}"
                )
            self.aggregation = replace(aggregation, bits=run_plan.bits)

    def members(self, number: int) -> tuple[str, ...]:
        """The cohort of round ``number``, sorted; 0, an evaluation, is of everybody."""
        if self._plan is None or number == 0:
            return self._everybody
        return self._plan.members(number)

    def policy_of(self, policy: PrivacyPolicy, members: Collection[str]) -> PrivacyPolicy:
        """The policy of a round of ``members``, from that of a round of everybody."""
        return policy_of_members(policy, len(members), len(self._everybody))

    def binding(self, model: bytes) -> bytes:
        """What every key of a round binds: SHA-256 of the model, and of the plan if there is one.

        Args:
            model: SHA-256 of what is trained.
        """
        if self._plan is None:
            return model
        return hashlib.sha256(b"securefed/1/planned" + model + self._plan.digest).digest()

    # -- statements about a run with a plan ------------------------------------------------

    def settle(self, stated: PrivacyPolicy) -> None:
        """Plan each kind of round, now that the noise is known; nothing without a plan.

        Raises:
            ConfigError: a round's cohort leaves no safe threshold.
            OverflowBoundError: a round's sum would not fit the ring.
        """
        self.kinds = self._kinds_of(stated)

    def guarantee(self, against: Adversary, charges: int) -> PrivacyGuarantee:
        """The statement after the client with the most charges has ``charges``."""
        return self._stated(self.kinds, against, charges)

    def epsilon(self, stated: PrivacyPolicy, against: Adversary) -> float:
        """Epsilon of all rounds under a policy that may be settled on.

        Raises:
            ConfigError, OverflowBoundError: as of :meth:`settle`.
        """
        return self._stated(self._kinds_of(stated), against, stated.rounds).epsilon

    def to_record(self) -> list[dict[str, object]]:
        """What a statement follows from, for each size of cohort."""
        return [kind.to_record() for kind in self.kinds]

    def _stated(
        self, kinds: tuple[RoundKind, ...], against: Adversary, charges: int
    ) -> PrivacyGuarantee:
        plaintext = isinstance(self.aggregation, PlaintextAggregation)
        return unlike_guarantee(kinds, against=against, rounds=charges, plaintext=plaintext)

    def _kinds_of(self, stated: PrivacyPolicy) -> tuple[RoundKind, ...]:
        found = []
        for members in () if self._plan is None else self._plan.sizes:
            policy = policy_of_members(stated, members, len(self._everybody))
            summed = self._summed(policy)
            bounds = CohortBounds.of(summed, members)
            if summed.remove_excess_noise:
                check_removal(self.aggregation, bounds)
            self.aggregation.parameters(bounds)
            plan = plan_round(
                summed,
                cohort_size=members,
                dimension=self._dimension,
                bits=self.aggregation.bits,
            )
            found.append(RoundKind(policy, plan, members, self.aggregation.ring_sigma(bounds)))
        return tuple(found)
