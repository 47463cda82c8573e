"""What ledgers hold of a round's plan and of its slices.  Needs no torch.

A sliced round's record names survivors slice by slice::

    slices    {"1": [ids], "3": [ids]}     slices that were opened, and whose vectors are in the sum
    closed    {"2": "ThresholdNotMet"}     slices that stayed closed, and the kind of error

``survivors`` beside them are all who are in some sum: those of slice 1 wherever it was opened.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from securefed.engines.mixed_ranks import MixedRanks
from securefed.errors import ConfigError, RemoteProtocolError, ThresholdNotMet
from securefed.federation.slice_plans import SlicePlans
from securefed.privacy.mechanisms import RoundPlan

_REASONS = {error.__name__ for error in (ThresholdNotMet, RemoteProtocolError)}


def plan_record(plan: RoundPlan) -> dict[str, Any]:
    """The figures of one plan."""
    return {
        "dimension": plan.dimension,
        "padded": plan.padded,
        "bits": plan.bits,
        "clip_units": plan.clip_units,
        "local_std": plan.local_std,
        "server_std": plan.server_std,
        "sensitivity": plan.sensitivity,
        "rounding_failure": plan.rounding_failure,
        "sum_bound": plan.sum_bound,
        "wrap_probability": plan.wrap_probability,
        "max_examples": plan.max_examples,
    }


def slices_event(ranks: MixedRanks, plans: SlicePlans) -> dict[str, Any]:
    """What a sliced round is priced by besides the policy: the rank and size of each slice."""
    price: dict[str, Any] = plans.price()
    slices = [
        {"rank": rank} | one for rank, one in zip(ranks.tiers.ranks, price["slices"], strict=True)
    ]
    return price | {"slices": slices}


def slices_record(ranks: MixedRanks, plans: SlicePlans) -> dict[str, Any]:
    """Who has which rank, and each slice's own plan, for first records of ledger and accounts."""
    return {
        "ranks": ranks.rank_of,
        "dimension": sum(plans.widths),
        "widths": list(plans.widths),
        "slice_plans": [
            plan_record(one.plan)
            | {"survivor_floor": one.bounds.survivor_floor, "honest_floor": one.bounds.honest_floor}
            for one in plans.slices
        ],
    }


def survivors_of_slices(body: Mapping[str, Any]) -> dict[int, tuple[str, ...]]:
    """By slice that was opened, who is in its sum; from a round's record."""
    return {int(number): tuple(names) for number, names in body["slices"].items()}


def check_slices(body: Mapping[str, Any], plans: SlicePlans | None) -> None:
    """Refuse a record of a sum that no round of these slices writes.

    Args:
        body: of the record.
        plans: of the run; None where it has no slices.

    Raises:
        ConfigError: names what no run writes: a slice that is missing or unknown, survivors that do
            not hold it or are fewer than its floor, or a reason that is none.
    """
    if plans is None:
        if "slices" in body or "closed" in body:
            raise ConfigError("slices: this run has none")
        return
    opened, closed = survivors_of_slices(body), body["closed"]
    numbers = sorted([*body["slices"], *closed])
    if numbers != sorted(str(number) for number in range(1, len(plans.widths) + 1)) or not opened:
        raise ConfigError(f"slices and closed: name {numbers} of {len(plans.widths)} slices")
    for number, reason in closed.items():
        if reason not in _REASONS:
            raise ConfigError(f"closed: slice {number} by {reason!r}, one of {sorted(_REASONS)}")
    for number, names in opened.items():
        _check_names(number, names, plans)
    inside = sorted({name for names in opened.values() for name in names})
    if list(body["survivors"]) != inside:
        raise ConfigError("survivors: are not those of the slices")


def _check_names(number: int, names: Collection[str], plans: SlicePlans) -> None:
    foreign = sorted(set(names) - set(plans.members(number)))
    if foreign:
        raise ConfigError(f"slice {number}: {foreign[0]!r} does not hold it")
    if len(set(names)) != len(names):
        raise ConfigError(f"slice {number}: a client is named twice")
    floor = plans.slices[number - 1].bounds.survivor_floor
    if len(names) < floor:
        raise ConfigError(
            f"slice {number}: {len(names)} survivor{'s' * (len(names) != 1)}, at least {floor} are "
            "needed"
        )


def values_down(body: Mapping[str, Any], plans: SlicePlans) -> dict[str, int]:
    """By client, how many values it is sent after a round: of what it holds and was opened.

    Args:
        body: of the round's record.
        plans: of the run.
    """
    opened = survivors_of_slices(body)
    return {
        name: sum(plans.widths[number - 1] for number in opened if number <= tier)
        for name, tier in sorted(plans.tiers.items())
    }
