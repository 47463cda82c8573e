"""What of a run file will not work, or costs more than it seems.  Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from securefed.engines.settings import Settings
from securefed.privacy.accounting import epsilon_text

_WEAK = 10.0
_COSTLY, _DROWNED = 0.3, 2.0
_FEW = 5


@dataclass(frozen=True)
class Hazard:
    """One thing to know before a run.

    Attributes:
        stops: whether the run will not do what it is for.
        text: what, where, why and what to do.
    """

    stops: bool
    text: str


@dataclass(frozen=True)
class Signal:
    """The noise in a round's mean beside the longest that the mean itself can be.

    With C the clip norm, B the units in the mean, d its length, s the std of all survivors' noise
    in a coordinate of the sum and T the rounds: ``ratio = s sqrt(d) / (C B)`` and
    ``over_rounds = ratio / sqrt(T)``, since the noise of rounds is independent.

    What it tells (``examples/accuracy``, a mail filter, one client the unit, ten rounds): at an
    ``over_rounds`` of 0.1 the accuracy is that without noise (84 %), at 0.3 81 %, at 0.9 72 %, at
    2.4 60 % and at 7 52 %, where 50 % is a guess.  Other data may bear more or less.
    """

    ratio: float
    over_rounds: float


def signal_of(settings: Settings) -> Signal | None:
    """Noise beside signal; None where noise is added at each client's steps, or none at all."""
    plan, policy = settings.plan, settings.sum_policy
    if policy.mechanism not in ("distributed", "central") or settings.slices is not None:
        return None
    if policy.strategy is not None:
        return None  # correlated noise mostly cancels over rounds
    units = float(settings.cohort_size)
    if settings.one_step:
        units = settings.stated.expected_share * sum(settings.sizes.values())
    noise = math.hypot(plan.local_std * math.sqrt(settings.cohort_size), plan.server_std)
    ratio = noise * math.sqrt(plan.dimension) / (plan.clip_units * units)
    return Signal(ratio, ratio / math.sqrt(policy.rounds))


def hazards_of(settings: Settings) -> list[Hazard]:
    """All that public sizes and the run file show, what stops a run first."""
    found = [
        *_protection(settings),
        *_limits(settings),
        *_noise(settings),
        *_sizes(settings),
        *_floors(settings),
    ]
    return sorted(found, key=lambda hazard: not hazard.stops)


def _protection(settings: Settings) -> Iterator[Hazard]:
    config, rounds = settings.config, settings.stated.rounds
    epsilon = settings.epsilon_after(rounds)
    if config.aggregation.kind == "plaintext":
        yield Hazard(
            True,
            "aggregation.kind = 'plaintext': the server sees every contribution; use 'pairwise'",
        )
    if not math.isfinite(epsilon):
        yield Hazard(
            True,
            f"UNPROTECTED: privacy.mechanism = {settings.stated.mechanism!r} with "
            f"aggregation.kind = {config.aggregation.kind!r} gives no differential privacy against "
            f"the {settings.accounted}; use 'distributed' and 'pairwise'",
        )
    elif epsilon > _WEAK:
        # Ponomareva et al. 2023, "How to DP-fy ML" (2303.00654), section 5.2.1.
        yield Hazard(
            False,
            f"epsilon {epsilon_text(epsilon)} against the {settings.accounted} (delta "
            f"{settings.stated.delta:g}) is above {_WEAK:g}: it says little by itself; set "
            "privacy.target_epsilon, or take fewer rounds",
        )
    units = (
        sum(settings.sizes.values()) if settings.stated.unit != "client" else len(settings.sizes)
    )
    if settings.stated.delta * units >= 1.0:
        yield Hazard(
            False,
            f"privacy.delta = {settings.stated.delta:g}: there are {units:,} {settings.stated.unit}"
            "s, and a mechanism that shows one of them whole, at random, would meet it; it should "
            f"be far below 1/{units} = {1.0 / units:.1g}",
        )


def _limits(settings: Settings) -> Iterator[Hazard]:
    limit, rounds = settings.limit, settings.stated.rounds
    if limit is None or settings.epsilon_after(rounds) <= limit[1]:
        return
    low, high = 0, rounds  # affordable, and not
    while low + 1 < high:
        middle = (low + high) // 2
        if settings.epsilon_after(middle) <= limit[1]:
            low = middle
        else:
            high = middle
    yield Hazard(
        low == 0,
        f"{limit[0]} = {limit[1]:g}: {low} of {rounds} rounds fit; the run "
        + ("would not begin" if low == 0 else "would end there")
        + "; take more noise, fewer rounds, or privacy.target_epsilon in the place of a noise "
        "multiplier",
    )


def _noise(settings: Settings) -> Iterator[Hazard]:
    signal = signal_of(settings)
    if signal is None or signal.over_rounds <= _COSTLY:
        return
    drowned = signal.over_rounds > _DROWNED
    where = (
        "more clients"
        if settings.stated.unit == "client"
        else "more data, or a larger privacy.expected_batch (which costs epsilon)"
    )
    yield Hazard(
        drowned,
        f"noise {'drowns the signal' if drowned else 'will cost accuracy'}: over "
        f"{settings.stated.rounds} rounds the noise in the mean is at least "
        f"{signal.over_rounds:.2g} times as long as the mean itself can be (where 0.3 cost 3 "
        f"points of accuracy, 0.9 cost 12 and 2.4 most of it); fewer values that travel "
        f"({settings.dimension:,} now: lora.rank, lora.target_modules), {where}, or a larger "
        "epsilon",
    )


def _sizes(settings: Settings) -> Iterator[Hazard]:
    stated = settings.stated
    if stated.unit == "client":
        return
    total = sum(settings.sizes.values())
    few = sorted(name for name, size in settings.sizes.items() if size < _FEW)
    if few:
        names = ", ".join(few[:3]) + (f" and {len(few) - 3} more" if len(few) > 3 else "")
        yield Hazard(
            False,
            f"{names} train on fewer than {_FEW} {stated.unit}s: they add noise and next to no "
            "signal; data.min_examples leaves them out by an error, data.clients by name",
        )
    each = stated.expected_share * total / settings.cohort_size
    if each < 1.0 and stated.mechanism != "local":
        yield Hazard(
            False,
            f"privacy.expected_batch = {settings.config.privacy.expected_batch:g}: a client draws "
            f"{each:.2g} {stated.unit}s a round on average, so that many send noise alone",
        )
    if stated.separation is None and stated.sampling_probability > 0.5:
        yield Hazard(
            False,
            f"privacy.expected_batch = {settings.config.privacy.expected_batch:g} of {total:,} "
            f"{stated.unit}s: more than half of them are drawn in a round, so that sampling "
            "saves next to no epsilon; take a smaller batch, or more data",
        )


def _floors(settings: Settings) -> Iterator[Hazard]:
    bounds = settings.bounds
    spare = bounds.size - bounds.survivor_floor
    if spare == 0:
        yield Hazard(
            False,
            f"privacy.dropout_fraction = {settings.stated.dropout_fraction:g}: of {bounds.size} "
            "clients none may fall silent; one that does ends the round, and what was charged "
            "stays charged",
        )
    if bounds.corrupt == 0 and settings.config.aggregation.kind != "plaintext":
        yield Hazard(
            False,
            f"privacy.corrupt_fraction = {settings.stated.corrupt_fraction:g}: of {bounds.size} "
            "clients none may help the server; the statements do not hold if one does",
        )
