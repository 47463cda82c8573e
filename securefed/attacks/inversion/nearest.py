"""Tokens ranked by how much of an update they could make: a guess where no test decides."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from securefed.attacks.base import Limits, PublicKnowledge
from securefed.attacks.inversion.algebra import row_space
from securefed.attacks.inversion.inputs import InputReader, Observed, around
from securefed.attacks.inversion.pursuit import fits


class Nearest:
    """Scores inputs against the updates of block 0; the larger the likelier.

    With a row space of matrices that see inputs as they are, it is the share of an input that lies
    in it (:func:`~securefed.attacks.inversion.pursuit.fits`).  Otherwise it is |M x|^2 / |x|^2, M
    being a matrix of norm 1 and x what it sees of an input, summed over matrices: every x is
    possible then, and those along which the update is large are likelier.

    Args:
        matrices: of block 0.
        noise: std in one entry.
    """

    def __init__(self, matrices: Sequence[Observed], noise: float) -> None:
        self._matrices = [each for each in matrices if each.rows.any()]
        direct = [each.rows for each in self._matrices if each.lift is None]
        space = row_space(direct, noise) if direct else None
        self._space = None if space is None or space.full or space.rank == 0 else space

    def __call__(self, inputs: torch.Tensor, given: Sequence[torch.Tensor] = ()) -> torch.Tensor:
        """float32[n] of inputs float32[n, d].

        Args:
            inputs: candidates.
            given: inputs float32[d] that are surely there.
        """
        if self._space is not None:
            return fits(self._space, given)(inputs)
        total = torch.zeros(len(inputs))
        for each in self._matrices:
            seen = inputs if each.lift is None else inputs @ each.lift.T
            own = (seen @ (each.rows / each.rows.norm()).T).square().sum(dim=1)
            total += own / torch.linalg.vector_norm(seen, dim=1).square_().clamp(min=1e-12)
        return total

    def guess(
        self, reader: InputReader, public: PublicKnowledge, limits: Limits
    ) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
        """A text made of the best token of each place; of several texts, or without places, a bag.

        Args:
            reader: of the model's inputs.
            public: of the round; ``batch_size`` says how many texts there are.
            limits: of which ``max_tokens`` counts.

        Returns:
            Texts without special tokens, and loose tokens.
        """
        barred, wanted = sorted(public.special_tokens), public.batch_size
        if not reader.absolute:
            count = wanted * (public.window_tokens or limits.max_tokens)
            return [], tuple(self._best(reader, 0, [], barred, count))
        head, tail = around(public)
        given = [reader.first([token], place)[0] for place, token in enumerate(head)]
        length = limits.max_tokens
        if tail:
            ends = range(len(head) + 1, length)
            inputs = torch.cat([reader.first(tail[:1], place) for place in ends])
            at = int(self(inputs, given).argmax())
            length, given = ends[at] + len(tail), [*given, inputs[at]]
        columns = [
            self._best(reader, place, given, barred, wanted)
            for place in range(len(head), length - len(tail))
        ]
        if wanted == 1:
            return [tuple(token for (token,) in columns)], ()
        return [], tuple(token for column in columns for token in column)

    def _best(
        self,
        reader: InputReader,
        place: int,
        given: Sequence[torch.Tensor],
        barred: Sequence[int],
        count: int,
    ) -> list[int]:
        scores = self(reader.every(place), given)
        scores[list(barred)] = -1.0
        best: list[int] = scores.topk(min(count, len(scores) - len(barred))).indices.tolist()
        return best
