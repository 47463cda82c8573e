"""Whether a figure keeps to a bound: yes, no, or not to be told from this measurement."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from securefed.evidence.results import Metric
from securefed.threats.conditions import ORDERED
from securefed.threats.model import MeasuredBound, Of

Kept = Literal["kept", "broken", "unclear"]
Interval = tuple[float, float]
PLACES: Mapping[Of, str] = {
    "point": "/value",
    "ci_lower": "/interval/0",
    "ci_upper": "/interval/1",
    "lift": "/lift",
    "lift_lower": "/lift_interval/0",
    "lift_upper": "/lift_interval/1",
}
"""JSON pointer of each figure inside a metric."""


def figure(metric: Metric, of: Of) -> tuple[float | None, Interval | None]:
    """The figure that a bound is of, and the interval that goes with it; None where there is none.

    Args:
        metric: as it was measured.
        of: ``point``, an end of its interval, ``lift``, or an end of the lift's interval.
    """
    lift = of.startswith("lift")
    interval = metric.lift_interval if lift else metric.interval
    value = metric.lift if lift else metric.value
    if of in ("ci_lower", "lift_lower"):
        value = None if interval is None else interval[0]
    elif of in ("ci_upper", "lift_upper"):
        value = None if interval is None else interval[1]
    return value, interval


def kept(bound: MeasuredBound, metric: Metric) -> Kept:
    """Whether a metric keeps to a bound.

    ``kept``: the figure that the bound is of does.  ``broken``: it does not, and neither does any
    value of the interval (nor the value itself, where there is no interval).  ``unclear``: the
    interval has values on both sides, or an end of an interval is asked for that is not there.

    Args:
        bound: with a number.
        metric: as it was measured.
    """
    holds = ORDERED[bound.op]
    wanted = 0.0 if bound.value is None else bound.value  # a MeasuredBound has one
    value, interval = figure(metric, bound.of)
    if value is not None and holds(value, wanted):
        return "kept"
    if interval is not None:
        return "unclear" if any(holds(end, wanted) for end in interval) else "broken"
    return "unclear" if value is None else "broken"


def words(bound: MeasuredBound) -> str:
    """A bound for people: ``<= 0.05 (ci_upper)``."""
    return f"{bound.op} {bound.value:g} ({bound.of})"
