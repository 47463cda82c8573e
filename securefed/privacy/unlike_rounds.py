"""One statement for a run whose rounds have cohorts of unlike size.

By a schedule that is public before the first round, round t is of the clients C_t.  Rounds with
cohorts of one size are of one *kind*: n_k clients invited, thresholds, grid, ring and each client's
share of the noise sized for n_k.  ``noise_multiplier`` is the same for all kinds (the noise of a
kind's own honest survivors over the clip), but what follows from it is not: rounding adds less to
the sensitivity on a finer grid, and more clients are honest beyond the floor against those who see
the release only.  For kind k and one adversary let

    z_k   = s_k / Delta_k: std of the continuous Gaussian whose rounding the unknown noise is
            close to, over the sensitivity, in the kind's own grid steps (``effective_gaussian``);
    eta_k = distance of the real noise from that, and the probability that rounding exceeds Delta_k;
    q     = the sampling probability, the same in all rounds.

**What a client is charged.**  Sums of rounds that a client is not a member of are a function of
what was opened before and of other clients' data.  So for a unit of that client the whole run is an
adaptive composition of the T rounds that its client was charged for, with post-processing between
them, each of some kind; which kind comes when is public.  The statement of a run counts the largest
T of any client.  Nothing is credited for the rounds in between.

**The worst kind for every round** (discrete Gaussian).  A (sampled) round of kind k is dominated by
the pair (1 - q) N(0, z_k^2) + q N(1, z_k^2) against N(0, z_k^2), in both directions.  With z the
least z_k, adding independent N(0, z_k^2 - z^2) to both members of the pair of z gives that of z_k:
the pair of z_k is a post-processing of that of z, so what the latter is bounded by bounds it too.
Compositions of pairs that dominate dominate the composition, adaptive or not, so T rounds of any
kinds in any order have at most the epsilon of T rounds at z.  Real runs are within the sum of their
rounds' eta of ideal ones, at most T max_k eta_k.  The two worst figures may be of different kinds:
the larger of the kinds' own epsilons would be no bound.

**Skellam noise** has no such order: two kinds differ in variance, L1 and L2 sensitivity at once.
There the Renyi divergences are compared, order by order: e(a) = max_k e_k(a).  Rounds add their
divergences, so T rounds of any kinds have at most T e(a).

**Corrupt clients** are the same in all rounds, and all of them may be in a small one.  So their
*number* is that of the whole cohort in every kind (:func:`policy_of_members`), not a share of those
who are invited.

Source: dominating pairs and their composition are those of Zhu, Dong and Wang 2022, "Optimal
Accounting of Differential Privacy via Characteristic Function" (2106.08567), theorem 10; the
composition of Renyi divergences that of Mironov 2017 (1702.07476), proposition 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from securefed.config import share_of
from securefed.errors import ConfigError
from securefed.privacy.accounting import (
    Adversary,
    PrivacyGuarantee,
    guarantee,
    sampling_against,
    unknown_noises,
)
from securefed.privacy.additions import with_additions
from securefed.privacy.arguments import check_accounting
from securefed.privacy.mechanisms import RoundPlan
from securefed.privacy.pld import effective_gaussian, gaussian_epsilon
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.privacy.rdp import RenyiCurve, renyi_addition, skellam_curve

_SCHEDULED = (
    "who takes part in which round is public and was fixed before the first one; a client's units "
    "are charged for its own rounds alone"
)


@dataclass(frozen=True)
class RoundKind:
    """What accounting needs of the rounds with cohorts of one size.

    Attributes:
        policy: of such rounds (:func:`policy_of_members`).
        plan: scale, ring and sensitivity that follow from it.
        members: clients invited.
        ring_sigma: security exponent of a sparse masking graph; None for a complete one.
    """

    policy: PrivacyPolicy
    plan: RoundPlan
    members: int
    ring_sigma: int | None = None

    @property
    def bounds(self) -> CohortBounds:
        """Of such a round's own cohort."""
        return CohortBounds.of(self.policy, self.members)

    def to_record(self) -> dict[str, object]:
        """What a statement follows from, and differs between kinds, as JSON values."""
        return {
            "clients": self.members,
            "corrupt": self.bounds.corrupt,
            "survivor_floor": self.bounds.survivor_floor,
            "clip_units": self.plan.clip_units,
            "local_std": self.plan.local_std,
            "server_std": self.plan.server_std,
            "sensitivity": self.plan.sensitivity,
        }


def policy_of_members(policy: PrivacyPolicy, members: int, cohort: int) -> PrivacyPolicy:
    """The policy of a round of some of a cohort: as many of them corrupt as in all of it.

    Args:
        policy: of a round of everybody.
        members: clients invited to the round, 2..``cohort``.
        cohort: clients of the run.

    Raises:
        ConfigError: as many as may be corrupt would be all of the round.
    """
    if members == cohort:
        return policy
    corrupt = share_of(policy.corrupt_fraction, cohort)
    if corrupt >= members:
        raise ConfigError(
            f"round of {members} of {cohort} clients: {corrupt} may be corrupt (corrupt_fraction = "
            f"{policy.corrupt_fraction:g} of the whole cohort), and all of them may be in it"
        )
    return replace(policy, corrupt_fraction=max(policy.corrupt_fraction, corrupt / members))


