"""Gradients of candidate texts, through the model's real loss, differentiable once more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from securefed.attacks.base import PublicKnowledge


class CandidateGradients:
    """Computes what candidates would have sent.

    A candidate is what one client may hold: b texts of one length w, as token embeddings, each with
    a distribution over the classes that its loss aims at.  The loss is that of the local steps: the
    mean over texts of each text's mean over its targets.  Dropout is off, as it is there.

    Args:
        public: the model, in the state that the round began with, and its task.
        names: parameters that gradients are taken of.

    Attributes:
        table: float32[vocabulary, d], the embedding of every token.
        classes: how many classes a target has: labels, or the vocabulary of a language model.
        language: whether targets are the next tokens.
    """

    def __init__(self, public: PublicKnowledge, names: tuple[str, ...]) -> None:
        self._model = public.model
        parameters = dict(public.model.named_parameters(remove_duplicate=False))
        self._at = {name: parameters[name].detach() for name in names}
        self.language = public.task == "causal-lm"
        model = cast(Any, public.model)
        self.table: torch.Tensor = model.get_input_embeddings().weight.detach()
        self.classes = len(self.table) if self.language else int(model.config.num_labels)

    def of(self, embeddings: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        """Gradients of several candidates.

        Args:
            embeddings: float32[R, b, w, d], of tokens; the model adds positions by itself.
            targets: float32[R, b, k, classes], probabilities; k = 1 for classification and w - 1
                for language models, where the target of a place is the next token.

        Returns:
            By parameter, float32[R, *its shape], differentiable in both arguments.
        """
        with _twice_differentiable():
            found: dict[str, torch.Tensor] = vmap(grad(self._loss), in_dims=(None, 0, 0))(
                self._at, embeddings, targets
            )
        return found

    def _loss(
        self, parameters: dict[str, torch.Tensor], embeddings: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        mask = torch.ones(embeddings.shape[:2], dtype=torch.int64, device=embeddings.device)
        given = {"inputs_embeds": embeddings, "attention_mask": mask}
        logits: torch.Tensor = functional_call(self._model, parameters, (), given).logits
        if self.language:
            logits = logits[:, -embeddings.shape[1] :][:, :-1]
        else:
            logits = logits[:, None, :]
        return -(targets * nn.functional.log_softmax(logits.float(), dim=-1)).sum(dim=-1).mean()


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """The fused kernels of attention have no second derivative; the plain one has."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
