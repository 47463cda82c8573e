"""How likely inputs make an update that is noised: sparse Bayesian learning.

Row r of one matrix's update is y_r = sum_t c_rt x_t + e_r over places t, with e_r ~ N(0, sigma^2 I)
and coefficients c_rt ~ N(0, gamma_t): rows are N(0, C), C = sigma^2 I + sum_t gamma_t x_t x_t^T.
With C taken without place t, s = x^T C^-1 x and q_r = y_r^T C^-1 x, the log-likelihood of R rows is
raised most by gamma = (mean_r q_r^2 - s) / s^2, where that is positive, and then by

    gain(x) = R / 2 (m - 1 - log m),   m = mean_r q_r^2 / s > 1.

No rank is decided on and no tolerance: a direction of the update counts by how far it stands out of
the noise.  At sigma = 0 the likeliest set is the one whose span holds all rows.

Source: Tipping and Faul 2003, "Fast Marginal Likelihood Maximisation for Sparse Bayesian Models",
for gain and gamma; Wipf and Rao 2007, "An Empirical Bayesian Strategy for Solving the Simultaneous
Sparse Approximation Problem", for several rows; Capon 1969 for the spectrum.
"""

from __future__ import annotations

import math

import torch

_LEAST = 1e-30
_SPECTRAL = 1e-6  # share of a vector's energy below which float32 tells nothing


