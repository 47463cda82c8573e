"""A BERT classifier's last layer where only its value matrix and the head train: exact, and quick.

Queries and keys are frozen, so the first token's attention a_h over the tokens' hidden states x_j
is a function of the example alone, head by head.  Values are linear but for their bias, and
attention sums to 1:

    sum_j a_hj (W x_j + b) = W (sum_j a_hj x_j) + b

So an example is its first hidden state and one mixed state a head, computed once; the value matrix,
adapter included, is applied to the mixed states in place of all tokens.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from bench import Model
from torch import nn


class _Mixed(nn.Module):
    """The frozen layers, and the last one's attention at the first token: [n, 1 + heads, width]."""

    def __init__(self, lower: nn.Module, attention: Any) -> None:
        super().__init__()
        # In a tuple: what trains must not have a second name.
        self._parts = (lower, attention)
        self._known: dict[bytes, torch.Tensor] = {}

    @torch.no_grad()
    def forward(
        self, hidden: torch.Tensor, mask: torch.Tensor | None = None, *_: Any, **options: Any
    ) -> torch.Tensor:
        rows = []
        for place in range(len(hidden)):
            row = hidden[place : place + 1]
            seen = None if mask is None else mask[place : place + 1]
            digest = hashlib.blake2b(row.numpy().tobytes())
            digest.update(b"" if seen is None else seen.contiguous().numpy().tobytes())
            if digest.digest() not in self._known:
                states = self._parts[0](row, seen, **options)
                self._known[digest.digest()] = self._packed(states, seen)
            rows.append(self._known[digest.digest()])
        return torch.cat(rows)

    def _packed(self, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        attention = self._parts[1]
        heads, size = attention.num_attention_heads, attention.attention_head_size
        query = attention.query(states[:, :1]).view(1, 1, heads, size).transpose(1, 2)
        key = attention.key(states).view(1, -1, heads, size).transpose(1, 2)
        scores = query @ key.transpose(2, 3) / math.sqrt(size)
        if mask is not None:
            first = mask[:, :, :1]
            absent = ~first if first.dtype == torch.bool else first != 0
            scores = scores.masked_fill(absent, -math.inf)
        return torch.cat([states[:, :1], (scores.softmax(dim=3) @ states[:, None])[:, :, 0]], dim=1)


class _Last(nn.Module):
    """The last layer on packed states."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, packed: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        attention = self.layer.attention
        heads, size = attention.self.num_attention_heads, attention.self.attention_head_size
        values = attention.self.value(packed[:, 1:]).view(-1, heads, heads, size)
        context = values.diagonal(dim1=1, dim2=2).transpose(1, 2).reshape(-1, 1, heads * size)
        attended = attention.output(context, packed[:, :1])
        return self.layer.feed_forward_chunk(attended)


def hasten(model: Model) -> None:
    """Put both in the place of the model's memoised layers; names of what trains stay."""
    (layers,) = (
        module.layer
        for name, module in model.module.named_modules()
        if name.endswith("bert.encoder")
    )
    last = layers[-1].layer
    layers[0], layers[-1] = _Mixed(model.lower, last.attention.self), _Last(last)
