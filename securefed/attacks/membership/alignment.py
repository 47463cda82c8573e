"""Does what is seen point the way a record's own gradient does?"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from securefed.attacks.membership.base import NO_SIGNAL, MembershipGuess, MembershipQuestion
from securefed.attacks.membership.seen import change
from securefed.errors import ConfigError


@dataclass(frozen=True)
class GradientAlignment:
    """Cosine between what is seen and minus a record's gradient at the adapter of the beginning.

    With ``whitened`` both are first multiplied by the inverse root of

        S = lambda I + (1 / p) sum_z g_z g_z^T

    over gradients g_z of the attacker's own records: directions in which all records move the
    adapter alike say little about one of them.  That is the likelihood ratio of a sum of many
    Gaussian gradients, with or without one more.

    Args:
        whitened: whether the attacker's own records are used so.
        ridge: lambda over the mean of S's other eigenvalues, > 0.

    Raises:
        ConfigError: ``ridge`` is not > 0.

    Source: Nasr et al. 2023, "Tight Auditing of Differentially Private Machine Learning"
    (2302.07956), section 4, for the inner product with a gradient; Ngo et al. 2024, "Secure
    Aggregation is Not Private Against Membership Inference Attacks" (2403.17775), for the
    likelihood ratio of a sum.
    """

    whitened: bool = False
    ridge: float = 0.1

    def __post_init__(self) -> None:
        if not self.ridge > 0.0:
            raise ConfigError(f"ridge = {self.ridge}; it must be > 0")

    @property
    def name(self) -> str:
        """``alignment`` or ``alignment-whitened``."""
        return "alignment-whitened" if self.whitened else "alignment"

    def run(self, question: MembershipQuestion, *, generator: torch.Generator) -> MembershipGuess:
        """As :class:`~securefed.attacks.membership.base.MembershipAttack`; nothing is random."""
        if not question.moved:
            return MembershipGuess.void(question, NO_SIGNAL)
        gradients = question.records.gradients
        sizes = np.linalg.norm(gradients.astype(np.float64), axis=1)
        if not sizes.any():
            return MembershipGuess.void(question, "every candidate's gradient is zero")
        seen = change(question.view, question.public)
        if self.whitened:
            if len(question.records.population) == 0:
                return MembershipGuess.void(question, "no records of the attacker's own")
            others = question.records.population_gradients.astype(np.float64)
            along = gradients @ _solved(others, seen, self.ridge)
            sizes = _lengths(others, gradients.astype(np.float64), self.ridge)
        else:
            along = gradients @ seen
            sizes = sizes * float(np.linalg.norm(seen))
        scores = np.divide(-along, sizes, out=np.zeros_like(along), where=sizes > 0.0)
        return MembershipGuess(scores, figures=MappingProxyType({"spread": float(np.std(scores))}))


def _parts(others: NDArray[np.float64], ridge: float) -> tuple[NDArray[np.float64], float]:
    """Inverse of lambda p I + G G^T, float64[p, p], and lambda, for G = others, float64[p, d]."""
    count = len(others)
    gram = others @ others.T
    scale = ridge * float(np.trace(gram)) / count**2 or 1.0  # eigenvalues of S: those of gram / p
    inverse = np.linalg.inv(gram + scale * count * np.eye(count)).astype(np.float64)
    return inverse, scale


def _solved(
    others: NDArray[np.float64], vector: NDArray[np.float64], ridge: float
) -> NDArray[np.float64]:
    """S^-1 v, float64[d], by Woodbury's identity."""
    inverse, scale = _parts(others, ridge)
    found: NDArray[np.float64] = (vector - others.T @ (inverse @ (others @ vector))) / scale
    return found


def _lengths(
    others: NDArray[np.float64], rows: NDArray[np.float64], ridge: float
) -> NDArray[np.float64]:
    """(g^T S^-1 g)^(1/2) of each row g, float64[n]."""
    inverse, scale = _parts(others, ridge)
    along = rows @ others.T
    squared = (np.square(rows).sum(axis=1) - ((along @ inverse) * along).sum(axis=1)) / scale
    found: NDArray[np.float64] = np.sqrt(np.maximum(squared, 0.0))
    return found