class Group:
    """The update of one matrix, and the inputs that are taken for those that made it.

    Args:
        rows: float[R, dim].
        lift: float[dim, d] through which inputs are seen; None where they are seen as they are.
        noise: std of what is known to be added to a value; more is estimated.
        scale: float[dim] by which inputs are multiplied; None for 1.
        missing: bool[R, dim]: values that were not sent.
        largest: bound on the absolute value of what was not sent; infinity where there is none.
    """

    def __init__(
        self,
        rows: torch.Tensor,
        *,
        lift: torch.Tensor | None,
        noise: float,
        scale: torch.Tensor | None = None,
        missing: torch.Tensor | None = None,
        largest: float = math.inf,
    ) -> None:
        self._sent = rows.double()
        self._rows = self._sent.clone()
        self._lift, self._scale, self._missing, self._largest = lift, scale, missing, largest
        self._count, self.dimension = rows.shape
        self._floor = max(noise**2, 1e-14 * float(self._sent.square().mean()), _LEAST)
        # Half of what there is counts as noise until inputs explain more of it.
        self.variance = max(self._floor, 0.5 * float(self._sent.square().mean()))
        self._atoms: dict[int, torch.Tensor] = {}
        self._gamma: dict[int, float] = {}
        self.version = 0

    def seen(self, inputs: torch.Tensor) -> torch.Tensor:
        """float32[n, dim] of inputs float32[n, d]: as this matrix sees them, of length 1."""
        seen = inputs if self._lift is None else inputs @ self._lift.T
        if self._scale is not None:
            seen = seen * self._scale
        unit: torch.Tensor = seen / seen.norm(dim=1, keepdim=True).clamp(min=_LEAST)
        return unit

    # -- one by one ------------------------------------------------------------------------

    def spectrum(self, inputs: torch.Tensor) -> torch.Tensor:
        """Log of Capon's spectrum of inputs float32[n, d]: high for what may be in the rows.

        What has been put counts as surely there, and only what is orthogonal to it is looked at.
        """
        rows, known = self._rows, self._rows.new_zeros(self.dimension, 0)
        if self._atoms:
            known = torch.linalg.qr(torch.stack(list(self._atoms.values())).T).Q
            rows = rows - (rows @ known) @ known.T
        _, values, right = torch.linalg.svd(rows, full_matrices=False)
        energy = values.square() / self._count
        floor = max(self._floor, _SPECTRAL * float(energy.sum()))
        weights = (energy / (energy + floor)).float()
        # A scale is folded into what inputs are multiplied by: the vocabulary is not copied.
        basis = torch.cat([right.T, known], dim=1).float()
        if self._lift is not None:
            seen = inputs @ self._lift.T
            size, inside = seen.square().sum(dim=1), (seen @ basis).square()
        elif self._scale is not None:
            size = inputs.square() @ self._scale.square()
            inside = (inputs @ (self._scale[:, None] * basis)).square()
        else:
            size, inside = inputs.square().sum(dim=1), (inputs @ basis).square()
        count = len(weights)
        left = (size - inside[:, count:].sum(dim=1)).clamp(min=_LEAST)
        found: torch.Tensor = -(1.0 - (inside[:, :count] @ weights) / left).clamp(_SPECTRAL).log()
        return found

    # -- together --------------------------------------------------------------------------

    def clear(self) -> None:
        """No input, and as much noise as at first."""
        self._atoms.clear()
        self._gamma.clear()
        if self._missing is not None:
            self._rows, self.version = self._sent.clone(), self.version + 1
        self.variance = max(self._floor, 0.5 * float(self._sent.square().mean()))

    def put(self, place: int, seen: torch.Tensor) -> None:
        """Take seen float32[dim] for the input at a place, with its likeliest gamma."""
        self.drop(place)
        atom = seen.double()
        s, q = self._projected(atom[None], self.direct(atom[None]))
        mean = float(q.square().mean())
        self._atoms[place] = atom
        self._gamma[place] = max(0.0, (mean - float(s)) / float(s) ** 2)

    def drop(self, place: int) -> None:
        """Take nothing for the input at a place."""
        self._atoms.pop(place, None)
        self._gamma.pop(place, None)

    def direct(self, seen: torch.Tensor) -> torch.Tensor:
        """Products with the rows, float32[n, R] of float32[n, dim]; good for one ``version``."""
        return seen @ self._rows.T.to(seen.dtype)

    def gains(self, seen: torch.Tensor, direct: torch.Tensor) -> torch.Tensor:
        """By how much each of seen float32[n, dim] would raise the log-likelihood: float64[n]."""
        s, q = self._projected(seen, direct)
        ratio = (q.square().mean(dim=1) / s).clamp(min=1.0)
        gain: torch.Tensor = 0.5 * self._count * (ratio - 1.0 - ratio.log())
        return gain

    def _projected(
        self, seen: torch.Tensor, direct: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """S float64[n] and q float64[n, R]."""
        direct, size = direct.double(), seen.square().sum(dim=1).double()
        used = [place for place, gamma in self._gamma.items() if gamma > 0.0]
        if not used:
            return size.clamp(min=_LEAST) / self.variance, direct / self.variance
        atoms = torch.stack([self._atoms[place] for place in used])
        inverse = self._inverse(atoms, used)
        across = (seen @ atoms.T.to(seen.dtype)).double()
        weighed = across @ inverse
        s = (size - (weighed * across).sum(dim=1)).clamp(min=1e-9) / self.variance
        q = (direct - weighed @ (atoms @ self._rows.T)) / self.variance
        return s, q

    def _inverse(self, atoms: torch.Tensor, used: list[int]) -> torch.Tensor:
        gamma = torch.tensor([self._gamma[place] for place in used], dtype=torch.float64)
        inverse: torch.Tensor = torch.linalg.inv(
            atoms @ atoms.T + torch.diag(self.variance / gamma)
        )
        return inverse

    def refit(self) -> None:
        """Estimate the noise anew, and what was not sent, from the inputs taken.

        Source of the noise's estimate: MacKay 1992, by the number of well-determined coefficients.
        """
        used = [place for place, gamma in self._gamma.items() if gamma > 0.0]
        if not used:
            return
        atoms = torch.stack([self._atoms[place] for place in used])
        inverse = self._inverse(atoms, used)
        gamma = torch.tensor([self._gamma[place] for place in used], dtype=torch.float64)
        model = (self._rows @ atoms.T) @ inverse @ atoms
        determined = len(used) - float((inverse.diagonal() * self.variance / gamma).sum())
        left = self._rows - model
        if self._missing is not None:
            filled = model.clamp(-self._largest, self._largest)
            self._rows = torch.where(self._missing, filled, self._sent)
            self.version += 1
            left = (self._sent - model)[~self._missing]
        freedom = max(left.numel() * (1.0 - determined / self.dimension), 1.0)
        self.variance = max(self._floor, float(left.square().sum()) / freedom)

    def log_likelihood(self) -> float:
        """Of the rows, in nats, but for a constant."""
        eye = torch.eye(self.dimension, dtype=torch.float64)
        covariance = self.variance * eye
        for place, atom in self._atoms.items():
            covariance += self._gamma[place] * torch.outer(atom, atom)
        factor = torch.linalg.cholesky(covariance)
        solved = torch.linalg.solve_triangular(factor, self._rows.T, upper=False)
        log_det = 2.0 * float(factor.diagonal().log().sum())
        return -0.5 * (self._count * log_det + float(solved.square().sum()))
