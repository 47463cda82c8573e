"""From a run file with profiles to a plan: sizes from the model, speeds measured on this machine.

What is trained on to measure is made up: constant tokens.  Nothing of any client's data is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from securefed.config import RunConfig
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.mixed_ranks import least_contributors
from securefed.engines.profiles import profiles_of, sections_of
from securefed.engines.settings import Settings
from securefed.engines.unit_costs import measure_units
from securefed.engines.workbench import Workbench
from securefed.errors import ConfigError, OverflowBoundError
from securefed.federation.capability import Assignment, CapabilityProfile, Workload
from securefed.federation.scheduling import Lever, Rules, Schedule, schedule
from securefed.federation.slice_plans import slice_policy
from securefed.federation.update_codec import UpdateCodec
from securefed.lora.sharing import factor_of, is_adapter_parameter
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.policy import CohortBounds
from securefed.training.memory import made_up
from securefed.training.quantised import parameter_count

_TURNS = 3
_LONG = 5.0
"""Seconds: a turn that takes longer is not taken again."""
_FINE_ENOUGH = 1.02
"""A narrower ring is taken where it costs less than 2 % of sensitivity, as for encryption."""

LEVERS: dict[str, tuple[Lever, ...]] = {
    "rank alone": ("rank",),
    "steps alone": ("steps",),
    "bits alone": ("bits",),
    "participation alone": ("participation",),
}


@dataclass(frozen=True)
class Planning:
    """A plan, what it was made from, and what each lever alone would buy.

    Attributes:
        schedule: the plan.
        workload: sizes and measured speeds.
        profiles: of each client.
        rules: what could be chosen.
        alone: mean seconds of a round with one lever only; None where that alone leaves no plan.
    """

    schedule: Schedule
    workload: Workload
    profiles: dict[str, CapabilityProfile]
    rules: Rules
    alone: dict[str, float | None]

    def to_record(self) -> dict[str, object]:
        """As JSON values; the plan follows from the rest of it."""
        return {
            "plan": self.schedule.to_record(),
            "alone": self.alone,
            "workload": self.workload.to_record(),
            "profiles": {name: asdict(profile) for name, profile in self.profiles.items()},
            "rules": asdict(self.rules),
        }


def plan_cohort(config: RunConfig, bench: Workbench, settings: Settings) -> Planning:
    """Plan a run's rounds from the profiles in its run file.

    Args:
        config: with ``cohort.profiles``.
        bench: model and clients.
        settings: what the run file means for the cohort.

    Raises:
        ConfigError: a client has no profile or two, the aggregation is one that the cost model does
            not cover, or no plan keeps the rules.
    """
    if config.aggregation.kind not in ("pairwise", "plaintext"):
        raise ConfigError(
            f"aggregation.kind = {config.aggregation.kind!r}: a plan needs the cost model of "
            "'pairwise' rounds"
        )
    if config.cohort.ranks:
        raise ConfigError(
            "cohort.ranks is given: a plan chooses ranks itself, from cohort.schedule.rank_tiers; "
            "leave one of them out"
        )
    if config.privacy.mechanism == "local" and config.cohort.schedule.seconds_per_token is None:
        raise ConfigError(
            "cohort.schedule.seconds_per_token is not given: with privacy.mechanism = 'local' a "
            "step draws its own sample, so that it cannot be measured here"
        )
    rules = _rules(config, bench, settings)
    rules.check(config.privacy.unit)
    sections = sections_of(config.cohort.profiles, sorted(bench.clients))
    workload = _workload(config, bench, settings, rules)
    profiles = profiles_of(sections, workload.seconds_per_token)
    alone: dict[str, float | None] = {}
    for name, levers in LEVERS.items():
        try:
            alone[name] = schedule(profiles, workload, rules.only(*levers)).mean_seconds
        except ConfigError:
            alone[name] = None
    return Planning(schedule(profiles, workload, rules), workload, profiles, rules, alone)


def public_seconds(bench: Workbench, settings: Settings) -> dict[str, float]:
    """A client's seconds in a round by phase, from public figures and made-up examples alone.

    For who must not look at clients' own seconds, which tell how much was drawn.  What hides a
    vector is there for pairwise masks only.

    Args:
        bench: model and clients' public sizes.
        settings: what the run file means for the cohort.

    Returns:
        Nothing where a part cannot be measured so: with ``mechanism = "local"``, whose steps draw
        their own sample, and where excess noise is removed.
    """
    config = settings.config
    if config.privacy.mechanism == "local" or settings.plan.removable_stds:
        return {}
    return seconds_of(settings, *measured_workload(bench, settings))


def measured_workload(bench: Workbench, settings: Settings) -> tuple[Workload, Rules]:
    """What a round asks of anybody, measured here on made-up examples, and what a plan may choose.

    Takes some seconds.  Not for ``mechanism = "local"``, whose steps draw their own sample.
    """
    rules = _rules(settings.config, bench, settings)
    return _workload(settings.config, bench, settings, rules), rules


def seconds_of(settings: Settings, workload: Workload, rules: Rules) -> dict[str, float]:
    """A client's seconds in a round by phase, on this machine; its line is not among them."""
    # Its line is another part: the figures for it have no meaning here.
    here = CapabilityProfile(
        memory=1, seconds_per_token=workload.seconds_per_token, upload=1.0, download=1.0
    )
    parts = workload.parts(here, rules.uniform)
    found = {"train": parts["training"], "encode": parts["encoding"]}
    if settings.config.aggregation.kind == "pairwise":
        found["mask"] = parts["protocol"]
    return found


