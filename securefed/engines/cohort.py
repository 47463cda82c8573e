"""Simulated clients: each with its own data, identity, budget and way to train."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import NoiseGenerator
from securefed.evidence.budget import ClientBudget
from securefed.federation.update_codec import UpdateCodec
from securefed.privacy.samplers import poisson_sample
from securefed.training.data import ClientData, Examples
from securefed.training.dp_sgd import PerExampleGradients


@dataclass
class SimulatedClient:
    """What belongs to one client and to nobody else."""

    client_id: str
    data: ClientData = field(repr=False)
    budget: ClientBudget
    identity: IdentityKey = field(default_factory=IdentityKey.generate, repr=False)
    seconds: float = 0.0

    def timed(
        self, encode: EncodeFor
    ) -> Callable[[UpdateCodec, NoiseGenerator], NDArray[np.uint32]]:
        """The client's contribution to one round, with the seconds it took added up."""

        def run(codec: UpdateCodec, generator: NoiseGenerator) -> NDArray[np.uint32]:
            started = time.perf_counter()
            try:
                return encode(self.data.train, codec, generator)
            finally:
                self.seconds += time.perf_counter() - started

        return run


class EncodeFor(Protocol):
    """Turns one client's training examples into its encoded contribution."""

    def __call__(
        self, examples: Examples, codec: UpdateCodec, generator: NoiseGenerator
    ) -> NDArray[np.uint32]:
        """uint32[codec.plan.padded]."""
        ...


def dp_sgd_step(gradients: PerExampleGradients) -> EncodeFor:
    """Distributed DP-SGD: a secret Poisson sample, each example's gradient clipped, summed, noised.

    An empty sample is a zero vector and its noise; the model is not called.
    Source: Abadi et al. 2016, Algorithm 1, with the noise of Kairouz et al. 2021 in the sum.
    """

    def encode(
        examples: Examples, codec: UpdateCodec, generator: NoiseGenerator
    ) -> NDArray[np.uint32]:
        kept = poisson_sample(len(examples), codec.policy.sampling_probability, generator)
        total = gradients.clipped_sum(examples.take(kept), codec.policy.clip_norm)
        return codec.encode_clipped_sum(total, generator)

    return encode


def local_delta(train: Callable[[Examples], NDArray[np.float32]]) -> EncodeFor:
    """Local steps on the client's own copy; the change of the adapter is the contribution."""

    def encode(
        examples: Examples, codec: UpdateCodec, generator: NoiseGenerator
    ) -> NDArray[np.uint32]:
        return codec.encode_update(train(examples), generator)

    return encode
