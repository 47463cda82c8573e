"""The server's step on the adapter in a round, whatever travelled in it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.errors import ConfigError
from securefed.federation.server_optimizer import ServerOptimizer
from securefed.lora.layout import AdapterLayout
from securefed.lora.parts import AdapterParts
from securefed.lora.refactoring import refactored, turned_moments

_OPTIMIZER = "optimizer."


class ServerStep:
    """Holds all that the server ever changes of an adapter, and one optimiser for each turn.

    Factors that travel in turn have an optimiser each, with its own moments and step count: the
    moments of B say nothing about A.  What travels in all turns (a head) has a moment in each of
    them, made from that turn's rounds, and one value.  After re-factoring (FedSVD) moments are
    turned into the new coordinates (``turned_moments``).

    Everything here is computed from opened sums: post-processing, which costs no privacy.

    Args:
        parts: the adapter; the model holds the server's values after each call.
        make: an optimiser for float32[d] starting values.
    """

    def __init__(
        self, parts: AdapterParts, make: Callable[[NDArray[np.float32]], ServerOptimizer]
    ) -> None:
        self._parts = parts
        self._values = parts.served()
        shapes = {name: tuple(value.shape) for name, value in self._values.items()}
        self._all = AdapterLayout(shapes)
        self._optimizers = [make(self._flat(layout)) for layout in parts.layouts]

    def _flat(self, layout: AdapterLayout) -> NDArray[np.float32]:
        return layout.flatten({name: self._values[name] for name in layout.names})

    def step(
        self,
        number: int,
        gradient: NDArray[np.float64],
        *,
        still: NDArray[np.bool_] | None = None,
    ) -> int:
        """Move against a round's mean gradient (or minus its mean delta).

        Args:
            number: the round, >= 1.
            gradient: float64[dimension]; what lies in the padding is noise, and left out.
            still: bool[dimension]: coordinates that no sum of this round holds, which stay where
                they are (``ServerOptimizer.step``).

        Returns:
            How many values of the adapter may have changed: what clients are sent.
        """
        self._parts.begin(number)
        layout, optimizer = self._parts.layout, self._optimizers[self._parts.turn]
        optimizer.restore(optimizer.state() | {"parameters": torch.from_numpy(self._flat(layout))})
        self._values |= layout.unflatten(optimizer.step(gradient, still=still))
        changed = set(layout.names)
        if self._parts.mode.refactored:
            fresh = refactored(self._values)
            self._values |= fresh.tensors
            changed |= set(fresh.tensors)
            state = optimizer.state()
            for key, value in state.items():
                if key.startswith(_OPTIMIZER) and value.numel() == layout.size:
                    parts = layout.unflatten(value.numpy())
                    turned = turned_moments(key.removeprefix(_OPTIMIZER), parts, fresh.turns)
                    state[key] = torch.from_numpy(layout.flatten(turned))
            optimizer.restore(state)
        self._parts.load_served(self._values)
        return sum(self._values[name].numel() for name in changed)

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors that :meth:`restore` takes; no pickled objects."""
        found = {"parameters": torch.from_numpy(self._all.flatten(self._values))}
        for turn, optimizer in enumerate(self._optimizers):
            for key, value in optimizer.state().items():
                if key.startswith(_OPTIMIZER):
                    found[_prefix(turn) + key] = value
        return found

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take back what :meth:`state` gave, and put it into the model.

        Raises:
            ConfigError: the parameters have another length.
        """
        found = tensors["parameters"].numpy()
        if found.shape != (self._all.size,):
            raise ConfigError(
                f"checkpoint of {found.shape} parameters: this run has ({self._all.size},)"
            )
        self._values = self._all.unflatten(found)
        for turn, optimizer in enumerate(self._optimizers):
            start = _prefix(turn) + _OPTIMIZER
            own = {
                _OPTIMIZER + key.removeprefix(start): value
                for key, value in tensors.items()
                if key.startswith(start)
            }
            flat = torch.from_numpy(self._flat(self._parts.layouts[turn]))
            optimizer.restore({"parameters": flat} | own)
        self._parts.load_served(self._values)


def _prefix(turn: int) -> str:
    return f"turn-{turn}." if turn else ""
