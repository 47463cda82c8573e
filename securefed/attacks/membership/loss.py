"""Attacks by the loss alone: a record that fits better is guessed to be a member."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from securefed.attacks.membership.base import NO_SIGNAL, MembershipGuess, MembershipQuestion


@dataclass(frozen=True)
class LossThreshold:
    """Minus the loss under the model that is seen.

    Source: Yeom et al. 2018, "Privacy Risk in Machine Learning" (1709.01604), Adversary 2.
    """

    name: str = "loss"

    def run(self, question: MembershipQuestion, *, generator: torch.Generator) -> MembershipGuess:
        """As :class:`~securefed.attacks.membership.base.MembershipAttack`; nothing is random."""
        if not question.moved:
            return MembershipGuess.void(question, NO_SIGNAL)
        return MembershipGuess(-question.losses)


@dataclass(frozen=True)
class ReferenceLoss:
    """How much lower the loss is than under the model that training began with.

    That takes out how hard a record is by itself, which plain loss mistakes for membership.

    Source: Watson et al. 2022, "On the Importance of Difficulty Calibration in Membership
    Inference Attacks" (2111.08440); Carlini et al. 2021, "Extracting Training Data from Large
    Language Models" (2012.07805), section 5.
    """

    name: str = "reference-loss"

    def run(self, question: MembershipQuestion, *, generator: torch.Generator) -> MembershipGuess:
        """As :class:`~securefed.attacks.membership.base.MembershipAttack`; nothing is random."""
        if not question.moved:
            return MembershipGuess.void(question, NO_SIGNAL)
        return MembershipGuess(question.records.base_losses - question.losses)
