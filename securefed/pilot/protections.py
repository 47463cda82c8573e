"""What each protection costs by itself: differences between trials on the same data.

Each is compared with the trial that lacks just that one: a clip with no protection at all, noise
with the clip that it needs, masks and encryption with no protection.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from securefed.config.pilot import PriceSection
from securefed.pilot.costing import mean_price
from securefed.pilot.records import Metric
from securefed.pilot.summaries import Spread, Summary

NO_PROTECTION = "no protection"
CLIP = "clip alone"
CLIP_AND_NOISE = "clip and noise"
MASKS = "masks alone"
ENCRYPTION = "encryption alone"

COMPARED = {
    "clip": (CLIP, NO_PROTECTION),
    "noise": (CLIP_AND_NOISE, CLIP),
    "masks": (MASKS, NO_PROTECTION),
    "encryption": (ENCRYPTION, NO_PROTECTION),
}
"""By protection: the trial that has it, and the one that lacks it."""


@dataclass(frozen=True, kw_only=True)
class Protection:
    """What one protection adds, means over seeds; None where one side was not measured.

    Attributes:
        name: a key of ``COMPARED``.
        bytes, seconds, money: more of a client and round.
        improvement: of the held-out figure, what is added; below zero it costs quality.
        metric: of the improvement.
        maybe_chance: whether the difference in quality may be chance: a single seed on a side, or
            ranges over seeds that overlap.
    """

    name: str
    bytes: float | None
    seconds: float | None
    money: float | None
    improvement: float | None
    metric: Metric
    maybe_chance: bool


def protections(found: Iterable[Summary], prices: PriceSection) -> tuple[Protection, ...]:
    """The price of every protection of which both trials finished."""
    trials = {one.name: one for one in found if one.group == "protection" and one.done}
    priced = []
    for name, (with_it, without) in COMPARED.items():
        if with_it not in trials or without not in trials:
            continue
        ours, theirs = trials[with_it], trials[without]
        gain = ours.gain or theirs.gain
        priced.append(
            Protection(
                name=name,
                bytes=_more(ours.bytes, theirs.bytes),
                seconds=_more(ours.client_seconds, theirs.client_seconds),
                money=_more(mean_price(ours, prices), mean_price(theirs, prices)),
                improvement=_more(ours.improvement, theirs.improvement),
                metric="perplexity" if gain is None else gain.metric,
                maybe_chance=_overlap(ours.improvement, theirs.improvement),
            )
        )
    return tuple(priced)


def _more(ours: Spread | None, theirs: Spread | None) -> float | None:
    return None if ours is None or theirs is None else ours.mean - theirs.mean


def _overlap(ours: Spread | None, theirs: Spread | None) -> bool:
    if ours is None or theirs is None or min(ours.count, theirs.count) < 2:
        return True
    return ours.least <= theirs.most and theirs.least <= ours.most
