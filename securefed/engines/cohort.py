"""Simulated clients: each with its own data, identity, budget and way to train."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.metering import Meter
from securefed.evidence.budget import ClientBudget
from securefed.evidence.ledger import Ledger
from securefed.phases import Phase, unmeasured
from securefed.privacy.policy import PrivacyPolicy
from securefed.privacy.samplers import poisson_sample
from securefed.training.data import ClientData, Examples
from securefed.training.dp_sgd import PerExampleGradients
from securefed.training.users import clipped_sum_of_users, sampled_users

Within = Callable[[], AbstractContextManager[None]]

Encoded = TypeVar("Encoded", covariant=True)


class Codec(Protocol[Encoded]):
    """What a contribution is encoded with: ``UpdateCodec``, or ``SlicedCodec`` with mixed ranks."""

    policy: PrivacyPolicy
    phase: Phase

    def measured(self, phase: Phase) -> Self:
        """The same, which says what it is at."""
        ...

    def encode_update(self, update: NDArray[np.float64], generator: NoiseGenerator) -> Encoded:
        """A whole client's update, clipped as one."""
        ...

    def encode_clipped_sum(self, total: NDArray[np.float64], generator: NoiseGenerator) -> Encoded:
        """A sum of units that were clipped one by one."""
        ...


class Encode(Protocol):
    """Makes a client's contribution to one round, for whichever kind of round it is."""

    def __call__(self, codec: Codec[Encoded], generator: NoiseGenerator) -> Encoded:
        """As the codec encodes it."""
        ...


@dataclass
class SimulatedClient:
    """What belongs to one client and to nobody else.

    ``policy`` is that of the next round, as the client itself computes it
    (``PrivacyPolicy.after``).  ``histograms`` is its account of noised held-out figures, where the
    run has any.
    """

    client_id: str
    data: ClientData = field(repr=False)
    budget: ClientBudget
    policy: PrivacyPolicy
    identity: IdentityKey = field(repr=False)
    meter: Meter = field(default_factory=Meter, repr=False)
    histograms: ClientBudget | None = None

    def timed(self, encode: EncodeFor) -> Encode:
        """The client's contribution to one round, whose phases this client's meter measures."""

        def measured(codec: Codec[Encoded], generator: NoiseGenerator) -> Encoded:
            return encode(self.data.train, codec.measured(self.meter.phase), generator)

        return measured


@dataclass
class SimulatedDecryptor:
    """The separate party of a run that has one: its ledger of what it opened, and its identity."""

    openings: Ledger
    identity: IdentityKey = field(repr=False)
    meter: Meter = field(default_factory=Meter, repr=False)


class EncodeFor(Protocol):
    """Turns one client's training examples into its encoded contribution."""

    def __call__(
        self, examples: Examples, codec: Codec[Encoded], generator: NoiseGenerator
    ) -> Encoded:
        """uint32[codec.plan.padded], or one such vector for each slice."""
        ...


def clipped_sum_of_sample(
    gradients: PerExampleGradients,
    examples: Examples,
    policy: PrivacyPolicy,
    generator: NoiseGenerator,
    *,
    examples_per_user: int | None,
    kept: NDArray[np.int64] | None = None,
    within: Within = nullcontext,
    phase: Phase = unmeasured,
) -> NDArray[np.float64]:
    """A secret Poisson sample of the policy's units, each one's gradient clipped, summed.

    Args:
        gradients: of the model.
        examples: all of the client's.
        policy: unit ``"example"`` or ``"user"``, sampling probability and clip norm.
        generator: the secret words of the sample.
        examples_per_user: most examples of a user in the step; all of them without it.
        kept: int64[k], the coordinates that are summed; all of them without it.
        within: entered while gradients are computed.
        phase: told when units are trained on and when they are clipped.

    Returns:
        float64[k] or float64[d], followed by the bits' sum under adaptive clipping; zeros without a
        call of the model for an empty sample.
    """
    q, clip = policy.sampling_probability, (policy.clip_norm, policy.count_weight)
    with phase("train"), within():
        if policy.unit == "user":
            drawn = sampled_users(examples, q, generator, most=examples_per_user)
            return clipped_sum_of_users(gradients, drawn, *clip, kept, phase=phase)
        sample = examples.take(poisson_sample(len(examples), q, generator))
        return gradients.clipped_sum(sample, *clip, kept, phase=phase)


def dp_sgd_step(
    gradients: PerExampleGradients,
    *,
    examples_per_user: int | None = None,
    kept: NDArray[np.int64] | None = None,
    within: Within = nullcontext,
) -> EncodeFor:
    """Distributed DP-SGD: :func:`clipped_sum_of_sample`, and this client's noise.

    Source: Abadi et al. 2016, Algorithm 1, with the noise of Kairouz et al. 2021 in the sum.
    """

    def encode(examples: Examples, codec: Codec[Encoded], generator: NoiseGenerator) -> Encoded:
        total = clipped_sum_of_sample(
            gradients,
            examples,
            codec.policy,
            generator,
            examples_per_user=examples_per_user,
            kept=kept,
            within=within,
            phase=codec.phase,
        )
        return codec.encode_clipped_sum(total, generator)

    return encode


def cyclic_step(gradients: PerExampleGradients, batch: NDArray[np.int64]) -> EncodeFor:
    """The same step on the batch whose turn it is: nothing is sampled, nothing secret decides.

    Args:
        gradients: of the model at hand.
        batch: the client's own batch (:func:`securefed.privacy.cyclic.cyclic_batch`).
    """

    def encode(examples: Examples, codec: Codec[Encoded], generator: NoiseGenerator) -> Encoded:
        with codec.phase("train"):
            total = gradients.clipped_sum(
                examples.take(batch), codec.policy.clip_norm, phase=codec.phase
            )
        return codec.encode_clipped_sum(total, generator)

    return encode


def local_delta(train: Callable[[Examples, PrivacyPolicy], NDArray[np.float64]]) -> EncodeFor:
    """Local steps on the client's own copy; what follows from the adapter's change is sent."""

    def encode(examples: Examples, codec: Codec[Encoded], generator: NoiseGenerator) -> Encoded:
        with codec.phase("train"):
            delta = train(examples, codec.policy)
        return codec.encode_update(delta, generator)

    return encode
