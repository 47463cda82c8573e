"""From a trial of few clients and rounds to the user's N clients and R rounds.

What is extrapolated, and how:

- Rounds: every round is taken to cost what the trial's cost on average.
- Bytes without masks: a client's own do not depend on how many others there are.
- Bytes with masks: those that were measured, plus what the cost model of
  :mod:`securefed.federation.costs` says a client moves more in a cohort of N than in one of n
  (keys, shares and lists of more neighbours), plus a ring of 32 bits where ``aggregation.bits`` is
  ``"auto"``: sums of more clients need more of them, and 32 is the most there is.
- Client seconds: those of training, clipping, encoding and noise stay.  Those of masking are
  multiplied by the cost model's ratio, or, where the steps were not timed on the machine, by the
  ratio of the neighbours, k(N) / k(n), and by ``MARGIN``: sharing a secret among k neighbours takes
  more than k steps.  With the steps of one machine, 10^3 to 5 10^5 values, and 10 or 40 clients
  that become 100 to 10^5, the model's ratio was 0.7 to 1.4 times that of the neighbours.
- Server seconds of a round are multiplied by N / n, with masks by the cost model's ratio or by
  N k(N) / (n k(n)).

Quality and epsilon are not projected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from securefed.config import share_of
from securefed.config.pilot import PriceSection
from securefed.encoding.rotation import padded_dimension
from securefed.encoding.wire import MAX_RING_BITS, MIN_RING_BITS
from securefed.errors import ConfigError
from securefed.federation.costs import CohortPlan, UnitCosts, message_bytes, predict
from securefed.pilot.costing import Price, price_of
from securefed.pilot.records import Cost, PilotRecord
from securefed.pilot.settings import masked, setting
from securefed.pilot.summaries import Summary, client_seconds
from securefed.pilot.words import Said
from securefed.privacy.policy import CohortBounds
from securefed.secagg.parameters import PairwiseParameters

MARGIN = 2.0

MASKING = "mask"
"""The phase of a client's work that grows with its neighbours."""


@dataclass(frozen=True, kw_only=True)
class Projection:
    """What a trial's settings would cost at another size; means over seeds.

    Attributes:
        clients, rounds: N and R.
        bytes_each: sent and received by a client in a round.
        seconds_each: CPU seconds of a client in a round; None where they are not known.
        server_seconds: CPU seconds of the server in a round.
        price_each: money for one client and round; None where it is not known.
        measured_bytes: of ``bytes_each``, what was measured in the trial.
        basis: how each figure came about.
    """

    clients: int
    rounds: int
    bytes_each: float
    seconds_each: float | None
    server_seconds: float
    price_each: Price | None
    measured_bytes: float
    basis: tuple[Said, ...]

    @property
    def bytes(self) -> float:
        """Of all clients over all rounds."""
        return self.bytes_each * self.clients * self.rounds

    @property
    def device_seconds(self) -> float | None:
        """Of one client over all rounds."""
        return None if self.seconds_each is None else self.seconds_each * self.rounds

    @property
    def money(self) -> float | None:
        """Of all clients over all rounds."""
        if self.price_each is None:
            return None
        return self.price_each.total * self.clients * self.rounds


@dataclass(frozen=True, kw_only=True)
class _Cohort(CohortPlan):
    """A round in which everybody stays, with thresholds that allow for the run's dropouts."""

    dropout: float

    @cached_property
    def parameters(self) -> PairwiseParameters:
        """Degree and thresholds, as clients of the run compute them."""
        n = self.clients
        return PairwiseParameters.of(
            CohortBounds(
                size=n,
                corrupt=share_of(self.corrupt, n),
                survivor_floor=n - share_of(self.dropout, n),
            )
        )

    @property
    def moved(self) -> float:
        """Bytes of the protocol, both ways, of a client."""
        return math.fsum(up + down for up, down in message_bytes(self).values())


@dataclass(frozen=True)
class _Growth:
    """What a larger cohort adds to, or multiplies in, a round."""

    bytes_more: float
    client_factor: float
    server_factor: float
    basis: tuple[Said, ...]


