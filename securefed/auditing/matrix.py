"""The whole matrix: every cell measured, signed and kept, to be gone on with after a stop."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from pydantic import JsonValue

import securefed
from securefed.attacks.base import Limits
from securefed.auditing.catalogue import entry
from securefed.auditing.cells import Cell, NotApplicable
from securefed.auditing.entries import CONTROL, Finding
from securefed.auditing.from_config import AuditedRun
from securefed.crypto.identity import IdentityKey
from securefed.errors import ConfigError, RemoteProtocolError
from securefed.evidence.results import (
    About,
    AttackDocument,
    Measurement,
    Subject,
    read_result,
)
from securefed.evidence.signing import key_id
from securefed.evidence.software import source_sha256
from securefed.operations.whole_files import write_whole

_INPUTS = b"securefed/1/audited texts"


class Watcher(Protocol):
    """Told how an audit goes."""

    def begins(self, cell: Cell, done: int, total: int) -> None:
        """A cell is next."""
        ...

    def trial(self, done: int, total: int) -> None:
        """A trial of it is done."""
        ...

    def ended(self, cell: Cell, document: AttackDocument, *, kept: bool) -> None:
        """A cell is measured, or was before (``kept``)."""
        ...


class Unwatched:
    """Nobody watches."""

    def begins(self, cell: Cell, done: int, total: int) -> None:
        """Nothing."""

    def trial(self, done: int, total: int) -> None:
        """Nothing."""

    def ended(self, cell: Cell, document: AttackDocument, *, kept: bool) -> None:
        """Nothing."""


@dataclass(frozen=True)
class _Clock:
    until: float
    told: Callable[[int, int], None]

    @property
    def over(self) -> bool:
        return self.left <= 0.0

    @property
    def left(self) -> float:
        return self.until - time.monotonic()

    def trial(self, done: int, total: int) -> None:
        self.told(done, total)


def utc_now() -> str:
    """The present time, RFC 3339."""
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return now.isoformat().replace("+00:00", "Z")


@dataclass(eq=False)
class Matrix:
    """Runs cells of one audit in turn.

    Args:
        run: that is audited.
        folder: where results are kept, one file a cell; made if it is not there.
        key: signs them.
        limits: of one trial.
        cell_seconds: of one cell at most.
        watcher: told of progress.
        clock: gives RFC 3339 text.

    Guarantees:
        - A file of a result is there whole or not at all.
        - A result is kept, and not made again, only if this key has signed it, it has all its
          trials, and every setting is the same: model, texts, labels and code included.
        - What was void or not for its baseline's sake is decided again by the present baseline.
    """

    run: AuditedRun
    folder: Path
    key: IdentityKey
    limits: Limits
    cell_seconds: float
    watcher: Watcher = field(default_factory=Unwatched)
    clock: Callable[[], str] = utc_now

    def measure(self, cells: Sequence[Cell], *, seconds: float) -> list[AttackDocument]:
        """All cells, in order; those for which there is no time left say so.

        Args:
            cells: an attack's baseline before its other cells.
            seconds: for all of them together, > 0.

        Raises:
            ConfigError: the time is not positive, the folder cannot be made, or a cell is none of
                its attack's.
        """
        if not (seconds > 0.0 and self.cell_seconds > 0.0):
            raise ConfigError(
                f"seconds = {seconds}, of a cell {self.cell_seconds}: both must be > 0"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {self.folder}: {error.strerror}") from None
        for cell in cells:
            entry(cell.attack).check(cell)
        self._write_signer()
        until = time.monotonic() + seconds
        found: list[AttackDocument] = []
        baselines: dict[tuple[str, str, str, int], Measurement] = {}
        for place, cell in enumerate(cells):
            self.watcher.begins(cell, place, len(cells))
            settings = self.settings(cell)
            column = entry(cell.attack).baseline_of(cell.exposure)
            why = ""
            if (cell.exposure, cell.defence) not in (CONTROL, column):
                why = why_void(baselines.get((cell.attack, *column, cell.batch)))
            before = self._kept(cell, settings, why)
            document = before
            if document is None:
                document = self._measured(cell, settings, why, until)
                text = json.dumps(document.signed(self.key), sort_keys=True) + "\n"
                write_whole(self._path(cell), text)
            if cell.clients is None:
                found_by = (cell.attack, cell.exposure, cell.defence, cell.batch)
                baselines[found_by] = document.measurement
            found.append(document)
            self.watcher.ended(cell, document, kept=before is not None)
        return found

    def settings(self, cell: Cell) -> dict[str, JsonValue]:
        """All that a cell's measurement follows from, besides the captured views and the seeds.

        ``inputs`` is a digest of the texts that only the signing key can make: a plain one would
        let whoever knows all texts but one test guesses of that one.
        """
        run = self.run
        config = run.config.model_dump(mode="json", exclude_none=True)
        for section in ("model", "data"):  # where a folder lies is nothing that a result shows
            config[section]["source"] = Path(config[section]["source"]).name
        return cell.settings() | {
            "config": config,
            "texts": len(run.texts),
            "inputs": self.key.secret(label=_INPUTS, context=run.digest()).hex(),
            "adapter": run.workbench.adapter_hash().hex(),
            "state": run.state,
            "round": run.number,
            "trial_seconds": self.limits.seconds,
            "max_tokens": self.limits.max_tokens,
            "threads": torch.get_num_threads(),
            "code": [securefed.__version__, source_sha256(), torch.__version__],
        }

    def _measured(
        self,
        cell: Cell,
        settings: dict[str, JsonValue],
        why: str,
        until: float,
    ) -> AttackDocument:
        started = time.monotonic()
        clock = _Clock(min(until, started + self.cell_seconds), self.watcher.trial)
        finding = self._finding(cell, why, clock)
        spent = time.monotonic() - started
        measurement = Measurement(
            attack=cell.attack,
            attacks=entry(cell.attack).kind,
            exposure=cell.exposure,
            defence=cell.defence,
            model=Subject(**self.run.subject()),
            settings=settings,
            seeds=list(finding.seeds),
            n=finding.n,
            metrics=dict(finding.metrics),
            headline=finding.headline,
            verdict=finding.verdict,
            reason=finding.reason,
            void=finding.void,
            predicted=None if finding.predicted is None else dict(finding.predicted),
            curve=list(finding.curve),
        )
        about = About(
            time=self.clock(),
            seconds=spent,
            seconds_per_trial=finding.seconds_per_trial,
            ended_by_time=finding.ended_by_time,
            version=securefed.__version__,
        )
        return AttackDocument(measurement=measurement, about=about)

    def _finding(self, cell: Cell, why: str, clock: _Clock) -> Finding:
        if clock.over:
            return Finding.none("out_of_time", "the audit's time was over before this cell")
        if why:
            return Finding.none("void", why)
        try:
            return entry(cell.attack).measure(self.run, cell, self.limits, clock)
        except NotApplicable as error:
            return Finding.none("not_applicable", str(error))

    def _kept(self, cell: Cell, settings: dict[str, JsonValue], why: str) -> AttackDocument | None:
        path = self._path(cell)
        if not path.exists():
            return None
        try:
            document = read_result(path, [self.key.public])
        except RemoteProtocolError:
            return None  # another key's, or broken: made again
        found = document.measurement
        if found.settings != settings or found.model != Subject(**self.run.subject()):
            return None
        if why or (found.verdict == "void" and found.n == 0):
            # The baseline may have been made anew since, and decides again.
            same = (found.verdict, found.n, found.reason) == ("void", 0, why)
            return document if same else None
        # Several records may count for one trial.
        whole = found.verdict == "not_applicable" or found.n >= len(cell.seeds)
        return document if whole else None

    def _path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.json"

    def _write_signer(self) -> None:
        public = self.key.public
        signer = {
            "algorithm": public.algorithm,
            "keyid": key_id(public),
            "public": public.raw.hex(),
        }
        write_whole(self.folder / "signer.json", json.dumps(signer, sort_keys=True) + "\n")


def why_void(baseline: Measurement | None) -> str:
    """Why an attack's other cells show nothing, by its cell with the defence off; empty if not."""
    if baseline is None:
        return "there is no measurement of this attack with the defence off"
    if baseline.verdict != "guessed":
        return f"with the defence off: {baseline.verdict.replace('_', ' ')} ({baseline.reason})"
    main = baseline.main
    if main is not None and main.lift is not None and main.lift_interval is None:
        return f"with the defence off: {baseline.n} trial, which is too few to show anything"
    if main is None or not main.shows_lift:
        return "with the defence off it reaches no more than the prior either"
    return ""
