"""A BERT classifier of which only the last value matrix and the head train: the same, and quick.

All below is frozen, and so are the last layer's queries and keys.  The first token's attention a_h
over the tokens' states x_j is then a function of the example alone, head by head.  Values are
linear but for their bias, and attention sums to 1:

    sum_j a_hj (W x_j + b) = W (sum_j a_hj x_j) + b

So an example is its first state and one mixed state a head, computed once and kept; the value
matrix, adapter included, is applied to the mixed states in place of all tokens.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


class FrozenAttention(nn.Module):
    """Computes the logits that the model computes, up to the order of its sums.

    Args:
        model: a BERT classifier with an adapter on the last layer's value matrix, in evaluation
            mode; nothing else below the head trains.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        classifier = model.get_base_model()
        # In a tuple: what trains must not have a second name.
        self._parts = (classifier.bert, classifier.classifier)
        self._known: dict[bytes, torch.Tensor] = {}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        keys = [
            row.numpy().tobytes() + seen.numpy().tobytes()
            for row, seen in zip(input_ids, attention_mask, strict=True)
        ]
        missing = [place for place, key in enumerate(keys) if key not in self._known]
        if missing:
            for place, packed in zip(
                missing, self._packed(input_ids[missing], attention_mask[missing]), strict=True
            ):
                self._known[keys[place]] = packed
        packed = torch.stack([self._known[key] for key in keys])
        bert, head = self._parts
        layer = bert.encoder.layer[-1]
        own = layer.attention.self
        heads, size = own.num_attention_heads, own.attention_head_size
        values = own.value(packed[:, 1:]).view(-1, heads, heads, size)
        context = values.diagonal(dim1=1, dim2=2).transpose(1, 2).reshape(-1, 1, heads * size)
        states = layer.feed_forward_chunk(layer.attention.output(context, packed[:, :1]))
        return SimpleNamespace(logits=head(bert.pooler(states)))

    @torch.no_grad()
    def _packed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Float32[n, 1 + heads, width]."""
        bert, _ = self._parts
        states = bert.embeddings(input_ids=input_ids)
        mask = torch.zeros(attention_mask.shape).masked_fill(attention_mask == 0, -math.inf)
        mask = mask[:, None, None]
        *lower, last = bert.encoder.layer
        for layer in lower:
            states = layer(states, mask)
        own = last.attention.self
        heads, size = own.num_attention_heads, own.attention_head_size
        query = own.query(states[:, :1]).view(-1, 1, heads, size).transpose(1, 2)
        key = own.key(states).view(len(states), -1, heads, size).transpose(1, 2)
        attention = (query @ key.transpose(2, 3) / math.sqrt(size) + mask).softmax(dim=3)
        return torch.cat([states[:, :1], (attention @ states[:, None])[:, :, 0]], dim=1)
