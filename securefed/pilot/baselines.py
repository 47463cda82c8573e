"""What a run is compared with: all parameters trained, one party with all data, clients alone."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from securefed.config import ModelSection, RunConfig, parse_config
from securefed.engines.compare import figures_of_clients_alone
from securefed.engines.events import Observer
from securefed.engines.held_out import held_out_figures
from securefed.engines.metering import Meter, ResidentMemory, Work
from securefed.engines.settings import Settings
from securefed.engines.simulation import Federation
from securefed.engines.without_noise import OF_SUMS, without_noise
from securefed.engines.workbench import Workbench
from securefed.pilot.measured import Vectors, most_resident, quality_of_clients
from securefed.pilot.plain_rounds import PlainRounds, TrainedAdapter, TrainedModel
from securefed.pilot.records import Cost, Quality
from securefed.training.data import ClientData, Examples

_POOLED = "all clients"


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """What a baseline has to show.

    Attributes:
        quality, cost: as the record has them.
        why: what should be known of it besides.
    """

    quality: Quality
    cost: Cost
    why: str = ""


def bare(config: RunConfig) -> RunConfig:
    """The run file of a run's training without noise, and without what is about sums."""
    values = without_noise(config)
    values["training"] = {k: v for k, v in values["training"].items() if k not in OF_SUMS}
    return parse_config(values)


def clients_alone(federation: Federation, observer: Observer) -> Baseline:
    """Each client trains by itself (``engines.compare``), and keeps base model and adapter.

    Args:
        federation: of a :func:`bare` run file.
        observer: told how far it is.
    """
    bench, _ = federation.like(federation.config, observer).prepare()
    before = {name: bench.figures(name) for name in sorted(bench.clients)}
    meter = _meter()
    after = figures_of_clients_alone(federation, observer, meter.phase)
    work = meter.take()
    return Baseline(
        quality=quality_of_clients(before, after),
        cost=Cost(
            values=bench.dimension,
            bytes_up=0.0,
            bytes_down=0.0,
            client_seconds=_per_round(work, federation.config, len(bench.clients)),
            server_seconds={},
            memory_bytes=_memory(work),
            storage_bytes=_storage(bench.model_bytes, adapter=4 * bench.dimension),
            estimated=("storage_bytes",),
        ),
    )


def pooled(federation: Federation, observer: Observer) -> Baseline:
    """One party holds all clients' data and trains the run's adapter, without clip or noise.

    It sees as many examples a round as the run does: a Poisson sample of all of them with the run's
    q and one step, or ``local_steps`` times the number of clients local steps.

    Args:
        federation: of a :func:`bare` run file.
        observer: told how far it is.
    """
    bench, settings = federation.like(federation.config, observer).prepare()
    training = bench.config.training
    parties = {name: data.train for name, data in sorted(bench.clients.items())}
    before = {name: bench.figures(name) for name in parties}
    if not settings.one_step:
        count = len(parties)
        training = training.model_copy(update={"local_steps": training.local_steps * count})
        parties = {_POOLED: together(bench.clients)}
    meter = _meter()
    rounds = PlainRounds(settings, parties, training, bench.device, meter.phase, observer)
    with bench.personal.of(_POOLED):  # one party's own part goes on from round to round
        rounds.run(TrainedAdapter(bench.model, bench.parts, training))
        work = meter.take()
        after = {name: _figures(bench, name) for name in sorted(bench.clients)}
    bench.begin_anew()
    return Baseline(
        quality=quality_of_clients(before, after),
        cost=Cost(
            values=bench.dimension,
            bytes_up=0.0,
            bytes_down=0.0,
            client_seconds={},
            server_seconds=_per_round(work, federation.config, 1),
            memory_bytes=_memory(work),
            storage_bytes={},
        ),
    )


def together(clients: Mapping[str, ClientData]) -> Examples:
    """All clients' training examples as one party's; users are not told apart."""
    found = [data.train for _, data in sorted(clients.items())]

    def every(name: str) -> Any:
        arrays = [getattr(examples, name) for examples in found]
        return None if any(own is None for own in arrays) else np.concatenate(arrays)

    return Examples(
        every("input_ids"),
        every("attention_mask"),
        every("labels"),
        targets=every("targets"),
        weights=every("weights"),
    )


