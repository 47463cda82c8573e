"""Row spaces of gradients, their ranks above the noise, and who lies in them.

The gradient of a linear layer is G = sum_t delta_t x_t^T over the places t of all texts, x_t in
R^d its input and delta_t its output's gradient.  With an adapter W + s B A, A in R^(r x d):

    full        dW = G               rows in span{x_t}
    A travels   dA = s B^T G         rows in span{x_t}; exactly 0 while B = 0
    B travels   dB = s G A^T         rows in span{A x_t}, a subspace of R^r
    R travels   dR = s B^T G A^T     likewise (Fed-SB)

Layers that share an input (query, key, value) are stacked: together their rows span min(b, sum of
ranks) dimensions, b being how many different inputs there are.  Local steps of SGD with frozen
embeddings add such gradients, which keeps the span.

**The caveat of the key.**  Softmax does not change if all its scores do, so without rotary
positions sum_t delta_t = 0 for the key layer: its rows lie in the span of differences x_t - x_u, of
dimension b - 1, and no x_t lies in it.  One known input (the first special token's) mends that.
With rotary positions the sum that vanishes is of rotated gradients, and there is no caveat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.attacks.base import AdversaryView, PublicKnowledge

RANK_MARGIN = 1.2
"""A singular value counts above this many times the largest that noise alone would have."""

FOREIGN = 2.0
"""From how many times the longest possible length on a reading is no sum of contributions."""

_FLOAT32 = 3e-7  # relative error of a gradient computed in float32, against its Frobenius norm
_DISTINCT = 0.02  # sine from which on a known input is taken for a direction of its own
_LEAST = 1e-30


@dataclass(frozen=True, eq=False)
class RowSpace:
    """The row space of a matrix, as far as it stands out of the noise.

    Attributes:
        basis: float64[dim, rank], orthonormal.
        tilt: float64[rank]: by about how much noise turns each basis vector, as a sine.
        values: float64[k], all singular values, falling.
        noise: std of the noise in one entry.
        rows: how many rows the matrix has.
    """

    basis: torch.Tensor
    tilt: torch.Tensor
    values: torch.Tensor
    noise: float
    rows: int

    @property
    def rank(self) -> int:
        """Dimensions above the noise."""
        return self.basis.shape[1]

    @property
    def dimension(self) -> int:
        """Of the space that the rows are in."""
        return self.basis.shape[0]

    @property
    def saturated(self) -> bool:
        """Whether it has as many dimensions as it can have, so that there may be more inputs."""
        return self.rank >= min(self.rows, self.dimension)

    @property
    def full(self) -> bool:
        """Whether it is the whole space, in which every vector lies."""
        return self.rank >= self.dimension

    def energy(self) -> torch.Tensor:
        """float64[dim, rank]: the basis times its singular values."""
        return self.basis * self.values[: self.rank]

    def with_known(self, vectors: torch.Tensor) -> RowSpace:
        """The space together with vectors [dim, k] that are known to belong to it."""
        extra = torch.linalg.qr(vectors - self.basis @ (self.basis.T @ vectors))
        # What lies in the space already adds no direction.
        keep = extra.R.diagonal().abs() > _DISTINCT * vectors.norm(dim=0)
        added = extra.Q[:, keep]
        return RowSpace(
            torch.cat([self.basis, added], dim=1),
            torch.cat([self.tilt, self.tilt.new_zeros(added.shape[1])]),
            self.values,
            self.noise,
            self.rows + added.shape[1],
        )

    def residual(self, vectors: torch.Tensor) -> torch.Tensor:
        """Sine of the angle to the space: float[n] of float[n, dim]."""
        return self.judged(vectors)[0]

    def judged(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sine of the angle to the space, and what it would be by noise alone within it.

        Args:
            vectors: float[n, dim].

        Returns:
            float[n] twice.
        """
        basis = self.basis.to(vectors.dtype)
        projected = vectors @ basis
        inside = projected.square()
        size = torch.linalg.vector_norm(vectors, dim=-1).square_().clamp(min=_LEAST)
        expected = ((inside @ self.tilt.square().to(vectors.dtype)) / size).sqrt()
        if vectors.dtype == torch.float64:
            outside = (vectors - projected @ basis.T).square().sum(dim=-1)
        else:
            outside = (size - inside.sum(dim=-1)).clamp(min=0.0)
        return (outside / size).sqrt(), expected


def row_space(matrices: Sequence[torch.Tensor], noise: float) -> RowSpace:
    """The common row space of matrices with the same number of columns.

    Noise of std sigma in each entry of an m x n matrix has a largest singular value of about
    sigma (sqrt(m) + sqrt(n)); the rank is the number of singular values above
    :data:`RANK_MARGIN` times that.

    Args:
        matrices: float[m_i, dim] each.
        noise: sigma >= 0, of quantisation and privacy noise; float32's own error is added.

    Source: Davidson and Szarek 2001 for the largest singular value.
    """
    stacked = torch.cat([matrix.double() for matrix in matrices])
    rows, columns = stacked.shape
    rounding = _FLOAT32 * float(stacked.norm()) / math.sqrt(rows * columns)
    sigma = math.hypot(noise, rounding)
    _, values, right = torch.linalg.svd(stacked, full_matrices=False)
    edge = RANK_MARGIN * sigma * (math.sqrt(rows) + math.sqrt(columns))
    rank = int((values > edge).sum())
    kept = values[:rank]
    tilt = (sigma * math.sqrt(columns) / kept).clamp(max=1.0)
    return RowSpace(right[:rank].T.contiguous(), tilt, values, sigma, rows)


def excess(reading: NDArray[np.float64], contributions: int, public: PublicKnowledge) -> float:
    """Length of a reading, over the longest that a sum of so many honest contributions has.

    A contribution is clipped and rounded, and its noise is Gaussian or close to it: of std sigma in
    p values it is longer than sigma (sqrt(p) + 7) with probability below 1e-10.  A value that is
    uniform on the ring, as masks and ciphertexts make it, is of the ring's size, which has room for
    sum and noise: over all p values it is then many times too long, however it was planned.

    Args:
        reading: float64[d] of one round.
        contributions: how many clients are inside.
        public: the round.
    """
    plan = public.session.plan
    each = plan.clip_units * plan.max_examples + math.sqrt(plan.padded)
    noise = math.sqrt(contributions * plan.local_std**2 + plan.server_std**2)
    longest = contributions * each + noise * (math.sqrt(plan.padded) + 7.0)
    return float(np.linalg.norm(reading)) / (plan.resolution * longest)


def entry_noise(view: AdversaryView, public: PublicKnowledge) -> float:
    """Std of the noise in one value of the view's reading, from what is public.

    Stochastic rounding of a value with remainder f has variance f (1 - f), a sixth of a squared
    grid step in the mean over f, a client; noise is that of the plan; a float32 parameter moves in
    steps of its own.
    """
    plan, count = public.session.plan, view.contributions
    grid = count / 6.0 + count * plan.local_std**2 + plan.server_std**2
    parameters = dict(public.model.named_parameters(remove_duplicate=False))
    largest = max(float(parameters[name].detach().abs().max()) for name in public.layout.names)
    step = largest * float(np.finfo(np.float32).eps) / math.sqrt(12.0)
    return math.hypot(plan.resolution * math.sqrt(grid), step * math.sqrt(count))
