"""How much memory a step takes, found from shapes alone: nothing of it is computed or allocated."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from securefed.errors import ConfigError
from securefed.training.data import Examples

_GIB = 2**30
_PROCESS = 750 * 2**20
"""Python with its libraries and what stays of loading: a step of SmolLM2-135M took 735 MiB more
than weights and live tensors."""
_ALLOCATOR = 1.2
"""What the allocator holds beside live tensors, and kernels use inside: there it was 1.12 to 1.2.
Both from tests/bench/bench_memory_limit.py."""
_DEVICE = 64 * 2**20
"""What cuBLAS takes of a GPU through torch's allocator, with room; not measured here."""
_VECTORS = 10
"""float64 vectors of what travels, padded to a power of two, when a sum is encoded and masked."""
_GRADIENT_BYTES = 4


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a client's process (its GPU, on CUDA) takes, by examples at a time.

        needed(m) = held + 1.2 (first + (m - 1) each + filler), no filler for m = 1

    Attributes:
        held: what is there whatever the step: weights, what travels, and on a CPU Python with its
            libraries.
        first: of a step on one example at a time.
        each: of each further example.
        filler: of the constant row beside several examples, for classification.

    Not in it: the client's texts and tokens, other clients where one process simulates them all,
    and loading, which may read the weights a second time.
    """

    held: int
    first: int
    each: int
    filler: int = 0

    def needed(self, micro_batch: int) -> int:
        """Bytes at so many examples at a time, >= 1."""
        more = (micro_batch - 1) * self.each + self.filler if micro_batch > 1 else 0
        return self.held + math.ceil(_ALLOCATOR * (self.first + more))

    def most(self, asked: int, limit: int) -> int:
        """The most examples at a time, up to ``asked``, that fit ``limit`` bytes.

        Raises:
            ConfigError: not even one does.
        """
        if self.needed(1) > limit:
            step = self.needed(1) - self.held
            raise ConfigError(
                f"training.memory_gib = {limit / _GIB:.4g}: a step on one example at a time takes "
                f"about {self.needed(1) / _GIB:.2f} GiB ({self.held / _GIB:.2f} for weights and "
                f"libraries, {step / _GIB:.2f} for the step); allow that much, or use shorter "
                "windows, a smaller rank, or model.quantize"
            )
        if self.needed(asked) <= limit:
            return asked
        room = (limit - self.held) / _ALLOCATOR - self.first - self.filler
        return max(1, min(asked, 1 + math.floor(room / self.each)))


def step_memory(
    run: Callable[[int], object], model: nn.Module, *, travelling: int, most: int
) -> StepMemory:
    """Foresee the memory of a step from the shapes of all that it would allocate.

    The step runs on tensors without contents, so it takes no memory itself and sees no value.
    Which kernels a device would choose, and what they use inside, it does not know: the factor
    1.2 stands for that too.

    Args:
        run: a step, given how many made-up examples to take at a time.
        model: what ``run`` calls; it stays as it is.
        travelling: d, values that travel.
        most: the most examples at a time that anybody will ask about, >= 1.
    """
    first = _peak(run, model, 1)
    each = filler = 0
    if most > 1:
        several = _peak(run, model, most)
        # Two may take more than one and its like: a constant row beside them, for classification.
        two = several if most == 2 else _peak(run, model, 2)
        each = math.ceil((several - two) / (most - 2)) if most > 2 else two - first
        filler = max(two - first - each, 0)
    cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    vectors = _VECTORS * 8 * 2 ** math.ceil(math.log2(max(travelling, 2)))
    held = _bytes(_tensors(model)) + (vectors + _PROCESS if cpu else _DEVICE)
    # The check before the first round keeps the gradients of four micro-batches to compare them.
    kept = 4 * _GRADIENT_BYTES * travelling
    return StepMemory(held, first + kept, each + kept, filler)


def made_up(count: int, tokens: int, labels: int | None) -> Examples:
    """Constant examples of a step's shapes; nothing of anybody's data.

    Args:
        count: how many.
        tokens: of each.
        labels: of a classifier; None for language modelling.
    """
    ids = np.ones((count, tokens), dtype=np.int64)
    given = None if labels is None else np.zeros(count, dtype=np.int64)
    return Examples(ids, np.ones_like(ids), given)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are alive, but for those that were there before."""

    def __init__(self, before: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: set[int] = set()
        self._now = self.peak = 0
        for tensor in before:
            self._known.add(_key(tensor))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and _key(leaf) not in self._known:
                storage, key, size = leaf.untyped_storage(), _key(leaf), _size(leaf)
                self._known.add(key)
                self._now += size
                self.peak = max(self.peak, self._now)
                weakref.finalize(storage, self._gone, key, size)
        return out

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def _peak(run: Callable[[int], object], model: nn.Module, micro_batch: int) -> int:
    gc.collect()
    with FakeTensorMode(allow_non_fake_inputs=True) as shapes:
        weights = [shapes.from_tensor(tensor) for tensor in _tensors(model)]
        live = _Live(weights)
        with live:
            run(micro_batch)
    return live.peak


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum({_key(tensor): _size(tensor) for tensor in tensors}.values())


def _key(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _size(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage().nbytes())
