"""What plantings of different architectures share: values by name, codes and random remainders."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import nn

GATE = 30.0
"""A neuron's argument for its own bin, and minus that or less for all others: silu(-30) is
-3e-12, and GELU's derivative there is 0."""

_BLOCK = re.compile(r"\.(?:layer|layers)\.([0-9]+)\.")


class Written:
    """Values for a model's parameters, by name; what an adapter adds to names is left out.

    B's values are zeros, as those of an adapter that was just made.

    Args:
        model: with its adapter; it is not changed.

    Attributes:
        values: by the parameter's full name.
        lora: names of LoRA's B.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._plain = {name.replace(".base_layer.", "."): name for name in self._parameters}
        self.lora = [name for name in self._parameters if ".lora_B." in name]
        self.values = {name: torch.zeros_like(self._parameters[name]) for name in self.lora}

    def put(self, name: str, value: torch.Tensor) -> None:
        """Write a parameter, if the model has it."""
        if name in self._plain:
            self.values[self._plain[name]] = value

    def reading(self, stem: str, coordinates: slice) -> None:
        """Let a layer's A read these coordinates alone, its rows of length 1."""
        for name in [n for n in self._parameters if n.startswith(f"{stem}.lora_A.")]:
            only = torch.zeros_like(self._parameters[name])
            only[:, coordinates] = self._parameters[name].detach()[:, coordinates]
            self.values[name] = only / torch.linalg.vector_norm(only, dim=1, keepdim=True)

    def linear(self, stem: str, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Write a linear layer; a bias that it has and that is not given becomes 0."""
        self.put(f"{stem}.weight", weight)
        self.put(f"{stem}.bias", torch.zeros(len(weight)) if bias is None else bias)

    def norm(self, stem: str, scale: float = 1.0) -> None:
        """Write a normalisation: one scale for all coordinates, no shift."""
        size = self._parameters[self._plain[f"{stem}.weight"]].shape
        self.put(f"{stem}.weight", torch.full(size, scale))
        self.put(f"{stem}.bias", torch.zeros(size))


def value_stems(written: Written, kind: str) -> list[str]:
    """Names of the layers of one kind that have LoRA, in the order of their blocks.

    Args:
        written: of the model.
        kind: end of the layer's name.
    """
    found = {}
    for name in written.lora:
        stem = name[: name.index(".lora_B.")]
        block = _BLOCK.search(stem)
        if stem.endswith(kind) and block is not None:
            found[int(block[1])] = stem
    return [found[block] for block in sorted(found)]


def drawn_bins(
    vocabulary: int, bins: int, special: Iterable[int], generator: torch.Generator
) -> torch.Tensor:
    """int64[vocabulary]: a bin for each token; -1 for special ones.

    Vocabularies are about in order of frequency: neighbours in it are kept apart, so that few
    frequent tokens share a bin.
    """
    first = int(torch.randint(bins, (1,), generator=generator))
    number = (torch.arange(vocabulary) + first) % bins
    number[sorted(special)] = -1
    return number


def binary_codes(number: torch.Tensor, digits: int) -> torch.Tensor:
    """Binary digits of int64[n] as +-1: float32[n, digits]; zeros for -1, which is in no bin."""
    digit = torch.tensor([1 << place for place in range(digits)])
    codes: torch.Tensor = (number[:, None] & digit).ne(0).float() * 2 - 1
    codes[number < 0] = 0.0
    return codes


def scaled_rest(
    size: int, *, sums: torch.Tensor | None, squares: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Random vectors of given squared norms and, where asked for, sums.

    Args:
        size: coordinates.
        sums: float32[n], of each vector's coordinates; None: any.
        squares: float32[n], squared norms; larger than sums^2 / size.
        generator: of the directions.

    Returns:
        float32[n, size].
    """
    random = torch.randn(len(squares), size, generator=generator)
    mean = torch.zeros(len(squares)) if sums is None else sums / size
    if sums is not None:
        random -= random.mean(dim=1, keepdim=True)
    left = (squares - size * mean**2).sqrt()
    direction: torch.Tensor = random / torch.linalg.vector_norm(random, dim=1, keepdim=True)
    return mean[:, None] + direction * left[:, None]
