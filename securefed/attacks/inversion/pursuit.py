"""Sparse decoding: texts of more tokens than the update has dimensions.

Let S be the row space, of dimension R < b, of combinations of b unknown inputs, one of the
dictionary at each place.  No input lies in S, but S lies in the span of all b.  Three steps find
them:

1. *Rank-aware pursuit.*  With a set T of inputs taken for right, an input x fits by
   |U^T x|^2 / |x - P_T x|^2, U an orthonormal basis of S without span(T).  The best one is added.
   Once b - R right ones are in T, all others fit exactly: span(S, T) is then the whole span.
2. *Local search.*  Tokens and places are exchanged as long as log det of what S has outside of
   span(T) falls.  In a right T every direction of S vanishes; the determinant rewards each one that
   does, where its trace would weigh only the largest.
3. *Completion.*  Some places are left out and the whole vocabulary is looked through for what then
   fits there; what fits best joins the tokens that step 2 chooses from.

The answer checks itself: S lies in the span of a right T up to noise, and in that of no other.

Where inputs do not depend on places, a place is just a number of the text's different tokens.

Source: Davies and Eldar 2012, "Rank Awareness in Joint Sparse Recovery" (1004.4529), for step 1 and
why it ends; Kim, Lee and Ye 2012 for completing a partial support by the subspace.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from securefed.attacks.inversion.algebra import RowSpace

Dictionary = Callable[[int, torch.Tensor | None], torch.Tensor]
"""Inputs float32[n, d] at a place, for tokens int64[n] or for the whole vocabulary."""

SOLVED = 1.2
"""``Decoded.left`` below which nothing is left.  Noise alone gives log 2."""

_MOVES_AT_ONCE = 4096
_JITTER = 1e-12  # against nearly equal inputs; the result is judged without it
_SWEEPS = 40


@dataclass(frozen=True)
class Decoded:
    """A token at each place.

    Attributes:
        tokens: by place.
        left: what of S they do not explain: mean over its directions of log(eigenvalue / noise),
            about 0 where nothing is left.
        solved: whether nothing is.
        evaluations: how many sets were tried.
    """

    tokens: dict[int, int]
    left: float
    solved: bool
    evaluations: int


def fits(space: RowSpace, chosen: Sequence[torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """How well further inputs fit, 1 being exactly: float[...] of float32[..., d].

    Args:
        space: S.
        chosen: inputs float32[d] that are taken for right.
    """
    basis, taken = space.basis, len(chosen)
    if taken:
        own = torch.linalg.qr(torch.stack(list(chosen)).double().T).Q
        basis = torch.cat([own, torch.linalg.qr(basis - own @ (own.T @ basis)).Q], dim=1)
    single = basis.float()

    def fit(given: torch.Tensor) -> torch.Tensor:
        inside = (given @ single).square_()
        size = torch.linalg.vector_norm(given, dim=-1).square_()
        outside = size - inside[..., :taken].sum(dim=-1)
        found: torch.Tensor = inside[..., taken:].sum(dim=-1) / outside.clamp(min=1e-6)
        return found

    return fit


class Pursuit:
    """Looks for the tokens at ``places``.

    Args:
        space: S.
        dictionary: inputs by place.
        places: all places of the text.
        known: tokens that are surely there, by place.
        shortlist: int64[k], tokens to begin with (:func:`fits` of the vocabulary).
        deadline: on ``time.monotonic``'s clock.
        generator: of restarts.
        barred: tokens that are not looked for.
    """

    def __init__(
        self,
        space: RowSpace,
        dictionary: Dictionary,
        places: Sequence[int],
        known: Mapping[int, int],
        shortlist: torch.Tensor,
        *,
        deadline: float,
        generator: torch.Generator,
        barred: Sequence[int] = (),
    ) -> None:
        self._space, self._dictionary = space, dictionary
        self._places, self._known = list(places), dict(known)
        self._free = [place for place in self._places if place not in self._known]
        self._deadline, self._generator = deadline, generator
        self._barred = torch.tensor(list(barred), dtype=torch.int64)
        self._energy = space.energy()
        self._floor = space.noise**2 * (space.dimension - len(self._places))
        self._evaluations = 0
        self._tokens = torch.empty(0, dtype=torch.int64)
        self._extend(shortlist)

    @property
    def _late(self) -> bool:
        return time.monotonic() >= self._deadline

    def run(self, *, restarts: int = 2, begin: Mapping[int, int] | None = None) -> Decoded:
        """The best set of listed tokens found before the deadline.

        Args:
            restarts: how often to deal places out anew.
            begin: listed tokens by place to begin with, beside those of the pursuit.
        """
        best = self._descend(self._greedy())
        if begin is not None and not best.solved:
            best = min(best, self._descend({**begin, **self._known}), key=lambda found: found.left)
        for _ in range(restarts):
            if best.solved or self._late:
                break
            best = min(best, self._descend(self._shaken(best)), key=lambda found: found.left)
        return best

    def completed(self, best: Decoded) -> Decoded:
        """The same, with tokens of the whole vocabulary that fit where some places are left out.

        Args:
            best: from :meth:`run`.
        """
        for left_out in (1, 2, 3):
            if best.solved or self._late:
                break
            self._extend(self._complete(best, left_out))
            best = min(best, self._descend(dict(best.tokens)), key=lambda found: found.left)
            best = min(best, self._descend(self._greedy()), key=lambda found: found.left)
        return best

    # -- how well an input fits ------------------------------------------------------------

    def _fits(self, chosen: Mapping[int, int]) -> Callable[[torch.Tensor], torch.Tensor]:
        """By what a further input would be judged, given those chosen."""
        own = [self._dictionary(p, torch.tensor([t]))[0] for p, t in chosen.items()]
        return fits(self._space, own)

    def _extend(self, tokens: torch.Tensor) -> None:
        known = torch.tensor(list(self._known.values()), dtype=torch.int64)
        self._tokens = torch.unique(torch.cat([self._tokens, tokens, known]))
        inputs = torch.stack([self._dictionary(p, self._tokens) for p in self._places])
        self._inputs = inputs / inputs.norm(dim=2, keepdim=True)
        flat = self._inputs.double().flatten(0, 1)
        self._gram = flat @ flat.T
        self._cross = flat @ self._energy

    # -- step 1 ----------------------------------------------------------------------------

    def _greedy(self) -> dict[int, int]:
        chosen = dict(self._known)
        while len(chosen) < len(self._places):
            scores = self._fits(chosen)(self._inputs)
            for row, place in enumerate(self._places):
                if place in chosen:
                    scores[row] = -1.0
            row, column = divmod(int(scores.argmax()), len(self._tokens))
            chosen[self._places[row]] = int(self._tokens[column])
        return chosen

    # -- step 2 ----------------------------------------------------------------------------

    def _cost(self, columns: torch.Tensor) -> torch.Tensor:
        """Log det of what is left of S: float64[n] of int64[n, places], columns of the list."""
        where = torch.arange(len(self._places)) * len(self._tokens) + columns
        gram = self._gram[where[:, :, None], where[:, None, :]]
        eye = torch.eye(gram.shape[1], dtype=gram.dtype)
        factor, failed = torch.linalg.cholesky_ex(gram + _JITTER * eye)
        solved = torch.linalg.solve_triangular(factor, self._cross[where], upper=False)
        values = self._space.values[: self._space.rank].square()
        left = torch.diag(values) - solved.transpose(1, 2) @ solved
        left[failed > 0] = 0.0
        spectrum = torch.linalg.eigvalsh(left).clamp(min=0.0) + self._floor
        self._evaluations += len(columns)
        cost: torch.Tensor = spectrum.log().mean(dim=1) - math.log(self._floor)
        return cost.masked_fill(failed > 0, math.inf)  # one input twice spans no more than once

    def _moves(self, columns: torch.Tensor) -> torch.Tensor:
        """Every assignment that differs in one token, or has two places exchanged."""
        rows = [row for row, place in enumerate(self._places) if place not in self._known]
        moves = []
        for row in rows:
            changed = columns.repeat(len(self._tokens), 1)
            changed[:, row] = torch.arange(len(self._tokens))
            moves.append(changed)
        pairs = list(itertools.combinations(rows, 2))
        if pairs:
            swapped = columns.repeat(len(pairs), 1)
            for index, (one, other) in enumerate(pairs):
                swapped[index, one], swapped[index, other] = columns[other], columns[one]
            moves.append(swapped)
        return torch.cat(moves)

    def _descend(self, tokens: Mapping[int, int]) -> Decoded:
        wanted = torch.tensor([tokens[place] for place in self._places])
        columns = torch.searchsorted(self._tokens, wanted)
        cost = float(self._cost(columns[None])[0])
        for _ in range(_SWEEPS):
            if self._late or cost < SOLVED:
                break
            moves = self._moves(columns)
            starts = range(0, len(moves), _MOVES_AT_ONCE)
            costs = torch.cat(
                [self._cost(moves[start : start + _MOVES_AT_ONCE]) for start in starts]
            )
            at = int(costs.argmin())
            if float(costs[at]) >= cost - 1e-6:
                break
            columns, cost = moves[at], float(costs[at])
        found = dict(zip(self._places, self._tokens[columns].tolist(), strict=True))
        left = self._exactly(columns)
        return Decoded(found, left, left < SOLVED, self._evaluations)

    def _exactly(self, columns: torch.Tensor) -> float:
        """The cost of one assignment, without forming the Gram matrix."""
        chosen = self._inputs[torch.arange(len(self._places)), columns].double()
        own = torch.linalg.qr(chosen.T).Q
        left = self._energy - own @ (own.T @ self._energy)
        spectrum = torch.linalg.svdvals(left).square() / self._floor + 1.0
        return float(spectrum.log().mean())

    def _shaken(self, best: Decoded) -> dict[int, int]:
        """The best set with a third of its free places dealt out anew among themselves."""
        count = max(2, len(self._free) // 3)
        order = torch.randperm(len(self._free), generator=self._generator)[:count].tolist()
        places = [self._free[index] for index in order]
        turned = places[1:] + places[:1]
        moved = {to: best.tokens[come] for to, come in zip(places, turned, strict=True)}
        return best.tokens | moved

    # -- step 3 ----------------------------------------------------------------------------

    def _complete(self, best: Decoded, left_out: int) -> torch.Tensor:
        """Tokens of the whole vocabulary that fit best where some places are left out."""
        found: list[torch.Tensor] = []
        others = list(itertools.combinations(self._free, left_out - 1))
        for place in self._free:
            inputs = self._dictionary(place, None)
            for also in others:
                if place in also or self._late:
                    continue
                kept = {p: t for p, t in best.tokens.items() if p != place and p not in also}
                scores = self._fits(kept)(inputs)
                scores[self._barred] = 0.0
                top = scores.topk(2)
                found.append(top.indices[top.values > 0.98])
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)
