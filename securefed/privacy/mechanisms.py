"""Noise on a sum of integers: scale, ring and sensitivity of one round.

How one contribution becomes ring elements, with K = C / resolution, C the bound on all that one
unit contributes (``L2Clip.unit_bound``: clip_norm, or that with a bit under adaptive clipping):

    x  in R^d, |x| <= C (a clipped update), or a sum of b such rows, one an example or one a user
    y  = Rotation(x) / resolution                      in R^p, p the padded dimension
    z  = floor(y) + [u < frac(y)]                      stochastic rounding, u uniform
    z + N_Z(0, local_std^2) per coordinate             this client's share of the noise
    mod 2^bits

The share may be Skellam noise of the same variance.  Where a trusted server adds the noise, clients
send z mod 2^bits, and the server adds N_Z(0, server_std^2) to the sum.

Sensitivity, in grid units.  Neighbours differ in one unit, which one of them has as zeros.  They
are compared at common coins: the same words u round them, and the same other units are sampled.
The noise is drawn apart from the coins, so a bound for all coins but a share beta of them is a
bound for the mechanism but for beta.  Let v be the unit's own rotated and scaled image; rotation
is linear and an isometry, and appends zeros before it mixes, so v has p coordinates, not d, and
|v| <= K.  D is the difference of the two rounded vectors, before noise.

- Client: the update is the unit.  Its neighbour sends floor(0 + u) = 0, so D is v rounded.
- Example: y are the other rows of the client's sum.  Rounding is floor(. + u') with one uniform u'
  a coordinate, so D_j = floor(y_j + v_j + u') - floor(y_j + u') is v_j rounded down or up, up with
  probability frac(v_j) over u', whatever y_j is.  A row that is not sampled, or not finite, gives
  D = 0; other clients' vectors are equal.  This needs rounding that is never conditioned.
- User: the same with rows that are one a user: the mean of the gradients of its (used) examples,
  clipped as one.  Users partition a client's examples.  A row depends on that user's examples and
  on coins of its own alone, common to both neighbours: whether the user is drawn and, with
  ``examples_per_user``, which of its examples are used.  So |v| <= K however many examples it has,
  and no count of examples enters.  Clipping a user's k examples one by one would give k K only.

In each case D_j is a_j or a_j + 1, a_j = floor(v_j), with mean v_j, independent over j.  A variance
f (1 - f) is at most 1/4, so E|D|^2 = |v|^2 + sum_j Var D_j <= K^2 + p/4.  D_j^2 takes two values
|2 a_j + 1| apart, and |a_j + 1/2| <= |v_j| + 1/2, so by Minkowski's inequality
sum_j (2 a_j + 1)^2 <= 4 (K + sqrt(p)/2)^2.  Hoeffding's inequality for the independent D_j^2 says
P(|D|^2 >= E|D|^2 + t) <= exp(-2 t^2 / sum_j (2 a_j + 1)^2), so that, except with probability beta,

    |D|^2 <= K^2 + p/4 + sqrt(2 ln(1/beta)) (K + sqrt(p)/2).

``rounding = "unconditional"``: beta = 2^-80 a round (``RoundPlan.rounding_failure``), in delta.
``rounding = "conditional"``, for clients: the bound at beta = exp(-1/2) is enforced by rounding
again (:mod:`securefed.privacy.conditional_rounding`), so it holds always and nothing is added.

Floating point.  K is enlarged before it enters the bound: by what float64 may move the two computed
images apart from v (``L2Clip.sensitivity``: clipping, summation in any order, rotation, scaling),
and by the grain of the coins; the bound itself, evaluated in float64, is enlarged by 2^-50.  The
computed image y is rounded as a multiple y' of 2^-53 within 2^-53 of it (``stochastic_round``), so
D is a rounding of a v' within 2^-52 of v in each coordinate, 2^-52 sqrt(p) in all.  A sum may hold
more than m = ``max_examples`` rows with probability 2^-64 (``engines.settings``); the slack is for
2 m + 1.  A binomial number B of rows has P(B >= a + b) <= P(B >= a) P(B >= b), as its tails are
log-concave, so more than 2 m + 1 have probability at most 2^-128: accounting charges beta
1 + e^epsilon times and the proof asks for once (SECURITY.md), which leaves room for it.

Reducing mod 2^bits is a function of the integer sum: post-processing, whether it wraps or not.

Source: the bound is that of Kairouz, Liu and Steinke 2021, "The Distributed Discrete Gaussian
Mechanism" (arXiv 2102.06387), its part on randomised rounding, for one rounded vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from securefed.encoding.fixed_point import MAX_BITS, MIN_BITS, bits_needed
from securefed.encoding.rotation import BLOCK, padded_dimension
from securefed.errors import ConfigError, OverflowBoundError
from securefed.privacy.clipping import L2Clip
from securefed.privacy.conditional_rounding import TRIAL_FAILURE
from securefed.privacy.layers import removable_stds
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.privacy.samplers import ROUNDING_GRAIN, STATISTICAL_DISTANCE

ROUNDING_FAILURE = 2.0**-80
"""beta: probability, per round, that unconditional rounding exceeds the sensitivity."""

_TARGET_STD = 2048.0
_TARGET_CLIP_UNITS = 4096.0  # rounding's tail then adds 0.13 % to the sensitivity
_LARGEST_STD = 2.0**15
_SMALLEST_STD = 64.0
_NOISE_TAIL = 12.0  # standard deviations that the ring has room for
# The summed noise of one coordinate exceeds them with at most this probability.  Discrete Gaussian:
# sub-Gaussian with its variance parameter (Canonne, Kamath and Steinke 2020, 2004.00010), so
# 2 exp(-72).  Skellam of variance m: 2 exp(-sup_t (12 t sqrt(m) - m (cosh t - 1))), which is
# 2 exp(-71.9) at the least std in use, 64 for each of two clients.
_BEYOND_TAIL = 2.0**-102
_EVALUATED = 1.0 + 2.0**-50  # float64 evaluates the bound to within 4 units in its last place
# Layers are smaller: at the targets above they have a std of 30 and more below 4000 clients.  From
# 4 on what summing them adds to the distance is below exp(-157) a coordinate and summand.
_SMALLEST_LAYER_STD = 4.0
_UNPROTECTED_CLIP_UNITS = 2.0**24  # float32 updates carry no finer detail


@dataclass(frozen=True)
class RoundPlan:
    """Everything that turns a clipped float vector into ring elements and back.

    Attributes:
        dimension: d, length of an update.
        summed: length of what is summed: d, and one more for the bit under adaptive clipping.
        padded: p, length after rotation, what is masked and sent.
        resolution: float units of one grid step.
        clip_units: K = unit_bound / resolution.
        longest_unit: K with what floating point may add to it: what the bound is computed from.
        local_std: each client's noise std in grid units, all layers together (0 unless the noise
            is distributed).
        server_std: std of what a trusted server adds to the sum (0 unless the noise is central).
        honest_std: std in grid units of the noise that ``noise_multiplier`` speaks of: that of
            ``honest_floor`` clients, or the server's.
        sensitivity: L2 sensitivity in grid units.
        rounding_failure: beta, probability per round that the sensitivity is exceeded; 0 where
            conditional rounding enforces it.
        sum_bound: the largest |coordinate| that a sum can have, noise tail included.
        wrap_probability: bound on the probability, per round, that any coordinate of the sum leaves
            the ring; p (2^-102 + n 2^-100) for the noise of n clients, its tail beyond 12 std and
            the sampler's distance (that of every layer).  0 without noise, and with noise
            correlated over rounds, which is added to the sum and not in the ring.
        bits: ring width on the wire, 20..32.
        max_examples: most rows, examples or users, in one client's sum (1 for ``unit="client"``).
        removable_stds: std of the layers of a client's noise that can be removed, 1..T; none
            without ``remove_excess_noise``.
    """

    dimension: int
    summed: int
    padded: int
    resolution: float
    clip_units: float
    longest_unit: float
    local_std: float
    server_std: float
    honest_std: float
    sensitivity: float
    rounding_failure: float
    sum_bound: int
    wrap_probability: float
    bits: int
    max_examples: int
    removable_stds: tuple[float, ...] = ()

    @property
    def kept_std(self) -> float:
        """Std of the noise of a client that is never removed: all of it, or layer 0."""
        if not self.removable_stds:
            return self.local_std
        return math.sqrt(self.local_std**2 - sum(std**2 for std in self.removable_stds))

    def retained_std(self, missing: int) -> float:
        """Std of one survivor's noise in the end, with ``missing`` clients not in the sum."""
        if not self.removable_stds:
            return self.local_std
        return math.sqrt(self.kept_std**2 + sum(std**2 for std in self.removable_stds[:missing]))

    def noise_std(self, honest: int) -> float:
        """Least std of the noise that an adversary does not know, in any sum that is opened.

        Args:
            honest: clients whose noise it does not know, in a sum of the fewest survivors.  With k
                more survivors there are k more of them, and with layers each retains less.
        """
        most = len(self.removable_stds)
        return min(
            self.retained_std(missing) * math.sqrt(honest + most - missing)
            for missing in range(most + 1)
        )

    @property
    def quantisation_error(self) -> float:
        """Largest L2 error, in float units, that rounding adds to *one* client's contribution."""
        return self.resolution * math.sqrt(self.padded)


