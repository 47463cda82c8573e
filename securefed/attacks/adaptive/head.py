"""How likely whole texts make the update of a classifier's output layer, by making it anew.

The output layer reads one vector h of a text and its gradient is (p - y) h^T, p the predicted
probabilities and y the label: it shows a direction of R^d that depends on the whole text.  It is
the largest part of an update while the layer is young, and far above noise under which the inputs
of block 0 are lost.  A candidate text is run through the public model and its gradient compared;
where AdamW made the update, in signs.  The derivative with respect to the text's embeddings tells
which tokens to try.

The label is where the update of the bias is largest.  The update's length is not compared: clipping
changes it.

Source: Zhao, Mopuri and Bilen 2020, "iDLG" (2001.02610), for the label; Zou et al. 2023, "Universal
and Transferable Adversarial Attacks on Aligned Language Models" (2307.15043), section 3, for tokens
chosen by a derivative and judged exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from securefed.attacks.base import AdversaryView, PublicKnowledge
from securefed.attacks.inversion.algebra import entry_noise

_LEAST = 1e-30
_AT_ONCE = 64
_AT_ZERO = 6.0  # standard deviations of the known noise


class HeadEvidence:
    """The update of the output layer.

    Args:
        layer: reads float[n, d].
        weight: float32[classes, d], its update.
        bias: float32[classes], likewise.
        noise: std of what is known to be added to a value; more is estimated.
        public: the model, and how it is trained.
        log_prior: float32[vocabulary].
    """

    def __init__(
        self,
        layer: nn.Linear,
        weight: torch.Tensor,
        bias: torch.Tensor,
        noise: float,
        public: PublicKnowledge,
        log_prior: torch.Tensor,
    ) -> None:
        self._layer, self._model = layer, cast(Any, public.model)
        own = self._model.get_input_embeddings().weight.detach()
        # One more that stands for an unknown token.
        self._embedding = torch.cat([own, (log_prior.exp() @ own)[None]])
        self._observed = torch.cat([weight.flatten(), bias]).double()
        self._signs = public.optimizer == "adamw"
        self._label = int(bias.argmax())
        # A zero among values that clients change says that it was not sent.
        changed = public.transform is not None
        self._sent = self._observed.abs() > _AT_ZERO * noise if changed else None
        self._floor = noise**2
        self._variance = float(self._observed.square().mean())

    @classmethod
    def of(
        cls, view: AdversaryView, public: PublicKnowledge, log_prior: torch.Tensor
    ) -> HeadEvidence | None:
        """From a view; None where no such layer is in the update or it is zero."""
        if public.task != "sequence-classification":
            return None
        tensors = public.layout.unflatten(view.reading(public))
        modules = dict(public.model.named_modules())
        for name, weight in tensors.items():
            layer = modules.get(name.removesuffix(".weight"))
            bias = tensors.get(name.removesuffix("weight") + "bias")
            classes = getattr(getattr(public.model, "config", None), "num_labels", None)
            if (
                isinstance(layer, nn.Linear)
                and ".lora_" not in name
                and bias is not None
                and layer.out_features == classes
                and bool(weight.any())
            ):
                return cls(layer, weight, bias, entry_noise(view, public), public, log_prior)
        return None

    def log_likelihood(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Of each of texts of one length, in nats, but for a constant: float64[n]."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(texts), _AT_ONCE):
                ids = torch.tensor([list(text) for text in texts[start : start + _AT_ONCE]])
                parts.append(self._left(self._embedding[ids], soft=False))
        return -torch.cat(parts) / (2.0 * self._variance)

    def slopes(self, text: Sequence[int], place: int, tokens: torch.Tensor) -> torch.Tensor:
        """By about how much tokens int64[k] at a place would raise it: float32[k]."""
        given = self._embedding[torch.tensor(list(text))][None].clone().requires_grad_(True)
        value = -self._left(given, soft=True).sum() / (2.0 * self._variance)
        (slope,) = torch.autograd.grad(value, given)
        moved = self._embedding[tokens] - given[0, place].detach()
        return moved @ slope[0, place]

    def refit(self, text: Sequence[int]) -> None:
        """Estimate the noise anew from what a text leaves unexplained."""
        with torch.no_grad():
            left = float(self._left(self._embedding[torch.tensor([list(text)])], soft=False)[0])
        self._variance = max(self._floor, left / self._count, _LEAST)

    @property
    def _count(self) -> int:
        return len(self._observed) if self._sent is None else max(int(self._sent.sum()), 1)

    def _left(self, embedded: torch.Tensor, *, soft: bool) -> torch.Tensor:
        """Squared length of what gradients leave of the update, whatever their length."""
        read: list[torch.Tensor] = []
        hook = self._layer.register_forward_pre_hook(lambda _, given: read.append(given[0]))
        try:
            output = self._model(
                inputs_embeds=embedded, attention_mask=torch.ones(embedded.shape[:2])
            )
        finally:
            hook.remove()
        delta = output.logits.double().softmax(dim=1)
        delta = delta - nn.functional.one_hot(torch.tensor(self._label), delta.shape[1])
        made = torch.cat(
            [(delta[:, :, None] * read[0].double()[:, None, :]).flatten(1), delta], dim=1
        )
        if self._signs:
            usual = made.detach().abs().median(dim=1, keepdim=True).values.clamp(min=_LEAST)
            made = made / (made.abs() + usual) if soft else made.sign()
        observed = self._observed
        if self._sent is not None:
            observed, made = observed[self._sent], made[:, self._sent]
        size = made.square().sum(dim=1).clamp(min=_LEAST)
        left: torch.Tensor = observed.square().sum() - (made @ observed).square() / size
        return left