def _rules(config: RunConfig, bench: Workbench, settings: Settings) -> Rules:
    asked, training = config.cohort.schedule, config.training
    steps = 1 if settings.one_step else training.local_steps
    batch = float(training.batch_size)
    if settings.stated.unit != "client":  # the mean, so that no client's own size is looked at
        batch = settings.stated.expected_share * sum(bench.sizes.values()) / len(bench.sizes)
        batch *= training.examples_per_user or 1
    return Rules(
        uniform=Assignment(
            rank=config.lora.rank,
            local_steps=steps,
            batch=batch,
            micro_batch=bench.public_micro_batch(settings),
            bits=settings.plan.bits,
        ),
        ranks=asked.rank_tiers or [config.lora.rank],
        steps=asked.local_steps or [steps],
        bits=_rings(settings),
        periods=asked.periods,
        least_work=asked.least_work,
        least_cohort=_least_cohort(
            config.cohort.min_clients, settings, sliced=len(asked.rank_tiers) > 1
        ),
    )


def _least_cohort(asked: int, settings: Settings, *, sliced: bool) -> int:
    """The fewest clients, from ``asked`` on, that thresholds and noise can be sized for.

    As many of them corrupt as may be of the whole cohort, in a slice and in a round of a few alike.
    With slices, also the fewest that leave a slice its least contributors.
    """
    least = least_contributors(settings.config)
    for size in range(asked, settings.cohort_size):
        try:
            own = slice_policy(
                settings.sum_policy,
                cohort=settings.cohort_size,
                members=size,
                least_contributors=least if sliced else 2,
            )
            settings.aggregation.parameters(CohortBounds.of(own, size))
        except ConfigError:
            continue
        return size
    return settings.cohort_size


def _rings(settings: Settings) -> list[int]:
    """Ring widths up to the planned one that cost next to no sensitivity."""
    chosen = settings.plan
    fine = _FINE_ENOUGH * chosen.sensitivity / chosen.clip_units
    found = [chosen.bits]
    for bits in range(chosen.bits - 1, 19, -1):
        try:
            plan = plan_round(
                settings.sum_policy,
                cohort_size=settings.cohort_size,
                dimension=chosen.dimension,
                bits=bits,
            )
        except OverflowBoundError:
            break
        if plan.sensitivity / plan.clip_units > fine:
            break
        found.insert(0, bits)
    return found


def _workload(config: RunConfig, bench: Workbench, settings: Settings, rules: Rules) -> Workload:
    tokens = config.data.window_tokens
    seconds = _measured_training(bench, settings, tokens)
    foreseen = bench.step_memory(settings)
    parameters = dict(bench.model.named_parameters())
    adapter = [p.numel() for name, p in parameters.items() if is_adapter_parameter(name)]
    weights = [*bench.model.parameters(), *bench.model.buffers()]
    factors = [p.shape for name, p in parameters.items() if factor_of(name) in ("A", "B")]
    return Workload(
        clients=settings.cohort_size,
        corrupt=config.privacy.corrupt_fraction,
        base_parameters=parameter_count(bench.model) - sum(adapter),
        base_bytes=sum(tensor.numel() * tensor.element_size() for tensor in weights),
        adapter_width=sum(sum(shape) - config.lora.rank for shape in factors),
        travelling=_travelling(bench, rules.ranks),
        rank=config.lora.rank,
        tokens=tokens,
        token_bytes=foreseen.each / tokens,
        filled=settings.one_step,
        seconds_per_token=config.cohort.schedule.seconds_per_token or seconds,
        seconds_per_value=_measured_encoding(settings),
        units=measure_units(),
    )


def _travelling(bench: Workbench, tiers: Sequence[int]) -> dict[int, int]:
    """Parameters that travel at each rank: those of B in proportion to it.

    Raises:
        ConfigError: there are several ranks, and the sharing mode has no nested slices of B.
    """
    lora = bench.config.lora
    if list(tiers) == [lora.rank]:
        return {lora.rank: bench.dimension}
    if lora.sharing != "ffa":
        raise ConfigError(
            f"cohort.schedule.rank_tiers = {list(tiers)} with lora.sharing = {lora.sharing!r}: "
            "ranks differ between clients with 'ffa' only, where they are slices of one B"
        )
    shapes = bench.parts.layout.shapes
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    scaled = sum(size for name, size in sizes.items() if factor_of(name) == "B")
    fixed = sum(sizes.values()) - scaled
    return {tier: fixed + scaled * tier // lora.rank for tier in tiers}


def _measured_training(bench: Workbench, settings: Settings, tokens: int) -> float:
    """Seconds of a token that is trained on, of the fastest of a few turns."""
    training = bench.config.training
    size = bench.micro_batch if settings.one_step else training.batch_size
    examples = made_up(size, tokens, bench.config.model.labels)
    steps = 1 if settings.one_step else training.local_steps
    start = time.perf_counter()
    bench.rehearse(settings, examples)
    seconds = time.perf_counter() - start
    if seconds < _LONG:  # the first turn warms up; of long ones it is a small part
        seconds = _fastest(lambda: bench.rehearse(settings, examples))
    return seconds / (steps * size * tokens)


def _measured_encoding(settings: Settings) -> float:
    """Seconds to rotate, round and noise a value; 0 where layers of noise are removed later."""
    if settings.plan.removable_stds:
        return 0.0
    codec = UpdateCodec(settings.sum_policy, settings.plan, bytes(32))
    generator, zeros = NoiseGenerator(), np.zeros(settings.plan.summed)

    def encode() -> None:
        if settings.sum_policy.unit == "client":
            codec.encode_update(zeros[: settings.plan.dimension], generator)
        else:
            codec.encode_clipped_sum(zeros, generator)

    encode()
    return _fastest(encode) / settings.plan.padded


def _fastest(call: Callable[[], None]) -> float:
    times = []
    for _ in range(_TURNS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
