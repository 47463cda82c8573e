"""The span test: which tokens' inputs lie in the row space of an update.

Source: Petrov et al. 2024, "DAGER: Exact Gradient Inversion for Large Language Models"
(2405.15586), for the test of full gradients and of A; the test through a frozen A, the stacking of
layers, the known tokens and the tolerance are this module's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from securefed.attacks.inversion.algebra import RowSpace, row_space
from securefed.attacks.inversion.inputs import Observed

TOLERANCE = 2e-3
"""Sine of the angle to the span that float32 allows by itself."""
SLACK = 1.25
"""How many times what noise explains is allowed beside that.

The noise outside of the span is a vector of d - rank values, whose length differs from what is
expected by a few per cent; 2 in its place let three times as many tokens through that lie close.
"""

_BENT = 2.0  # the same for one direction of the span, of which the weakest are bent the most
_EXACT = 1e-5  # the same as TOLERANCE, where the residual is computed in float64


class Seen(NamedTuple):
    """A row space of inputs as they are seen through a lift, if any; whether of a query layer."""

    lift: torch.Tensor | None
    space: RowSpace
    query: bool = False


@dataclass(frozen=True, eq=False)
class Spans:
    """What the updates of one block's attention say about its inputs.

    Attributes:
        whole: row space in R^d of all matrices that see inputs as they are; None if there is none,
            or it is zero or all of R^d.
        lifted: with its lift, the row space of each matrix that sees them through a frozen A, where
            that is not the whole of R^r; without a lift, the row space of a further round.
        capacity: most different inputs that the test can tell from any others.
        silent: factors whose update is zero.
        ranks: of each matrix through a lift, and of all others together.
    """

    whole: RowSpace | None
    lifted: list[Seen]
    capacity: int
    silent: frozenset[str] = field(default_factory=frozenset)
    ranks: tuple[int, ...] = ()

    @classmethod
    def of(cls, matrices: Sequence[Observed], noise: float, *, moving: bool) -> Spans:
        """From the updates of one block.

        Args:
            matrices: of the block.
            noise: std in one entry.
            moving: whether A has moved between local steps, so that B's update mixes several lifts;
                it is then left out.
        """
        direct = [each for each in matrices if each.lift is None]
        whole = row_space([each.rows for each in direct], noise) if direct else None
        silent = {"A"} if whole is not None and whole.rank == 0 else set()
        lifted: list[Seen] = []
        ranks: list[int] = []
        if whole is not None:
            ranks.append(whole.rank)
            if whole.rank == 0 or whole.full:
                whole = None
        for each in matrices:
            if each.lift is None or moving:
                continue
            space = row_space([each.rows], noise)
            ranks.append(space.rank)
            if space.rank == 0:
                silent.add("B")
            elif not space.full:
                lifted.append(Seen(each.lift, space, each.query))
        capacity = 0 if whole is None else min(whole.rows, whole.dimension - 1)
        capacity = max([capacity, *(each.space.dimension - 1 for each in lifted)])
        return cls(whole, lifted, capacity, frozenset(silent), tuple(ranks))

    @classmethod
    def meet(cls, rounds: Sequence[Spans]) -> Spans:
        """What lies in the spans of all rounds that say anything: texts that come back."""
        (first, *others) = rounds
        direct = [each.whole for each in rounds if each.whole is not None]
        lifted = [pair for each in rounds for pair in each.lifted]
        return cls(
            direct[0] if direct else None,
            [*(Seen(None, space) for space in direct[1:]), *lifted],
            min([first.capacity, *(each.capacity for each in others)]),
            first.silent.intersection(*(each.silent for each in others)),
            first.ranks,
        )

    @property
    def void(self) -> bool:
        """Whether there is nothing that a token could fail."""
        return self.whole is None and not self.lifted

    @property
    def rank(self) -> int:
        """Dimensions of the largest space."""
        own = [] if self.whole is None else [self.whole.rank]
        return max([0, *own, *(each.space.rank for each in self.lifted)])

    @property
    def _spaces(self) -> list[tuple[torch.Tensor | None, RowSpace]]:
        own = [] if self.whole is None else [(None, self.whole)]
        return [*own, *((each.lift, each.space) for each in self.lifted)]

    def opening(self) -> Spans:
        """What the first token of a decoder's text must fit.

        It attends to itself alone, whatever its query: no gradient of a query reaches its input.
        """
        return replace(self, lifted=[each for each in self.lifted if not each.query])

    def with_known(self, inputs: torch.Tensor) -> Spans:
        """The same, knowing inputs float32[k, d] of tokens that are surely there."""
        known = inputs.double()
        whole = None if self.whole is None else self.whole.with_known(known.T)
        lifted: list[Seen] = []
        for lift, space, query in self.lifted:
            seen = known if lift is None else known @ lift.double().T
            extended = space.with_known(seen.T)
            if not extended.full:
                lifted.append(Seen(lift, extended, query))
        if whole is not None and whole.full:
            whole = None
        return Spans(whole, lifted, self.capacity, self.silent, self.ranks)

    def misfit(self, inputs: torch.Tensor) -> torch.Tensor:
        """How far inputs are from what the updates allow, 1 being just acceptable: float[n].

        Args:
            inputs: float[n, d].
        """
        worst = torch.zeros(len(inputs), dtype=inputs.dtype)
        for lift, space in self._spaces:
            seen = inputs if lift is None else inputs @ lift.to(inputs.dtype).T
            floor = _EXACT if inputs.dtype == torch.float64 else TOLERANCE
            sine, by_noise = space.judged(seen)
            worst = torch.maximum(worst, sine / (SLACK * by_noise + floor))
        return worst

    def sine(self, inputs: torch.Tensor) -> torch.Tensor:
        """The largest sine of an angle to a span: float[n]."""
        worst = torch.zeros(len(inputs), dtype=inputs.dtype)
        for lift, space in self._spaces:
            seen = inputs if lift is None else inputs @ lift.to(inputs.dtype).T
            worst = torch.maximum(worst, space.residual(seen))
        return worst

    def accept(self, inputs: torch.Tensor) -> torch.Tensor:
        """int64[k]: which of inputs float32[n, d] lie in every span.

        A first look in float32; those that pass it are looked at again in float64.
        """
        near = torch.nonzero(self.misfit(inputs) <= 1.0)[:, 0]
        if len(near) == 0:
            return near
        return near[self.misfit(inputs[near].double()) <= 1.0]

    def unexplained(self, inputs: torch.Tensor) -> float:
        """How much of a direction of a span, a sine, the inputs float32[k, d] leave unexplained.

        What noise explains is taken off: 0 where the inputs account for the updates entirely.
        """
        worst = 0.0
        for lift, space in self._spaces:
            seen = inputs.double() if lift is None else inputs.double() @ lift.double().T
            basis = torch.linalg.qr(seen.T).Q
            left = space.basis - basis @ (basis.T @ space.basis)
            excess = left.norm(dim=0) - _BENT * space.tilt
            worst = max(worst, float(excess.max()))
        return max(worst, 0.0)