@dataclass(frozen=True, kw_only=True)
class FullFineTuning:
    """All of a model's parameters, with several learning rates in turn.

    The run's rounds, samples (or local steps) and server rule, without clip or noise.  The rate is
    the server's where a round of the run is one step, else that of local steps.  The model has
    no adapter, and is in float32 and not quantised (:func:`as_fine_tuned`).

    Attributes:
        clients: their data.
        settings: of the run without noise.
        device: where to train.
        load: gives the base model, the same each time.
        observer: told how far it is.
        goes_on: asked before each further rate, with how many rates were tried.
    """

    clients: Mapping[str, ClientData]
    settings: Settings
    device: torch.device
    load: Callable[[], nn.Module]
    observer: Observer
    goes_on: Callable[[int], bool]

    def run(self, rates: list[float]) -> Baseline:
        """Try the rates; the one with the best held-out figure is what is shown.

        Args:
            rates: each > 0.
        """
        tried: dict[float, Baseline] = {}
        for rate in rates:
            if tried and not self.goes_on(len(tried)):
                break
            self.observer.message(f"full fine-tuning, learning rate {rate:g}")
            tried[rate] = self._at(rate)
        best = max(tried, key=lambda rate: tried[rate].quality.improvement)
        left = [f"{rate:g}" for rate in rates if rate not in tried]
        why = (
            f"learning rate {best:g}, the best of {len(tried)} by this very figure, which is in "
            "its favour: the run's own rates were not searched for here; bytes are 4 a parameter, "
            "plain float32"
        )
        if left:
            why += f"; no time was left for {', '.join(left)}"
        return Baseline(quality=tried[best].quality, cost=tried[best].cost, why=why)

    def _at(self, rate: float) -> Baseline:
        config = self.settings.config
        which = "server_learning_rate" if self.settings.one_step else "local_learning_rate"
        training = config.training.model_copy(update={which: rate})
        model = self.load()
        names = sorted(self.clients)
        trained = TrainedModel(model, training)
        before = self._figures(model, names)
        client, server = _meter(), _meter()
        rounds = PlainRounds(
            self.settings,
            {name: self.clients[name].train for name in names},
            training,
            self.device,
            lambda name: (server if name == "apply" else client).phase(name),
            self.observer,
        )
        rounds.run(trained)
        work, served = client.take(), server.take()
        after = self._figures(model, names)
        values = trained.layout.used
        del trained, rounds, model
        gc.collect()  # a second model must not stand beside the next one
        return Baseline(
            quality=quality_of_clients(before, after),
            cost=Cost(
                values=values,
                bytes_up=4.0 * values,
                bytes_down=4.0 * values,
                client_seconds=_per_round(work, config, len(names)),
                server_seconds=_per_round(served, config, 1),
                memory_bytes=_memory(work),
                storage_bytes=_storage(4 * values, adapter=0),
                estimated=("bytes_up", "bytes_down", "storage_bytes"),
            ),
        )

    def _figures(self, model: nn.Module, names: list[str]) -> Vectors:
        return {
            name: held_out_figures(
                model, self.clients[name].held_out, self.settings.config, self.device
            )
            for name in names
        }


def as_fine_tuned(section: ModelSection) -> ModelSection:
    """The model section under which all parameters can be trained: float32, not quantised."""
    return section.model_copy(update={"dtype": "float32", "quantize": "none"})


def _figures(bench: Workbench, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return held_out_figures(bench.model, bench.clients[name].held_out, bench.config, bench.device)


def _meter() -> Meter:
    return Meter(memory=[ResidentMemory()])


def _per_round(work: Work, config: RunConfig, parties: int) -> dict[str, float]:
    """CPU seconds of one party and round, by phase."""
    share = 1.0 / (config.training.rounds * parties)
    return {phase: share * seconds for phase, seconds in work.cpu_seconds.items()}


def _memory(work: Work) -> int | None:
    return most_resident([work.peak_memory_bytes])


def _storage(model: int, *, adapter: int) -> dict[str, int]:
    return {"base model": model, "adapter": adapter, "own part": 0, "account": 0}
