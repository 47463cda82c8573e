"""The whole path of an update, on one page: nothing leaves a client around it.

    [weigh, cut to the round's coordinates (engines.combining) ->]
    clip [-> append the bit of adaptive clipping]                                     (client)
        -> rotate -> scale and round -> add this client's noise -> ring
    ring sum [-> add the noise of a trusted server] -> centre -> scale -> un-rotate   (server)
        [-> split off the count of bits]

Masking or encryption happens on the ring vector afterwards, in ``securefed.secagg``; there too
layers of noise that are more than the survivors' number asks for leave the ring sum.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from securefed.config import Unit
from securefed.crypto.prg import NoiseGenerator
from securefed.encoding.fixed_point import from_ring, to_ring
from securefed.encoding.rotation import Rotation
from securefed.errors import ConfigError
from securefed.phases import Phase, unmeasured
from securefed.privacy.clipping import L2Clip
from securefed.privacy.conditional_rounding import conditional_round
from securefed.privacy.inversion import SymmetricInversion
from securefed.privacy.mechanisms import RoundPlan
from securefed.privacy.policy import PrivacyPolicy
from securefed.privacy.samplers import DiscreteGaussian, poisson_sample, stochastic_round
from securefed.privacy.skellam import Skellam
from securefed.secagg.noise_layers import NoiseLayers

OnZeroed = Callable[[str], None]
"""Told, on the owner's machine alone, what counted as zeros; values are not shown."""


