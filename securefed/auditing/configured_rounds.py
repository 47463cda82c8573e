"""Rounds whose clients do what a run file says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from securefed.auditing.rounds import Bench
from securefed.crypto.prg import NoiseGenerator
from securefed.federation.client import Encode
from securefed.lora.layout import AdapterLayout
from securefed.phases import Phase, unmeasured
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import Aggregation

if TYPE_CHECKING:
    from securefed.auditing.from_config import AuditedRun


class Unencoded:
    """A codec that hands on what it is given: a contribution as it is before it is encoded."""

    def __init__(self, policy: PrivacyPolicy) -> None:
        self.policy = policy
        self.phase: Phase = unmeasured

    def measured(self, phase: Phase) -> Self:
        """This one: nothing is measured."""
        return self

    def encode_update(
        self, update: NDArray[np.float64], generator: NoiseGenerator
    ) -> NDArray[np.float64]:
        """The update as it is; the real codec clips it."""
        return update

    def encode_clipped_sum(
        self, total: NDArray[np.float64], generator: NoiseGenerator
    ) -> NDArray[np.float64]:
        """The sum as it is."""
        return total


class ConfiguredBench(Bench):
    """Rounds of a run file.

    Args:
        audited: the run.
        policy: of the rounds.
        aggregation: of the rounds.
        batch: examples of each client in a round.
        clients: how many; as many as the run has without it.
        moves: a step of DP-SGD sends gradients, against which the adapter moves; attacks on texts
            expect the move.  So contributions have their sign turned, which shows neither more nor
            less: rounding and noise are symmetric.  Without it they are as a run sends them.
    """

    def __init__(
        self,
        audited: AuditedRun,
        *,
        policy: PrivacyPolicy,
        aggregation: Aggregation,
        batch: int,
        clients: int | None = None,
        moves: bool = True,
    ) -> None:
        workbench = audited.workbench
        workbench.begin_round(audited.number)
        super().__init__(
            workbench.model,
            workbench.tokenizer,
            audited.setup(batch, clients),
            aggregation=aggregation,
            policy=policy,
        )
        self.layout: AdapterLayout = workbench.parts.layout
        self._audited = audited
        self._sign = -1 if moves and audited.settings.one_step else 1

    def update(self, texts: Sequence[Sequence[int]], label: int = 1) -> NDArray[np.float32]:
        """What a client that has these texts would have encoded; ``label`` is that of the texts."""
        made = self._audited.contribution([tuple(text) for text in texts], self._policy)
        return self._sign * made

    def encoding(self, update: NDArray[np.float32]) -> Encode:
        """As a run encodes it."""
        if self._audited.settings.one_step:
            return lambda codec, noise: codec.encode_clipped_sum(
                np.asarray(update, dtype=np.float64), noise
            )
        return super().encoding(update)


def without_noise(policy: PrivacyPolicy) -> PrivacyPolicy:
    """The same clip and rounding, and no noise."""
    if policy.mechanism == "none":
        return policy
    return replace(
        policy,
        mechanism="none",
        noise="discrete_gaussian",
        noise_multiplier=0.0,
        remove_excess_noise=False,
    )
