"""Epsilon by accountants that share nothing with the one that stated it but the event on record.

A statement can be wrong in two ways: larger than need be, which costs nobody their privacy, and
smaller than the truth.  So the truth is bounded from both sides, from a :class:`Release` alone:

- **from below** by the privacy loss distribution of ``dp_accounting`` in its *optimistic* estimate,
  round by round: no accountant can truly state less for the ideal mechanism at this delta, so a
  smaller statement is false;
- **from above** by its Renyi accountant, a different method altogether (moments instead of a
  distribution), with the same additions to delta.

What this cannot show: that the event on record is what the parties did.  That rests on the code,
and on the figures in the ledger from which ``verify`` makes the event again.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import RdpAccountant

from securefed.errors import UnsupportedEvent
from securefed.privacy.additions import with_additions
from securefed.privacy.releases import Release

_SLACK = 1.0 - 1e-9  # rounding of float64 in the last digits of the lower bound
_FINEST, _COARSEST = 1e-5, 1e-3
_LOST = 0.02  # of epsilon, by rounding losses down, over all rounds
_INTEGERS = (*range(2, 65), 72, 80, 96, 128, 192, 256, 384, 512, 1024)
_FRACTIONS = tuple(1 + k / 10 for k in range(1, 100) if k % 10)


@dataclass(frozen=True)
class SecondOpinion:
    """What other accountants say of a release.

    Attributes:
        lower: the least epsilon that could truly be stated; ``math.inf`` where nothing holds.
        upper: what the Renyi accountant states.
    """

    lower: float
    upper: float

    def refutes(self, epsilon: float) -> bool:
        """Whether a stated epsilon is smaller than the truth."""
        return epsilon < self.lower * _SLACK


def second_opinion(release: Release) -> SecondOpinion | None:
    """Epsilon of a release by two more accountants; None where no other accountant has its event.

    Raises:
        UnsupportedEvent: the event is of a shape that no release of this package has.
    """
    if isinstance(release.event, dp_event.UnsupportedDpEvent):
        return None
    if isinstance(release.event, dp_event.NonPrivateDpEvent):
        return SecondOpinion(math.inf, math.inf)
    if isinstance(release.event, dp_event.NoOpDpEvent):
        return SecondOpinion(0.0, 0.0)
    z, q, count = _shape(release.event)
    rounds = max(release.rounds, 1)
    upper = with_additions(
        lambda share: _renyi(z, q, count, share),
        per_round=release.distance / rounds,
        rounds=rounds,
        delta=release.delta,
    )
    return SecondOpinion(lower=_optimistic(z, q, count, release.delta), upper=upper)


def _shape(event: dp_event.DpEvent) -> tuple[float, float, int]:
    """Noise multiplier, sampling probability and number of (sampled) Gaussian mechanisms."""
    count, q = 1, 1.0
    if isinstance(event, dp_event.SelfComposedDpEvent):
        count, event = event.count, event.event
    if isinstance(event, dp_event.PoissonSampledDpEvent):
        q, event = event.sampling_probability, event.event
    if not isinstance(event, dp_event.GaussianDpEvent):
        raise UnsupportedEvent(f"event: {type(event).__name__} stands where a Gaussian must")
    return event.noise_multiplier, q, count


@functools.lru_cache(maxsize=64)
def _optimistic(z: float, q: float, count: int, delta: float) -> float:
    # A wide loss (mu^2 / 2 + 10 mu either way) is cut into a bounded number of steps; a coarser
    # step rounds further down and stays a lower bound.
    mu = 1.0 / z
    step = max(_FINEST, min(_COARSEST, _LOST / count), (mu**2 / 2 + 10 * mu) / 1e5)
    one = pld.from_gaussian_mechanism(
        standard_deviation=z,
        pessimistic_estimate=False,
        value_discretization_interval=step,
        sampling_prob=q,
        use_connect_dots=False,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )
    composed = one if count == 1 else one.self_compose(count)
    return max(0.0, float(composed.get_epsilon_for_delta(delta)))


@functools.lru_cache(maxsize=64)
def _renyi(z: float, q: float, count: int, delta: float) -> float:
    event: dp_event.DpEvent = dp_event.GaussianDpEvent(z)
    if q < 1.0:
        event = dp_event.PoissonSampledDpEvent(q, event)
    # With sampling the library's series for fractional orders need not converge: integers alone.
    orders = _INTEGERS if q < 1.0 else (*_INTEGERS, *_FRACTIONS)
    accountant = RdpAccountant(sorted(orders), NeighboringRelation.ADD_OR_REMOVE_ONE)
    return float(accountant.compose(event, count).get_epsilon(delta))
