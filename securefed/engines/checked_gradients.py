"""Per-example gradients of a model whose travelling parameters change from round to round."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from securefed.errors import ConfigError
from securefed.lora.parts import AdapterParts
from securefed.training.data import Examples
from securefed.training.dp_sgd import PerExampleGradients


class CheckedGradients:
    """Checks every turn of a sharing mode before the first round, and opens one at a time.

    Opacus' hooks are made for the parameters that train, and a model can carry one set of them.

    Args:
        model: the adapted model.
        parts: what of it travels when.
        task: ``causal-lm`` or ``sequence-classification``.
        device: where to compute.
    """

    def __init__(
        self, model: nn.Module, parts: AdapterParts, *, task: str, device: torch.device
    ) -> None:
        self._model, self._parts, self._task, self._device = model, parts, task, device
        self._micro_batches: dict[int, int] = {}
        self._others: dict[tuple[int, int], int] = {}  # by turn and size asked for
        self._open: PerExampleGradients | None = None
        self._opened = 0

    @property
    def checked(self) -> bool:
        """Whether :meth:`check` found them right."""
        return bool(self._micro_batches)

    def micro_batch(self, otherwise: int) -> int:
        """Examples at a time in the present round, as checked; ``otherwise`` without a check."""
        return self._micro_batches.get(self._parts.turn, otherwise)

    def size_of(self, asked: int) -> int:
        """What a size that some clients have by a plan came to when it was checked."""
        return self._others.get((self._parts.turn, asked), asked)

    def check(
        self, examples: Examples, micro_batch: int, others: Collection[int] = ()
    ) -> list[str]:
        """Check the gradients of all that trains, in each turn (``PerExampleGradients.check``).

        B is zero before the first round, and so is the gradient of A there: the check is made at
        another B, which is put back.

        Args:
            examples: some of one client's.
            micro_batch: examples at a time.
            others: sizes that some clients have by a plan.

        Returns:
            In words where fewer at a time are computed, without repetition.

        Raises:
            GradientCheckError: names module and setting.
        """
        self.close()
        found: dict[int, int] = {}
        smaller: dict[tuple[int, int], int] = {}
        notes: list[str] = []
        for turn in range(len(self._parts.layouts)):
            self._parts.begin(turn + 1)
            gradients = self._made(micro_batch)
            try:
                with self._parts.away_from_zero():
                    said = [gradients.check(examples)]
                    for size in others:
                        one = gradients.at_a_time(size)
                        said.append(one.check(examples))
                        smaller[turn, size] = one.micro_batch
            finally:
                gradients.close()
            found[turn] = gradients.micro_batch
            notes += [note for note in dict.fromkeys(said) if note and note not in notes]
        self._parts.begin(1)
        self._micro_batches, self._others = found, smaller
        return notes

    def now(self, micro_batch: int | None = None) -> PerExampleGradients:
        """Those of the present round.

        Args:
            micro_batch: one of the other sizes that were checked; the usual one without it.

        Raises:
            ConfigError: they were not checked.
        """
        turn = self._parts.turn
        if turn not in self._micro_batches:
            raise ConfigError("per-example gradients were not checked before the first round")
        if self._open is None or self._opened != turn:
            self.close()
            self._open, self._opened = self._made(self._micro_batches[turn]), turn
        if micro_batch is None or micro_batch == self._micro_batches[turn]:
            return self._open
        if (turn, micro_batch) not in self._others:
            raise ConfigError(
                f"micro_batch = {micro_batch}: per-example gradients were not checked at it"
            )
        return self._open.at_a_time(self._others[turn, micro_batch])

    def close(self) -> None:
        """Take the hooks off the model."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _made(self, micro_batch: int) -> PerExampleGradients:
        return PerExampleGradients(
            self._model,
            self._parts.trained,
            task=self._task,
            micro_batch=micro_batch,
            device=self._device,
        )
