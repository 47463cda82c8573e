"""The same for an encoder of BERT's kind with a classifier: see :mod:`.planting`.

What differs.  Places are told apart by a code of +-1 in coordinates of their own, so that a place
attends to itself.  Layer norm takes the mean away, so every vector that is written sums to 0, with
the help of two balance coordinates.  GELU's derivative is 1 for a neuron's own bin and 0 for all
others.  The loss reaches the first place alone: the last block attends to all places alike and
brings ``out`` there, and is not read.

==========  ======================================================================================
code        the token's bin in k coordinates of +-1
place       the place in p coordinates of +-1, half of each
out         0, or a little once the token's neuron has fired
balance     two coordinates
bins        0; block l's value row j writes into bin coordinate j, and the same block clears it
rest        random, so that a bin's tokens have different directions
==========  ======================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from securefed.attacks.malicious.imprint import Imprint
from securefed.attacks.malicious.written import (
    GATE,
    Written,
    binary_codes,
    drawn_bins,
    scaled_rest,
    value_stems,
)
from securefed.errors import ConfigError

_OPEN = 10.0  # an argument at which GELU is the identity in float32
_FIRED = 1e-3  # of GATE, what a neuron that fired adds to ``out``
_MARGIN = 40.0  # by how much a place's score for itself exceeds all others'
_HEAD = 10.0


def planted_encoder(
    model: nn.Module,
    *,
    special: Iterable[int],
    generator: torch.Generator,
    gain: float = 1e4,
) -> tuple[dict[str, torch.Tensor], Imprint]:
    """Values for a BERT classifier with LoRA on its value layers.

    Args:
        model: with its adapter; it is not changed.
        special: tokens that are in no bin, as they stand in every text.
        generator: of bins and embeddings.
        gain: how much larger than an ordinary one the gradient at a bin is, > 0.

    Returns:
        Values by parameter name, the adapter's among them; and what reading them takes.

    Raises:
        ConfigError: the model is not an encoder of that kind, or has no LoRA on its value layers.
    """
    written = Written(model)
    config: Any = getattr(model, "config", None)
    stems = value_stems(written, "attention.self.value")
    if getattr(config, "model_type", "") != "bert" or len(stems) < 2:
        raise ConfigError(
            "model: planted layers are for a BERT of two blocks or more with LoRA on value "
            "(lora.target_modules)"
        )
    width, neurons, blocks = config.hidden_size, config.intermediate_size, len(stems) - 1
    size = width // config.num_attention_heads
    places = min(size, width // 5) // 2 * 2
    rows = min((width - places - 16) // 2, neurons // 2)
    digits = math.ceil(math.log2(rows * blocks))
    code, place = slice(0, digits), slice(digits, digits + places)
    out, balance, other = range(place.stop, place.stop + 3)
    bins = slice(other + 1, other + 1 + rows)
    rest = slice(bins.stop, width)
    root = stems[0][: stems[0].index("encoder.layer.")]

    number = drawn_bins(config.vocab_size, rows * blocks, special, generator)
    codes = binary_codes(torch.arange(rows * blocks), digits)
    table = torch.zeros(config.vocab_size, width)
    table[:, code] = binary_codes(number, digits)
    table[:, rest] = scaled_rest(
        rest.stop - rest.start,
        sums=-table.sum(dim=1),
        squares=width - places - table.square().sum(dim=1),
        generator=generator,
    )
    where = torch.zeros(config.max_position_embeddings, width)
    half = torch.cat([torch.ones(places // 2), -torch.ones(places // 2)])
    for row in where:
        row[place] = half[torch.randperm(places, generator=generator)]
    alike = where @ where.T - 2.0 * places * torch.eye(len(where))
    score = math.sqrt(_MARGIN * math.sqrt(size) / max(float(places - alike.max()), 1.0))

    at = f"{root}embeddings"
    written.put(f"{at}.word_embeddings.weight", table)
    written.put(f"{at}.position_embeddings.weight", where)
    written.put(f"{at}.token_type_embeddings.weight", torch.zeros(config.type_vocab_size, width))
    written.norm(f"{at}.LayerNorm")
    for block in range(config.num_hidden_layers):
        at = f"{root}encoder.layer.{block}"
        written.norm(f"{at}.attention.output.LayerNorm")
        written.norm(f"{at}.output.LayerNorm")
        same, values, mixed = (torch.zeros(width, width) for _ in range(3))
        inner, bias = torch.zeros(neurons, width), torch.zeros(neurons)
        outer, offset = torch.zeros(width, neurons), torch.zeros(width)
        if block < blocks:
            for head in range(config.num_attention_heads):
                same[head * size : head * size + places, place] = score * torch.eye(places)
            mixed[bins, :rows] = torch.eye(rows)
            own, clear = slice(0, rows), slice(rows, 2 * rows)
            inner[own, code] = GATE * codes[block * rows : (block + 1) * rows]
            inner[own, bins] = gain * torch.eye(rows)
            inner[clear, bins] = torch.eye(rows)
            inner[: 2 * rows, balance] = -inner[: 2 * rows].sum(dim=1)
            bias[own], bias[clear] = -GATE * (digits - 1), _OPEN
            outer[out, own], outer[other, own] = _FIRED, -_FIRED
            outer[bins, clear], offset[bins] = -torch.eye(rows), _OPEN
        else:
            values[0, out] = 1.0
            mixed[out, 0], mixed[other, 0] = 1.0, -1.0
        for kind, weight in (("query", same), ("key", same), ("value", values)):
            written.linear(f"{at}.attention.self.{kind}", weight)
        written.linear(f"{at}.attention.output.dense", mixed)
        written.linear(f"{at}.intermediate.dense", inner, bias)
        written.linear(f"{at}.output.dense", outer, offset)
    pooled, labels = torch.zeros(width, width), torch.zeros(config.num_labels, width)
    pooled[0, out] = 1.0
    labels[:, 0] = torch.linspace(-_HEAD, _HEAD, config.num_labels)
    written.linear(f"{root}pooler.dense", pooled)
    for name in ("classifier", "classifier.original_module", "classifier.modules_to_save.default"):
        written.linear(f"{root.removesuffix('bert.')}{name}", labels)
    for stem in stems:
        written.reading(stem, rest)
    modules = tuple(stem[stem.index("layer.") :] for stem in stems[:-1])
    return written.values, Imprint(modules, rows, number)
