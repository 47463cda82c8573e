"""One model's adapter through the rounds of a run: what travels now, and as which vector."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from securefed.lora.layout import AdapterLayout
from securefed.lora.sharing import divide, factor_of, sharing_mode


class AdapterParts:
    """Divides an adapter by a sharing mode, round by round.

    **One dimension for all rounds.**  Where different factors travel in turn (RoLoRA) their vectors
    have different lengths.  The shorter ones end in zeros, and every round is planned for the
    longest.  That costs bytes and nothing else: a plan's sensitivity bounds the change of *any*
    vector of its dimension that is clipped to C, and a shorter vector with zeros behind it is one
    of them, of the same norm.  So one plan, one event a round and one accounting hold for all
    rounds; what the padding carries of noise is thrown away, which is post-processing.

    Args:
        model: a PEFT model (``build_adapter``); ``requires_grad`` is set here.
        sharing: one of :data:`securefed.config.SHARING_MODES`.

    Attributes:
        mode: the sharing mode.
        dimension: length of every round's vector.
        turn: which of the mode's turns the present round is, from 0.

    Raises:
        ConfigError: the model does not fit the mode (``divide``).
    """

    def __init__(self, model: nn.Module, sharing: str) -> None:
        self._model = model
        self.mode = sharing_mode(sharing)
        rounds = range(1, len(self.mode.turns) + 1)
        shapes = [_shapes(divide(model, self.mode, number).travelling) for number in rounds]
        self.dimension = max(AdapterLayout(each).used for each in shapes)
        self.layouts = tuple(AdapterLayout(each, size=self.dimension) for each in shapes)
        served = {name for each in shapes for name in each}
        if self.mode.refactored:
            served |= {n for n, _ in model.named_parameters() if factor_of(n) in ("A", "B")}
        parameters = dict(model.named_parameters())
        self._served = {name: parameters[name] for name in sorted(served)}
        self.begin(1)

    def begin(self, number: int) -> None:
        """Let train what round ``number`` >= 1 trains, and nothing else."""
        self.turn = self.mode.turn(number)
        self._now = divide(self._model, self.mode, number)

    @property
    def layout(self) -> AdapterLayout:
        """Of what travels in the present round."""
        return self.layouts[self.turn]

    @property
    def trained(self) -> AdapterLayout:
        """Of all that a client trains in the present round: what it keeps too."""
        if not self._now.kept:
            return self.layout
        return AdapterLayout(_shapes(self._now.travelling | self._now.kept))

    @property
    def freezes_the_same_always(self) -> bool:
        """Whether what is frozen in one round is in every other, with the same values."""
        return len(self.layouts) == 1 and not self.mode.refactored

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over the mode and what travels in each of its turns."""
        listing = [self.mode.name, *(layout.fingerprint() for layout in self.layouts)]
        text = json.dumps(["securefed adapter parts 1", listing], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    # -- what travels ----------------------------------------------------------------------

    def flat(self) -> NDArray[np.float32]:
        """What travels in the present round, as float32[dimension]."""
        return self.layout.flatten({n: p.detach() for n, p in self._now.travelling.items()})

    def load_flat(self, vector: NDArray[np.floating]) -> None:
        """Put float[dimension] into the model."""
        _copy(self._now.travelling, self.layout.unflatten(vector))

    def is_finite(self) -> bool:
        """Whether all that trains in the present round is finite."""
        trained = (*self._now.travelling.values(), *self._now.kept.values())
        return all(bool(torch.isfinite(parameter).all()) for parameter in trained)

    # -- what the server changes in some round ---------------------------------------------

    def served(self) -> dict[str, torch.Tensor]:
        """Copies, in float32, of all that the server ever changes, sorted by name."""
        return _copies(self._served)

    def load_served(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what :meth:`served` gave, or a part of it."""
        _copy({name: self._served[name] for name in tensors}, tensors)

    # -- what a client keeps ---------------------------------------------------------------

    def kept(self) -> dict[str, torch.Tensor]:
        """Copies, in float32, of what one client keeps; empty where the mode has no such part."""
        return _copies(self._now.kept)

    def load_kept(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what :meth:`kept` gave."""
        _copy({name: self._now.kept[name] for name in tensors}, tensors)

    @contextmanager
    def away_from_zero(self) -> Iterator[None]:
        """Fill B for the moment with other values, so that the gradient of A is not zero."""
        zeros = {n: p for n, p in self._model.named_parameters() if factor_of(n) == "B"}
        before = _copies(zeros)
        generator = torch.Generator().manual_seed(0)
        values = {n: 0.02 * torch.randn(p.shape, generator=generator) for n, p in zeros.items()}
        _copy(zeros, values)
        try:
            yield
        finally:
            _copy(zeros, before)


def _shapes(parameters: Mapping[str, nn.Parameter]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in parameters.items()}


def _copies(parameters: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True).contiguous()
        for name, parameter in parameters.items()
    }


def _copy(parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])
