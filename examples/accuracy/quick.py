"""A real classifier above its frozen layers, in a fraction of the time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from bench import CPU, Model
from numpy.typing import NDArray
from torch import nn

from securefed.errors import DataError
from securefed.lora.layout import AdapterLayout
from securefed.training.data import Examples
from securefed.training.evaluate import batches


class Quick(nn.Module):
    """``bench.Model`` above what is frozen: the same logits from a few stored numbers an example.

    The last layer's queries and keys are frozen, and so is A.  Of an example, with h_t what enters
    that layer at token t and a_t how much the first token looks there, by head, all that the
    trainable part reads is W_v sum a_t h_t + b_v, A sum a_t h_t and h_0: kept once, by number.
    ``input_ids`` here are such numbers.

    Args:
        model: the real one; its head and B are copied, its frozen modules are used.
        examples: all that will be asked for, numbered as they stand.

    Raises:
        DataError: the logits are not the real model's.
    """

    def __init__(self, model: Model, examples: Examples) -> None:
        super().__init__()
        bert: Any = model.module.base_model.model
        reader = bert.bert.encoder.layer[-1]
        # Not as modules: their parameters are the real model's, and stay as they are.
        self.__dict__ |= {"_last": reader.layer, "_pooler": bert.bert.pooler}
        value = self._last.attention.self.value
        self._heads = self._last.attention.self.num_attention_heads
        self._scale = value.scaling["default"]
        self.lora_B = nn.Parameter(value.lora_B["default"].weight.detach().clone())
        head = bert.classifier.modules_to_save["default"]
        self.head_weight = nn.Parameter(head.weight.detach().clone())
        self.head_bias = nn.Parameter(head.bias.detach().clone())
        seen: list[torch.Tensor] = []
        hook = reader.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        parts, logits = [], []
        with torch.no_grad():
            for batch in batches(examples, 32, CPU):
                out = model.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
                logits.append(out.logits)
                parts.append(self._frozen(seen.pop(), batch.attention_mask, value))
            hook.remove()
            values, inner, first = (torch.cat(stored) for stored in zip(*parts, strict=True))
            self.register_buffer("_values", values)
            self.register_buffer("_inner", inner)
            self.register_buffer("_first", first)
            self.layout = AdapterLayout({n: tuple(p.shape) for n, p in self.named_parameters()})
            self.initial = self.flat()
            numbers = torch.arange(len(examples))[:, None]
            if not torch.allclose(self(numbers).logits, torch.cat(logits), atol=1e-4):
                raise DataError("the quick model differs from the real one")

    def _frozen(
        self, hidden: torch.Tensor, mask: torch.Tensor, value: Any
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        own = self._last.attention.self
        split = (len(hidden), -1, self._heads, own.attention_head_size)
        queries = own.query(hidden[:, :1]).view(split).transpose(1, 2)
        keys = own.key(hidden).view(split).transpose(1, 2)
        scores = (queries @ keys.transpose(2, 3))[:, :, 0] * own.attention_head_size**-0.5
        looks = scores.masked_fill(mask[:, None] == 0, float("-inf")).softmax(dim=-1)
        summed = looks @ hidden  # [b, heads, width]
        base = value.base_layer
        by_head = base.weight.view(self._heads, own.attention_head_size, -1)
        values = torch.einsum("bhw,how->bho", summed, by_head).flatten(1) + base.bias
        return values, summed @ value.lora_A["default"].weight.T, hidden[:, 0]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> Any:
        numbers = input_ids[:, 0]
        by_head = self.lora_B.view(self._heads, -1, self.lora_B.shape[1])
        moved = torch.einsum("bhr,hor->bho", self._inner[numbers], by_head).flatten(1)
        context = self._values[numbers] + self._scale * moved
        attended = self._last.attention.output(context[:, None], self._first[numbers][:, None])
        pooled = self._pooler(self._last.feed_forward_chunk(attended))
        return SimpleNamespace(logits=pooled @ self.head_weight.T + self.head_bias)

    def flat(self) -> NDArray[np.float32]:
        """The trainable parameters as float32[d]."""
        return self.layout.flatten({n: p.detach() for n, p in self.named_parameters()})

    def load(self, vector: NDArray[np.float32]) -> None:
        """Put float32[d] into the model."""
        tensors = self.layout.unflatten(vector)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(tensors[name])
