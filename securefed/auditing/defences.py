"""What a client can put between its texts and an adversary, by name.

A defence is a change of the training, of the round's policy, of the aggregation, or of the update
itself before it is encoded.  All of it is public: the attacker gets the policy with the session,
and the rest in :class:`~securefed.attacks.base.PublicKnowledge`.

Noise is in the unit of the sweep: z is the standard deviation of what is added to one client's
contribution, coordinate by coordinate, over the clip norm.  It is made by the real codec: a policy
of ``"distributed"`` noise whose share of one client is that large.  A round of n clients that each
add so much has z sqrt(h) in the sum, h being the honest survivors that its accountant counts.

Pruning to the largest values, dropout and values of 8 bits are not settings of this library, which
credits nothing for them; here they are what other systems do, so that the attacks can be held
against them.  Random coordinates are one
(:class:`~securefed.encoding.sparsification.KeptCoordinates`).

Source: Lin et al. 2018, "Deep Gradient Compression" (1712.01887), for the largest values; Zhu, Liu
and Han 2019, "Deep Leakage from Gradients" (1906.08935), section 5, for pruning and few bits as
defences; Dettmers et al. 2022, "8-bit Optimizers via Block-wise Quantization" (2110.02861), for
values of 8 bits in blocks of 2048.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from securefed.attacks.base import Transform
from securefed.auditing.rounds import Bench, Setup
from securefed.encoding.sparsification import KeptCoordinates, kept_dimension
from securefed.errors import ConfigError
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.secagg.aggregations import Aggregation, PairwiseAggregation, PlaintextAggregation

_LEVELS, _BLOCK = 127.0, 2048
_KEPT_SEED = 1


def _same(setup: Setup) -> Setup:
    return setup


def _plain_policy(setup: Setup) -> PrivacyPolicy:
    return PrivacyPolicy(clip_norm=1.0, mechanism="none")


@dataclass(frozen=True)
class Defence:
    """One of them, and how it is put on.

    Attributes:
        name: short and fixed: results are filed under it.
        what: in words.
        setup: from the undefended training to the defended one.
        policy: of the rounds, for that setup; clip 1 and no noise by default.
        aggregation: of the rounds; in the clear by default.
        transform: what a client does to its update before encoding; None for nothing.
    """

    name: str
    what: str
    setup: Callable[[Setup], Setup] = _same
    policy: Callable[[Setup], PrivacyPolicy] = _plain_policy
    aggregation: Callable[[], Aggregation] = PlaintextAggregation
    transform: Transform | None = None

    def bench(self, model: nn.Module, tokenizer: Any, setup: Setup) -> Bench:
        """Rounds with this defence on.

        Args:
            model: with its adapter (:func:`~securefed.auditing.rounds.adapted`).
            tokenizer: of the model.
            setup: of the training without the defence.
        """
        defended = self.setup(setup)
        return Bench(
            model,
            tokenizer,
            defended,
            aggregation=self.aggregation(),
            policy=self.policy(defended),
            transform=self.transform,
        )


def clip(norm: float) -> Defence:
    """Clipping alone: every direction survives it."""

    def policy(setup: Setup) -> PrivacyPolicy:
        return PrivacyPolicy(clip_norm=norm, mechanism="none")

    return Defence(f"clip-{norm:g}", f"clip norm {norm:g}, no noise", policy=policy)


def noise(z: float, norm: float = 1.0) -> Defence:
    """Gaussian noise of std z times the clip norm on every coordinate of one contribution.

    Args:
        z: > 0.
        norm: the clip norm C.
    """
    if not (math.isfinite(z) and z > 0.0):
        raise ConfigError(f"z = {z}; it must be finite and > 0")

    def policy(setup: Setup) -> PrivacyPolicy:
        quiet = PrivacyPolicy(clip_norm=norm, mechanism="none")
        honest = CohortBounds.of(quiet, setup.clients).honest_floor
        return PrivacyPolicy(clip_norm=norm, noise_multiplier=z * math.sqrt(honest))

    return Defence(f"noise-{z:g}", f"noise of std {z:g} C a coordinate", policy=policy)


def adamw(steps: int, learning_rate: float = 1e-3) -> Defence:
    """Several local steps of AdamW."""

    def setup(plain: Setup) -> Setup:
        return replace(plain, optimizer="adamw", local_steps=steps, learning_rate=learning_rate)

    return Defence(f"adamw{steps}", f"{steps} local steps of AdamW", setup=setup)


def dropout(probability: float) -> Defence:
    """Dropout of the model in training, of embeddings, attention and hidden states alike."""

    def setup(plain: Setup) -> Setup:
        return replace(plain, dropout=probability)

    return Defence(f"dropout-{probability:g}", f"dropout {probability:g} in training", setup=setup)


def top(share: float) -> Defence:
    """Only the largest values of an update are sent, by absolute value."""

    def largest(update: NDArray[np.float32]) -> NDArray[np.float32]:
        kept = kept_dimension(len(update), share)
        cut = np.partition(np.abs(update), len(update) - kept)[len(update) - kept]
        return np.where(np.abs(update) >= cut, update, np.float32(0.0))

    return Defence(f"top-{share:g}", f"the largest {share:.0%} of values", transform=largest)


def random_coordinates(share: float) -> Defence:
    """Only a public random part of the coordinates is sent (``training.keep_fraction``)."""

    def kept(update: NDArray[np.float32]) -> NDArray[np.float32]:
        chosen = KeptCoordinates(len(update), share, seed=_KEPT_SEED, round=1)
        return chosen.expand(chosen.select(update.astype(np.float64))).astype(np.float32)

    return Defence(f"random-{share:g}", f"a random {share:.0%} of coordinates", transform=kept)


def _eight_bits(update: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blocks of values, each on the grid of its largest / 127, to the nearest."""
    blocks = np.resize(np.append(update, 0.0), -(-len(update) // _BLOCK) * _BLOCK)
    blocks[len(update) :] = 0.0
    rows = blocks.reshape(-1, _BLOCK)
    step = np.maximum(np.abs(rows).max(axis=1, keepdims=True) / _LEVELS, np.finfo(np.float32).tiny)
    rounded: NDArray[np.float32] = (np.round(rows / step) * step).ravel()[: len(update)]
    return rounded.astype(np.float32)


def sum_of(clients: int) -> Defence:
    """A round of so many clients, of which only the sum is seen (exposure ``"sum"``)."""

    def setup(plain: Setup) -> Setup:
        return replace(plain, clients=clients)

    return Defence(
        f"sum-{clients}",
        f"masked, sum of {clients}",
        setup=setup,
        aggregation=PairwiseAggregation,
    )


DEFENCES: dict[str, Defence] = {
    each.name: each
    for each in (
        Defence("none", "clip norm 1, no noise, in the clear"),
        clip(1e-3),
        *(noise(z) for z in (0.001, 0.01, 0.1, 1.0)),
        Defence("int8", "values of 8 bits", transform=_eight_bits),
        top(0.5),
        random_coordinates(0.5),
        dropout(0.1),
        adamw(5),
        Defence("masked", "pairwise masks", aggregation=PairwiseAggregation),
        *(sum_of(n) for n in (4, 8, 16)),
    )
}
"""Defences by name; others of a kind come from this module's functions."""