def rounded_sensitivity(clip_units: float, padded: int, beta: float = ROUNDING_FAILURE) -> float:
    """The bound of the module docstring, in grid units.

    Args:
        clip_units: K, the L2 norm of one unit before rounding, in grid units.
        padded: p, the number of rounded coordinates.
        beta: probability that the bound fails, in (0, 1).
    """
    tail = math.sqrt(2.0 * math.log(1.0 / beta)) * (clip_units + math.sqrt(padded) / 2.0)
    return math.sqrt(clip_units**2 + padded / 4.0 + tail)


def plan_round(
    policy: PrivacyPolicy,
    *,
    cohort_size: int,
    dimension: int,
    bits: int | Literal["auto"] = "auto",
) -> RoundPlan:
    """Choose scale and ring so that no honest sum can leave the ring, before anything is sent.

    Every coordinate of a client's contribution is at most ``max_examples * K + 1`` in absolute
    value, so ``cohort_size (max_examples K + 1)`` plus twelve standard deviations of the noise
    bounds the sum, whatever the data.  Noise beyond that (``RoundPlan.wrap_probability``) would
    wrap around: a wrong value, never a loss of privacy, since wrapping is post-processing.
    With noise correlated over rounds a quarter of the ring must hold the sum, not half of it: the
    server folds what lies beyond (:func:`~securefed.encoding.fixed_point.fold_ring`), since noise
    comes on top of the integers there and not in the ring.

    Args:
        policy: the privacy settings; ``max_examples`` defaults to 1.
        cohort_size: n, clients invited.
        dimension: d >= 1.
        bits: ring width, or ``"auto"`` for the least of 20..32 that the bound allows.

    Raises:
        OverflowBoundError: no scale leaves room for both the sum and enough noise resolution.
        ConfigError: the cohort is too small for the policy, or ``bits`` is not 20..32.
    """
    if bits != "auto" and not MIN_BITS <= bits <= MAX_BITS:
        raise ConfigError(f"bits = {bits!r}: must be 'auto' or {MIN_BITS}..{MAX_BITS}")
    if dimension < 1:
        raise OverflowBoundError(f"dimension = {dimension}: must be >= 1")
    bounds = CohortBounds.of(policy, cohort_size)
    clip = L2Clip(policy.clip_norm, policy.count_weight)
    summed = dimension + clip.bits
    padded = padded_dimension(summed)
    examples = 1 if policy.unit == "client" else policy.max_examples or 1
    central = policy.mechanism == "central"
    noised = central or policy.mechanism == "distributed"
    z = policy.noise_multiplier if noised else 0.0
    # How many draws z counts, and how many there are in a sum.
    root_h = 1.0 if central else math.sqrt(bounds.honest_floor)
    draws = 1 if central else cohort_size
    if noised:
        wanted = max(
            _TARGET_STD * root_h / z,
            min(
                max(16.0 * math.sqrt(padded), _TARGET_CLIP_UNITS),
                _LARGEST_STD * root_h / z,
            ),
        )
    else:
        wanted = _UNPROTECTED_CLIP_UNITS
    width = 32 if bits == "auto" else bits
    per_unit = cohort_size * examples + _NOISE_TAIL * z * math.sqrt(draws) / root_h
    spare = 0 if policy.separation is None else 1
    room = 2.0 ** (width - 1 - spare) - 2.0 - cohort_size
    clip_units = min(wanted, room / per_unit)
    std = z * clip_units / root_h
    if clip_units < 1.0 or (noised and std < _SMALLEST_STD):
        amount = "less" if clip_units < 1.0 else "more"
        raise OverflowBoundError(
            f"{cohort_size} clients of up to {examples} units in a ring of {width} bits leave "
            f"{clip_units:.3g} grid steps for clip_norm and {std:.3g} for the noise of one "
            f"{'server' if central else 'client'}: at least 1 and {_SMALLEST_STD:g} are needed; "
            f"use {amount} noise (noise_multiplier = {policy.noise_multiplier:g}), fewer or "
            "smaller clients, or more bits (32 at most)"
        )
    honest_std = std * root_h
    layers = removable_stds(honest_std, bounds) if policy.remove_excess_noise else ()
    if layers and layers[0] < _SMALLEST_LAYER_STD:
        raise OverflowBoundError(
            f"remove_excess_noise = True with {cohort_size} clients in a ring of {width} bits "
            f"leaves the smallest layer of noise {layers[0]:.3g} grid steps: at least "
            f"{_SMALLEST_LAYER_STD:g} are needed; use fewer clients or examples, or more bits (32 "
            "at most)"
        )
    sum_bound = math.ceil(per_unit * clip_units) + cohort_size
    summands = 1 if policy.unit == "client" else 2 * examples + 1
    longest_unit = clip_units * clip.sensitivity(summands, BLOCK)
    longest_unit += 2.0 * ROUNDING_GRAIN * math.sqrt(padded)
    conditional = policy.rounding == "conditional"
    return RoundPlan(
        dimension=dimension,
        summed=summed,
        padded=padded,
        resolution=clip.unit_bound / clip_units,
        clip_units=clip_units,
        longest_unit=longest_unit,
        local_std=0.0 if central else std,
        server_std=std if central else 0.0,
        honest_std=honest_std,
        sensitivity=_EVALUATED
        * rounded_sensitivity(
            longest_unit, padded, TRIAL_FAILURE if conditional else ROUNDING_FAILURE
        ),
        rounding_failure=0.0 if conditional else ROUNDING_FAILURE,
        sum_bound=sum_bound,
        wrap_probability=(
            padded * (_BEYOND_TAIL + draws * (1 + len(layers)) * STATISTICAL_DISTANCE)
            if noised and policy.separation is None
            else 0.0
        ),
        bits=bits_needed(sum_bound << spare) if bits == "auto" else width,
        max_examples=examples,
        removable_stds=layers,
    )
