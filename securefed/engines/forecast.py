"""What a run would spend, measured and computed before anything is spent."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from securefed.engines.arrangement import contribution_bytes, told, told_of_slices
from securefed.engines.hazards import Hazard, Signal, hazards_of, signal_of
from securefed.engines.metering import ResidentMemory
from securefed.engines.planning import measured_workload, seconds_of
from securefed.engines.settings import Settings
from securefed.engines.workbench import Workbench
from securefed.federation.costs import CohortPlan, message_bytes, predict
from securefed.privacy.accounting import ADVERSARIES, Adversary, PrivacyGuarantee

_VALUE_BYTES = 4


@dataclass(frozen=True)
class Forecast:
    """A run, before it begins.

    Attributes:
        clients: of the cohort.
        examples: that train, over all clients.
        documents: to train on, over all clients; ``lost`` of them give no example.
        lost: see there.
        dimension: values that travel in a round.
        noise_multiplier: of the run, given or found from the target.
        sampling_probability: q of each unit in a round; 1 where nothing is sampled.
        guarantees: what holds against each adversary after all rounds, without a retry.
        arrangement: how sums are formed, in words.
        bytes_up, bytes_down: of a client in a round, mean, adapter included; ``exact`` if all
            messages are counted, else the contribution and the adapter alone.
        exact: see there.
        model_bytes: of the base model on disk.
        memory: resident bytes of this process with model, data and a rehearsed step; training at
            one client takes that less the other clients' data.
        micro_batch: examples at a time, as ``training.memory_gib`` leaves and the check of real
            gradients found.
        client_memory: bytes that a client's own process (its GPU, on CUDA) would take at that,
            foreseen from shapes; ``least_memory`` at one example at a time.
        least_memory: see there.
        seconds: of a client in a round by phase, on this machine; none where it cannot be measured.
        server_seconds: of the server in a round, on one core; None where it cannot be predicted.
        signal: noise beside signal; None where no figure is known.
        hazards: what will not work, and what costs more than it seems.
    """

    clients: int
    examples: int
    documents: int
    lost: int
    dimension: int
    noise_multiplier: float
    sampling_probability: float
    guarantees: dict[Adversary, PrivacyGuarantee]
    arrangement: list[str]
    bytes_up: float
    bytes_down: float
    exact: bool
    model_bytes: int
    memory: int
    micro_batch: int
    client_memory: int
    least_memory: int
    seconds: dict[str, float]
    server_seconds: float | None
    signal: Signal | None
    hazards: list[Hazard]

    @property
    def simulated_seconds(self) -> float | None:
        """Of a round in one process, which is every client in turn and then the server."""
        if not self.seconds:
            return None
        return self.clients * sum(self.seconds.values()) + (self.server_seconds or 0.0)

    def to_record(self) -> dict[str, Any]:
        """As JSON values."""
        kept = {"clients", "examples", "documents", "lost", "dimension", "noise_multiplier"}
        kept |= {"sampling_probability", "bytes_up", "bytes_down", "exact", "model_bytes"}
        kept |= {"memory", "micro_batch", "client_memory", "least_memory"}
        kept |= {"seconds", "server_seconds"}
        return {
            **{name: getattr(self, name) for name in sorted(kept)},
            "guarantees": [statement.to_record() for statement in self.guarantees.values()],
            "signal": None if self.signal is None else asdict(self.signal),
            "hazards": [asdict(hazard) for hazard in self.hazards],
        }


def forecast(bench: Workbench, settings: Settings) -> Forecast:
    """Foresee a run from what is loaded; made-up examples alone are timed.

    Args:
        bench: model and clients' data.
        settings: what the run file means for the cohort.
    """
    clients = bench.clients.values()
    documents = sum(client.documents for client in clients)
    lost = sum(client.lost for client in clients)
    pairwise = settings.config.aggregation.kind == "pairwise" and not settings.plan.removable_stds
    seconds: dict[str, float] = {}
    server_seconds = None
    if settings.config.privacy.mechanism != "local":
        workload, rules = measured_workload(bench, settings)
        seconds = seconds_of(settings, workload, rules)
        if pairwise and workload.units is not None:
            server_seconds = predict(_cohort_plan(settings), workload.units).server_seconds
    up, down = _bytes(settings, exact=pairwise)
    foreseen, micro_batch = bench.step_memory(settings), bench.micro_batch
    if settings.stated.unit == "client":
        micro_batch = min(micro_batch, settings.config.training.batch_size)
    hazards = hazards_of(settings)
    if lost:
        hazards.append(_lost(settings, documents, lost))
    return Forecast(
        clients=settings.cohort_size,
        examples=sum(len(client.train) for client in clients),
        documents=documents,
        lost=lost,
        dimension=settings.dimension,
        noise_multiplier=settings.stated.noise_multiplier,
        sampling_probability=settings.stated.sampling_probability,
        guarantees={who: settings.guarantee(who, settings.stated.rounds) for who in ADVERSARIES},
        arrangement=_arrangement(settings),
        bytes_up=up,
        bytes_down=down,
        exact=pairwise and settings.slices is None,
        model_bytes=bench.model_bytes,
        memory=ResidentMemory().peak(),
        micro_batch=micro_batch,
        client_memory=foreseen.needed(micro_batch),
        least_memory=foreseen.needed(1),
        seconds=seconds,
        server_seconds=server_seconds,
        signal=signal_of(settings),
        hazards=hazards,
    )


def _cohort_plan(settings: Settings) -> CohortPlan:
    return CohortPlan(
        clients=settings.cohort_size,
        values=settings.plan.padded,
        bits=settings.plan.bits,
        drop=0.0,
        corrupt=settings.stated.corrupt_fraction,
    )


def _bytes(settings: Settings, *, exact: bool) -> tuple[float, float]:
    """Mean bytes of a client in a round; with slices those of the lowest one, which all send."""
    adapter = _VALUE_BYTES * settings.dimension
    if not exact:
        size = contribution_bytes(settings.aggregation, settings.plan, settings.bounds)
        return float(size), float(adapter)
    sizes = message_bytes(_cohort_plan(settings)).values()
    return sum(up for up, _ in sizes), adapter + sum(down for _, down in sizes)


def _arrangement(settings: Settings) -> list[str]:
    if settings.ranks is None or settings.slices is None:
        return [told(settings.aggregation, settings.plan, settings.bounds)]
    return [settings.ranks.told(), told_of_slices(settings.slices, settings.ranks.tiers)]


def _lost(settings: Settings, documents: int, lost: int) -> Hazard:
    width = settings.config.data.window_tokens
    return Hazard(
        lost == documents,
        f"data.window_tokens = {width}: {lost:,} of {documents:,} training documents are shorter "
        "and give no example; what is left over at a document's end is not used either. Take a "
        "smaller window",
    )
