"""Degree and thresholds of a pairwise round: derived, never set by hand.

Symbols: n clients invited, c = floor(gamma n) of them corrupt, f = n - floor(delta n) the survivor
floor; k the degree, h = k / 2; t the threshold of secret sharing among a client's k neighbours and
itself; w the number of witnesses beside itself and q how many signatures, its own included, a
client asks for before it reveals anything.

Complete graph (n below 200, or where the sparse one would be no smaller): k = w = n - 1 and
t = q = floor((n + c) / 2) + 1.  Two survivor lists cannot both gather q signatures, since each
would hold more than (n - c) / 2 honest ones and an honest client signs once in an attempt.

Sparse graph.  The corrupt clients are fixed before the order of the ring is known, and the order is
uniform.  Let a be the least number such that, except with probability 2^-(sigma + 1), no h
consecutive places hold more than a corrupt clients, and b the same for w + 1 places: a union bound
over n runs of the hypergeometric tail.  Then

    (S1)  t >= h + a + 2
    (S2)  2 q >= w + b + h + 2

An honest client

    (H1)  masks only if t clients hold its shares as it was told: itself, and the neighbours whose
          bundles it got;
    (H2)  signs one list, of at least f clients and itself, and none that holds a neighbour whose
          bundle it did not get;
    (H3)  reveals once, and only if q of its witnesses, itself included, signed that list: of each
          client whose shares it holds the seed's if it is listed, else the root's.

The following then holds *whatever the server does once the order is known*: it may declare dropped
whom it likes, withhold bundles, and tell every client another story.  "Reveals" is said of honest
clients only.

1. *Both kinds of share* of one client take 2 t answers.  Of its k neighbours at most 2 a are
   corrupt, and an honest holder answers once: at most (k + 1) + 2 a < 2 t.
2. *Who reveals within h places of each other reveals for one list.*  Two that reveal for different
   lists g places apart have no honest signer in common, so 2 q <= (w + 1) + g + b, and g > h by
   (S2).  Hence a client that reveals is listed by all who reveal around it: only its corrupt
   neighbours would reveal its root, at most 2 a < t, and its root is not recovered.

Let V be the honest clients that shared and whose root is not recovered, with an edge where both
ends masked with each other.  A mask that only one end put on is never removed, so the component of
*that* end stays closed.  A component is opened if the self-masks of all its members are removed.

3. *Who reveals within h places of each other is in one component*: listed together (2), each got
   the other's bundle (H2), and both masked.
4. *Around every opened u some reveal on each side, all of them in one component.*  Let the nearest
   that reveal, u apart, be d and d' places away on its two sides.  If u does not reveal and
   d + d' > h, at most h + 1 + a holders reveal a share of its seed; the same bound holds if u
   reveals and one side has nobody within h.  Both are below t.  Else 3 applies from one to the
   next.
5. *That component is u's own.*  Otherwise u does not reveal, and of those who reveal its seed it
   got no bundle, for the masks would be mutual.  They and the neighbours whose bundles it got are
   disjoint but for corrupt ones: by (H1) 2 t <= (k + 1) + 2 a, against (S1).
6. *So one sum is opened at most, of one whole list.*  By 4 and 5, applied to one after the other,
   those who reveal are within h of each other all around the ring, in the opened component, with
   one list.  Every honest client of the list has one of them within h, whose mask towards it can
   only be gone if it was mutual: the component holds all of them, at least f - c, and nobody else.

So what is opened is the sum over all honest members of one list of at least f clients, or nothing:
the same as in the complete graph, except with probability 2^-sigma, *provided the order was uniform
and independent of who is corrupt*.  Commit and reveal gives that where the server relays every
nonce.  A server that withholds nonces at will chooses among very many orders, for which no useful
bound is proven: above 200 clients the claim assumes a server that is honest at set-up, that is
until the order is known.  That includes that it shows no nonce to anyone before all are in: shown
first to c corrupt clients, who then choose which of theirs fall silent, it is worth up to c of the
sigma bits.  The probability is one of each attempt, abandoned ones included.

The argument was checked beside being written: a restatement that does without this code is tried on
small rings, where violations appear with t - 1, with q - 1 and without (H1)
(``tests/secagg/test_graph_argument.py``), and a solver that chooses for the server finds none
(``tests/fuzz/search_adversary.py``, by hand).

Completion.  With dropouts that do not depend on the order, every client keeps t holders and q
signers except with probability 2^-eta.

Sources: Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning", the part on active adversaries; Bell et al. 2020, "Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead", section on parameters.  Conditions (S1), (S2) and the argument above
are our own; the former replace the paper's condition on random dropouts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from securefed.errors import ConfigError
from securefed.privacy.policy import CohortBounds

SPARSE_FROM = 200
MAX_SPARSE_DEGREE = 4096
"""Where even this many neighbours do not suffice, the graph is complete."""
MIN_SIGMA = 40
MIN_ETA = 30
# A double holds no probability much below 2^-1022: beyond, a tail would be rounded to nothing.
MAX_EXPONENT = 512
# gammaln is good to about 1e-15 of arguments whose logarithms sum to below 1e8: an error of 1e-7.
_SLACK = 1e-6


@dataclass(frozen=True, kw_only=True)
class PairwiseParameters:
    """What every party of a round computes for itself from the cohort's size.

    Attributes:
        size: n, clients invited.
        corrupt: c, most clients that may collude with the server.
        survivor_floor: f, least survivors; clients refuse to unmask fewer.
        degree: k, neighbours of a client; n - 1 in a complete graph.
        threshold: t, shares that reconstruct a secret, of the k + 1 there are.
        witnesses: w, clients beside itself whose signatures a client may count.
        quorum: q, signatures that a client asks for, of the w + 1 there may be.
        sigma: the guarantees fail with probability at most 2^-sigma, 40..512.
        eta: an honest round with random dropouts fails with probability at most 2^-eta, 30..512.

    Guarantees:
        The conditions at the head of this module hold for every instance: weaker numbers are
        refused, however they were come by.

    Raises:
        ConfigError: names the condition that does not hold.
    """

    size: int
    corrupt: int
    survivor_floor: int
    degree: int
    threshold: int
    witnesses: int
    quorum: int
    sigma: int = MIN_SIGMA
    eta: int = MIN_ETA

    def __post_init__(self) -> None:
        for name, least in (("sigma", MIN_SIGMA), ("eta", MIN_ETA)):
            if not least <= getattr(self, name) <= MAX_EXPONENT:
                raise ConfigError(
                    f"{name} = {getattr(self, name)}: must be {least}..{MAX_EXPONENT}"
                )
        if not 0 <= self.corrupt < self.survivor_floor <= self.size:
            raise ConfigError(
                f"{self.corrupt} corrupt clients and a floor of {self.survivor_floor} of "
                f"{self.size}: must satisfy 0 <= corrupt < floor <= size"
            )
        sparse = self.degree < self.size - 1
        least_threshold, least_quorum = (
            _sparse_thresholds(self.size, self.corrupt, self.degree, self.witnesses, self.sigma)
            if sparse
            else _complete_thresholds(self.size, self.corrupt)
        )
        if sparse and (self.degree % 2 or self.degree < 2):
            raise ConfigError(
                f"degree = {self.degree}: must be even, or size - 1 = {self.size - 1}"
            )
        most = (self.degree + 1, min(self.witnesses, self.size - 1) + 1)
        for name, value, least, limit in (
            ("threshold", self.threshold, least_threshold, most[0]),
            ("quorum", self.quorum, least_quorum, most[1]),
        ):
            if not least <= value <= limit:
                raise ConfigError(
                    f"{name} = {value}: must be {least}..{limit} for {self.size} clients of degree "
                    f"{self.degree} with {self.corrupt} corrupt"
                )

    @property
    def sparse(self) -> bool:
        """Whether a client has fewer neighbours than there are clients."""
        return self.degree < self.size - 1

    @classmethod
    def of(
        cls,
        bounds: CohortBounds,
        *,
        degree: int | None = None,
        sigma: int = MIN_SIGMA,
        eta: int = MIN_ETA,
    ) -> PairwiseParameters:
        """The least degree and thresholds that keep every condition.

        Args:
            bounds: cohort size, corrupt clients and survivor floor.
            degree: a larger degree than the derived one, even or ``size - 1``.  Rounding lets some
                larger ones complete less often than the derived one; they are refused.
            sigma: security exponent, 40..512.
            eta: completion exponent, 30..512.

        Raises:
            ConfigError: corrupt and dropout fractions leave no safe threshold, or less was asked
                for than the derivation gives.
        """
        n, c, floor = bounds.size, bounds.corrupt, bounds.survivor_floor
        least = _least_degree(n, c, floor, sigma, eta) if n >= SPARSE_FROM else n - 1
        if degree is not None and not least <= degree <= n - 1:
            raise ConfigError(
                f"degree = {degree}: must be {least}..{n - 1} for {n} clients, {c} of them "
                f"corrupt, and a floor of {floor} survivors"
            )
        k = least if degree is None else degree
        completes = _least_degree(n, c, floor, sigma, eta, start=k)
        if k % 2 == 0 and k < completes:
            raise ConfigError(
                f"degree = {k}: rounding leaves too few holders to complete with {n} clients; the "
                f"next that completes is {completes}"
            )
        if k >= n - 1:
            threshold, quorum = _complete_thresholds(n, c)
            k = w = n - 1
        else:
            w = _least_witnesses(n, c, floor, k, sigma, eta)
            threshold, quorum = _sparse_thresholds(n, c, k, w, sigma)
        if max(threshold, quorum) > floor:
            raise ConfigError(
                f"{n} clients, {c} of them corrupt, and a floor of {floor} survivors: "
                f"{max(threshold, quorum)} would have to answer, more than the floor; lower "
                "corrupt_fraction or dropout_fraction (corrupt_fraction + 2 * dropout_fraction "
                "must stay below 1)"
            )
        return cls(
            size=n,
            corrupt=c,
            survivor_floor=floor,
            degree=k,
            threshold=threshold,
            witnesses=w,
            quorum=quorum,
            sigma=sigma,
            eta=eta,
        )


def _complete_thresholds(n: int, c: int) -> tuple[int, int]:
    threshold = max((n + c) // 2 + 1, 2)
    return threshold, threshold


def _sparse_thresholds(n: int, c: int, k: int, w: int, sigma: int) -> tuple[int, int]:
    """The least t and q by (S1) and (S2); where everyone is a witness, q as in a complete graph."""
    threshold = k // 2 + most_in_a_run(n, c, k // 2, sigma) + 2
    if w >= n - 1:
        return threshold, _complete_thresholds(n, c)[1]
    return threshold, -(-(w + most_in_a_run(n, c, w + 1, sigma) + k // 2 + 2) // 2)


def _least_degree(n: int, c: int, floor: int, sigma: int, eta: int, *, start: int = 2) -> int:
    """The least even k >= start with (S1) that completes; n - 1 where none is at hand."""
    for k in range(start, min(n - 1, MAX_SPARSE_DEGREE + 2), 2):
        threshold = k // 2 + most_in_a_run(n, c, k // 2, sigma) + 2
        if threshold <= least_present(n, floor, k, eta):
            return k
    return n - 1


def _least_witnesses(n: int, c: int, floor: int, k: int, sigma: int, eta: int) -> int:
    """The least even w >= k with (S2) that completes; n - 1 where none is at hand."""
    for w in range(k, min(n - 1, 4 * MAX_SPARSE_DEGREE), 2):
        if _sparse_thresholds(n, c, k, w, sigma)[1] <= least_present(n, floor, w, eta):
            return w
    return n - 1


@functools.lru_cache(maxsize=1 << 16)
def most_in_a_run(n: int, c: int, length: int, sigma: int) -> int:
    """The least a such that n Pr[Hyp(n, c, length) > a] <= 2^-(sigma + 1).

    Args:
        n: places of the ring.
        c: corrupt clients among them, placed uniformly.
        length: consecutive places looked at, 0..n.
        sigma: security exponent.

    Returns:
        What no run of ``length`` places exceeds, except with probability 2^-(sigma + 1).
    """
    upper = np.cumsum(_pmf(n, c, length)[::-1])[::-1]  # upper[a] = Pr[X >= a]
    fails = n * upper * (1.0 + _SLACK) > 2.0 ** -(sigma + 1)
    # The largest value that still has a probability above the bound is not exceeded otherwise.
    return int(np.flatnonzero(fails)[-1]) if fails.any() else 0


@functools.lru_cache(maxsize=1 << 16)
def least_present(n: int, floor: int, count: int, eta: int) -> int:
    """The greatest x such that n Pr[fewer than x of ``count`` others are there] <= 2^-(eta + 1).

    Args:
        n: clients.
        floor: how many of them are there, the rest being absent at random.
        count: clients looked at around one of them, which may itself be absent.
        eta: completion exponent.
    """
    lower = np.cumsum(_pmf(n - 1, min(floor, n - 1), count))  # lower[x] = Pr[X <= x]
    fails = n * lower * (1.0 + _SLACK) > 2.0 ** -(eta + 1)
    return int(np.flatnonzero(fails)[0])


def _pmf(population: int, marked: int, draws: int) -> NDArray[np.float64]:
    """Hypergeometric probabilities of 0..draws marked ones."""
    x = np.arange(draws + 1, dtype=np.float64)

    def log_choose(top: float, bottom: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(
            gammaln(top + 1.0) - gammaln(bottom + 1.0) - gammaln(top - bottom + 1.0),
            dtype=np.float64,
        )

    possible = (x <= marked) & (draws - x <= population - marked)
    found = np.zeros(draws + 1)
    inside = x[possible]
    found[possible] = np.exp(
        log_choose(float(marked), inside)
        + log_choose(float(population - marked), draws - inside)
        - log_choose(float(population), np.array([float(draws)]))
    )
    return found
