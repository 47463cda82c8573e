"""The order in which an adapter's parameters become one flat vector."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.errors import ConfigError


class AdapterLayout:
    """Names and shapes of the parameters that travel, by name, and the flat vector they form.

    Every member of a cohort must hold the same layout, or the sum adds unlike coordinates; the
    fingerprint goes into what a round's members sign.

    Args:
        shapes: parameter name to shape; at least one parameter, every dimension >= 1.
        size: length of the vector, >= that of the parameters: zeros follow them.  Rounds in which
            different parameters travel so have vectors of one length, and one plan.

    Attributes:
        names: the parameter names in the order of the vector.
        shapes: name to shape, in that order; read-only.
        used: how many values the parameters have.
        size: d, the length of the vector; ``used`` without padding.

    Raises:
        ConfigError: there is no parameter, one of them has a dimension below 1, or ``size`` is too
            small.

    Guarantees:
        - ``unflatten(flatten(p))`` gives back every float32 value bit for bit.
        - The order does not depend on the order of the mapping that was given.

    Example:
        >>> layout = AdapterLayout({"b": (1,), "a": (2, 2)})
        >>> layout.names, layout.size
        (('a', 'b'), 5)
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], *, size: int | None = None) -> None:
        if not shapes:
            raise ConfigError("layout: no parameter travels; at least one is needed")
        ordered: dict[str, tuple[int, ...]] = {}
        for name in sorted(shapes):
            shape = tuple(int(side) for side in shapes[name])
            if any(side < 1 for side in shape):
                raise ConfigError(f"layout: {name} has shape {shape}; every dimension must be >= 1")
            ordered[name] = shape
        self.names: tuple[str, ...] = tuple(ordered)
        self.shapes: Mapping[str, tuple[int, ...]] = MappingProxyType(ordered)
        self.used = sum(math.prod(shape) for shape in ordered.values())
        self.size = self.used if size is None else size
        if self.size < self.used:
            raise ConfigError(
                f"layout: size = {self.size}; its parameters have {self.used} values, and it must "
                "not be less"
            )

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over the names and shapes in order, and padding if any."""
        listing: list[list[object]] = [[name, list(shape)] for name, shape in self.shapes.items()]
        if self.size > self.used:
            listing.append(["padding", self.size - self.used])
        text = json.dumps(["securefed adapter layout 1", listing], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def flatten(self, tensors: Mapping[str, torch.Tensor]) -> NDArray[np.float32]:
        """Join named tensors into one vector.

        Args:
            tensors: exactly the names of this layout, each of its shape, finite.

        Returns:
            float32[d], a fresh array.

        Raises:
            ConfigError: a name is missing or unknown, a shape differs, or a value is NaN or
                infinite; the message names the parameter and shows no value.
        """
        missing = [name for name in self.names if name not in tensors]
        unknown = sorted(set(tensors) - set(self.names))
        if missing or unknown:
            raise ConfigError(
                f"layout: parameters missing: {missing or 'none'}, unknown: {unknown or 'none'}"
            )
        vector = np.zeros(self.size, dtype=np.float32)
        start = 0
        for name, shape in self.shapes.items():
            tensor = tensors[name].detach()
            if tuple(tensor.shape) != shape:
                raise ConfigError(
                    f"layout: {name} has shape {tuple(tensor.shape)}; it must be {shape}"
                )
            stop = start + math.prod(shape)
            vector[start:stop] = tensor.to("cpu", torch.float32).reshape(-1).numpy()
            start = stop
        self._check_finite(vector)
        return vector

    def unflatten(self, vector: NDArray[np.floating]) -> dict[str, torch.Tensor]:
        """Cut a vector into named tensors.

        Args:
            vector: float[d], finite as float32; what lies in the padding is left out.

        Returns:
            Name to float32 tensor on the CPU, sharing no memory with ``vector``.

        Raises:
            ConfigError: the vector is not one-dimensional of length d, or a value is NaN or
                infinite; the message names the parameter and shows no value.
        """
        if vector.shape != (self.size,):
            raise ConfigError(
                f"adapter vector: shape {vector.shape}; this layout needs ({self.size},)"
            )
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, refused below
            exact = np.array(vector[: self.used], dtype=np.float32)
        self._check_finite(exact)
        tensors: dict[str, torch.Tensor] = {}
        start = 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            tensors[name] = torch.from_numpy(exact[start:stop].reshape(shape).copy())
            start = stop
        return tensors

    def _check_finite(self, vector: NDArray[np.float32]) -> None:
        wrong = np.flatnonzero(~np.isfinite(vector))
        if wrong.size == 0:
            return
        start = 0
        for name, shape in self.shapes.items():
            start += math.prod(shape)
            if wrong[0] < start:
                raise ConfigError(f"adapter: {name} holds NaN or infinity; values must be finite")
