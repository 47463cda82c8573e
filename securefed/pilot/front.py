"""Which trials no other one beats in everything at once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from securefed.pilot.summaries import FULL, Summary


@dataclass(frozen=True)
class Point:
    """A trial's place, means over seeds; what is not known counts as the worst there is.

    Attributes:
        name: of the trial.
        improvement: larger is better.
        bytes, seconds: of a client and round; smaller is better.
        epsilon: smaller is better; ``math.inf`` where nothing holds.
    """

    name: str
    improvement: float
    bytes: float
    seconds: float
    epsilon: float

    def dominates(self, other: Point) -> bool:
        """No worse in each of the four, and better in one."""
        ours, theirs = self._losses(), other._losses()
        return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))

    def _losses(self) -> tuple[float, float, float, float]:
        return -self.improvement, self.bytes, self.seconds, self.epsilon


def point_of(summary: Summary) -> Point | None:
    """Where a finished trial stands; None where its quality or bytes are not known."""
    gained, moved = summary.improvement, summary.bytes
    if gained is None or moved is None or math.isnan(gained.mean):
        return None
    seconds = summary.client_seconds
    return Point(
        name=summary.name,
        improvement=gained.mean,
        bytes=moved.mean,
        seconds=math.inf if seconds is None else seconds.mean,
        epsilon=math.inf if summary.epsilon is None else summary.epsilon,
    )


def points(found: Iterable[Summary]) -> tuple[Point, ...]:
    """Of all federated trials: pooled training and clients alone are other undertakings."""
    kept = (one for one in found if one.group != "baseline" or one.name.startswith(FULL))
    return tuple(point for one in kept if (point := point_of(one)) is not None)


def front(placed: Iterable[Point]) -> tuple[Point, ...]:
    """Those that no other dominates, in the order given.

    Example:
        Of (gain 0.2, 10 B), (gain 0.1, 20 B) and (gain 0.1, 5 B), all else alike, the first and
        the third.
    """
    everyone = tuple(placed)
    return tuple(one for one in everyone if not any(other.dominates(one) for other in everyone))
