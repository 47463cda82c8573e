"""Base weights for a decoder by which rows of a value layer's gradient tell single tokens.

All that a server writes: the frozen base model, and an adapter with B = 0 whose A reads ``rest``
alone.  Hidden coordinates are divided:

==========  ======================================================================================
constant    1 for every token
code        the token's bin in k coordinates of +-1
out         a number of the token's own, through which the loss reaches every place
bins        0 for every token; block l's value row j writes into bin coordinate j
rest        random, so that a bin's tokens have different directions
==========  ======================================================================================

Embeddings have norm sqrt(d), so normalisation changes nothing.  In every block:

- queries and keys are the same constant at all rotary frequencies: a place attends to itself;
- values are 0, and row j goes to bin coordinate j: the hidden state stays the embedding, and
  delta of value row j is the gradient at bin coordinate j of the same place;
- neuron j's gate is positive just for tokens of bin j (code . own code - (k - 1), times a gain,
  which is -gain or less for every other bin), its other factor reads bin coordinate j, and its
  output goes to ``out``: bin coordinate j has a gradient at places of bin j alone;
- neuron rows + j, its gate always open, takes bin coordinate j off again, so that no later block
  reads it.

The last norm is small, so that predictions are about uniform and the loss's gradient at ``out`` is
about the next token's own number: never 0.  How large gradients are is the server's choice, too
(``gain``): clients then send updates that fill the clip.  It is made for one local step: after a
step of that size the model is no longer what was planted.

Source: see :mod:`~securefed.attacks.malicious.imprint`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from securefed.attacks.malicious.imprint import Imprint
from securefed.attacks.malicious.planting_encoder import planted_encoder
from securefed.attacks.malicious.written import (
    GATE,
    Written,
    binary_codes,
    drawn_bins,
    scaled_rest,
    value_stems,
)
from securefed.errors import ConfigError

_SELF = 80.0
"""By how much a place's score for itself exceeds all others', about, at one place's distance."""


def planted(
    model: nn.Module, *, special: Iterable[int], generator: torch.Generator
) -> tuple[dict[str, torch.Tensor], Imprint]:
    """Values for whichever architecture the model is of.

    Args:
        model: with its adapter; it is not changed.
        special: tokens that are in no bin, as they stand in every text.
        generator: of bins and embeddings.

    Raises:
        ConfigError: there is no planting for it.
    """
    encoder = getattr(getattr(model, "config", None), "model_type", "") == "bert"
    return (planted_encoder if encoder else planted_decoder)(
        model, special=special, generator=generator
    )


def planted_decoder(
    model: nn.Module,
    *,
    special: Iterable[int],
    generator: torch.Generator,
    gain: float = 1e3,
) -> tuple[dict[str, torch.Tensor], Imprint]:
    """Values for a Llama-like model with LoRA on its value layers.

    Args:
        model: with its adapter; it is not changed.
        special: tokens that are in no bin, as they stand in every text.
        generator: of bins and embeddings.
        gain: how much larger than an ordinary one the gradient at a bin is, > 0.

    Returns:
        Values by parameter name, the adapter's among them; and what reading them takes.

    Raises:
        ConfigError: the model is not a decoder of that kind, or has no LoRA on its value layers.
    """
    written = Written(model)
    config: Any = getattr(model, "config", None)
    stems = value_stems(written, ".v_proj")
    if not stems or not {"num_key_value_heads", "head_dim"} <= set(dir(config)):
        raise ConfigError(
            "model: planted layers are for decoders of Llama's kind with LoRA on v_proj, and for "
            "BERT with LoRA on value (lora.target_modules)"
        )
    root = stems[0][: stems[0].index("layers.")]
    width, neurons, size = config.hidden_size, config.intermediate_size, config.head_dim
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    rows = min(groups * size, neurons // 2, width // 2)
    digits = math.ceil(math.log2(rows * len(stems)))
    if width < rows + digits + 4:
        raise ConfigError(f"hidden_size = {width}: too few coordinates for {rows} bins a block")
    code, out = slice(1, 1 + digits), 1 + digits
    bins = slice(out + 1, out + 1 + rows)
    rest = slice(bins.stop, width)

    number = drawn_bins(config.vocab_size, rows * len(stems), special, generator)
    codes = binary_codes(torch.arange(rows * len(stems)), digits)
    table = torch.zeros(config.vocab_size, width)
    table[:, 0] = 1.0
    table[:, code] = binary_codes(number, digits)
    signs = torch.randint(0, 2, (len(table),), generator=generator) * 2 - 1
    table[:, out] = signs * (0.5 + torch.rand(len(table), generator=generator))
    squares = width - table.square().sum(dim=1)
    table[:, rest] = scaled_rest(
        rest.stop - rest.start, sums=None, squares=squares, generator=generator
    )
    written.put(f"{root}embed_tokens.weight", table)
    written.put(f"{root.removesuffix('model.')}lm_head.weight", table)
    written.norm(f"{root}norm", 2.0 / width)
    score = math.sqrt(_SELF * math.sqrt(size))
    for block in range(config.num_hidden_layers):
        at = f"{root}layers.{block}"
        written.norm(f"{at}.input_layernorm")
        written.norm(f"{at}.post_attention_layernorm")
        for kind, count in (("q", heads), ("k", groups)):
            same = torch.zeros(count, size, width)
            same[:, : size // 2, 0] = score
            written.linear(f"{at}.self_attn.{kind}_proj", same.flatten(0, 1))
        mixed = torch.zeros(width, heads * size)
        gate, up = torch.zeros(neurons, width), torch.zeros(neurons, width)
        down = torch.zeros(width, neurons)
        if f"{at}.self_attn.v_proj" in stems:
            number_of_block = stems.index(f"{at}.self_attn.v_proj")
            for row in range(rows):
                # Query heads of one group share a value head; the first of them passes it on.
                group, place = divmod(row, size)
                mixed[bins.start + row, group * (heads // groups) * size + place] = 1.0
            own, clear = slice(0, rows), slice(rows, 2 * rows)
            gate[own, code] = GATE * codes[number_of_block * rows : (number_of_block + 1) * rows]
            gate[own, 0], gate[clear, 0] = -GATE * (digits - 1), GATE
            up[own, bins] = up[clear, bins] = torch.eye(rows)
            down[out, own] = gain
            down[bins, clear] = -torch.eye(rows) / GATE
        written.linear(f"{at}.self_attn.v_proj", torch.zeros(groups * size, width))
        written.linear(f"{at}.self_attn.o_proj", mixed)
        written.linear(f"{at}.mlp.gate_proj", gate)
        written.linear(f"{at}.mlp.up_proj", up)
        written.linear(f"{at}.mlp.down_proj", down)
    for stem in stems:
        written.reading(stem, rest)
    modules = tuple(stem[stem.index("layers.") :] for stem in stems)
    return written.values, Imprint(modules, rows, number)
