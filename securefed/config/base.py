"""What sections of the run file are made of, and the types of their values."""

from __future__ import annotations

import math
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, values: Any) -> Any:
        """Refuse ``rounds = true``, which would otherwise be 1."""
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field and not _holds_bool(field.annotation):
                raise ValueError(
                    f"{name} = {str(value).lower()}: true and false are not allowed there"
                )
        return values


def _holds_bool(annotation: Any) -> bool:
    return annotation is bool or any(map(_holds_bool, get_args(annotation)))


def share_of(fraction: float, count: int) -> int:
    """``floor(fraction * count)``, unharmed by the last bit of the product."""
    return math.floor(fraction * count + 1e-9)
