"""Noise on a sum of integers: scale, ring and sensitivity of one round.

How one contribution becomes ring elements, with K = clip_norm / resolution:

    x  in R^d, |x| <= C (a clipped update), or a sum of b such rows
    y  = Rotation(x) / resolution                      in R^p, p the padded dimension
    z  = floor(y) + [u < frac(y)]                      unconditional stochastic rounding, u uniform
    z + N_Z(0, local_std^2) per coordinate             this client's share of the noise
    mod 2^bits

The share may be Skellam noise of the same variance.  Where a trusted server adds the noise, clients
send z mod 2^bits, and the server adds N_Z(0, server_std^2) to the sum.

Sensitivity (design: rounding is unconditional, neighbours share the coins u).  Take neighbours that
differ in one unit with rotated, scaled image v, |v| <= K.  At common coins the two rounded vectors
differ by D_j = v_j + e_j, where e_j is the zero-mean error of a stochastic rounding of v_j: in
[-1, 1], of variance at most 1/4, independent over j.  So E|D|^2 <= K^2 + p/4 and, except with
probability beta,

    |D|^2 <= K^2 + p/4 + sqrt(2 ln(1/beta)) (K + sqrt(p)/2).

The tail is that of Kairouz, Liu and Steinke 2021, "The Distributed Discrete Gaussian Mechanism",
its part on randomized rounding (arXiv 2102.06387), which bounds the norm of a stochastically
rounded vector; D is one.
For a client's whole update the neighbour contributes 0 and D is its rounded update: the same bound.
Rejecting roundings that are too long, as that paper does for clients, is not done: for a sum of
examples the rejection would depend on the other examples.  beta is charged to delta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from securefed.encoding.fixed_point import MAX_BITS, MIN_BITS, bits_needed
from securefed.encoding.rotation import BLOCK, padded_dimension
from securefed.errors import ConfigError, OverflowBoundError
from securefed.privacy.clipping import L2Clip
from securefed.privacy.policy import CohortBounds, PrivacyPolicy

ROUNDING_FAILURE = 2.0**-80
"""beta: probability, per round, that rounding makes one unit longer than the sensitivity."""

_TARGET_STD = 2048.0
_TARGET_CLIP_UNITS = 4096.0  # rounding's tail then adds 0.13 % to the sensitivity
_LARGEST_STD = 2.0**15
_SMALLEST_STD = 64.0
_NOISE_TAIL = 12.0  # standard deviations; a Gaussian exceeds them with probability < 2^-100
_UNPROTECTED_CLIP_UNITS = 2.0**24  # float32 updates carry no finer detail


@dataclass(frozen=True)
class RoundPlan:
    """Everything that turns a clipped float vector into ring elements and back.

    Attributes:
        dimension: d, length of an update.
        padded: p, length after rotation, what is masked and sent.
        resolution: float units of one grid step.
        clip_units: K = clip_norm / resolution.
        local_std: each client's noise std in grid units (0 unless the noise is distributed).
        server_std: std of what a trusted server adds to the sum (0 unless the noise is central).
        honest_std: std in grid units of the noise that ``noise_multiplier`` speaks of: that of
            ``honest_floor`` clients, or the server's.
        sensitivity: L2 sensitivity in grid units, except with probability ``ROUNDING_FAILURE``.
        sum_bound: the largest |coordinate| that a sum can have, noise tail included.
        bits: ring width on the wire, 20..32.
        max_examples: most rows in one client's sum (1 for ``unit="client"``).
    """

    dimension: int
    padded: int
    resolution: float
    clip_units: float
    local_std: float
    server_std: float
    honest_std: float
    sensitivity: float
    sum_bound: int
    bits: int
    max_examples: int

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
    bounds the sum, whatever the data.  Noise beyond that (probability below 2^-100 a coordinate)
    would wrap around: a wrong value, never a loss of privacy, since wrapping is post-processing.

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
    padded = padded_dimension(dimension)
    examples = (policy.max_examples or 1) if policy.unit == "example" else 1
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
    room = 2.0 ** (width - 1) - 2.0 - cohort_size
    clip_units = min(wanted, room / per_unit)
    std = z * clip_units / root_h
    if clip_units < 1.0 or (noised and std < _SMALLEST_STD):
        raise OverflowBoundError(
            f"{cohort_size} clients of up to {examples} examples in a ring of {width} bits leave "
            f"{clip_units:.3g} grid steps for clip_norm and {std:.3g} for the noise of one "
            f"{'server' if central else 'client'}: at least 1 and {_SMALLEST_STD:g} are needed; "
            "use fewer or smaller clients, more bits (32 at most) or more noise"
        )
    sum_bound = math.ceil(per_unit * clip_units) + cohort_size
    slack = L2Clip(policy.clip_norm).float_slack(examples, BLOCK)
    return RoundPlan(
        dimension=dimension,
        padded=padded,
        resolution=policy.clip_norm / clip_units,
        clip_units=clip_units,
        local_std=0.0 if central else std,
        server_std=std if central else 0.0,
        honest_std=std * root_h,
        sensitivity=rounded_sensitivity(clip_units * (1.0 + slack), padded),
        sum_bound=sum_bound,
        bits=bits_needed(sum_bound) if bits == "auto" else width,
        max_examples=examples,
    )
