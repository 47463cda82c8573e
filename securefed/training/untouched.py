"""What a client's training may leave behind in the model: its travelling parameters, no more.

In a simulation one model serves all clients in turn.  Anything else that stays in it would carry
one client's data into the next client's update: that client would then move two contributions of a
sum, and a clip norm for each of them bounds neither.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from securefed.errors import ConfigError

_CHUNK = 1 << 18
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_OWN_STATE = {*_HOOKS, "_parameters", "_buffers", "_modules", "training"}
_PLAIN = (bool, int, float, str, type(None))


class Untouched:
    """A model's state but for what travels, to be compared with later.

    Kept are: modules, hooks and plain attributes, also of parameters (numbers, texts, tensors,
    lists, sets and dicts of them, and configurations: objects that have ``to_dict``); modes; which
    parameters there are, their type and device, and which have ``requires_grad``; and of every
    frozen parameter, every buffer and every tensor of an attribute a checksum, made where the
    tensor lies, so that no second copy of the weights is needed.  For a model of 135 million
    float32 values a comparison takes about 0.4 s on one core.

    Args:
        model: as every client is to find it; what has ``requires_grad`` travels.

    Guarantees:
        - A changed value of a frozen tensor is missed with probability at most 2^-32: a chunk's
          checksum is sum x_i r_i mod 2^64 over its 32-bit (or 8-bit) words x_i, with r_i uniform
          and secret; two different chunks collide with probability at most 2^-33.

    What is not seen: what a trainer keeps outside the model (module globals, class attributes,
    files) or inside other objects that the model refers to.

    Source: Carter and Wegman 1979, "Universal Classes of Hash Functions" (the inner product form).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._keys = torch.from_numpy(
            np.frombuffer(secrets.token_bytes(8 * _CHUNK), dtype=np.int64).copy()
        )
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._training = {name: module.training for name, module in self._modules.items()}
        self._parameters = dict(model.named_parameters(remove_duplicate=False))
        self._trains = {name: p.requires_grad for name, p in self._parameters.items()}
        self._surroundings = self._described()
        self._sums = {name: self._checksum(tensor) for name, tensor in self._frozen().items()}
        self._spoiled = ""

    @contextmanager
    def watching(self, who: str) -> Iterator[None]:
        """Let a trainer work; gradients are cleared afterwards, modes and flags put back.

        Args:
            who: how errors begin.

        Raises:
            ConfigError: something else than the travelling parameters was left changed; the
                message names it.  Where it cannot be put back, the model is not handed out again.
        """
        if self._spoiled:
            raise ConfigError(f"{self._spoiled}; this model is not used again")
        self._spoiled = f"{who}: it did not end well before"
        try:
            yield
            left = self._left()
            lasting = self._structure() or self._values()
        finally:
            self._put_back()
        fault = lasting or left
        self._spoiled = f"{who}: {lasting}" if lasting else ""
        if fault:
            raise ConfigError(
                f"{who}: {fault}; only parameters that have requires_grad may be left changed, "
                "because all clients of a simulation train on one model in turn"
            )

    def _left(self) -> str:
        """A mode or flag that is another; both can be put back."""
        for name, module in self._modules.items():
            if module.training != self._training[name]:
                mode = "training" if module.training else "evaluation"
                return f"{_module(name)} was left in {mode} mode"
        for name, parameter in self._parameters.items():
            if parameter.requires_grad != self._trains[name]:
                return f"parameter {name} was left with requires_grad = {parameter.requires_grad}"
        return ""

    def _structure(self) -> str:
        """A module, parameter, hook or plain attribute that is another."""
        modules = dict(self._model.named_modules(remove_duplicate=False))
        for name in sorted({*modules, *self._modules}):
            if modules.get(name) is not self._modules.get(name):
                return f"{_module(name)} was put in, taken out or replaced"
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        for name in sorted({*parameters, *self._parameters}):
            if parameters.get(name) is not self._parameters.get(name):
                return f"parameter {name} was put in, taken out or replaced"
        found = self._described()
        for name in sorted({*found, *self._surroundings}):
            if found.get(name) != self._surroundings.get(name):
                return f"{name} was changed"
        return ""

    def _values(self) -> str:
        """A frozen tensor whose values are others."""
        frozen = self._frozen()
        for name in sorted({*frozen, *self._sums}):
            if name not in frozen or name not in self._sums:
                return f"buffer {name} was put in or taken out"
            if self._checksum(frozen[name]) != self._sums[name]:
                return f"the frozen tensor {name} was changed"
        return ""

    def _put_back(self) -> None:
        for name, module in self._modules.items():
            module.training = self._training[name]
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(self._trains[name])
            parameter.grad = None

    def _frozen(self) -> dict[str, torch.Tensor]:
        """Each frozen parameter and buffer once, under its first name."""
        parameters = self._model.named_parameters()
        frozen = {name: p for name, p in parameters if not self._trains.get(name, False)}
        return {**frozen, **dict(self._model.named_buffers())}

    def _described(self) -> dict[str, Any]:
        """Hooks and plain attributes, by a name for messages."""
        found: dict[str, Any] = {}
        for name, module in self._model.named_modules():
            where = _module(name)
            found[f"{where}: hooks"] = [list(getattr(module, hooks)) for hooks in _HOOKS]
            for attribute, value in vars(module).items():
                if attribute not in _OWN_STATE:
                    found[f"{where}: attribute {attribute}"] = self._plain(value)
        for name, parameter in self._parameters.items():
            found[f"parameter {name}: type"] = (str(parameter.dtype), str(parameter.device))
            for attribute, value in vars(parameter).items():
                found[f"parameter {name}: attribute {attribute}"] = self._plain(value)
            hooks = [list(getattr(parameter, kind, None) or ()) for kind in _TENSOR_HOOKS]
            found[f"parameter {name}: hooks"] = hooks
        return found

    def _plain(self, value: object) -> object:
        """A value that can be compared, or its type where it cannot be."""
        if isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, torch.Tensor):
            return self._checksum(value)
        if isinstance(value, dict):
            return {str(key): self._plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._plain(item) for item in value]
        if isinstance(value, set | frozenset):
            return sorted(str(self._plain(item)) for item in value)
        if hasattr(value, "to_dict") and hasattr(value, "__dict__") and not isinstance(value, type):
            return type(value), self._plain(vars(value))  # a configuration of transformers or PEFT
        return type(value)

    def _checksum(self, tensor: torch.Tensor) -> tuple[object, ...]:
        with torch.no_grad():
            flat = tensor.detach().reshape(-1)
            width = flat.element_size()
            words = flat.view(torch.int32 if width % 4 == 0 else torch.uint8)
            self._keys = self._keys.to(words.device)
            sums = [
                (part.long() * self._keys[: len(part)]).sum() for part in torch.split(words, _CHUNK)
            ]
            values = torch.stack(sums).tolist() if sums else []
        return (tensor.dtype, tuple(tensor.shape), *values)


def _module(name: str) -> str:
    return f"module {name}" if name else "the model itself"


@contextmanager
def own_random_state() -> Iterator[None]:
    """Fresh seeds for the global generators of torch, NumPy and Python, taken back at the end.

    How often one client's training draws must not decide what the next one's draws.
    """
    python, numpy = random.getstate(), np.random.get_state()
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    used = range(torch.cuda.device_count()) if started else ()
    with torch.random.fork_rng(devices=used):
        torch.manual_seed(secrets.randbits(63))
        random.seed(secrets.randbits(63))
        np.random.seed(secrets.randbits(32))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
