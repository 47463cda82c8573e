"""A whole federation in one process: a real model, real clients' data, real rounds."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from securefed.config import RunConfig, first_difference, load_config
from securefed.engines.events import Observer, OnRoundEnd, Silent, Told
from securefed.engines.forecast import Forecast, forecast
from securefed.engines.from_objects import (
    GivenClients,
    GivenSection,
    config_from,
    corpus_from,
)
from securefed.engines.planning import plan_cohort
from securefed.engines.results import RunResult, recorded_result
from securefed.engines.run import Run
from securefed.engines.run_folder import RunFolder
from securefed.engines.run_plan import RunPlan
from securefed.engines.settings import Settings
from securefed.engines.verified import recorded_plan, verified_run
from securefed.engines.witnessing import witness_closing
from securefed.engines.workbench import Workbench
from securefed.errors import ConfigError, LedgerTampered
from securefed.evidence.ledger import read_ledger
from securefed.secagg.encrypting import SumKey
from securefed.training.assets import cache_dir
from securefed.training.corpora import OBJECTS, Corpus


def utc_now() -> str:
    """The present time as RFC 3339 text, cut to the minute.

    How long a round took tells roughly how many examples were drawn for it, which is secret.
    """
    minute = datetime.datetime.now(datetime.UTC).replace(second=0, microsecond=0)
    return minute.isoformat().replace("+00:00", "Z")


def new_run_folder(config: RunConfig, clock: Callable[[], str] = utc_now) -> Path:
    """Where a run goes that was given no folder: ``runs/NAME-TIME-XXXXXX``."""
    stamp = clock().replace(":", "").replace("-", "")
    # The time is cut to the minute; two runs that begin in one must not meet.
    return Path("runs") / f"{config.output.name}-{stamp}-{secrets.token_hex(3)}"


class Federation:
    """A federation of simulated clients, from a run file or from Python objects.

    Args:
        config: the validated run file; or, without it, ``sections``.
        clients: texts or records by client, or a folder; in the place of ``data.source``.
        on_round_end: called with a :class:`RoundEvent` when a round is
            over, or several such functions.  Nothing in the event is of a single client.
        observer: told of progress.
        cache: where models and corpora are kept; the default is ``cache_dir()``.
        offline: fetch nothing.
        clock: gives RFC 3339 text for ledger records.
        loaded: model and clients of another federation's run that is over, to be used again.
        plan: what runs carry out, if the run file asks for that and it is settled already, as
            after another federation's run; else the first run makes its own.
        sections: the run file's sections by name (``model``, ``privacy``, ``training`` ...), each a
            mapping of its settings; ``model`` may be its source alone.

    Raises:
        ConfigError: a setting is wrong; it is named.
        DataError: a client's texts are not what they must be.

    Example:
        >>> Federation.from_config("run.toml").run("runs/first")   # doctest: +SKIP
        >>> Federation(                                            # doctest: +SKIP
        ...     model="builtin:smollm2-135m-instruct",
        ...     clients={"north": texts, "south": dataset},
        ...     privacy={"unit": "example", "target_epsilon": 8.0, "expected_batch": 64},
        ... ).run("runs/second")
    """

    def __init__(
        self,
        config: RunConfig | None = None,
        *,
        clients: GivenClients | None = None,
        on_round_end: OnRoundEnd | Sequence[OnRoundEnd] = (),
        observer: Observer | None = None,
        cache: Path | None = None,
        offline: bool = False,
        clock: Callable[[], str] = utc_now,
        loaded: Workbench | None = None,
        plan: RunPlan | None = None,
        **sections: GivenSection,
    ) -> None:
        if config is None:
            config = config_from(sections, clients)
        elif sections:
            raise ConfigError(
                f"Federation(config, {min(sections)}=...): config holds every section; give it or "
                "sections"
            )
        elif clients is not None and config.data.source != OBJECTS:
            raise ConfigError(
                f"Federation(config, clients=...): config.data.source = {config.data.source!r} "
                f"says whose texts are trained on; leave clients out (or set it to {OBJECTS!r})"
            )
        self.config = config
        self._corpus: Corpus | None = None
        if isinstance(clients, Mapping):
            self._corpus = corpus_from(clients, config.data, config.model.labels)
        self._observer: Observer = Silent() if observer is None else observer
        each = (on_round_end,) if callable(on_round_end) else tuple(on_round_end)
        if each:
            self._observer = Told(self._observer, each)
        self._cache = cache_dir() if cache is None else cache
        self._offline = offline
        self._clock = clock
        self._loaded = loaded
        self._used: Workbench | None = loaded
        if plan is not None and not config.cohort.schedule.carry_out:
            raise ConfigError("plan: given, and cohort.schedule.carry_out = false")
        self._plan = plan

    @classmethod
    def from_config(cls, path: str | Path, **options: Any) -> Self:
        """Read a run file; ``options`` are those of the constructor.

        Raises:
            ConfigError: names each field that is wrong.
        """
        return cls(load_config(Path(path)), **options)

    def run(self, out: str | Path | None = None, *, resume: bool = False) -> RunResult:
        """Train.

        Args:
            out: the run folder; default ``runs/NAME-TIME-XXXXXX``, with six random digits.
            resume: go on with the run in ``out``; of a finished run the result is read from its
                ledger, once it verifies, and nothing is written but the signatures over its closing
                record, where a kill came before them.

        Raises:
            ConfigError, DataError, FetchError: something is wrong before the first round; the run
                folder was not made.
            BudgetExceeded: not even the first round fits the budget.
            ThresholdNotMet: a round lost too many clients; the run can be resumed, unless
                its noise is correlated over rounds.
            LedgerError: the ledger cannot be written; nothing was spent that it does not hold.
        """
        folder = RunFolder(Path(out) if out else new_run_folder(self.config, self._clock))
        if resume:
            folder.check_resumable()
            recorded = load_config(folder.config)
            if recorded != self.config:
                raise ConfigError(
                    f"--resume: in {folder.config} {first_difference(recorded, self.config)}; a "
                    "run goes on with the settings it began with"
                )
            finished = recorded_result(folder.path)
            if finished is not None:
                folder.take_keys()
                witness_closing(folder.path, folder.keys, self._clock)
                self._observer.message(f"the run in {folder.path} is finished; nothing is left")
                return finished
            if not self.config.privacy.resumable and not self._lacks_only_its_end(folder):
                raise ConfigError(
                    f"--resume: the run in {folder.path} has sampling = 'cyclic': its noise is "
                    "correlated with sums that only the stopped process held, so it cannot go on; "
                    "what was charged stays charged"
                )
        else:
            folder.check_new()
        noise = None
        if resume:
            noise, self._plan = _recorded(folder, self.config)
        bench, settings = self.prepare(noise)
        if self.config.cohort.schedule.carry_out:
            if settings.run_plan is None:
                self._plan = self._planned(bench, settings)
                if not bench.fits(self.config, self._plan):
                    del bench  # or there would be two models at once
                    bench = self._bench(None)
                elif self._plan.ranks is not None:
                    bench = self._bench(bench)
                settings = self._settings(bench)
            self._carry_out(bench, settings)
        self._used = bench
        return Run(self.config, folder, bench, settings, self._observer, self._clock).go(
            resume=resume
        )

    def _lacks_only_its_end(self, folder: RunFolder) -> bool:
        """Whether every round of a run was applied, so that no further sum is needed."""
        history = verified_run(folder.path).history
        return history.open is None and history.applied == self.config.training.rounds

    def _planned(self, bench: Workbench, settings: Settings) -> RunPlan:
        """A plan that is made now."""
        self._observer.message("planning: measuring how fast this machine trains and encodes")
        made = plan_cohort(self.config, bench, settings)
        return RunPlan(made.schedule, made.workload, made.profiles, made.rules, self.config)

    def _bench(self, loaded: Workbench | None) -> Workbench:
        """Model and clients at the ranks of the plan; what is loaded serves where it fits them."""
        if loaded is not None and loaded.fits(self.config, self._plan):
            return loaded.again(self.config, self._observer, self._plan)
        return Workbench(
            self.config,
            cache=self._cache,
            offline=self._offline,
            observer=self._observer,
            plan=self._plan,
            corpus=self._corpus,
        )

    def _settings(self, bench: Workbench, noise_multiplier: float | None = None) -> Settings:
        return Settings(
            self.config,
            sizes=bench.sizes,
            dimension=bench.combining.length,
            widths=bench.ranked.widths,
            noise_multiplier=noise_multiplier,
            run_plan=self._plan,
        )

    def _carry_out(self, bench: Workbench, settings: Settings) -> None:
        """Show the plan, and check what is new by it before a round."""
        plan = settings.run_plan
        if plan is None:
            raise ConfigError("cohort.schedule.carry_out: no plan was made")
        plan.check_deadlines(settings.stated)
        self._observer.planned(plan.schedule)
        bench.check_gradients(settings)

    def prepare(self, noise_multiplier: float | None = None) -> tuple[Workbench, Settings]:
        """Load model and data and check everything that can be checked before a round.

        Args:
            noise_multiplier: what ``privacy.target_epsilon`` was turned into when the run began.
        """
        bench = self._bench(self._loaded)
        self._used = bench
        settings = self._settings(bench, noise_multiplier)
        if settings.encryption is not None:
            SumKey.generate(settings.encryption)  # refused now or never: the library is missing
        if not bench.gradients_checked:
            bench.check_gradients(settings)
        return bench, settings

    def forecast(self) -> Forecast:
        """What a run would spend, and what will not work; nothing is spent.

        Raises:
            ConfigError, DataError, FetchError: as :meth:`run`.
        """
        return forecast(*self.prepare())

    def like(self, config: RunConfig, observer: Observer) -> Federation:
        """A federation with other privacy, budget or output in the same surroundings.

        Once this one's run is over, the other takes over its model and data; but for local
        DP-SGD, which puts per-example hooks of its own on a model.
        """
        local = "local" in (self.config.privacy.mechanism, config.privacy.mechanism)
        other = Federation(
            config,
            observer=observer,
            cache=self._cache,
            offline=self._offline,
            clock=self._clock,
            loaded=None if local else self._used,
            plan=None if self._plan is None else replace(self._plan, config=config),
        )
        other._corpus = self._corpus
        return other


def _recorded(folder: RunFolder, config: RunConfig) -> tuple[float, RunPlan | None]:
    """The noise multiplier and the plan that a run began with, by its ledger's first record."""
    genesis = read_ledger(folder.ledger)[0].body
    try:
        noise = float(genesis["privacy"]["noise_multiplier"])
        return noise, recorded_plan(genesis, config)
    except (KeyError, TypeError, ValueError) as error:  # a ConfigError is a ValueError
        raise LedgerTampered(
            f"{folder.ledger}: the first record lacks what it must hold ({error})"
        ) from None
