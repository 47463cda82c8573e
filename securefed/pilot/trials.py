"""One trial: a run of its own, or a baseline, and what it had to show."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from securefed.config import RunConfig
from securefed.config.run import BudgetSection
from securefed.engines.events import Observer
from securefed.engines.results import RunResult
from securefed.engines.settings import Settings
from securefed.engines.simulation import Federation, utc_now
from securefed.engines.workbench import Workbench
from securefed.errors import (
    BudgetExceeded,
    ConfigError,
    GradientCheckError,
    LedgerTampered,
    OverflowBoundError,
)
from securefed.evidence.kinds import closing
from securefed.evidence.ledger import read_ledger
from securefed.pilot import baselines
from securefed.pilot.charges import PilotLedger
from securefed.pilot.design import BASE, Planned
from securefed.pilot.folder import PilotFolder
from securefed.pilot.measured import cost_of_run, own_figures, quality_of_run
from securefed.pilot.records import Trial
from securefed.privacy.accounting import epsilon_text
from securefed.training.assets import cache_dir
from securefed.training.models import load_model, resolve_device

_NOT_TO_BE_HAD = (ConfigError, OverflowBoundError, BudgetExceeded, GradientCheckError)
_SINCE_RESUMED = "resumed: seconds and memory are of the part since then"


def skipped(planned: Planned, why: str) -> Trial:
    """The record of a trial that was not made."""
    return Trial(
        name=planned.name,
        group=planned.group,
        varied=dict(planned.changes),
        seed=planned.seed,
        status="skipped",
        why=why,
    )


@dataclass(frozen=True)
class _Ready:
    """A run that can begin: everything that can be checked before its first round holds."""

    config: RunConfig
    bench: Workbench
    settings: Settings


class Trials:
    """Makes the trials of a pilot, one after another, and keeps the model from one to the next.

    There is one model in memory at a time: one that was adapted in another way is let go first.

    Args:
        run: the pilot's run file.
        folder: of the pilot.
        rates: learning rates of full fine-tuning.
        observer: told how far a trial is.
        ledger: on data that is not public: what trials are charged to; None on public data.
        cache: where models and corpora are kept; the default is ``cache_dir()``.
        offline: fetch nothing.
        clock: gives RFC 3339 text for ledgers.
        timer: seconds that pass.
    """

    def __init__(
        self,
        run: RunConfig,
        folder: PilotFolder,
        *,
        rates: list[float],
        observer: Observer,
        ledger: PilotLedger | None,
        cache: Path | None = None,
        offline: bool = False,
        clock: Callable[[], str] = utc_now,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._run, self._folder, self._rates = run, folder, rates
        self._observer, self._ledger = observer, ledger
        self._cache = cache_dir() if cache is None else cache
        self._offline, self._clock, self._timer = offline, clock, timer
        self._held: Federation | None = None
        self._base_folder: Path | None = None
        self._loading = 0.0  # seconds of the present trial that no record counts

    @property
    def public(self) -> bool:
        """Whether anybody may see the data."""
        return self._ledger is None

    def make(self, planned: Planned, *, goes_on: Callable[[int], bool]) -> Trial:
        """Make one trial.

        Args:
            planned: not a refused one.
            goes_on: asked before full fine-tuning tries a further rate, with how many it has tried.

        Returns:
            Its record; a skipped one where such a run cannot be had, but for the base run.

        Raises:
            ConfigError, OverflowBoundError, BudgetExceeded, GradientCheckError: the base run cannot
                be had.
            ThresholdNotMet, LedgerError: the run stopped; the pilot can be resumed.
        """
        try:
            if planned.how != "federated":
                return self._baseline(planned, goes_on)
            ready = self._prepared(planned)
            path, resume = self._opened(planned, ready)
        except _NOT_TO_BE_HAD as error:
            if planned.first:
                raise
            return skipped(planned, str(error))
        return self._federated(planned, ready, path, resume)

    # -- what is loaded --------------------------------------------------------------------

    def _federation(self, config: RunConfig, loaded: Workbench | None = None) -> Federation:
        return Federation(
            config,
            observer=self._observer,
            cache=self._cache,
            offline=self._offline,
            clock=self._clock,
            loaded=loaded,
        )

    def _fitting(self, config: RunConfig) -> Federation:
        """A federation that goes on with the loaded model, where that was adapted in this way."""
        if self._held is not None:
            if _loaded_from(self._held.config) == _loaded_from(config):
                return self._held.like(config, self._observer)
            self._let_go()
        self._held = self._federation(config)
        return self._held

    def _let_go(self) -> None:
        self._held = None
        gc.collect()  # hooks make cycles of models

    def _prepared(self, planned: Planned) -> _Ready:
        config = planned.config(
            self._run,
            show_clients=self.public,
            noise=self._noise_of_base() if planned.noise_of_base else None,
        )
        federation = self._fitting(config)
        return _Ready(config, *federation.prepare())

    def _noise_of_base(self) -> float:
        """What the base run's target was turned into, by its ledger."""
        if self._base_folder is None:
            raise ConfigError("privacy.noise_multiplier: the base run has not shown it yet")
        first = read_ledger(self._base_folder / "ledger.jsonl")[0].body
        return float(first["privacy"]["noise_multiplier"])

    # -- where it runs and what it may spend -----------------------------------------------

    def found_base(self, trial: Trial) -> None:
        """Take note of a base run that was made before."""
        self._base_folder = self._folder.path / trial.folder

    def _opened(self, planned: Planned, ready: _Ready) -> tuple[Path, bool]:
        """The folder of a trial, opened in the pilot's ledger, and whether it goes on there."""
        limit, settings = ready.settings.limit, ready.settings
        if limit is not None and settings.epsilon_after(1) > limit[1]:
            raise BudgetExceeded(
                f"{limit[0]} = {limit[1]:g}: the first round alone costs "
                f"{epsilon_text(settings.epsilon_after(1))}"
            )
        attempt, name = 1, planned.folder
        while True:
            path = self._folder.path / name
            begun = (path / "ledger.jsonl").is_file()
            if begun and (ready.config.privacy.resumable or _is_over(path)):
                return path, True
            # A run that was opened and is not there any more may have spent it all.
            if not begun and (self._ledger is None or self._ledger.opened(name) is None):
                break
            attempt += 1
            name = f"{planned.folder}-again-{attempt}"
        if self._ledger is not None:
            epsilon = settings.epsilon_after(settings.stated.rounds)
            if limit is not None:
                epsilon = min(epsilon, limit[1])
            beside, delta = _of_histograms(settings)
            both = settings.stated.delta + delta
            self._ledger.open(name, epsilon=epsilon, beside=beside, delta=both)
        return path, False

    def _within_opening(self, ready: _Ready, name: str) -> RunConfig:
        """The run file with what the trial was opened with as its budgets: retries count too."""
        config = ready.config
        if self._ledger is None:
            return config
        opened = self._ledger.opened(name)
        if opened is None:
            raise BudgetExceeded(f"{name}: was not opened in the pilot's ledger")
        changes: dict[str, Any] = {"budget": BudgetSection(epsilon=opened)}
        histograms, section = ready.settings.histograms, config.evaluation.histogram
        if histograms is not None and section is not None:
            most = histograms.epsilon_after(histograms.planned)
            most = most if section.epsilon is None else min(most, section.epsilon)
            within = section.model_copy(update={"epsilon": most})
            changes["evaluation"] = config.evaluation.model_copy(update={"histogram": within})
        return config.model_copy(update=changes)

    # -- making ----------------------------------------------------------------------------

    def _federated(self, planned: Planned, ready: _Ready, path: Path, resume: bool) -> Trial:
        name = path.relative_to(self._folder.path).as_posix()
        again = resume and not _is_over(path)
        federation = self._federation(self._within_opening(ready, name), ready.bench)
        started = self._timer()
        result = federation.run(path, resume=resume)
        seconds = self._timer() - started
        if self._ledger is not None and not self._ledger.closed(name):
            self._end(name, result, ready.settings)
        own = own_figures(ready.bench, path, result.rounds) if self.public else {}
        statement = result.guarantees[ready.settings.accounted]
        some = any(found.protected for found in result.guarantees.values())
        notes = [planned.why, result.stopped, _SINCE_RESUMED * again]
        if planned.name == BASE:
            self._base_folder = path
        return Trial(
            name=planned.name,
            group=planned.group,
            varied=self._varied(planned),
            seed=planned.seed,
            why="; ".join(note for note in notes if note),
            clients=len(ready.bench.clients),
            rounds=result.rounds,
            quality=quality_of_run(result, own),
            cost=cost_of_run(result, ready.bench, ready.settings, public=self.public),
            guarantees=tuple(g.to_record() for g in result.guarantees.values()) if some else (),
            epsilon=statement.epsilon if statement.protected else None,
            seconds=seconds,
            folder=name,
        )

    def _end(self, name: str, result: RunResult, settings: Settings) -> None:
        """Book what the run's closing record says was charged."""
        if self._ledger is None:
            return
        record = closing(read_ledger(result.folder / "ledger.jsonl"))
        if record is None:
            raise LedgerTampered(f"{result.folder}: a run that is over has a closing record")
        closed = record.body
        statement = next(g for g in closed["guarantees"] if g["against"] == settings.accounted)
        beside, delta = 0.0, 0.0
        if settings.histograms is not None:
            beside = settings.histograms.of_training_unit(int(closed["histograms"]["charges"]))
            delta = settings.histograms.policy.delta
        self._ledger.end(
            name,
            epsilon=float(statement["epsilon"]) + beside,
            delta=float(statement["delta"]) + delta,
            charges=int(closed["charges"]),
        )

    def _varied(self, planned: Planned) -> dict[str, Any]:
        varied = dict(planned.changes)
        if planned.noise_of_base:
            varied["privacy.noise_multiplier"] = self._noise_of_base()
            varied["privacy.target_epsilon"] = None
        return varied

    def _baseline(self, planned: Planned, goes_on: Callable[[int], bool]) -> Trial:
        if not self.public:
            raise BudgetExceeded(f"{planned.name}: trains without noise; the data is not public")
        config = baselines.bare(planned.config(self._run, show_clients=True))
        federation = self._fitting(config)
        bench, settings = federation.prepare()
        clients, device = bench.clients, bench.device
        del bench
        started, self._loading = self._timer(), 0.0
        if planned.how == "alone":
            found = baselines.clients_alone(federation, self._observer)
        elif planned.how == "pooled":
            found = baselines.pooled(federation, self._observer)
        else:
            del federation
            self._let_go()
            full = baselines.FullFineTuning(
                clients=clients,
                settings=settings,
                device=device,
                load=lambda: self._loaded(config),
                observer=self._observer,
                goes_on=goes_on,
            )
            found = full.run(self._rates)
        return Trial(
            name=planned.name,
            group=planned.group,
            varied=dict(planned.changes),
            seed=planned.seed,
            why="; ".join(note for note in (found.why, planned.why) if note),
            clients=len(clients),
            rounds=config.training.rounds,
            quality=found.quality,
            cost=found.cost,
            seconds=self._timer() - started - self._loading,
        )

    def _loaded(self, config: RunConfig) -> nn.Module:
        """The base model without an adapter, to be trained whole."""
        started = self._timer()
        section = baselines.as_fine_tuned(config.model)
        device = resolve_device(config.training.device)
        found = load_model(section, cache=self._cache, offline=self._offline, device=device)
        self._loading += self._timer() - started
        return found.model


def _of_histograms(settings: Settings) -> tuple[float, float]:
    """Epsilon and delta of one unit of training in the run's histograms; they add to training's."""
    histograms = settings.histograms
    if histograms is None:
        return 0.0, 0.0
    return histograms.of_training_unit(histograms.planned), histograms.policy.delta


def _is_over(path: Path) -> bool:
    """Whether a run folder's run is finished."""
    return closing(read_ledger(path / "ledger.jsonl")) is not None


def _loaded_from(config: RunConfig) -> tuple[object, ...]:
    """What a loaded model, its adapter and its clients follow from."""
    own = config.privacy.mechanism == "local"  # which puts hooks of its own on a model
    return (
        config.model,
        config.data,
        config.lora,
        config.training,
        config.evaluation,
        config.privacy.unit,
        object() if own else None,
    )
