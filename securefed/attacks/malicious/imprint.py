"""Tokens from rows of B that a planted model lets only few tokens move, through any sum.

The server chooses the base weights so that row j of the value layer's gradient G is delta_t x_t^T
summed over places t whose token belongs to *bin* j, and nothing else
(:mod:`~securefed.attacks.malicious.planting`).  With A frozen, row j of B's update is then
s sum_{t in bin j} delta_{t,j} (A x_t)^T.  A sum over n clients adds rows; a row in which one token
of one client stands is that token's direction A x_t in R^r, which is compared with that of each
token of the bin.  How many clients are summed matters only through bins that two tokens share.

Source: Fowl et al. 2022, "Robbing the Fed" (2110.13057), for bins that isolate inputs in a sum;
Fowl et al. 2023, "Decepticons" (2201.12675), for tokens of a Transformer; Sami et al. 2025,
"Gradient Inversion Attacks on Parameter-Efficient Fine-Tuning" (2506.04453), for a frozen base
whose blocks let embeddings through and an adapter's gradients.  That bins are of token codes in
planted embeddings, gate the value layer's gradient and are read through A, is this module's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import chi2

from securefed.attacks.base import AdversaryView, Guess, Limits, PublicKnowledge
from securefed.attacks.inversion.algebra import entry_noise
from securefed.attacks.inversion.inputs import InputReader
from securefed.errors import ConfigError

_FALSE_ROWS = 0.01  # rows of noise alone that are taken for tokens, expected in one reading
_FIT = 1e-3  # how well a fit must do where there is no noise, relative to the row
_KEPT = 0.999  # of true tokens, by their misfit
_APART = 1e-6  # squared sine from which on two directions are two


@dataclass(frozen=True, eq=False)
class Imprint:
    """What the server must remember of what it planted.

    Attributes:
        modules: by block, the end of the name of the layer whose B is read.
        rows: rows of each that are bins; bin b is row b % rows of block b // rows.
        bins: int64[vocabulary], the bin of each token; -1 for those in none.
    """

    modules: tuple[str, ...]
    rows: int
    bins: torch.Tensor

    def tokens(self, number: int) -> torch.Tensor:
        """int64[k]: the tokens of a bin."""
        return torch.nonzero(self.bins == number)[:, 0]


class ImprintReader:
    """Reads a planted model's imprint from an update, or from a sum of any number of them.

    Args:
        imprint: of the model that the clients were given.
    """

    name = "imprint"

    def __init__(self, imprint: Imprint) -> None:
        self._imprint = imprint

    def run(
        self,
        view: AdversaryView,
        public: PublicKnowledge,
        *,
        generator: torch.Generator,
        limits: Limits,
    ) -> Guess:
        """See :class:`~securefed.attacks.base.Attack`; ``generator`` is not used."""
        deadline = time.monotonic() + limits.seconds
        imprint, tensors = self._imprint, public.layout.unflatten(view.reading(public))
        updates = {
            block: tensors[name].double()[: imprint.rows]
            for block, module in enumerate(imprint.modules)
            for name in tensors
            if f"{module}.lora_B." in name
        }
        if not updates:
            return Guess(verdict="void", reason="B of the planted layers is not in the update")
        noise = entry_noise(view, public)
        found: list[int] = []
        read = 0
        for block, rows in self._hot(updates, noise).items():
            numbers = [block * imprint.rows + row for row in rows]
            tokens = torch.cat([imprint.tokens(number) for number in numbers])
            seen = _seen(public, imprint, block, tokens)
            for row, number in zip(rows, numbers, strict=True):
                if time.monotonic() >= deadline:
                    break
                own = np.flatnonzero(imprint.bins[tokens].numpy() == number)
                chosen = fitting(updates[block][row].numpy(), seen[own], noise)
                found += [int(tokens[own[at]]) for at in chosen]
                read += 1
        wanted = [token for token in found if token not in public.special_tokens]
        figures = {"rows": float(read), "noise": noise}
        return Guess(loose=tuple(wanted), reason="imprint", figures=figures)

    def _hot(self, updates: dict[int, torch.Tensor], noise: float) -> dict[int, list[int]]:
        """By block, the rows that are more than noise."""
        energy = {block: update.square().sum(dim=1) for block, update in updates.items()}
        rank = next(iter(updates.values())).shape[1]
        edge = noise**2 * chi2.isf(_FALSE_ROWS / sum(map(len, energy.values())), rank)
        # Without noise, float32 leaves a little of every other row in each.
        edge = max(edge, max(float(each.max()) for each in energy.values()) * _FIT**2)
        hot = {b: torch.nonzero(each > edge)[:, 0].tolist() for b, each in energy.items()}
        return {block: rows for block, rows in hot.items() if rows}


def _seen(
    public: PublicKnowledge, imprint: Imprint, block: int, tokens: torch.Tensor
) -> NDArray[np.float64]:
    """A x of each token, float64[k, r]; the planted A does not see places."""
    parameters = dict(public.model.named_parameters(remove_duplicate=False))
    (name,) = (n for n in parameters if f"{imprint.modules[block]}.lora_A." in n)
    stem = name[: name.index(".lora_A.")]
    first = stem.replace(imprint.modules[block], imprint.modules[0])
    reader = InputReader(public.model, {0: first, block: stem})
    where = torch.zeros(len(tokens), 1, dtype=torch.int64)
    inputs = reader.at(block, tokens[:, None], position_ids=where)[:, 0].double()
    seen: NDArray[np.float64] = (inputs @ parameters[name].detach().double().T).numpy()
    return seen


def deviations(view: AdversaryView, public: PublicKnowledge, imprint: Imprint, token: int) -> float:
    """How far the sum's row of one token stands out of the noise, in its standard deviations.

    With a planting in which this token alone is in a bin (all others ``special``), a client that
    has the token sends its whole clip in that row, and one that has not sends nothing.

    Args:
        view: of a round with the planted model.
        public: of that round.
        imprint: of the model.
        token: that is watched for.

    Raises:
        ConfigError: the token is in no bin, or B of the planted layers does not travel.
    """
    number = int(imprint.bins[token])
    block, row = divmod(number, imprint.rows)
    tensors = public.layout.unflatten(view.reading(public))
    names = [name for name in tensors if f"{imprint.modules[block]}.lora_B." in name]
    if number < 0 or not names:
        raise ConfigError(f"token = {token}: it is in no bin, or its row does not travel")
    (seen,) = _seen(public, imprint, block, torch.tensor([token]))
    found = abs(float(seen @ tensors[names[0]][row].double().numpy())) / np.linalg.norm(seen)
    return float(found) / entry_noise(view, public)


def fitting(row: NDArray[np.float64], seen: NDArray[np.float64], noise: float) -> tuple[int, ...]:
    """The fewest directions that explain a row, at most two; the best single one if none do.

    Args:
        row: float64[r].
        seen: float64[k, r].
        noise: std in one value of the row.
    """
    rank, whole = len(row), float(row @ row)
    floor = _FIT**2 * whole
    size = np.square(seen).sum(axis=1)
    along = seen @ row
    left = whole - along**2 / size
    best = int(left.argmin())
    if rank < 3 or left[best] <= max(noise**2 * chi2.ppf(_KEPT, rank - 1), floor):
        return (best,)
    # Of each pair what its span leaves, by Cramer's rule on the 2 x 2 normal equations.
    inner = seen @ seen.T
    determinant = np.outer(size, size) - inner**2
    np.fill_diagonal(determinant, 0.0)
    square = along**2
    gained = np.outer(square, size) + np.outer(size, square) - 2 * np.outer(along, along) * inner
    apart = determinant > _APART * np.outer(size, size)
    after = np.where(apart, whole - gained / np.where(apart, determinant, 1.0), np.inf)
    pair = np.unravel_index(int(after.argmin()), after.shape)
    if after[pair] <= max(noise**2 * chi2.ppf(_KEPT, rank - 2), floor):
        return int(pair[0]), int(pair[1])
    return (best,)
