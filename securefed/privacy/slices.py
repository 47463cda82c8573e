"""Several sums side by side, of slices of one vector, as one release.

A unit's vector x is clipped as a whole, |x| <= C, and cut into slices x_1..x_m, no coordinate in
two of them.  A client contributes slices 1..k of its own choice of k, made before and public.  Each
slice is summed by itself: its own grid, rotation, rounding words and noise, its own survivors.  For
slice i, in its own grid steps: p_i coordinates, K_i = C / resolution_i, v_i the rotated and scaled
image of the unit's slice, D_i the difference of neighbours' rounded vectors, and s_i the std of the
continuous Gaussian whose rounding the unknown noise in its sum is close to, s_i^2 =
``plan.noise_std(honest)^2 - 1/12`` (:mod:`securefed.privacy.distance`).

**One Gaussian mechanism.**  Let w_i = 1 / s_i.  A slice's opened sum is the rest of its survivors'
vectors, plus D_i if the unit is drawn and its client survived in that slice, plus noise of std s_i,
reduced mod 2^bits: a function of G_i = w_i D_i + N(0, I) alone where the unit's client survived,
and of nothing that neighbours differ in where it did not.  Who survives in slice i may depend on
all that was opened before, in whatever order: take G = (G_1..G_m), compute what is opened first
from its part of G, choose the next survivors, go on.  So all that is opened is post-processing of
G.  A slice that is never opened leaves its part of G unused.  Whether a unit is drawn is one coin
for all slices, so G is the mixture of N(D, I) and N(0, I) with probability q, D = (w_1 D_1..w_m
D_m): the (sampled) Gaussian mechanism of multiplier 1 / |D|, and rounds compose as they do with one
slice.

**Its sensitivity.**  |v_i| = K_i |x_i| / C, and the squares of |x_i| / C add up to at most 1.  With
kappa = max_i w_i K_i, W = max_i w_i and P = sum_i w_i^2 p_i, the vector of all w_i v_i has a norm
of at most kappa.  Each coordinate D_ij is a_ij or a_ij + 1, a_ij = floor(v_ij), with mean v_ij, and
all are independent (:mod:`securefed.privacy.mechanisms`), so E|D|^2 <= kappa^2 + P/4.  w_i^2 D_ij^2
takes two values w_i^2 |2 a_ij + 1| apart, and by Minkowski's inequality sum_ij w_i^4 (2 a_ij + 1)^2
<= 4 W^2 sum_ij w_i^2 (|v_ij| + 1/2)^2 <= 4 W^2 (kappa + sqrt(P)/2)^2. Hoeffding's inequality for
the independent w_i^2 D_ij^2 gives, except with probability beta,

    |D|^2 <= kappa^2 + P/4 + sqrt(2 ln(1/beta)) W (kappa + sqrt(P)/2),

beta once for the whole release.  With one slice it is the bound of that module over s_1.  Bounding
each slice by itself would give sqrt(m) kappa and m beta instead.  Clipping each slice by itself
would make it true.

*Floating point.*  A slice's computed image is within e_i = ``longest_unit`` - K_i of v_i, whatever
part of C the slice holds, so kappa is raised by sum_i w_i e_i.

**Additions to delta.**  The noise of all slices together is within the sum of the slices' eta of
the ideal one (independent parts), and beta is added once.

A client of tier k is in slices 1..k only; the bound grows with m, so what is stated for all m holds
for each client.

Source: the rounding part after Kairouz, Liu and Steinke 2021 (2102.06387), as there; the argument
about several slices is our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from securefed.privacy.distance import total_variation_per_round
from securefed.privacy.mechanisms import ROUNDING_FAILURE, RoundPlan
from securefed.privacy.pld import gaussian_epsilon
from securefed.privacy.policy import CohortBounds, PrivacyPolicy

_EVALUATED = 1.0 + 2.0**-40  # float64 evaluates the bound of up to 2^10 slices to within this


def check_sliced(policy: PrivacyPolicy) -> None:
    """Refuse what the argument of this module does not cover.

    Raises:
        ConfigError: names the field, its value and why.
    """
    for field, fits, why in (
        (
            "mechanism",
            policy.mechanism in ("distributed", "none"),
            "each slice's noise is sized for its own honest survivors and added by them: use "
            "'distributed' (or 'none', a baseline)",
        ),
        (
            "noise",
            policy.noise == "discrete_gaussian",
            "slices are accounted for as one Gaussian release: use 'discrete_gaussian'",
        ),
        (
            "rounding",
            policy.rounding == "unconditional",
            "it holds each slice to a bound of its own, which does not bound them together: use "
            "'unconditional'",
        ),
        (
            "adaptive_clip",
            policy.adaptive_clip is None,
            "a unit's bit would travel in one slice and the clip would hang on that slice being "
            "opened: use None",
        ),
        (
            "remove_excess_noise",
            not policy.remove_excess_noise,
            "slices have survivors, and so layers, of their own: use False",
        ),
    ):
        if not fits:
            raise ConfigError(f"{field} = {getattr(policy, field)!r} with rank slices: {why}")


def joint_sensitivity(
    plans: Sequence[RoundPlan], stds: Sequence[float], beta: float = ROUNDING_FAILURE
) -> float:
    """|D| of the module docstring: the L2 sensitivity of all slices, each over its own noise.

    Args:
        plans: one for each slice.
        stds: s_i, the noise in each slice's own grid steps, > 0.  With 1 / ``resolution`` for
            each, the result is in the units of the updates.
        beta: probability that the bound fails, in (0, 1).
    """
    weights = [1.0 / std for std in stds]
    pairs = list(zip(weights, plans, strict=True))
    kappa = max(w * plan.clip_units for w, plan in pairs)
    kappa += sum(w * (plan.longest_unit - plan.clip_units) for w, plan in pairs)
    spread = sum(w**2 * plan.padded for w, plan in pairs)
    tail = math.sqrt(2.0 * math.log(1.0 / beta)) * max(weights)
    tail *= kappa + math.sqrt(spread) / 2.0
    return _EVALUATED * math.sqrt(kappa**2 + spread / 4.0 + tail)


def sliced_epsilon(
    plans: Sequence[RoundPlan],
    *,
    honest: Sequence[int],
    sampling_probability: float,
    rounds: int,
    delta: float,
) -> float:
    """Epsilon of rounds of slices side by side, by the Gaussian's privacy loss distribution.

    Args:
        plans: one for each slice, at least one.
        honest: for each slice, clients whose noise the adversary does not know in an opened sum,
            >= 1.
        sampling_probability: q that this adversary does not see through.
        rounds: charged attempts, >= 0; one for all slices of a round.
        delta: total, in (0, 1).

    Returns:
        An upper bound; ``math.inf`` where the additions to delta use up half of it or more.

    Raises:
        ConfigError: an argument is outside that.
        UnsupportedEvent: the honest clients' noise in a slice is too coarse for this accounting.
    """
    check_accounting(rounds=rounds, delta=delta, sampling_probability=sampling_probability)
    if rounds == 0:
        return 0.0
    effective, eta = sliced_gaussian(plans, honest)
    return with_additions(
        lambda share: gaussian_epsilon(effective, sampling_probability, rounds, share),
        per_round=eta,
        rounds=rounds,
        delta=delta,
    )


def sliced_gaussian(plans: Sequence[RoundPlan], honest: Sequence[int]) -> tuple[float, float]:
    """The Gaussian mechanism that one round of slices is close to, and how close.

    Args:
        plans: one for each slice, at least one.
        honest: as of :func:`sliced_epsilon`.

    Returns:
        Noise std / L2 sensitivity of all slices together, and what the round adds to delta.

    Raises:
        UnsupportedEvent: the honest clients' noise in a slice is too coarse for this accounting.
    """
    pairs = list(zip(plans, honest, strict=True))
    eta = sum(total_variation_per_round(plan, count) for plan, count in pairs)
    eta += max(plan.rounding_failure for plan in plans)
    stds = [math.sqrt(plan.noise_std(count) ** 2 - 1.0 / 12.0) for plan, count in pairs]
    return 1.0 / joint_sensitivity(plans, stds), eta


@dataclass(frozen=True)
class SliceTerms:
    """What accounting needs of one slice."""

    policy: PrivacyPolicy
    plan: RoundPlan
    members: int
    ring_sigma: int | None

    @property
    def bounds(self) -> CohortBounds:
        """Of the slice's own members."""
        return CohortBounds.of(self.policy, self.members)


