"""From a pilot file to ``pilot.json``: all trials that time and budget reach for."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from securefed.config import PilotConfig, RunConfig
from securefed.engines.events import Observer
from securefed.engines.simulation import utc_now
from securefed.engines.software import software
from securefed.engines.unit_costs import measure_units
from securefed.errors import LedgerTampered
from securefed.pilot.charges import PilotLedger
from securefed.pilot.design import BASE, Planned, design
from securefed.pilot.folder import Line, PilotFolder
from securefed.pilot.pace import Pace
from securefed.pilot.records import PilotRecord, Trial
from securefed.pilot.trials import Trials, skipped


class PilotObserver(Protocol):
    """Told how far a pilot is."""

    @property
    def inner(self) -> Observer:
        """Told how far the present trial is."""
        ...

    def begins(self, name: str, done: int, total: int, seconds_left: float | None) -> None:
        """A trial begins; all that are left take about ``seconds_left``, None where unknown."""
        ...

    def ended(self, trial: Trial, done: int, total: int) -> None:
        """A trial is done or skipped."""
        ...


def run_pilot(
    pilot: PilotConfig,
    run: RunConfig,
    path: Path,
    *,
    observer: PilotObserver,
    resume: bool = False,
    cache: Path | None = None,
    offline: bool = False,
    clock: Callable[[], str] = utc_now,
    timer: Callable[[], float] = time.perf_counter,
) -> PilotRecord:
    """Make the trials and write ``pilot.json``.

    Args:
        pilot: the pilot file.
        run: the run file that it names.
        path: the pilot's folder.
        observer: told of progress.
        resume: go on with the pilot in ``path``.  Trials that are done are not repeated, one that
            stopped goes on where it can, and those left out are looked at again.
        cache: where models and corpora are kept; the default is ``cache_dir()``.
        offline: fetch nothing.
        clock: gives RFC 3339 text for ledgers.
        timer: seconds that pass.

    Raises:
        ConfigError: something is wrong with the files, the folder or the base run.
        BudgetExceeded: not even the base run fits the budget.
        LedgerTampered: the pilot's ledger, or that of a run to go on with, does not verify.
        ThresholdNotMet, LedgerError: a run stopped; the pilot can be resumed.

    Guarantees:
        - On data that is not public every trial is opened in the pilot's ledger before it begins,
          and none without noise is made.
        - Such a record holds no client's own figures, and times in whole minutes: exact ones would
          tell how much was drawn.
    """
    folder = PilotFolder(path)
    if resume:
        folder.check_same(pilot, run)
    else:
        folder.begin(pilot, run)
    started = timer()
    kept = [line for line in folder.lines() if line.trial.status == "done"]
    folder.rewrite(kept)
    before = max((line.elapsed for line in kept), default=0.0)
    public = pilot.data.public

    def elapsed() -> float:
        return before + timer() - started

    def told(seconds: float) -> float:
        return seconds if public else 60.0 * math.ceil(seconds / 60.0)

    with ExitStack() as held:
        ledger = None
        if pilot.budget.epsilon is not None:
            if folder.has_runs and not folder.ledger.exists():
                raise LedgerTampered(
                    f"{folder.ledger}: is missing, and with it what the runs beside it have spent"
                )
            ledger = PilotLedger(folder.ledger, budget=pilot.budget.epsilon, clock=clock)
            held.callback(ledger.close)
        trials = Trials(
            run,
            folder,
            rates=pilot.baselines.full_learning_rates,
            observer=observer.inner,
            ledger=ledger,
            cache=cache,
            offline=offline,
            clock=clock,
            timer=timer,
        )
        done = {(line.trial.name, line.trial.seed): line.trial for line in kept}
        pace = Pace(run, done.values(), rates=len(pilot.baselines.full_learning_rates))
        plan = design(pilot, run)
        ended: list[Trial] = []
        for place, planned in enumerate(plan):
            found = done.get((planned.name, planned.seed))
            if found is None:
                left = pace.seconds_left(plan[place:])
                observer.begins(planned.name, place, len(plan), left)
                found = _made(pilot, planned, trials, pace, elapsed)
                if found.status == "done":
                    pace.learn(found)
                found = replace(found, seconds=told(found.seconds))
                folder.append(Line(found, told(elapsed())))
            elif planned.name == BASE:
                trials.found_base(found)
            ended.append(found)
            observer.ended(found, place + 1, len(plan))
        spent = dict(zip(("epsilon", "delta"), ledger.spent, strict=True)) if ledger else {}
    record = PilotRecord(
        config=pilot.model_dump(mode="json") | {"run": pilot.run.name},
        run=run.model_dump(mode="json"),
        software=software(),
        machine=machine(),
        public=public,
        spent=spent,
        trials=tuple(ended),
        seconds=told(elapsed()),
        units=asdict(measure_units()),
    )
    folder.write_record(record)
    return record


def _made(
    pilot: PilotConfig,
    planned: Planned,
    trials: Trials,
    pace: Pace,
    elapsed: Callable[[], float],
) -> Trial:
    if planned.refused:
        return skipped(planned, planned.refused)
    limit = 60.0 * pilot.minutes

    def fits(seconds: float) -> bool:
        return elapsed() + seconds <= limit

    expected = pace.seconds(planned)
    if not planned.first and not fits(expected):
        return skipped(
            planned,
            f"minutes = {pilot.minutes:g}: {_minutes(elapsed())} are gone, and by the trials "
            f"before it, it would take about {_minutes(expected)}",
        )
    begun = elapsed()
    return trials.make(planned, goes_on=lambda tried: fits((elapsed() - begun) / tried))


def _minutes(seconds: float) -> str:
    count = math.ceil(seconds / 60.0)
    return f"{count} minute{'s' * (count != 1)}"


def machine() -> Mapping[str, Any]:
    """What the figures were measured on, in words; no name and no path of it."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__.partition("+")[0],
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "",
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
