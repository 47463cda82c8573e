"""Lower bounds on epsilon, from what an adversary scores canaries that are in or out.

Each canary is in a release or not, and the adversary gives it a number, its *score*, that should
be larger where it is in.  If the mechanism is (epsilon, delta)-differentially private, scores of
the two kinds cannot be told apart too well; how well they were told apart therefore bounds epsilon
from below, at a confidence.  Only such bounds are judged: an estimate without an interval exceeds
the true epsilon about every second time.

===================  =========================================================================
method               what it assumes beside independent scores
===================  =========================================================================
``gaussian``         scores are normal with one variance, in and out: right for Gaussian noise
                     and a linear score; the sharpest
``gaussian_counts``  the mechanism's trade-off curve is that of a Gaussian
``clopper_pearson``  nothing; at most about log of the number of scores
``one_run``          nothing, not even independent scores, but that a fair coin, tossed for each
                     canary by itself, decided whether it is in
===================  =========================================================================

Scores of canaries at right angles in one release are independent as far as its noise is alike in
all directions; those of different releases always are.  Write a for 1 - confidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
from dp_accounting import get_epsilon_gaussian
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

from securefed.errors import ConfigError

Method = Literal["gaussian", "gaussian_counts", "clopper_pearson", "one_run"]
METHODS: tuple[Method, ...] = get_args(Method)

Scores = NDArray[np.float64]
Counts = NDArray[np.int64] | int

_SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)
"""Shares of all canaries that ``one_run`` guesses; each is one look."""
_FAR = 1e4


@dataclass(frozen=True, kw_only=True)
class LowerBound:
    """What one method says of epsilon.

    Attributes:
        method: one of ``METHODS``.
        epsilon: the lower bound, >= 0; ``math.inf`` where scores of one kind do not differ at all.
        delta: that goes with it.
        confidence: that epsilon is at least that, of this method by itself.
        estimate: the most likely epsilon, where the method has one.  It is no bound: never compare
            it with one.
        mu: lower bound on the Gaussian mechanism's sensitivity over noise std; None where the
            method does not speak of it.
    """

    method: Method
    epsilon: float
    delta: float
    confidence: float
    estimate: float | None = None
    mu: float | None = None

    def to_record(self) -> dict[str, Any]:
        """JSON types only; an infinite value becomes the string ``"unbounded"``."""
        return {
            key: "unbounded" if isinstance(value, float) and math.isinf(value) else value
            for key, value in vars(self).items()
        }


def lower_bound(
    method: Method, inside: Scores, outside: Scores, *, delta: float, confidence: float, seed: int
) -> LowerBound:
    """Bound epsilon from below by one method.

    Args:
        method: one of ``METHODS``.
        inside: float64[n], scores of canaries that are in; n >= 4.
        outside: float64[m], scores of those that are not; m >= 4.
        delta: in (0, 1).
        confidence: in (0.5, 1).
        seed: of the split into halves, where the method needs one.

    Raises:
        ConfigError: an argument is outside that.
    """
    for name, scores in (("inside", inside), ("outside", outside)):
        if scores.ndim != 1 or len(scores) < 4 or not np.isfinite(scores).all():
            raise ConfigError(f"{name}: {list(scores.shape)} scores; at least 4, all finite")
    if not 0.0 < delta < 1.0:
        raise ConfigError(f"delta = {delta}: must be in (0, 1)")
    if not 0.5 < confidence < 1.0:
        raise ConfigError(f"confidence = {confidence}: must be in (0.5, 1)")
    estimate = mu = None
    if method == "gaussian":
        likely, mu = gaussian_mu(inside, outside, confidence)
        epsilon, estimate = epsilon_of_mu(mu, delta), epsilon_of_mu(likely, delta)
    elif method == "gaussian_counts":
        mu = _with_threshold(inside, outside, seed, partial(mu_of_counts, confidence=confidence))
        epsilon = epsilon_of_mu(mu, delta)
    elif method == "clopper_pearson":
        epsilon = _with_threshold(
            inside,
            outside,
            seed,
            partial(epsilon_of_counts, delta=delta, confidence=confidence),
        )
    elif method == "one_run":
        epsilon = _one_run(inside, outside, delta, confidence)
    else:
        raise ConfigError(f"method = {method!r}; allowed: {', '.join(map(repr, METHODS))}")
    return LowerBound(
        method=method,
        epsilon=epsilon,
        delta=delta,
        confidence=confidence,
        estimate=estimate,
        mu=mu,
    )


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Epsilon of a mu-Gaussian-differentially private mechanism at ``delta``; 0 for mu <= 0.

    Source: Dong, Roth and Su 2022, "Gaussian Differential Privacy", Corollary 2.13 (that of Balle
    and Wang 2018, Theorem 8).
    """
    if mu <= 0.0:
        return 0.0
    return math.inf if math.isinf(mu) else float(get_epsilon_gaussian(1.0 / mu, delta))