def sliced_guarantee(
    slices: Sequence[SliceTerms], *, against: Adversary, rounds: int, plaintext: bool
) -> PrivacyGuarantee:
    """What holds against one adversary over ``rounds`` rounds of slices side by side.

    Args:
        slices: one or more; the first holds every client.
        against: whom the statement is about.
        rounds: attempts charged, each for all of its slices.
        plaintext: sums are formed without masking; then nothing holds against the server.
    """
    policy = slices[0].policy
    words = [
        guarantee(  # of no rounds: for its words, not for its epsilon
            one.policy,
            one.plan,
            cohort_size=one.members,
            against=against,
            rounds=0,
            plaintext=plaintext,
            ring_sigma=one.ring_sigma,
        )
        for one in slices
    ]
    said = words[0]
    if policy.mechanism == "none":
        return replace(said, rounds=rounds)
    honest = [unknown_noises(one.bounds, against) for one in slices]
    epsilon = math.inf
    if not (against == "server" and plaintext):
        epsilon = sliced_epsilon(
            [one.plan for one in slices],
            honest=honest,
            sampling_probability=sampling_against(policy, against)[0],
            rounds=rounds,
            delta=policy.delta,
        )
    shared = [a for a in said.assumptions if all(a in other.assumptions for other in words)]
    own = [
        f"slice {number}: {assumption}"
        for number, one in enumerate(words, start=1)
        for assumption in one.assumptions
        if assumption not in shared
    ]
    counts = ", ".join(str(one.bounds.honest_floor) for one in slices)
    return replace(
        said,
        epsilon=epsilon,
        rounds=rounds,
        mechanism=(
            f"distributed discrete Gaussian in {len(slices)} slices of one vector, summed side by "
            f"side: noise_multiplier {policy.noise_multiplier:g} over clip_norm "
            f"{policy.clip_norm:g} of the whole vector, in each slice from its own honest "
            f"survivors ({counts})"
        ),
        assumptions=(*own, *shared),
    )
