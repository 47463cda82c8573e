"""Poisoned clients: what each contributes to a round that it otherwise takes part in honestly.

All of them follow the aggregation protocol to the letter: their messages are well-formed, their
masks cancel, and under secure aggregation nothing that a server receives tells them from others.
They differ in the ring vector beneath the mask.  There are two kinds:

- *bounded*: false data or a false update, encoded by the honest codec: clipped and noised.
- *unbounded*: a ring vector of the client's own making.  The clip is computed at the client, and
  no proof of it is asked for, so nothing but the ring bounds what such a client adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.attacks.base import PublicKnowledge
from securefed.attacks.poisoning.backdoor import Trigger
from securefed.attacks.poisoning.training import local_update
from securefed.encoding.fixed_point import to_ring
from securefed.errors import ConfigError
from securefed.federation.client import Encode
from securefed.federation.update_codec import UpdateCodec
from securefed.training.data import Examples


class PoisonedClient(Protocol):
    """A way to misuse one's place in a round."""

    @property
    def name(self) -> str:
        """Short and fixed: results are filed under it."""
        ...

    def contribution(
        self, data: Examples, public: PublicKnowledge, *, generator: torch.Generator
    ) -> Encode:
        """What this client gives to ``ClientRound`` in place of an honest encoding.

        Args:
            data: the client's own training examples.
            public: what everybody knows; its session is the round that the client is in.
            generator: of all random choices but the protocol's.
        """
        ...


@dataclass(frozen=True)
class Backdoor:
    """Trains on its own data with stamped copies, and sends ``boost`` times what that gives.

    Args:
        trigger: what shall be answered with the attacker's class.
        share: of the client's victims that are stamped, in (0, 1].
        boost: > 0.  1: false data and honest training.  n / (k eta), with k such clients of n and
            the server's rate eta, puts the attacker's model in the place of the global one.
        projected: trains inside the clip's ball and fills it, so that the clip takes nothing away.
        bounded: the update goes through the honest codec.
        effort: times that the round's local steps are taken, >= 1.

    Raises:
        ConfigError: ``boost`` is not finite and > 0, or both it and ``projected`` are given.

    Source: Bagdasaryan et al. 2020, "How To Backdoor Federated Learning" (1807.00459), section 4.2
    and equation 3, for the boost.
    """

    trigger: Trigger
    share: float = 1.0
    boost: float = 1.0
    projected: bool = False
    bounded: bool = True
    effort: int = 1

    def __post_init__(self) -> None:
        if not (np.isfinite(self.boost) and self.boost > 0.0):
            raise ConfigError(f"boost = {self.boost}: must be finite and > 0")
        if self.projected and self.boost != 1.0:
            raise ConfigError(f"boost = {self.boost}: must be 1 with projected = True")

    @property
    def name(self) -> str:
        """By how it sends."""
        if self.projected:
            return "backdoor, projected"
        kind = "boosted backdoor" if self.boost != 1.0 else "backdoor"
        return kind if self.bounded else f"{kind}, no clip"

    def contribution(
        self, data: Examples, public: PublicKnowledge, *, generator: torch.Generator
    ) -> Encode:
        """As :meth:`PoisonedClient.contribution`."""
        clip_norm = public.session.policy.clip_norm
        update = local_update(
            public,
            self.trigger.poison(data, self.share, generator),
            seed=_seed(generator),
            effort=self.effort,
            radius=clip_norm if self.projected else None,
        ).astype(np.float64)
        if self.projected:
            update *= clip_norm / max(float(np.linalg.norm(update)), 1e-30)
        return _sends(self.boost * update, self.bounded)


@dataclass(frozen=True)
class Opposite:
    """Trains honestly and sends -``boost`` times the update.

    Args:
        boost: > 0.
        bounded: it goes through the honest codec.

    Raises:
        ConfigError: ``boost`` is not finite and > 0.

    Source: the sign-flipping client of Li et al. 2019, "RSA" (1811.03761), section 5.
    """

    boost: float = 1.0
    bounded: bool = True

    def __post_init__(self) -> None:
        if not (np.isfinite(self.boost) and self.boost > 0.0):
            raise ConfigError(f"boost = {self.boost}: must be finite and > 0")

    @property
    def name(self) -> str:
        """By how it sends."""
        return "sign flip" if self.bounded else "sign flip, no clip"

    def contribution(
        self, data: Examples, public: PublicKnowledge, *, generator: torch.Generator
    ) -> Encode:
        """As :meth:`PoisonedClient.contribution`."""
        update = local_update(public, data, seed=_seed(generator)).astype(np.float64)
        return _sends(-self.boost * update, self.bounded)


@dataclass(frozen=True)
class Garbage:
    """Sends uniform ring elements, which make the sum of its round uniform too."""

    name: str = "garbage"

    def contribution(
        self, data: Examples, public: PublicKnowledge, *, generator: torch.Generator
    ) -> Encode:
        """As :meth:`PoisonedClient.contribution`."""
        plan = public.session.plan
        words = torch.randint(0, 1 << plan.bits, (plan.padded,), generator=generator)
        ring = words.numpy().astype(np.uint32)
        return lambda codec, noise: ring


def unclipped(update: NDArray[np.float64], codec: UpdateCodec) -> NDArray[np.uint32]:
    """A ring vector for an update of any length, without noise, as far as the ring reaches.

    Values are cut at seven eighths of half the ring: the sum of the others, which the rotation
    flattens, is far within the rest and does not carry the result around the ring.

    Args:
        update: float64[codec.plan.summed], finite.
        codec: of the round.

    Returns:
        uint32[codec.plan.padded].
    """
    plan = codec.plan
    reach = 0.875 * (1 << (plan.bits - 1))
    grid = np.clip(np.rint(codec.to_grid(update)), -reach, reach).astype(np.int64)
    return to_ring(grid) & np.uint32((1 << plan.bits) - 1)


def _sends(update: NDArray[np.float64], bounded: bool) -> Encode:
    if bounded:
        return lambda codec, noise: codec.encode_update(update, noise)
    return lambda codec, noise: unclipped(update, codec)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(1 << 31, (1,), generator=generator))
