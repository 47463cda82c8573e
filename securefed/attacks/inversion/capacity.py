"""What the exact family should recover, before anything is measured.

b different inputs reach block 0; the attacker has R dimensions.  Of b, k are known beforehand
([CLS], [SEP]) where a token's input depends on its place.

======================================================  ============================  ==========
what travels                                            condition                     outcome
======================================================  ============================  ==========
A (B not 0) or full weights, R = sum of their ranks     b <= R, and b < d             all
the same, one text                                      b - k - R <= R                all, sparse
                                                        b - k - R <= 5 R              part, sparse
the same                                                else                          none
A while B = 0                                           always                        void
B, or R of Fed-SB: R = the largest rank, not the sum    b < R                         all
                                                        b >= R                        void
======================================================  ============================  ==========

Without absolute positions sparse decoding gives the tokens and not their order, and is "part" at
most: no token is known beforehand, and on a real model of 49,152 tokens it found none at R = 8.
A language model's last token is not counted: it is a target only, and no gradient reaches its
input.

The sparse rows are rules of thumb from what was measured.  b - k - R is how many inputs the pursuit
must guess right before the others follow exactly.  Noise is left out: a direction of the update
below it is lost, so the prediction is an upper bound for what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from securefed.attacks.base import PublicKnowledge
from securefed.attacks.inversion.inputs import InputReader, Observed, observed
from securefed.lora.sharing import sharing_mode

Outcome = Literal["all", "part", "none", "void"]

_SURE, _POSSIBLE = 1, 5


@dataclass(frozen=True)
class Prediction:
    """What should come out.

    Attributes:
        inputs: b, most different inputs that the texts can have.
        dimensions: R.
        known: k.
        method: ``"span test"``, ``"sparse decoding"`` or ``"none"``.
        outcome: ``"all"`` tokens, ``"part"`` of them, ``"none"``, or ``"void"`` where the attack
            says itself that it does not apply.
    """

    inputs: int
    dimensions: int
    known: int
    method: str
    outcome: Outcome


def predict(public: PublicKnowledge, lengths: Sequence[int]) -> Prediction:
    """What :class:`~securefed.attacks.inversion.exact.SpanInversion` should recover.

    Args:
        public: of the round.
        lengths: tokens of each text of all clients in the sum, special ones included.
    """
    if public.optimizer == "adamw":
        return Prediction(sum(lengths), 0, 0, "none", "void")
    zeros = {name: torch.zeros(shape) for name, shape in public.layout.shapes.items()}
    block = observed(public, zeros).get(0, [])
    if not block:
        return Prediction(sum(lengths), 0, 0, "none", "void")
    reader = InputReader(public.model, {0: block[0].module})
    around = len(public.tokenizer("")["input_ids"])
    head = around // 2
    if reader.absolute:
        inputs, known = sum(lengths) - (len(lengths) - 1) * head, around
    else:
        unseen = public.task == "causal-lm"
        inputs, known = sum(length - unseen for length in lengths), 0
    direct = [each for each in block if each.lift is None and not _silent(public, each)]
    if direct:
        width = direct[0].rows.shape[1]
        dimensions = min(sum(min(each.rows.shape) for each in direct), width - 1)
        if inputs <= dimensions:
            return Prediction(inputs, dimensions, known, "span test", "all")
        guessed = inputs - known - dimensions
        if len(lengths) == 1 and guessed <= _POSSIBLE * dimensions:
            sure = reader.absolute and guessed <= _SURE * dimensions
            outcome: Outcome = "all" if sure else "part"
            return Prediction(inputs, dimensions, known, "sparse decoding", outcome)
        return Prediction(inputs, dimensions, known, "none", "none")
    moving = public.local_steps > 1 and any(each.factor == "A" for each in block)
    ranks = [each.rows.shape[1] for each in block if each.lift is not None and not moving]
    dimensions = max([0, *ranks])
    if dimensions and inputs < dimensions:
        return Prediction(inputs, dimensions, known, "span test", "all")
    return Prediction(inputs, dimensions, known, "none", "void")


def _silent(public: PublicKnowledge, each: Observed) -> bool:
    """Whether A's update is zero because B is, and stays so during the round."""
    if each.factor != "A":
        return False
    parameters = dict(public.model.named_parameters(remove_duplicate=False))
    up = [p for name, p in parameters.items() if name.startswith(f"{each.module}.lora_B.")]
    zero = not any(bool(p.detach().any()) for p in up)
    trained = sharing_mode(public.sharing)
    # Fed-SA's clients train a B of their own, FedIT's a common one, in the same steps as A.
    together = "B" in trained.kept or any({"A", "B"} <= turn for turn in trained.turns)
    return zero and not (together and public.local_steps > 1)
