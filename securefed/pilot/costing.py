"""What a trial costs in money, at the user's own prices."""

from __future__ import annotations

import math
from dataclasses import dataclass

from securefed.config.pilot import PriceSection
from securefed.pilot.records import Cost, Trial
from securefed.pilot.summaries import Spread, Summary, client_seconds

GIGABYTE = 10**9
HOUR = 3600.0


@dataclass(frozen=True)
class Price:
    """Money for one client and round.

    Attributes:
        traffic: for bytes sent and received by the client.
        device: for the client's CPU time.
        server: the client's share of the server's CPU time.
    """

    traffic: float
    device: float
    server: float

    @property
    def total(self) -> float:
        """All three."""
        return self.traffic + self.device + self.server


def priced(prices: PriceSection) -> bool:
    """Whether the user gave any price: without one, nothing is known of money."""
    return (prices.per_gb, prices.per_device_hour, prices.per_server_hour) != (0.0, 0.0, 0.0)


def price_of(
    prices: PriceSection,
    *,
    bytes_moved: float,
    device_seconds: float | None,
    server_seconds: float,
    clients: int,
) -> Price | None:
    """Money for one client and round: bytes / 10^9 at ``per_gb``, seconds / 3600 at the hour.

    Args:
        prices: the user's.
        bytes_moved: up and down, of a client and round.
        device_seconds: CPU seconds of a client and round; None where they are not known.
        server_seconds: CPU seconds of the server for the whole round.
        clients: who share the server's time, >= 1.

    Returns:
        None where no price was given, or where one was given for what is not known.
    """
    if not priced(prices) or (device_seconds is None and prices.per_device_hour > 0.0):
        return None
    return Price(
        traffic=bytes_moved / GIGABYTE * prices.per_gb,
        device=(device_seconds or 0.0) / HOUR * prices.per_device_hour,
        server=server_seconds / HOUR * prices.per_server_hour / clients,
    )


def trial_price(trial: Trial, prices: PriceSection) -> Price | None:
    """Money for one client and round of a finished trial."""
    if trial.cost is None or trial.clients < 1:
        return None
    return cost_price(trial.cost, prices, clients=trial.clients)


def cost_price(cost: Cost, prices: PriceSection, *, clients: int) -> Price | None:
    """Money for one client and round, of what was measured."""
    return price_of(
        prices,
        bytes_moved=cost.bytes_up + cost.bytes_down,
        device_seconds=client_seconds(cost),
        server_seconds=math.fsum(cost.server_seconds.values()),
        clients=clients,
    )


def mean_price(summary: Summary, prices: PriceSection) -> Spread | None:
    """Money for one client and round, over seeds."""
    found = (trial_price(trial, prices) for trial in summary.done)
    return Spread.of(None if price is None else price.total for price in found)


def price_per_point(summary: Summary, prices: PriceSection) -> float | None:
    """Money for the whole trial, by each hundredth of improvement that it brought.

    Example:
        10 clients, 5 rounds, 0.02 for a client and round, perplexity 20 % lower: 1.00 / 20 = 0.05.

    Returns:
        None where money is not known or nothing was gained.
    """
    each, gained = mean_price(summary, prices), summary.improvement
    if each is None or gained is None or not 0.0 < gained.mean < math.inf:
        return None
    first = summary.done[0]
    return each.mean * first.clients * first.rounds / (100.0 * gained.mean)
