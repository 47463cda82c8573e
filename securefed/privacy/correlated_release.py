"""Correlated noise as a trusted server adds it, and what a whole run of it costs.

The server holds the integer sums of the last b - 1 rounds, without noise, in memory.  In each round
it draws z_t from a discrete Gaussian and computes, in integers and with c_i in units of 2^-f,

    2^f y_t = sum_i (2^f c_i) x_{t-i} + z_t,       x^_t = y_t - sum_{i>=1} c_i x^_{t-i}.

Only x^_t leaves.  It is computed from y_1..y_t alone, so floating point there is post-processing.

Privacy.  Let two data sets differ in one unit, and both runs use the same coins for rounding.
Given all releases before it, round t is an integer query with discrete Gaussian noise whose answer
the unit changes by d_t = 2^f sum_i c_i D_{t-i}.  The next model, and with it the next D_t, may
depend on the releases; but whatever they were, sum_t |d_t|^2 <= S^2 with S from
:meth:`~securefed.privacy.correlated.BandedToeplitz.sensitivity`, unless a rounding exceeds its
bound (probability beta a participation).  Gaussian mechanisms chosen adaptively whose squared
sensitivities are so bounded satisfy what a single one of sensitivity S does.  The additions to
delta for rounding and for the shape of the noise are those of independent noise
(:mod:`securefed.privacy.distance`), round by round.

Sums are taken modulo 2^bits, and x_t is the folded representative
(:func:`~securefed.encoding.fixed_point.fold_ring`), which a unit moves by no more than D_t even if
another client sends values outside its range.

Source: Denisov et al. 2022, "Improved Differential Privacy for SGD via Optimal Private Linear
Operators on Adaptive Streams" (2202.08312), for adaptive streams under a lower-triangular matrix;
Smith and Thakurta 2022, "Fully Adaptive Composition for Gaussian Differential Privacy"
(2210.17520).
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.prg import NoiseGenerator, SecretHolder
from securefed.encoding.fixed_point import fold_ring
from securefed.errors import ConfigError, LocalProtocolError
from securefed.privacy.additions import with_additions
from securefed.privacy.arguments import check_accounting
from securefed.privacy.correlated import COEFFICIENT_BITS, BandedToeplitz
from securefed.privacy.distance import hellinger_bound
from securefed.privacy.mechanisms import RoundPlan
from securefed.privacy.pld import gaussian_epsilon
from securefed.privacy.wide import WIDE_DISTANCE, WideDiscreteGaussian

_SCALE = 1 << COEFFICIENT_BITS
_STD_SLACK = 1.0 - 2.0**-40  # far more than floats lose between the plan and the sampler


class CorrelatedRelease(SecretHolder):
    """A trusted server's memory of one run: takes each round's sum, gives what may leave.

    Run by: server, one object for one run, at most once for each round in turn.

    Args:
        strategy: the matrix.
        plan: scale, ring and ``server_std`` of every round of the run; sums on another grid would
            not be those that the noise is correlated for.
        generator: cryptographic source of the noise.

    Raises:
        ConfigError: the plan's ``server_std`` is outside the sampler's range.

    Guarantees:
        - What it returned over the first T rounds satisfies :func:`correlated_epsilon` of T.  A
          round without a sum counts as a sum of zeros: otherwise later rounds would move up, and
          two participations of a unit come closer than the schedule says.
        - Exact integers until the noise is in: |x| <= 2^30 times at most 1024 coefficients of at
          most 2^16, and noise below 2^50, add up to less than 2^57.
        - The sums that it remembers are neither pickled nor copied.  A run that lost them cannot go
          on: with others in their place C would be another matrix.
    """

    def __init__(
        self,
        strategy: BandedToeplitz,
        plan: RoundPlan,
        *,
        generator: NoiseGenerator | None = None,
    ) -> None:
        self.strategy, self.plan = strategy, plan
        self._generator = NoiseGenerator() if generator is None else generator
        self._noise = WideDiscreteGaussian(plan.server_std * _SCALE)
        self._sums: deque[NDArray[np.int32]] = deque(maxlen=strategy.bands - 1)
        self._released: deque[NDArray[np.float64]] = deque(maxlen=strategy.bands - 1)
        self._rounds = 0
        self._interrupted = False

    def release(self, total: NDArray[np.uint32], *, round: int) -> NDArray[np.float64]:
        """The estimate x^_t of this round's sum.

        Args:
            total: uint32[plan.padded], the ring sum, without noise.
            round: t >= 1, later than every round before.

        Returns:
            float64[plan.padded], in grid units.

        Raises:
            ConfigError: another length or dtype, or a round that is over; nothing was drawn or
                remembered.
            LocalProtocolError: an earlier release was interrupted.
        """
        if self._interrupted:
            # Its sum may be missing from those that are remembered, which would move the others.
            raise LocalProtocolError(
                "release: an earlier one was interrupted, so the noise of later rounds could not "
                "be correlated as the guarantee says; begin another run"
            )
        if total.shape != (self.plan.padded,):
            raise ConfigError(f"sum of shape {total.shape}: must be {(self.plan.padded,)}")
        if round <= self._rounds:
            raise ConfigError(
                f"round = {round}: must be > {self._rounds}; of each round one release is made"
            )
        new = fold_ring(total, self.plan.bits)
        while self._rounds < round - 1:
            self._next(np.zeros_like(new))
        return self._next(new)

    def _next(self, new: NDArray[np.int64]) -> NDArray[np.float64]:
        self._interrupted = True
        self._rounds += 1
        exact = new * _SCALE
        for numerator, earlier in zip(self.strategy.numerators[1:], self._sums, strict=False):
            exact += numerator * earlier.astype(np.int64)
        exact += self._noise.sample(self.plan.padded, self._generator)
        estimate = exact.astype(np.float64) / _SCALE
        for coefficient, earlier_estimate in zip(
            self.strategy.coefficients[1:], self._released, strict=False
        ):
            estimate -= coefficient * earlier_estimate
        self._sums.appendleft(new.astype(np.int32))
        self._released.appendleft(estimate)
        self._interrupted = False
        return estimate.copy()


def correlated_epsilon(
    plan: RoundPlan, strategy: BandedToeplitz, *, rounds: int, delta: float
) -> float:
    """Epsilon of the first ``rounds`` releases together, by the module's argument.

    Args:
        plan: the round's scale, ``server_std`` and sensitivity.
        strategy: the matrix and the schedule.
        rounds: T >= 0.
        delta: total, in (0, 1).

    Returns:
        An upper bound; ``math.inf`` where the additions to delta use up half of it or more.

    Raises:
        ConfigError: an argument is outside that.
        UnsupportedEvent: the noise is too coarse for this accounting.

    Guarantees:
        - It does not fall as ``rounds`` rise.  A participation whose c_i are not all released yet
          counts with those that are.
    """
    check_accounting(rounds=rounds, delta=delta)
    if rounds == 0:
        return 0.0
    effective, eta = correlated_gaussian(plan, strategy, rounds=rounds)
    return with_additions(
        lambda share: gaussian_epsilon(effective, 1.0, 1, share),
        per_round=eta,
        rounds=rounds,
        delta=delta,
    )


def correlated_gaussian(
    plan: RoundPlan, strategy: BandedToeplitz, *, rounds: int
) -> tuple[float, float]:
    """The one Gaussian mechanism that the first ``rounds`` releases are close to, and how close.

    Args:
        plan: the round's scale, ``server_std`` and sensitivity.
        strategy: the matrix and the schedule.
        rounds: T >= 1.

    Returns:
        Noise std / L2 sensitivity of all rounds together, and what each round adds to delta.
    """
    std = plan.server_std * _SCALE * _STD_SLACK
    eta = math.sqrt(2.0 * plan.padded) * hellinger_bound(std) + plan.padded * WIDE_DISTANCE
    # Sheppard's correction, as for independent noise.
    effective = math.sqrt(std**2 - 1.0 / 12.0) / (
        plan.sensitivity * _SCALE * strategy.sensitivity(rounds)
    )
    return effective, eta + plan.rounding_failure