class UpdateCodec:
    """Between a client's float vector and ring elements, under one policy.

    Args:
        policy: what is clipped and noised.
        plan: scale, ring and noise that follow from it (``plan_round``).
        rotation_seed: 32 public bytes that all parties of the round share.
        layers: one client's layers of noise that can be removed; with ``remove_excess_noise`` a
            codec without them only decodes.

    Guarantees:
        - One unit changes the integers before noise by at most ``plan.sensitivity`` in L2, except
          with probability ``plan.rounding_failure`` a round.
        - With ``mechanism="distributed"`` every encoded vector, an empty sample's too, carries
          fresh discrete Gaussian (or Skellam) noise of std ``plan.local_std``.  With layers it is
          the sum of theirs and one of std ``plan.kept_std``.
        - NaN and infinity end nothing: an update, a sampled row or a clipped sum that holds one
          counts as zeros and is noised and encoded like any other.  A refusal would show, outside
          the noise, what went wrong with this client's data.
        - Decoding the sum of encodings gives the sum of the clipped inputs to within rounding
          (one grid step of ``plan.resolution`` a coordinate and client) plus the noise.
    """

    def __init__(
        self,
        policy: PrivacyPolicy,
        plan: RoundPlan,
        rotation_seed: bytes,
        *,
        layers: NoiseLayers | None = None,
    ) -> None:
        if layers is not None and layers.stds != plan.removable_stds:
            raise ConfigError("layers: they are not those of the plan")
        self.policy = policy
        self.plan = plan
        self._layers = layers
        self._rotation_seed = rotation_seed
        self._clip = L2Clip(policy.clip_norm, policy.count_weight)
        self._rotation = Rotation(plan.summed, rotation_seed)
        self.phase: Phase = unmeasured

    def with_layers(self, layers: NoiseLayers | None) -> UpdateCodec:
        """This codec for one client and one contribution of it."""
        return UpdateCodec(self.policy, self.plan, self._rotation_seed, layers=layers)

    def measured(self, phase: Phase) -> UpdateCodec:
        """This codec, which says when it clips, encodes (rotates and rounds) and draws noise."""
        other = copy.copy(self)
        other.phase = phase
        return other

    def encode_update(
        self,
        update: NDArray[np.floating],
        generator: NoiseGenerator,
        *,
        on_zeroed: OnZeroed | None = None,
    ) -> NDArray[np.uint32]:
        """One client's whole update, clipped as one.

        Args:
            update: float[d]; zeros take its place if a value is not finite.
            generator: cryptographic source of rounding and noise.
            on_zeroed: called if zeros took its place; keep what it says on this machine.

        Returns:
            uint32[plan.padded].

        Raises:
            ConfigError: wrong shape, or ``unit`` is not ``"client"``: a whole update clipped as
                one does not bound what one example or user of it changes.
        """
        self._check_unit("client")
        self._check_shape(update.shape, (self.plan.dimension,))
        with self.phase("clip"):
            clipped = clipped_update(update, self._clip, on_zeroed)
        return self._round_and_noise(clipped, generator)

    def encode_examples(
        self,
        rows: NDArray[np.floating],
        generator: NoiseGenerator,
        *,
        on_zeroed: OnZeroed | None = None,
    ) -> NDArray[np.uint32]:
        """A secret Poisson sample of the rows, each clipped by itself, summed.

        Args:
            rows: float[n, d], one row an example, or one row a user, n <= ``plan.max_examples``;
                a sampled row that is not finite counts as zeros.  With a ``policy.separation``:
                the rows of this round's batch, which are all kept.
            generator: also decides which rows are sampled.
            on_zeroed: called if a sampled row counts as zeros; keep what it says on this machine.

        Raises:
            ConfigError: wrong shape, more rows than ``max_examples``, or ``unit = "client"``.
        """
        self._check_unit("example", "user")
        self._check_shape(rows.shape, (len(rows), self.plan.dimension))
        if len(rows) > self.plan.max_examples:
            raise ConfigError(
                f"{len(rows)} {self.policy.unit}s: at most max_examples = "
                f"{self.plan.max_examples} are allowed"
            )
        total = sampled_sum(rows, self._clip, self.policy, generator, on_zeroed)
        return self.encode_clipped_sum(total, generator)

    def encode_clipped_sum(
        self,
        total: NDArray[np.float64],
        generator: NoiseGenerator,
        *,
        on_zeroed: OnZeroed | None = None,
    ) -> NDArray[np.uint32]:
        """A sum of units that were sampled and clipped one by one already (streaming form).

        Pre-conditions: ``total`` is a sum of vectors of L2 norm <= ``policy.clip_norm``, one an
        example for ``unit = "example"``, one a user for ``"user"``, each followed by its bit under
        adaptive clipping (``L2Clip.clip_rows``), and of no more than 2 ``plan.max_examples`` + 1 of
        them but once in 2^128 (the float slack of the sensitivity).  Such a sum is finite.  One
        that is not was not clipped, and no bound holds for it; it counts as zeros because silence
        would show more, and its owner should look why.

        Args:
            total: float64[plan.summed].
            generator: cryptographic source of rounding and noise.
            on_zeroed: called if zeros took its place; keep what it says on this machine.

        Raises:
            ConfigError: wrong shape, or ``unit = "client"``: a client then contributes one vector
                of norm <= C, not a sum of them.
        """
        self._check_unit("example", "user")
        self._check_shape(total.shape, (self.plan.summed,))
        if not np.isfinite(total).all():
            unit = self.policy.unit
            _tell(on_zeroed, f"the clipped sum is not finite: it counts as zeros; clip each {unit}")
            total = np.zeros(self.plan.summed)
        return self._round_and_noise(total.astype(np.float64), generator)

    def add_server_noise(
        self, total: NDArray[np.uint32], generator: NoiseGenerator
    ) -> NDArray[np.uint32]:
        """The sum as a trusted server may use it: with its own noise where ``"central"`` asks.

        Run by: server, once for a sum: two noised copies of one sum would show more than one.

        Args:
            total: uint32[plan.padded], the ring sum.
            generator: cryptographic source of the noise.

        Returns:
            uint32[plan.padded]; ``total`` itself with any other mechanism.
        """
        if self.plan.server_std == 0.0:
            return total
        noise = DiscreteGaussian(self.plan.server_std).sample(self.plan.padded, generator)
        return (total + to_ring(noise)) & np.uint32((1 << self.plan.bits) - 1)

    def decode(self, total: NDArray[np.uint32]) -> NDArray[np.float64]:
        """From the ring sum to float64[d]: the noised sum of clipped contributions."""
        return self.decode_with_count(total)[0]

    def decode_with_count(
        self, total: NDArray[np.uint32]
    ) -> tuple[NDArray[np.float64], float | None]:
        """As ``decode``, and the noised sum of b - 1/2 over units (None without adaptive clipping).

        b is 1 for a unit whose norm was within the clip; its noise has std
        ``AdaptiveClip.count_noise`` with the noise that ``noise_multiplier`` speaks of.
        """
        integers = from_ring(total, self.plan.bits).astype(np.float64)
        return self._clip.split(self.decode_grid(integers))

    def decode_grid(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """From float64[plan.padded] in grid units to float64[plan.summed]."""
        return self._rotation.inverse(values * self.plan.resolution)

    def to_grid(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """From float64[plan.summed] to float64[plan.padded] in grid units, not rounded or noised.

        The inverse of :meth:`decode_grid`.  What it gives stays with the client.
        """
        return self._rotation.forward(values) / self.plan.resolution

    def _round_and_noise(
        self, clipped: NDArray[np.float64], generator: NoiseGenerator
    ) -> NDArray[np.uint32]:
        if self.plan.removable_stds and self._layers is None:
            raise ConfigError(
                "remove_excess_noise = True: encoding needs the client's layers of noise "
                "(with_layers)"
            )
        with self.phase("encode"):
            scaled = self.to_grid(clipped)
            integers = (
                conditional_round(scaled, self.plan.sensitivity, generator)
                if self.plan.rounding_failure == 0.0  # a bound that holds always is ours to keep
                else stochastic_round(scaled, generator)
            )
        with self.phase("noise"):
            if self.plan.local_std > 0.0:
                integers += self._noise().sample(self.plan.padded, generator)
            if self._layers is not None:
                integers += self._layers.noise()
        ring = to_ring(integers)
        ring &= np.uint32((1 << self.plan.bits) - 1)
        return ring

    def _noise(self) -> SymmetricInversion:
        if self.policy.noise == "skellam":
            return Skellam(self.plan.local_std**2)
        return DiscreteGaussian(self.plan.kept_std)

    def _check_unit(self, *expected: Unit) -> None:
        if self.policy.unit not in expected:
            raise ConfigError(
                f"unit = {self.policy.unit!r}: this way of encoding protects unit = "
                f"{' or '.join(map(repr, expected))}"
            )

    @staticmethod
    def _check_shape(found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            raise ConfigError(f"update of shape {found}: must be {expected}")


def clipped_update(
    update: NDArray[np.floating], clip: L2Clip, on_zeroed: OnZeroed | None = None
) -> NDArray[np.float64]:
    """What one client's whole update contributes: float64[d + clip.bits]; zeros if not finite."""
    if not np.isfinite(update).all():
        _tell(on_zeroed, "the update is not finite: it counts as zeros")
        update = np.zeros(update.shape)
    return clip.unit(update)


def sampled_sum(
    rows: NDArray[np.floating],
    clip: L2Clip,
    policy: PrivacyPolicy,
    generator: NoiseGenerator,
    on_zeroed: OnZeroed | None = None,
) -> NDArray[np.float64]:
    """Sum of a secret Poisson sample of rows, each clipped by itself: float64[d + clip.bits]."""
    sampled = rows[poisson_sample(len(rows), policy.sampling_probability, generator)]
    failed = int((~np.isfinite(sampled).all(axis=1)).sum())
    if failed:
        unit = policy.unit
        _tell(on_zeroed, f"{failed} sampled {unit}s are not finite: they count as zeros")
    return clip.clip_rows(sampled)


def _tell(on_zeroed: OnZeroed | None, what: str) -> None:
    if on_zeroed is not None:
        on_zeroed(what)
