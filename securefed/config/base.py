"""What sections of the run file are made of, and the types of their values."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


def share_of(fraction: float, count: int) -> int:
    """``floor(fraction * count)``, unharmed by the last bit of the product."""
    return math.floor(fraction * count + 1e-9)