def gaussian_mu(inside: Scores, outside: Scores, confidence: float) -> tuple[float, float]:
    """The distance of two normal samples in standard deviations: estimate and lower bound.

    With X_i ~ N(u + mu s, s^2) inside, Y_j ~ N(u, s^2) outside and S the pooled standard deviation,
    T = (mean X - mean Y) / (S sqrt(1/n + 1/m)) is noncentral t with n + m - 2 degrees of freedom
    and noncentrality mu / sqrt(1/n + 1/m).  The bound is the mu at which T is exceeded with
    probability a: exact, no large sample is assumed.

    Returns:
        (mean X - mean Y) / S, and the lower bound; both infinite where S is 0 and the means differ.

    Source: that canaries' dot products with a release are normal, and how far the two kinds lie
    apart gives epsilon: Andrew et al. 2024, "One-shot Empirical Privacy Estimation for Federated
    Learning" (2302.03098), sections 3 and 4, there with an estimate in place of a bound.  The
    bound: Johnson and Welch 1940, "Applications of the non-central t-distribution".
    """
    n, m = len(inside), len(outside)
    gap = float(inside.mean() - outside.mean())
    spread = float(((inside - inside.mean()) ** 2).sum() + ((outside - outside.mean()) ** 2).sum())
    if spread == 0.0:
        return (math.copysign(math.inf, gap),) * 2 if gap else (0.0, 0.0)
    freedom, width = n + m - 2, math.sqrt(1.0 / n + 1.0 / m)
    likely = gap / math.sqrt(spread / freedom)
    seen = likely / width

    def exceeded(noncentrality: float) -> float:
        return float(stats.nct.sf(seen, freedom, noncentrality)) - (1.0 - confidence)

    if seen > _FAR:  # there S alone matters, and the series for the noncentral t do not converge
        return likely, likely * math.sqrt(stats.chi2.ppf(1.0 - confidence, freedom) / freedom)
    # T lies within a few of its own standard deviations, which are at most these, of its centre.
    reach = 12.0 * (1.0 + abs(seen) / math.sqrt(freedom))
    if exceeded(0.0) >= 0.0:
        return likely, 0.0
    return likely, float(brentq(exceeded, max(0.0, seen - reach), seen)) * width


