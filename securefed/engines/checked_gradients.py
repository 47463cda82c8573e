"""Per-example gradients of a model whose travelling parameters change from round to round."""

from __future__ import annotations

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
        self._open: PerExampleGradients | None = None
        self._opened = 0

    @property
    def checked(self) -> bool:
        """Whether :meth:`check` found them right."""
        return bool(self._micro_batches)

    def micro_batch(self, otherwise: int) -> int:
        """Examples at a time in the present round, as checked; ``otherwise`` without a check."""
        return self._micro_batches.get(self._parts.turn, otherwise)

    def check(self, examples: Examples, micro_batch: int) -> list[str]:
        """Check the gradients of all that trains, in each turn (``PerExampleGradients.check``).

        B is zero before the first round, and so is the gradient of A there: the check is made at
        another B, which is put back.

        Args:
            examples: some of one client's.
            micro_batch: examples at a time.

        Returns:
            In words where fewer at a time are computed, without repetition.

        Raises:
            GradientCheckError: names module and setting.
        """
        self.close()
        found, notes = {}, []
        for turn in range(len(self._parts.layouts)):
            self._parts.begin(turn + 1)
            gradients = self._made(micro_batch)
            try:
                with self._parts.away_from_zero():
                    note = gradients.check(examples)
            finally:
                gradients.close()
            found[turn] = gradients.micro_batch
            if note is not None and note not in notes:
                notes.append(note)
        self._parts.begin(1)
        self._micro_batches = found
        return notes

    def now(self) -> PerExampleGradients:
        """Those of the present round.

        Raises:
            ConfigError: they were not checked.
        """
        turn = self._parts.turn
        if turn not in self._micro_batches:
            raise ConfigError("per-example gradients were not checked before the first round")
        if self._open is None or self._opened != turn:
            self.close()
            self._open, self._opened = self._made(self._micro_batches[turn]), turn
        return self._open

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
