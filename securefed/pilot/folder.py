"""Where a pilot keeps what it has made."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from securefed.config import (
    PilotConfig,
    RunConfig,
    dump_config,
    dump_pilot,
    first_difference,
    load_config,
    load_pilot,
)
from securefed.engines.run_folder import RunFolder
from securefed.engines.simulation import utc_now
from securefed.errors import ConfigError
from securefed.operations.whole_files import write_whole
from securefed.pilot.charges import FILE as LEDGER
from securefed.pilot.records import FILE as RECORD
from securefed.pilot.records import PilotRecord, Trial, trial_of

_MAY_CHANGE = {"minutes", "run"}
"""What a pilot may go on with another value of: nothing that was measured follows from it.  The run
file is compared by what is in it."""


@dataclass(frozen=True)
class Line:
    """A trial as ``trials.jsonl`` holds it.

    Attributes:
        trial: what was measured, or why nothing was.
        elapsed: seconds of the pilot so far, those of earlier calls included.
    """

    trial: Trial
    elapsed: float


class PilotFolder:
    """Paths and files of one pilot.

    ``pilot.toml`` and ``run.toml`` (resolved; the first names the second), ``trials.jsonl``,
    ``pilot.json``, ``runs/`` with one run folder a trial that has one, and on private data
    ``pilot-ledger.jsonl``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.run = path / "pilot.toml", path / "run.toml"
        self.trials = path / "trials.jsonl"
        self.record = path / RECORD
        self.ledger = path / LEDGER
        self.runs = path / "runs"

    @property
    def has_runs(self) -> bool:
        """Whether a trial was ever begun here."""
        return bool(self.lines()) or (self.runs.is_dir() and any(self.runs.iterdir()))

    def begin(self, pilot: PilotConfig, run: RunConfig) -> None:
        """Make the folder.

        Raises:
            ConfigError: it exists and is not empty, or cannot be made.
        """
        RunFolder(self.path).check_new()
        self.runs.mkdir(parents=True)
        write_whole(self.run, dump_config(run))
        self._write_config(pilot)

    def _write_config(self, pilot: PilotConfig) -> None:
        named = pilot.model_copy(update={"run": Path(self.run.name)})
        write_whole(self.config, dump_pilot(named))

    def check_same(self, pilot: PilotConfig, run: RunConfig) -> None:
        """Refuse to go on with other settings than those the pilot began with.

        ``minutes`` may be another: the folder then holds the new one.

        Raises:
            ConfigError: there is no pilot here, or the first key that differs.
        """
        for path in (self.config, self.run):
            if not path.is_file():
                raise ConfigError(f"--resume: {path} is missing; there is no pilot to go on with")
        kept = {key: getattr(pilot, key) for key in _MAY_CHANGE}
        pairs = (
            (self.config, load_pilot(self.config).model_copy(update=kept), pilot),
            (self.run, load_config(self.run), run),
        )
        for path, began, now in pairs:
            if difference := first_difference(began, now):
                raise ConfigError(
                    f"--resume: in {path} {difference}; a pilot goes on with the settings it began "
                    "with"
                )
        self._write_config(pilot)

    def lines(self) -> list[Line]:
        """What ``trials.jsonl`` holds; a line that a kill has torn is left out.

        Raises:
            ConfigError: it holds something else.
        """
        if not self.trials.is_file():
            return []
        text = self.trials.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1].splitlines()
        try:
            found = [json.loads(line) for line in whole]
            return [Line(trial_of(values["trial"]), values["elapsed"]) for values in found]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{self.trials}: is not a pilot's list of trials ({error})") from None

    def rewrite(self, lines: Iterable[Line]) -> None:
        """Replace the list of trials, at once."""
        write_whole(self.trials, "".join(_text(line) for line in lines))

    def append(self, line: Line) -> None:
        """Add a trial to the list, through to the disk."""
        with self.trials.open("a", encoding="utf-8") as stream:
            stream.write(_text(line))
            stream.flush()
            os.fsync(stream.fileno())

    def write_record(self, record: PilotRecord) -> None:
        """Write ``pilot.json``, whole or not at all."""
        write_whole(self.record, record.to_text())


def _text(line: Line) -> str:
    values: dict[str, Any] = {"trial": asdict(line.trial), "elapsed": line.elapsed}
    return json.dumps(values, sort_keys=True, allow_nan=False) + "\n"


def new_pilot_folder(config: PilotConfig) -> Path:
    """Where a pilot goes that was given no folder: ``pilots/NAME-TIME-XXXXXX``."""
    stamp = utc_now().replace(":", "").replace("-", "")
    return Path("pilots") / f"{config.name}-{stamp}-{secrets.token_hex(3)}"


def previous_record(path: Path) -> PilotRecord:
    """The record of an earlier pilot, by its file or its folder.

    Raises:
        ConfigError: there is none.
    """
    return PilotRecord.read(path / RECORD if path.is_dir() else path)
