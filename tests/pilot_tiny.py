"""A pilot over the tiny model and four tiny clients, and who watches it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tomli_w
from tiny import write_run

from securefed.config import load_config, load_pilot
from securefed.engines.events import Silent
from securefed.pilot.records import PilotRecord, Trial
from securefed.pilot.running import run_pilot

CLIENTS = [f"site-{index}" for index in range(4)]

NOTHING_BESIDES = {"full": False, "pooled": False, "local": False, "protections": False}


def write_pilot(
    folder: Path, run: dict[str, dict[str, Any]] | None = None, **sections: Any
) -> Path:
    """A pilot file beside its run file: one round of four clients, on public data."""
    overridden = {
        "data": {"clients": CLIENTS},
        "training": {"rounds": 1},
        "privacy": {"expected_batch": 40, "noise_multiplier": 2.0},
    }
    for name, section in (run or {}).items():
        overridden[name] = overridden.get(name, {}) | section
    write_run(folder, **overridden)
    values: dict[str, Any] = {"run": "run.toml", "data": {"public": True}}
    path = folder / "pilot.toml"
    path.write_text(tomli_w.dumps(values | sections))
    return path


class Told:
    """Keeps what a pilot says; calls ``then`` after each trial."""

    def __init__(self, then: Callable[[Trial], None] | None = None) -> None:
        self.inner = Silent()
        self.begun: list[str] = []
        self.over: list[Trial] = []
        self._then = then

    def begins(self, name: str, done: int, total: int, seconds_left: float | None) -> None:
        assert 0 <= done < total
        assert seconds_left is None or seconds_left >= 0.0
        self.begun.append(name)

    def ended(self, trial: Trial, done: int, total: int) -> None:
        self.over.append(trial)
        if self._then is not None:
            self._then(trial)


def go(path: Path, out: Path, told: Told | None = None, **options: Any) -> PilotRecord:
    pilot = load_pilot(path)
    observer = Told() if told is None else told
    return run_pilot(pilot, load_config(pilot.run), out, observer=observer, **options)


def by_name(record: PilotRecord) -> dict[str, Trial]:
    return {trial.name: trial for trial in record.trials}
