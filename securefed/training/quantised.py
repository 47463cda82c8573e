"""A frozen base model in 8 or 4 bits, for clients whose memory does not hold it otherwise.

Only weights are rounded; what flows through the model keeps its precision, so that an example's
gradient is a function of that example as before.  A layer's weights are made whole again for the
one product that needs them, forward and back, and are not kept in between.

It lowers what training takes, not what loading does: the weights are read whole first.  With glibc,
memory that was freed goes back to the system only if ``MALLOC_MMAP_THRESHOLD_`` is set (65536).

Why no library does it.  Measured on a CPU (16 layers of 576, 4 windows of 32): torchao 0.18 keeps
the weights that it made whole until the backward pass, and training took more memory than without
it.  bitsandbytes 0.50 does not, but in 8 bits it rounds activations too, and it fetches native code
when it is imported where the package ``kernels`` is installed.

Source: Dettmers et al. 2023, "QLoRA" (2305.14314): an adapter trained through frozen, quantised
weights.  Here rounding is linear, by the largest value of each group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from securefed.errors import ConfigError

_LARGEST = {8: 127, 4: 7}
_GROUP = 64


class QuantisedLinear(nn.Linear):
    """A frozen linear layer of 8-bit or 4-bit weights.

        W ~ q * s, q integers in [-127, 127] or [-7, 7], s one scale for each group of inputs

    Args:
        linear: the layer that it takes the place of; its weights are read and not kept.
        bits: 8 or 4.

    Attributes:
        weight: int8[out, in], or uint8[out, in / 2]: two values a byte; never trained.
        scale: float32[out, groups].

    Raises:
        ConfigError: ``bits`` is another number, or 4 with an odd number of inputs.

    Guarantees:
        - No weight is further from the original than half a scale.
        - Gradients with respect to the input are those of a layer with the rounded weights.
    """

    weight: nn.Parameter
    scale: torch.Tensor

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        if bits not in _LARGEST:
            raise ConfigError(f"bits = {bits}: must be one of {sorted(_LARGEST)}")
        size = linear.in_features
        if bits == 4 and size % 2:
            raise ConfigError(f"a layer of {size} inputs: 4-bit weights go in pairs")
        super().__init__(size, linear.out_features, bias=False, device="meta")
        self.bits = bits
        self._group = next((g for g in (_GROUP, 32, 16) if size % g == 0), size)
        groups = linear.weight.detach().float().reshape(linear.out_features, -1, self._group)
        scale = groups.abs().amax(dim=2) / _LARGEST[bits]
        scale.clamp_(min=torch.finfo(torch.float32).tiny)
        values = torch.round(groups / scale[..., None]).flatten(1)
        if bits == 4:
            nibbles = (values + 8).to(torch.uint8)
            packed = nibbles[:, ::2] | (nibbles[:, 1::2] << 4)
        else:
            packed = values.to(torch.int8)
        self.weight = nn.Parameter(packed.contiguous(), requires_grad=False)
        self.bias = linear.bias
        self.register_buffer("scale", scale)

    def whole(self, dtype: torch.dtype) -> torch.Tensor:
        """The rounded weights as ``dtype``[out, in]."""
        values: torch.Tensor = self.weight
        if self.bits == 4:
            low, high = self.weight & 15, self.weight >> 4
            values = torch.stack((low, high), dim=2).flatten(1).to(torch.int8) - 8
        grouped = values.to(torch.float32).reshape(self.out_features, -1, self._group)
        return (grouped * self.scale[..., None]).flatten(1).to(dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``input`` times the rounded weights, and the bias."""
        product: torch.Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias


class _Product(torch.autograd.Function):
    """A product that keeps the packed weights for the way back, not the whole ones."""

    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, layer: QuantisedLinear) -> torch.Tensor:
        ctx.layer = layer
        return functional.linear(input, layer.whole(input.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.whole(gradient.dtype), None


def quantise(model: nn.Module, bits: int) -> None:
    """Put :class:`QuantisedLinear` in the place of every linear layer of the model's body.

    Embeddings and heads keep their precision: a head may be tied to the embeddings, or be trained.

    Args:
        model: a transformers model; changed in place.
        bits: 8 or 4.

    Raises:
        ConfigError: the model's body has no linear layer.
    """
    body = getattr(model, "base_model", model)
    found = [
        (parent, name, child)
        for parent in body.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    if not found:
        raise ConfigError("model.quantize: the model's body has no linear layer")
    for parent, name, child in found:
        setattr(parent, name, QuantisedLinear(child, bits))


def parameter_count(model: nn.Module) -> int:
    """Weights of a model, whether two of them are in a byte or not."""
    packed = sum(
        m.weight.numel() for m in model.modules() if isinstance(m, QuantisedLinear) and m.bits == 4
    )
    return packed + sum(parameter.numel() for parameter in model.parameters())
