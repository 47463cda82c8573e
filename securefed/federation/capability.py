"""What a client can do, what a round asks of it, and how long that takes it.

    seconds of a client = adapter down + training + encoding + protocol (compute, bytes up and down)

All of it follows from public sizes and from what the client's owner states of the machine; nothing
here sees data, and no size of a client's data set is asked for.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, get_args

from securefed.config import Stage
from securefed.encoding.rotation import padded_dimension
from securefed.errors import ConfigError
from securefed.federation.costs import CohortPlan, UnitCosts, message_bytes, predict

Part = Literal["adapter", "training", "encoding", "protocol", "upload", "download"]
"""What a client's seconds are spent on; ``download`` is of messages, ``adapter`` of the adapter."""

_VALUE_BYTES = 4
_FORWARD_AND_BACK, _ADAPTER = 4.0, 6.0  # FLOP a parameter and token: frozen base, trained adapter
_MOMENTS = 3  # gradient and two moments of a local optimiser


@dataclass(frozen=True, kw_only=True)
class CapabilityProfile:
    """What a client states of its machine and link; nothing of its data.

    Args:
        memory: bytes that training may use, model included, > 0.
        seconds_per_token: to train on one token of one example at the run file's rank, > 0.
        upload: bytes a second towards the server, > 0.
        download: bytes a second from it, > 0.
        availability: share of rounds for which it can be had, in (0, 1].

    Raises:
        ConfigError: a field is out of range.
    """

    memory: int
    seconds_per_token: float
    upload: float
    download: float
    availability: float = 1.0

    def __post_init__(self) -> None:
        for name in ("memory", "seconds_per_token", "upload", "download"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} = {value}: must be finite and > 0")
        if not 0 < self.availability <= 1:
            raise ConfigError(f"availability = {self.availability}: must be in (0, 1]")

    @property
    def least_period(self) -> int:
        """The client can take part in every such round, and no oftener."""
        return math.ceil(1.0 / self.availability - 1e-9)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What one client does in a round that it takes part in.

    Attributes:
        rank: of its adapter, one of the public tiers.
        local_steps: 1 under distributed DP-SGD.
        batch: examples a step; the mean over the cohort of the expected ones under DP-SGD.
        micro_batch: examples at a time.
        bits: ring width; one for the whole cohort, since masks cancel in one ring.
        period: it takes part in every such round.
        tiers: the ranks that slices of the adapter end at; it sends those up to its own rank, each
            in a round of its own beside the others (``federation.sliced_rounds``).  Empty: one
            vector, the same for all.
    """

    rank: int
    local_steps: int
    batch: float
    micro_batch: int
    bits: int
    period: int = 1
    tiers: tuple[int, ...] = ()

    @property
    def work(self) -> float:
        """Examples trained on a round, over all rounds."""
        return self.local_steps * self.batch / self.period


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a round asks of anybody, in public sizes.

    Args:
        clients: n of the cohort, >= 2.
        corrupt: share of it that may collude, in [0, 1).
        base_parameters: of the frozen model.
        base_bytes: of its weights in memory.
        adapter_width: sum over target modules of their inputs and outputs.
        travelling: rank tier -> d, parameters that travel at that rank.
        rank: of the run file, at which seconds were measured; one of the tiers.
        tokens: of an example.
        token_bytes: memory that training takes for a token of a micro-batch.
        filled: micro-batches are filled up to one size, and hold a gradient an example: DP-SGD.
        seconds_per_token: of the machine that ``units`` and ``seconds_per_value`` were measured on.
        seconds_per_value: to rotate, round, noise a value, there.
        units: of the protocol, measured there; without them its compute counts as nothing.

    Raises:
        ConfigError: a field is out of range.
    """

    clients: int
    corrupt: float
    base_parameters: int
    base_bytes: int
    adapter_width: int
    travelling: Mapping[int, int]
    rank: int
    tokens: int
    token_bytes: float
    filled: bool
    seconds_per_token: float
    seconds_per_value: float = 0.0
    units: UnitCosts | None = None

    def __post_init__(self) -> None:
        for name in ("base_parameters", "base_bytes", "tokens", "seconds_per_token"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be > 0")
        if self.rank not in self.travelling:
            raise ConfigError(f"rank = {self.rank}: must be one of {sorted(self.travelling)}")
        self._round([1], 32)  # refuses a cohort that no thresholds fit

    def parts(self, profile: CapabilityProfile, given: Assignment) -> dict[Part, float]:
        """Seconds of a client in one round, by what they are spent on."""
        seconds: dict[Part, float] = dict.fromkeys(get_args(Part), 0.0)
        for stage in self.stages(profile, given).values():
            for part, spent in stage.items():
                seconds[part] += spent
        return seconds

    def seconds(self, profile: CapabilityProfile, given: Assignment) -> float:
        """Seconds of a client in one round in which it waits for nobody."""
        return sum(self.parts(profile, given).values())

    def stages(
        self, profile: CapabilityProfile, given: Assignment
    ) -> dict[Stage, dict[Part, float]]:
        """The same by stage of the round; the vector is made in the stage that sends it."""
        slices = self._slices(given)
        sizes, compute = self._round(slices, given.bits)
        slowdown = profile.seconds_per_token / self.seconds_per_token
        found: dict[Stage, dict[Part, float]] = {
            stage: {
                "protocol": slowdown * compute.get(stage, 0.0),
                "upload": up / profile.upload,
                "download": down / profile.download,
            }
            for stage, (up, down) in sizes.items()
        }
        found["advertise"]["adapter"] = self.adapter_bytes(given.rank) / profile.download
        found["masked_input"]["training"] = self.training_seconds(profile, given)
        found["masked_input"]["encoding"] = slowdown * self.seconds_per_value * sum(slices)
        return found

    def training_seconds(
        self, profile: CapabilityProfile, given: Assignment, batch: float | None = None
    ) -> float:
        """Seconds of local training.

        Args:
            profile: of the client.
            given: what it does.
            batch: examples a step instead of the assigned ones, for the largest draw, say.
        """
        examples = given.batch if batch is None else batch
        if self.filled:
            examples = given.micro_batch * math.ceil(examples / given.micro_batch)
        share = self._adapter_share(given.rank) / self._adapter_share(self.rank)
        return given.local_steps * examples * self.tokens * profile.seconds_per_token * share

    def adapter_bytes(self, rank: int) -> int:
        """What a client is sent of the adapter."""
        return _VALUE_BYTES * self.travelling[rank]

    def memory(self, rank: int, micro_batch: int) -> float:
        """Bytes that training takes."""
        values = self.travelling[rank]
        example = self.tokens * self.token_bytes + (_VALUE_BYTES * values if self.filled else 0)
        return self.base_bytes + micro_batch * example + _VALUE_BYTES * values * (1 + _MOMENTS)

    def round_seconds(self, members: Iterable[tuple[CapabilityProfile, Assignment]]) -> float:
        """When a round ends whose every stage waits for the slowest of these clients."""
        latest: dict[Stage, float] = {}
        for profile, given in members:
            for stage, parts in self.stages(profile, given).items():
                latest[stage] = max(latest.get(stage, 0.0), sum(parts.values()))
        return sum(latest.values())

    def to_record(self) -> dict[str, object]:
        """As a plan's record holds it."""
        return asdict(self) | {"travelling": {str(r): d for r, d in self.travelling.items()}}

    def _adapter_share(self, rank: int) -> float:
        """FLOP of a token over those of the base model alone."""
        extra = _ADAPTER * rank * self.adapter_width
        return 1.0 + extra / (_FORWARD_AND_BACK * self.base_parameters)

    def _slices(self, given: Assignment) -> list[int]:
        """Values of each vector that is sent, as padded for the rotation."""
        ends = [tier for tier in given.tiers if tier < given.rank] + [given.rank]
        sizes = [0, *(self.travelling[end] for end in ends)]
        return [padded_dimension(high - low) for low, high in itertools.pairwise(sizes)]

    def _round(
        self, slices: Sequence[int], bits: int
    ) -> tuple[dict[Stage, tuple[float, float]], dict[Stage, float]]:
        """Bytes of messages and seconds of compute, by stage.

        As if everybody held every slice: who holds a high one has fewer partners for it, and less
        to do.
        """
        sizes: dict[Stage, tuple[float, float]] = {}
        compute: dict[Stage, float] = {}
        for values in slices:
            each, seconds = _priced(self.clients, values, bits, self.corrupt, self.units)
            for stage, (up, down) in each.items():
                before = sizes.get(stage, (0.0, 0.0))
                sizes[stage] = (before[0] + up, before[1] + down)
                compute[stage] = compute.get(stage, 0.0) + seconds.get(stage, 0.0)
        return sizes, compute


@functools.cache
def _priced(
    clients: int, values: int, bits: int, corrupt: float, units: UnitCosts | None
) -> tuple[dict[Stage, tuple[float, float]], dict[Stage, float]]:
    plan = CohortPlan(clients=clients, values=values, bits=bits, drop=0.0, corrupt=corrupt)
    if units is None:
        return message_bytes(plan), {}
    cost = predict(plan, units)
    return (
        {name: (stage.bytes_up, stage.bytes_down) for name, stage in cost.stages.items()},
        {name: stage.client_seconds for name, stage in cost.stages.items()},
    )