def _proportions(
    caught: Counts, inside: Counts, false: Counts, outside: Counts, confidence: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact one-sided bounds of two proportions, p from below and q from above, each at a / 2."""
    failure = (1.0 - confidence) / 2.0
    low = stats.beta.ppf(failure, caught, np.subtract(inside, caught) + 1)
    high = stats.beta.isf(failure, np.add(false, 1), np.subtract(outside, false))
    return np.where(np.equal(caught, 0), 0.0, low), np.where(np.equal(false, outside), 1.0, high)


def epsilon_of_counts(
    caught: Counts,
    inside: Counts,
    false: Counts,
    outside: Counts,
    *,
    delta: float,
    confidence: float,
) -> NDArray[np.float64]:
    """Epsilon from how often one fixed test says "in"; of several tests, each by itself.

    The test catches a canary that is in with probability p, and is wrong on one that is not with
    probability q; p <= e^epsilon q + delta, so epsilon >= log((p - delta) / q), with p bounded from
    below and q from above, each at a / 2.

    Args:
        caught: of the canaries inside, how many the test says are in.
        inside: how many there are, >= 1.
        false: of those outside, how many it says so of.
        outside: how many there are, >= 1.
        delta: in (0, 1).
        confidence: in (0.5, 1).

    Source: Jagielski, Ullman and Oprea 2020, "Auditing Differentially Private Machine Learning"
    (2006.07709), what it calls statistical auditing; the interval of Clopper and Pearson 1934.
    """
    p, q = _proportions(caught, inside, false, outside, confidence)
    with np.errstate(divide="ignore"):
        return np.asarray(np.maximum(0.0, np.log(np.maximum(0.0, p - delta)) - np.log(q)))


def mu_of_counts(
    caught: Counts, inside: Counts, false: Counts, outside: Counts, *, confidence: float
) -> NDArray[np.float64]:
    """Mu from how often one fixed test says "in"; arguments as of ``epsilon_of_counts``.

    Under mu-Gaussian differential privacy p <= Phi(mu + Phi^-1(q)) for each test.

    Source: Nasr et al. 2023, "Tight Auditing of Differentially Private Machine Learning"
    (2302.07956), its audit of f-differential privacy; Dong, Roth and Su 2022, equation 6.
    """
    p, q = _proportions(caught, inside, false, outside, confidence)
    void = (p == 0.0) | (q == 1.0)
    found = np.where(void, 0.0, stats.norm.ppf(p) - stats.norm.ppf(q))
    return np.asarray(np.maximum(0.0, found))


def epsilon_of_guesses(
    right: int, guesses: int, canaries: int, delta: float, confidence: float
) -> float:
    """Epsilon from how many guesses about fair coins were right.

    Of m canaries, each in by a fair coin of its own, k are guessed and the rest left out; which k
    may depend on the release.  With W binomial (k, e^epsilon / (1 + e^epsilon)), v of them are
    right with probability at most P(W >= v) + 2 m delta max_i P(v > W >= v - i) / i.  The bound is
    the epsilon for which this is a.

    Args:
        right: v.
        guesses: k.
        canaries: m.
        delta: in (0, 1).
        confidence: in (0.5, 1).

    Source: Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run"
    (2305.08846), Theorem 5.2.
    """
    steps = np.arange(1, right + 1)

    def exceeded(epsilon: float) -> float:
        share = 1.0 / (1.0 + math.exp(-epsilon))
        at_least = float(stats.binom.sf(right - 1, guesses, share))
        short = stats.binom.sf(right - steps - 1, guesses, share) - at_least
        failed = at_least + 2.0 * canaries * delta * float(np.max(short / steps, initial=0.0))
        return failed - (1.0 - confidence)

    if exceeded(0.0) >= 0.0:
        return 0.0
    high = 1.0
    while exceeded(high) < 0.0:
        high *= 2.0
    return float(brentq(exceeded, high / 2.0 if high > 1.0 else 0.0, high))


def _with_threshold(
    inside: Scores, outside: Scores, seed: int, value: Callable[..., NDArray[np.float64]]
) -> float:
    """``value`` of counts on one half, at the threshold that is best on the other half.

    The other half also says which of "in from it on" and "out below it" is tested, and neither
    choice has seen the half that counts.
    """
    rng = np.random.default_rng([seed, 2])
    halves = [np.array_split(rng.permutation(scores), 2) for scores in (inside, outside)]
    (chosen_in, held_in), (chosen_out, held_out) = halves
    thresholds = np.union1d(chosen_in, chosen_out)
    found = [value(*_counts(chosen_in, chosen_out, thresholds, above)) for above in (True, False)]
    above = bool(found[0].max() >= found[1].max())
    best = thresholds[[int(found[0 if above else 1].argmax())]]
    return float(value(*_counts(held_in, held_out, best, above))[0])


def _counts(
    inside: Scores, outside: Scores, thresholds: Scores, above: bool
) -> tuple[Counts, int, Counts, int]:
    """Of which tests: scores from the threshold on are "in", or those below it are "out"."""
    below_in = np.searchsorted(np.sort(inside), thresholds)
    below_out = np.searchsorted(np.sort(outside), thresholds)
    n, m = len(inside), len(outside)
    if above:
        return n - below_in, n, m - below_out, m
    return below_out, m, below_in, n


def _one_run(inside: Scores, outside: Scores, delta: float, confidence: float) -> float:
    """The best of a few shares of canaries guessed, corrected for how many were looked at.

    Half of the guesses are "in", for the highest scores; half "out", for the lowest.
    """
    scores = np.concatenate([inside, outside])
    order = np.argsort(scores, kind="stable")
    is_in = order < len(inside)
    m, each = len(scores), 1.0 - (1.0 - confidence) / len(_SHARES)
    found = []
    for share in _SHARES:
        side = max(1, int(share * m / 2.0))
        right = int(is_in[-side:].sum()) + int((~is_in[:side]).sum())
        found.append(epsilon_of_guesses(right, 2 * side, m, delta, each))
    return max(found)