def unlike_epsilon(
    kinds: Sequence[RoundKind], *, against: Adversary, rounds: int, delta: float
) -> float:
    """Epsilon of ``rounds`` rounds, each of any of the kinds, by the module's argument.

    Args:
        kinds: one or more, with ``"distributed"`` or ``"central"`` noise of one shape.
        against: whom the statement is about.
        rounds: attempts charged, >= 0.
        delta: total, in (0, 1).

    Returns:
        An upper bound; ``math.inf`` where the additions to delta use up half of it or more.

    Raises:
        ConfigError: an argument is outside that.
        UnsupportedEvent: the noise of a kind is too coarse for this accounting.
    """
    policy = kinds[0].policy
    q = sampling_against(policy, against)[0]
    check_accounting(rounds=rounds, delta=delta, sampling_probability=q)
    if rounds == 0:
        return 0.0
    noises = [_noise(kind, against) for kind in kinds]
    if policy.noise == "skellam":
        curves = [skellam_curve(plan, honest, q) for plan, honest in noises]
        worst = functools.reduce(RenyiCurve.worst, curves)
        return with_additions(
            worst.composed(rounds).epsilon,
            per_round=max(renyi_addition(plan, honest) for plan, honest in noises),
            rounds=rounds,
            delta=delta,
        )
    z, eta = unlike_gaussian(kinds, against)
    return with_additions(
        lambda share: gaussian_epsilon(z, q, rounds, share),
        per_round=eta,
        rounds=rounds,
        delta=delta,
    )


def unlike_gaussian(kinds: Sequence[RoundKind], against: Adversary) -> tuple[float, float]:
    """The Gaussian mechanism that dominates a round of any of the kinds, and how close they are.

    Args:
        kinds: one or more, with discrete Gaussian noise.
        against: whom the statement is about.

    Returns:
        z = min_k z_k and eta = max_k eta_k of the module docstring.

    Raises:
        UnsupportedEvent: the noise of a kind is too coarse for this accounting.
    """
    found = [effective_gaussian(*_noise(kind, against)) for kind in kinds]
    return min(effective for effective, _ in found), max(eta for _, eta in found)


def _noise(kind: RoundKind, against: Adversary) -> tuple[RoundPlan, int]:
    """The kind's plan, and how many draws of its noise the adversary does not know."""
    if kind.policy.mechanism == "central":
        return replace(kind.plan, local_std=kind.plan.server_std), 1
    return kind.plan, unknown_noises(kind.bounds, against)


def unlike_guarantee(
    kinds: Sequence[RoundKind], *, against: Adversary, rounds: int, plaintext: bool = False
) -> PrivacyGuarantee:
    """What holds against one adversary over ``rounds`` rounds, each of any of the kinds.

    Args:
        kinds: one or more; the first is that of the whole cohort.
        against: whom the statement is about.
        rounds: the most attempts that any client was charged for.
        plaintext: sums are formed without masking; then nothing holds against the server.

    Raises:
        ConfigError: noise is correlated over rounds, which this argument does not cover.
    """
    policy = kinds[0].policy
    if policy.separation is not None:
        raise ConfigError(
            f"separation = {policy.separation}: noise correlated over rounds needs the same cohort "
            "in all of them"
        )
    words = [
        guarantee(
            kind.policy,
            kind.plan,
            cohort_size=kind.members,
            against=against,
            # Where no cohort's noise enters, for its epsilon too; else for its words alone.
            rounds=rounds if policy.mechanism in ("none", "local") else 0,
            plaintext=plaintext,
            ring_sigma=kind.ring_sigma,
        )
        for kind in kinds
    ]
    said = words[0]
    shared = [a for a in said.assumptions if all(a in other.assumptions for other in words)]
    own = [
        f"rounds of {kind.members} clients: {assumption}"
        for kind, one in zip(kinds, words, strict=True)
        for assumption in one.assumptions
        if assumption not in shared
    ]
    said = replace(said, assumptions=(*own, *shared, _SCHEDULED))
    if policy.mechanism in ("none", "local"):
        return said
    epsilon = math.inf
    if not (against == "server" and (plaintext or policy.mechanism == "central")):
        epsilon = unlike_epsilon(kinds, against=against, rounds=rounds, delta=policy.delta)
    mechanisms = dict.fromkeys(one.mechanism for one in words)
    if len(mechanisms) > 1:
        mechanisms = dict.fromkeys(
            f"rounds of {kind.members} clients: {one.mechanism}"
            for kind, one in zip(kinds, words, strict=True)
        )
    accountant = said.accountant
    if len(kinds) > 1:
        accountant += ", the worst of the rounds' cohorts counted in every round"
    return replace(
        said,
        epsilon=epsilon,
        rounds=rounds,
        mechanism="; ".join(mechanisms),
        accountant=accountant,
    )
