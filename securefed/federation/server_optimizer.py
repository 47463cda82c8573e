"""The server's step on the adapter, from a noised sum."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.errors import ConfigError


class ServerOptimizer:
    """``torch.optim`` on the flat vector of travelling parameters.

    Applied to a differentially private sum it is post-processing and costs no privacy.

    Args:
        initial: float32[d], the parameters' starting values.
        kind: ``"adam"`` (Reddi et al. 2021, "Adaptive Federated Optimization", FedAdam) or
            ``"sgd"`` (with learning rate 1 on mean deltas: FedAvg).
        learning_rate: > 0.
    """

    def __init__(self, initial: NDArray[np.float32], *, kind: str, learning_rate: float) -> None:
        self._flat = torch.nn.Parameter(torch.from_numpy(initial.copy()))
        if kind == "adam":
            self._optimizer: torch.optim.Optimizer = torch.optim.Adam(
                [self._flat], lr=learning_rate
            )
        elif kind == "sgd":
            self._optimizer = torch.optim.SGD([self._flat], lr=learning_rate)
        else:
            raise ConfigError(f"server_optimizer = {kind!r}: must be 'adam' or 'sgd'")

    @property
    def parameters(self) -> NDArray[np.float32]:
        """float32[d], a copy of the present values."""
        return np.array(self._flat.detach().numpy(), dtype=np.float32)

    def step(self, gradient: NDArray[np.float64]) -> NDArray[np.float32]:
        """Move against ``gradient`` (float64[d]: a mean gradient, or minus a mean delta)."""
        self._flat.grad = torch.from_numpy(gradient.astype(np.float32))
        self._optimizer.step()
        return self.parameters

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors that ``restore`` takes; no pickled objects."""
        tensors = {"parameters": self._flat.detach().clone()}
        for name, value in self._optimizer.state.get(self._flat, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{name}"] = value.detach().clone()
        return tensors

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take back what ``state`` gave.

        Raises:
            ConfigError: the parameters have another length.
        """
        if tensors["parameters"].shape != self._flat.shape:
            raise ConfigError(
                f"checkpoint of {tuple(tensors['parameters'].shape)} parameters: this run has "
                f"{tuple(self._flat.shape)}"
            )
        with torch.no_grad():
            self._flat.copy_(tensors["parameters"])
        prefix = "optimizer."
        state = {k[len(prefix) :]: v.clone() for k, v in tensors.items() if k.startswith(prefix)}
        self._optimizer.state.clear()
        if state:
            self._optimizer.state[self._flat] = state
