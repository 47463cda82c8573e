"""The server's step on the adapter, from a noised sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.config import ServerRule, TrainingSection
from securefed.errors import ConfigError

_DEFAULT_BETAS = {"adam": (0.9, 0.999), "yogi": (0.9, 0.99)}
_DEFAULT_EPSILON = {"adam": 1e-8, "yogi": 1e-3, "adagrad": 1e-3}


class Yogi(torch.optim.Optimizer):
    """Adam with a second moment that moves by a step of bounded size; torch has none.

        m_t = beta1 m_{t-1} + (1 - beta1) g_t
        v_t = v_{t-1} - (1 - beta2) sign(v_{t-1} - g_t^2) g_t^2
        x_t = x_{t-1} - lr m_t / (sqrt(v_t) + eps)

    with m_0 = 0, v_0 = eps^2 and no correction of bias.  Where Adam's v falls to a smaller g^2 in
    proportion to the gap, Yogi's falls by (1 - beta2) g^2, so a rare large gradient keeps steps
    short for longer.

    Args:
        parameters: what is trained.
        lr: > 0.
        betas: (beta1, beta2), each in [0, 1).
        eps: > 0.

    Source: Zaheer et al. 2018, "Adaptive Methods for Nonconvex Optimization", Algorithm 2; its
    start v_0 and its place at the server: Reddi et al. 2021, Algorithm 2, whose tau is ``eps``.
    """

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step from the parameters' ``grad``; a closure is not called."""
        for group in self.param_groups:
            (beta1, beta2), eps = group["betas"], group["eps"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.full_like(parameter, eps**2)
                first, second = state["exp_avg"], state["exp_avg_sq"]
                squared = gradient.square()
                first.mul_(beta1).add_(gradient, alpha=1.0 - beta1)
                second.sub_((second - squared).sign() * squared, alpha=1.0 - beta2)
                parameter.sub_(group["lr"] * first / (second.sqrt() + eps))


class ServerOptimizer:
    """An optimiser on the flat vector of travelling parameters: ``torch.optim``, or :class:`Yogi`.

    Applied to a differentially private sum it is post-processing and costs no privacy.

    Args:
        initial: float32[d], the parameters' starting values.
        kind: ``"sgd"`` (with learning rate 1 on mean deltas: FedAvg; with ``momentum``: FedAvgM),
            ``"adam"`` (FedAdam, with Adam's correction of bias), ``"yogi"`` (FedYogi) or
            ``"adagrad"`` (FedAdagrad).
        learning_rate: > 0.
        momentum: of ``"sgd"``, in [0, 1): the step is along v_t = momentum v_{t-1} + g_t.
        betas: of ``"adam"`` (default 0.9, 0.999) and ``"yogi"`` (default 0.9, 0.99), each in
            [0, 1).
        epsilon: tau > 0, added to the root of the second moment: of ``"adam"`` (default 1e-8),
            ``"yogi"`` and ``"adagrad"`` (default 1e-3; the second moment begins at its square).

    Raises:
        ConfigError: ``kind`` is none of these.

    Source: Reddi et al. 2021, "Adaptive Federated Optimization" (2003.00295), Algorithm 2; Hsu, Qi
    and Brown 2019 (1909.06335) for FedAvgM.
    """

    def __init__(
        self,
        initial: NDArray[np.float32],
        *,
        kind: str,
        learning_rate: float,
        momentum: float = 0.0,
        betas: tuple[float, float] | None = None,
        epsilon: float | None = None,
    ) -> None:
        if kind not in get_args(ServerRule):
            raise ConfigError(f"server_optimizer = {kind!r}: must be one of {get_args(ServerRule)}")
        tau = _DEFAULT_EPSILON.get(kind, 0.0) if epsilon is None else epsilon
        self._flat = torch.nn.Parameter(torch.from_numpy(initial.copy()))
        own = [self._flat]
        self._optimizer: torch.optim.Optimizer
        if kind == "sgd":
            self._optimizer = torch.optim.SGD(own, lr=learning_rate, momentum=momentum)
        elif kind == "adagrad":
            self._optimizer = torch.optim.Adagrad(
                own, lr=learning_rate, eps=tau, initial_accumulator_value=tau**2
            )
        else:
            made = torch.optim.Adam if kind == "adam" else Yogi
            chosen = _DEFAULT_BETAS[kind] if betas is None else betas
            self._optimizer = made(own, lr=learning_rate, betas=chosen, eps=tau)

    @classmethod
    def of(cls, initial: NDArray[np.float32], training: TrainingSection) -> Self:
        """The one that a run file asks for."""
        return cls(
            initial,
            kind=training.server_optimizer,
            learning_rate=training.server_learning_rate,
            momentum=training.server_momentum,
            betas=training.server_betas,
            epsilon=training.server_epsilon,
        )

    @property
    def parameters(self) -> NDArray[np.float32]:
        """float32[d], a copy of the present values."""
        return np.array(self._flat.detach().numpy(), dtype=np.float32)

    def step(
        self, gradient: NDArray[np.float64], *, still: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Move against a gradient.

        Args:
            gradient: float64[d]: a mean gradient, or minus a mean delta.
            still: bool[d]: coordinates of which nothing was heard; the gradient is 0 there.  They
                keep their value, and their moments too: momentum would move them without a sum.
                Only the count of steps, which is one for all coordinates, goes on (Adam corrects
                the bias of their moments by it, towards shorter steps).  None: all coordinates
                move.
        """
        before = self.state()
        self._flat.grad = torch.from_numpy(gradient.astype(np.float32))
        self._optimizer.step()
        if still is not None:
            # A moment that this step made first is, where the gradient is 0, as it begins.
            kept = torch.from_numpy(still)
            own = self._optimizer.state[self._flat]
            with torch.no_grad():
                self._flat[kept] = before["parameters"][kept]
                for name, value in own.items():
                    old = before.get(f"optimizer.{name}")
                    if old is not None and value.shape == self._flat.shape:
                        value[kept] = old[kept]
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
