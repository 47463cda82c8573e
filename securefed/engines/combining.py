"""What a client's change of the adapter becomes before the clip, and a sum after it is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.config import TrainingSection
from securefed.encoding.sparsification import KeptCoordinates, kept_dimension
from securefed.engines.client_state import ClientState
from securefed.errors import ConfigError
from securefed.privacy.clipping import L2Clip

_CONTROL, _RESIDUAL = "control", "residual"


class Combining:
    """The vector of a round, by the run file: weighed, with a control behind it, or sparse.

    **Weights.**  A whole client's vector is multiplied by w_i (``client_weights``) before the clip.

    **Sparsification.**  Of a vector the coordinates that the round keeps are passed on to the clip
    (:mod:`securefed.encoding.sparsification`).  With error feedback a client adds to its next
    update what was not kept; what the clip takes off is not fed back, or a client beyond the clip
    would push against it for ever.

    **Controls** (SCAFFOLD).  A client takes K SGD steps of size eta along g - c_i + c, where c_i is
    its own control and c the server's.  Let D be the change of its adapter.  Its new control is
    c_i+ = c_i - c - D / (K eta), the mean of its gradients on the way, and it passes on

        w_i [ D ; lambda K eta c_i+ ]        (2 d values, lambda = ``control_weight``)

    as *one* vector, clipped to C, noised and summed as one: no second sum, no second epsilon.  The
    factor K eta gives both halves the same unit, so lambda alone says how much of C the control may
    use and, the noise being the same in all coordinates, its noise is 1 / lambda of the update's.
    Clipping couples them: if the pair is cut by s, the client keeps s c_i+ as its control, since
    that is what the sum holds of it; else c would differ from the mean of the c_i, and every later
    update would be off by the difference.  The server moves c by (W_S / W) (mean - c), W_S of W
    being the survivors' share of all weights.

    The controls themselves are summed, where the paper sums their changes.  Without noise and with
    everyone in the sum c is the same; with noise each round's c carries that of its own sum, where
    changes would add it up over all rounds: a random walk between c and the mean of the c_i.

    Args:
        training: of the run file.
        seed: public, of the kept coordinates.
        dimension: d, the number of travelling parameters.

    Source: Karimireddy et al. 2020, "SCAFFOLD" (1910.06378), Algorithm 1 with option II.
    """

    def __init__(self, training: TrainingSection, *, seed: int, dimension: int) -> None:
        self._seed, self._dimension = seed, dimension
        self._fraction = training.keep_fraction or 1.0
        self._feeds_back = training.error_feedback
        self._lambda = training.control_weight
        # Whether a step moves what the round did not keep.
        self._remembers = training.server_optimizer != "sgd" or training.server_momentum > 0.0
        self._travel = training.local_steps * training.local_learning_rate  # K eta
        self._control = np.zeros(dimension)
        kept = {_CONTROL: self._lambda is not None, _RESIDUAL: self._feeds_back}
        self.state = ClientState({name: dimension for name, given in kept.items() if given})

    @property
    def length(self) -> int:
        """How many values are clipped, noised and sent in a round."""
        if self._lambda is not None:
            return 2 * self._dimension
        return kept_dimension(self._dimension, self._fraction)

    def cut_to(self, number: int) -> NDArray[np.int64] | None:
        """The coordinates that round ``number`` keeps; None without sparsification."""
        return None if self._fraction == 1.0 else self._kept(number).indices

    def _kept(self, number: int) -> KeptCoordinates:
        return KeptCoordinates(self._dimension, self._fraction, seed=self._seed, round=number)

    # -- at a client -----------------------------------------------------------------------

    def correction(self, client: str) -> NDArray[np.float64] | None:
        """What is added to the gradient of each of the client's steps: c - c_i, or nothing."""
        if self._lambda is None:
            return None
        return self._control - self.state.of(client, _CONTROL)

    def vector(
        self,
        client: str,
        delta: NDArray[np.floating],
        *,
        weight: float,
        clip_norm: float,
        number: int,
    ) -> NDArray[np.float64]:
        """What one client passes on to the clip; what it will keep is noted.

        Run by: client.

        Args:
            client: its name.
            delta: float[d], the change of its adapter, finite.
            weight: w_i in (0, 1].
            clip_norm: C of the round, > 0.
            number: the round, >= 1.

        Returns:
            float64[length].
        """
        change = delta.astype(np.float64)  # what float32 holds may not fit it over a small K eta
        weighed = weight * change
        if self._lambda is not None:
            scale = weight * self._lambda * self._travel
            fresh = self.state.of(client, _CONTROL) - self._control - change / self._travel
            pair = np.concatenate([weighed, scale * fresh])
            summed = L2Clip(clip_norm).clip(pair)[self._dimension :]
            self.state.note(client, {_CONTROL: summed / scale})
            return pair
        kept = self._kept(number)
        if self._feeds_back:
            weighed += self.state.of(client, _RESIDUAL)
            left = weighed.copy()
            left[kept.indices] = 0.0
            self.state.note(client, {_RESIDUAL: left})
        return kept.select(weighed)

    # -- at the server ---------------------------------------------------------------------

    def opened(
        self, gradient: NDArray[np.float64], *, number: int, share: float
    ) -> NDArray[np.float64]:
        """From what a round's sum says to what the server's optimiser descends.

        Run by: server.  Post-processing of the opened sum.

        Args:
            gradient: float64[length]: minus the weighted mean of the vectors, or a mean gradient.
            number: the round, >= 1.
            share: W_S / W in (0, 1].

        Returns:
            float64[d].
        """
        if self._lambda is None:
            return self._kept(number).expand(gradient)
        mean = gradient[self._dimension :] / (-self._lambda * self._travel)
        self._control += share * (mean - self._control)
        return gradient[: self._dimension]

    def values_down(self, changed: int) -> int:
        """How many values clients are sent after a round.

        Args:
            changed: most values of the adapter that the server's step may have changed.  One
                without moments changes no coordinate that the round did not keep.
        """
        if self._lambda is not None:
            return changed + self._dimension
        return changed if self._remembers else min(changed, self.length)

    def fingerprint(self) -> bytes:
        """SHA-256 of what clients are sent besides the adapter: c; nothing without controls."""
        if self._lambda is None:
            return b""
        return hashlib.sha256(self._control.tobytes()).digest()

    def server_state(self) -> dict[str, torch.Tensor]:
        """Tensors that :meth:`restore` takes."""
        if self._lambda is None:
            return {}
        return {_CONTROL: torch.from_numpy(self._control.copy())}

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take back what :meth:`server_state` gave.

        Raises:
            ConfigError: it is missing, or of another length.
        """
        if self._lambda is None:
            return
        found = tensors.get(_CONTROL)
        if found is None or found.shape != (self._dimension,) or found.dtype != torch.float64:
            raise ConfigError(f"{_CONTROL}: must be float64[{self._dimension}]")
        if not bool(torch.isfinite(found).all()):
            raise ConfigError(f"{_CONTROL}: must be finite")
        self._control = found.numpy().copy()
