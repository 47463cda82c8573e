"""Privacy events as JSON values, from which ``dp_accounting``'s own are made again without loss.

An event is a tree; each node names its class and holds that class's fields::

    {"type": "SelfComposedDpEvent", "count": 30, "event":
        {"type": "PoissonSampledDpEvent", "sampling_probability": 0.127, "event":
            {"type": "GaussianDpEvent", "noise_multiplier": 0.8}}}

JSON as ledgers hold it (RFC 8785) writes a float64 with the digits that give the same one back, so
nothing is rounded.  What the library has no class for is ``UnsupportedDpEvent``, which every
accountant refuses, and never an event that is merely near.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dp_accounting import dp_event

from securefed.errors import UnsupportedEvent

_DEPTH_LIMIT = 16


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UnsupportedEvent(f"event: {value!r} is not a finite number")
    return float(value)


def _count(value: object) -> int:
    number = _number(value)
    if number != int(number) or number < 0:
        raise UnsupportedEvent(f"event: {value!r} is not a count")
    return int(number)


def _numbers(value: object) -> list[float]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UnsupportedEvent(f"event: {value!r} is not a list of numbers")
    return [_number(each) for each in value]


_EVENT, _EVENTS = "event", "events"
_Field = Callable[[object], Any] | str

_FIELDS: dict[str, dict[str, _Field]] = {
    "NoOpDpEvent": {},
    "NonPrivateDpEvent": {},
    "UnsupportedDpEvent": {},
    "GaussianDpEvent": {"noise_multiplier": _number},
    "LaplaceDpEvent": {"noise_multiplier": _number},
    "DiscreteLaplaceDpEvent": {"noise_parameter": _number, "sensitivity": _count},
    "RandomizedResponseDpEvent": {"noise_parameter": _number, "num_buckets": _count},
    "MixtureOfGaussiansDpEvent": {
        "standard_deviation": _number,
        "sensitivities": _numbers,
        "sampling_probs": _numbers,
    },
    "ZCDpEvent": {"rho": _number, "xi": _number},
    "PoissonSampledDpEvent": {"sampling_probability": _number, "event": _EVENT},
    "SampledWithReplacementDpEvent": {
        "source_dataset_size": _count,
        "sample_size": _count,
        "event": _EVENT,
    },
    "SampledWithoutReplacementDpEvent": {
        "source_dataset_size": _count,
        "sample_size": _count,
        "event": _EVENT,
    },
    "SelfComposedDpEvent": {"event": _EVENT, "count": _count},
    "ComposedDpEvent": {"events": _EVENTS},
}


def encode_event(event: dp_event.DpEvent) -> dict[str, Any]:
    """An event as JSON values.

    Raises:
        UnsupportedEvent: an event of a class that is not among those known here, or a field that is
            no finite number.
    """
    name = type(event).__name__
    fields = _FIELDS.get(name)
    if fields is None or type(event) is not getattr(dp_event, name, None):
        raise UnsupportedEvent(f"event: {name} is not among {sorted(_FIELDS)}")
    return {"type": name} | {
        field: _encoded(getattr(event, field), kind) for field, kind in fields.items()
    }


def _encoded(value: Any, kind: _Field) -> Any:
    if kind is _EVENT:
        return encode_event(value)
    if kind is _EVENTS:
        return [encode_event(each) for each in value]
    return kind(value) if callable(kind) else value


def decode_event(record: object) -> dp_event.DpEvent:
    """The inverse of :func:`encode_event`; a sequence of numbers comes back as a list.

    Raises:
        UnsupportedEvent: it is no such tree; an unknown class is never skipped.
    """
    return _decoded(record, _DEPTH_LIMIT)


def _decoded(record: object, depth: int) -> dp_event.DpEvent:
    if depth == 0:
        raise UnsupportedEvent(f"event: nested more than {_DEPTH_LIMIT} deep")
    name = record.get("type") if isinstance(record, Mapping) else None
    fields = _FIELDS.get(name) if isinstance(name, str) else None
    if not isinstance(record, Mapping) or fields is None:
        raise UnsupportedEvent(f"event: type = {name!r}: must be one of {sorted(_FIELDS)}")
    if record.keys() != {"type", *fields}:
        raise UnsupportedEvent(f"event: {name} must hold exactly {sorted(fields)}")
    values: dict[str, Any] = {}
    for field, kind in fields.items():
        value = record[field]
        if kind is _EVENT:
            values[field] = _decoded(value, depth - 1)
        elif kind is _EVENTS:
            if not isinstance(value, list):
                raise UnsupportedEvent(f"event: {field} of {name} must be a list")
            values[field] = [_decoded(each, depth - 1) for each in value]
        elif callable(kind):
            values[field] = kind(value)
    return getattr(dp_event, str(name))(**values)
