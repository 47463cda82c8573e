"""Faults planted in clients, to see that an audit finds them.

Each is a subclass of the honest clients of :mod:`securefed.auditing.releases`, and leaves the
library's own code as it is: nothing here can be switched on in a round with anybody's data.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from securefed.auditing.releases import HonestClients, Sources
from securefed.crypto.prg import KEY_BYTES, NoiseGenerator
from securefed.federation.update_codec import UpdateCodec
from securefed.privacy.accounting import Adversary
from securefed.privacy.policy import PrivacyPolicy


def _with_noise(codec: UpdateCodec, factor: float) -> UpdateCodec:
    """The codec with ``factor`` times the noise."""
    changed = copy.copy(codec)
    changed.plan = replace(codec.plan, local_std=factor * codec.plan.local_std)
    return changed


class NoiseQuartered(HonestClients):
    """Each client adds noise of a quarter of the standard deviation."""

    def contribute(
        self,
        codec: UpdateCodec,
        generator: NoiseGenerator,
        rows: NDArray[np.float64],
        place: int,
    ) -> NDArray[np.uint32]:
        """As an honest client's, with a quarter of the noise."""
        return super().contribute(_with_noise(codec, 0.25), generator, rows, place)


class NoClipping(HonestClients):
    """No client clips."""

    def contribute(
        self,
        codec: UpdateCodec,
        generator: NoiseGenerator,
        rows: NDArray[np.float64],
        place: int,
    ) -> NDArray[np.uint32]:
        """As an honest client's, without clipping."""
        unclipping = copy.copy(codec)
        # What takes a sum of clipped units does not clip; for one client's update it is the same.
        unclipping.policy = replace(codec.policy, unit="example", rounding="unconditional")
        unclipping.plan = replace(codec.plan, rounding_failure=1.0)
        total = np.append(rows.sum(axis=0), np.zeros(codec.plan.summed - codec.plan.dimension))
        return unclipping.encode_clipped_sum(total, generator)


class NoiseBeforeClipping(HonestClients):
    """Each client adds its noise to its units, then clips, then adds no more."""

    def contribute(
        self,
        codec: UpdateCodec,
        generator: NoiseGenerator,
        rows: NDArray[np.float64],
        place: int,
    ) -> NDArray[np.uint32]:
        """As an honest client's, with noise in the wrong place."""
        std = codec.plan.local_std * codec.plan.resolution
        rng = np.random.default_rng(int.from_bytes(generator.bytes(16), "big"))
        noised = rows + rng.normal(scale=std, size=rows.shape) if len(rows) else rows
        return super().contribute(_with_noise(codec, 0.0), generator, noised, place)


class SharedSeed(HonestClients):
    """All clients draw their noise from one seed."""

    def generators(self, sources: Sources, names: Sequence[str]) -> dict[str, NoiseGenerator]:
        """The same stream for everybody."""
        seed = sources.noise().bytes(KEY_BYTES)
        return {name: NoiseGenerator.from_key(seed) for name in names}


class LostShares(HonestClients):
    """Three clients of four add no noise."""

    def contribute(
        self,
        codec: UpdateCodec,
        generator: NoiseGenerator,
        rows: NDArray[np.float64],
        place: int,
    ) -> NDArray[np.uint32]:
        """As an honest client's; with noise from every fourth only."""
        factor = 1.0 if place % 4 == 3 else 0.0
        return super().contribute(_with_noise(codec, factor), generator, rows, place)


@dataclass(frozen=True)
class Fault:
    """One planted fault and what can show it.

    Attributes:
        name: short.
        what: in words.
        behaviour: of the clients.
        adversary: who can see it; None for any.
        scale: of the canaries that show it.
    """

    name: str
    what: str
    behaviour: HonestClients
    adversary: Adversary | None = None
    scale: float = 10.0

    def applies(self, policy: PrivacyPolicy) -> bool:
        """Whether clients under this policy can have it: they add noise, all of it at once."""
        return policy.mechanism == "distributed" and not policy.remove_excess_noise


FAULTS = (
    Fault("noise quartered", "a quarter of the noise", NoiseQuartered()),
    Fault("no clipping", "units are not clipped", NoClipping()),
    Fault(
        "noise before clipping",
        "noise is added before units are clipped, and none after",
        NoiseBeforeClipping(),
        scale=1000.0,
    ),
    Fault(
        "shared noise seed",
        "all clients draw the same noise; seen by one that knows its own",
        SharedSeed(),
        adversary="fellow_client",
    ),
    Fault("lost noise shares", "three clients of four add no noise", LostShares()),
)
"""What a self-test plants."""