def project(
    record: PilotRecord, summary: Summary, *, clients: int, rounds: int, prices: PriceSection
) -> Projection | None:
    """What ``summary``'s settings cost with ``clients`` clients over ``rounds`` rounds.

    Returns:
        None where no seed of it finished with its costs measured, or where no masking graph of
        that many clients allows for the run's corrupt and dropped ones.
    """
    done = [trial for trial in summary.done if trial.cost is not None and trial.clients >= 2]
    if not done or summary.bytes is None:
        return None
    first = done[0]
    costs = [trial.cost for trial in done if trial.cost is not None]
    try:
        growth = _growth(record, summary, first.clients, clients, costs[0])
    except ConfigError:
        return None
    server = math.fsum(math.fsum(cost.server_seconds.values()) for cost in costs) / len(costs)
    masking = math.fsum(cost.client_seconds.get(MASKING, 0.0) for cost in costs) / len(costs)
    seconds = None
    if all(client_seconds(cost) is not None for cost in costs) and summary.client_seconds:
        seconds = summary.client_seconds.mean + masking * (growth.client_factor - 1.0)
    moved = summary.bytes.mean + growth.bytes_more
    return Projection(
        clients=clients,
        rounds=rounds,
        bytes_each=moved,
        seconds_each=seconds,
        server_seconds=server * growth.server_factor,
        price_each=price_of(
            prices,
            bytes_moved=moved,
            device_seconds=seconds,
            server_seconds=server * growth.server_factor,
            clients=clients,
        ),
        measured_bytes=summary.bytes.mean,
        basis=(
            Said("basis.measured", {"clients": first.clients, "rounds": first.rounds}),
            *((Said("basis.rounds", {"rounds": rounds}),) if rounds != first.rounds else ()),
            *growth.basis,
            Said("basis.not_projected"),
        ),
    )


def _growth(record: PilotRecord, summary: Summary, n: int, many: int, cost: Cost) -> _Growth:
    """From n clients to many; see the head of this module."""
    if many == n:
        return _Growth(0.0, 1.0, 1.0, ())
    if not masked(record, summary.varied):
        return _Growth(0.0, 1.0, many / n, (Said("basis.no_masks", {"clients": many}),))

    def get(path: str, default: Any) -> Any:
        return setting(record, summary.varied, path, default)

    def cohort(size: int) -> _Cohort:
        return _Cohort(
            clients=size,
            values=padded_dimension(cost.values),
            bits=MIN_RING_BITS,
            drop=0.0,
            corrupt=get("privacy.corrupt_fraction", 0.0),
            dropout=get("privacy.dropout_fraction", 0.0),
        )

    small, large = cohort(n), cohort(many)
    more = large.moved - small.moved
    basis = [
        Said(
            "basis.masks",
            {
                "small": n,
                "large": many,
                "neighbours": small.parameters.degree,
                "more_neighbours": large.parameters.degree,
            },
        )
    ]
    if get("aggregation.bits", "auto") == "auto" and many > n:
        more += small.values * (MAX_RING_BITS - _ring_bits(small, cost)) / 8.0
        basis.append(Said("basis.ring"))
    client, server, timed = _factors(record.units, small, large)
    basis.append(Said("basis.timed" if timed else "basis.untimed"))
    return _Growth(more, client, server, tuple(basis))


def _ring_bits(cohort: _Cohort, cost: Cost) -> float:
    """How wide the trial's ring was, from what it sent; the narrowest where that tells nothing."""
    narrowest = math.fsum(up for up, _ in message_bytes(cohort).values())
    bits = MIN_RING_BITS + 8.0 * (cost.bytes_up - narrowest) / cohort.values
    return bits if MIN_RING_BITS <= bits <= MAX_RING_BITS else MIN_RING_BITS


def _factors(
    units: Mapping[str, float], small: _Cohort, large: _Cohort
) -> tuple[float, float, bool]:
    if not units:
        more = large.parameters.degree / small.parameters.degree
        return MARGIN * more, more * large.clients / small.clients, False
    costs = UnitCosts(**units)
    before, after = predict(small, costs), predict(large, costs)
    return (
        after.client_seconds / before.client_seconds,
        after.server_seconds / before.server_seconds,
        True,
    )
