"""What the attacks of this family say in the end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from securefed.attacks.base import Guess
from securefed.attacks.inversion.span import Spans


def figures_of(spans: Spans, noise: float) -> dict[str, float]:
    """Ranks of block 0, and the noise that was reckoned with."""
    return {"rank": float(spans.rank), "capacity": float(spans.capacity), "noise": noise}


def void(reason: str, figures: Mapping[str, float] | None = None) -> Guess:
    """The attack does not apply."""
    return Guess(verdict="void", reason=reason, figures=_finite(figures or {}))


def guessed(
    texts: list[tuple[int, ...]],
    reason: str,
    figures: Mapping[str, float],
    loose: tuple[int, ...] = (),
) -> Guess:
    """Texts, and tokens that stand in none."""
    return Guess(tuple(texts), loose, "guessed", reason, _finite(figures))


def _finite(figures: Mapping[str, float]) -> Mapping[str, float]:
    return MappingProxyType({n: value for n, value in figures.items() if math.isfinite(value)})
