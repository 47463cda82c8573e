"""``securefed pilot``: what it shows while it runs and at its end."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from securefed.cli.watching import Count, console, errors, quiet_libraries, say
from securefed.config import load_config, load_pilot
from securefed.errors import ConfigError

if TYPE_CHECKING:
    from securefed.engines.events import Observer, RoundEvent, StageEvent
    from securefed.federation.scheduling import Schedule
    from securefed.pilot.records import PilotRecord, Trial


def pilot(
    file: Annotated[Path, typer.Argument(metavar="PILOT.toml", help="Pilot file (TOML).")],
    out: Annotated[
        Path | None, typer.Option(help="Pilot folder; default pilots/NAME-TIME-XXXXXX.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the pilot in --out.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Fetch nothing; use the cache only.")
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="PREVIOUS", help="An earlier pilot (folder or pilot.json)."),
    ] = None,
) -> None:
    """Try a run and its alternatives, and write a page for who decides whether to go on."""
    read = load_pilot(file)
    run = load_config(read.run)
    if resume and out is None:
        raise ConfigError("--resume needs --out: the pilot folder to go on with")
    from securefed.pilot.folder import new_pilot_folder, previous_record
    from securefed.pilot.running import run_pilot

    previous = None if compare is None else previous_record(compare)
    quiet_libraries()
    folder = out or new_pilot_folder(read)
    options = ["--offline"] * offline + ["--compare", str(compare)] * (compare is not None)
    words = ["securefed", "pilot", str(file), "--out", str(folder), "--resume", *options]
    say(f"pilot folder: {folder} (to go on after a crash: {shlex.join(words)})")
    try:
        with _watching(repeated=read.seeds > 1) as shown:
            record = run_pilot(read, run, folder, observer=shown, resume=resume, offline=offline)
    except KeyboardInterrupt:
        there = (folder / "pilot.toml").is_file()
        then = f"go on with: {shlex.join(words)}" if there else "nothing was begun"
        errors.print(f"stopped; {then}", markup=False)
        raise typer.Exit(130) from None
    from securefed.pilot.page import write_page

    written = write_page(folder, record, previous=previous)
    console.print(_table(record))
    for line in _closing(record):
        say(line)
    for path in written:
        say(f"page: {path}")


class _Inner:
    """Shows the present trial's own bars, and none of its lines: a pilot has many runs."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._rounds = progress.add_task("rounds", total=None)
        self._inside = progress.add_task("preparing", total=None)

    def begun(self, folder: Path) -> None:
        """Nothing: the pilot says where it is."""

    def message(self, text: str) -> None:
        """Nothing: what a trial had to show is in its record."""

    def planned(self, plan: Schedule) -> None:
        """Nothing: it is in the trial's ledger."""

    def working(self, what: str, done: int, total: int) -> None:
        """The innermost bar."""
        self._progress.update(self._inside, description=what, completed=done, total=total)

    def stage_end(self, event: StageEvent) -> None:
        """Nothing: a trial's clients are all here."""

    def round_end(self, event: RoundEvent) -> None:
        """The bar of rounds."""
        self._progress.update(self._rounds, completed=event.round, total=event.rounds)

    def anew(self) -> None:
        """Another trial begins."""
        self._progress.reset(self._rounds, total=None)
        self._progress.reset(self._inside, total=None, description="preparing")


class _Watching:
    """Shows a pilot: a bar over its trials, two for the present one, a line a trial.

    Args:
        progress: the bars.
        repeated: whether trials are repeated with other seeds.
    """

    def __init__(self, progress: Progress, *, repeated: bool) -> None:
        self._progress, self._repeated = progress, repeated
        self._trials = progress.add_task("trials", total=None, note="")
        self._inner = _Inner(progress)

    @property
    def inner(self) -> Observer:
        """The present trial's bars."""
        return self._inner

    def begins(self, name: str, done: int, total: int, seconds_left: float | None) -> None:
        """The name of the trial, and how long all that are left take."""
        left = "" if seconds_left is None else f", about {_minutes(seconds_left)} left"
        self._inner.anew()
        self._progress.update(
            self._trials, completed=done, total=total, description="trials", note=f"{name}{left}"
        )

    def ended(self, trial: Trial, done: int, total: int) -> None:
        """One line."""
        self._progress.update(self._trials, completed=done, total=total)
        seed = f" (seed {trial.seed})" if self._repeated else ""
        self._progress.console.print(f"{trial.name}{seed}: {_line(trial)}", markup=False)


class _Note(TextColumn):
    """What stands behind a bar, where there is anything."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        """The note."""
        return Text(str(task.fields.get("note", "")))


@contextmanager
def _watching(*, repeated: bool) -> Iterator[_Watching]:
    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(),
        Count(),
        TimeElapsedColumn(),
        _Note(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Watching(progress, repeated=repeated)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60.0:.0f} minutes" if seconds >= 90.0 else f"{seconds:.0f} s"


def _line(trial: Trial) -> str:
    if trial.quality is None or trial.cost is None:
        return f"SKIPPED: {trial.why}"
    found = trial.quality
    parts = [
        f"held-out {found.metric} {found.before:.4g} -> {found.after:.4g} (no guarantee)",
        _epsilon(trial),
        f"up {trial.cost.bytes_up / 1e3:.0f} kB a round",
        f"{trial.seconds:.0f} s",
    ]
    return " | ".join(parts)


def _epsilon(trial: Trial) -> str:
    from securefed.privacy.accounting import epsilon_text

    shown = epsilon_text(trial.epsilon)
    if trial.epsilon is None:
        return shown
    terms = _terms(trial)
    return f"epsilon {shown} ({terms['against']}, delta {terms['delta']:g})"


def _terms(trial: Trial) -> Mapping[str, Any]:
    """The statement that the trial's epsilon is of."""
    return next(one for one in trial.guarantees if one["epsilon"] == trial.epsilon)


def _table(record: PilotRecord) -> Table:
    """One line a trial, repetitions too; :func:`_closing` says whom epsilon is against."""
    from securefed.privacy.accounting import epsilon_text

    table = Table(
        title="pilot: trials", show_header=True, box=SIMPLE_HEAD, show_edge=False, padding=0
    )
    table.add_column("trial", no_wrap=True)
    for heading in ("held-out", "epsilon", "MB up", "MB down", "client s", "server s"):
        table.add_column(heading, justify="right", no_wrap=True)
    group = ""
    for trial in record.trials:
        if group and trial.group != group:
            table.add_section()
        group = trial.group
        found, cost = trial.quality, trial.cost
        if found is None or cost is None:
            table.add_row(trial.name, "skipped", style="dim")
            continue
        table.add_row(
            trial.name,
            f"{found.before:.4g} to {found.after:.4g}",
            epsilon_text(trial.epsilon) if trial.epsilon is not None else "none",
            f"{cost.bytes_up / 1e6:.3g}",
            f"{cost.bytes_down / 1e6:.3g}",
            f"{sum(cost.client_seconds.values()):.3g}",
            f"{sum(cost.server_seconds.values()):.3g}",
        )
    return table


def _closing(record: PilotRecord) -> list[str]:
    """What the table leaves open."""
    done = [trial for trial in record.trials if trial.status == "done"]
    metrics = {trial.quality.metric for trial in done if trial.quality is not None}
    lines = [
        f"held-out {' and '.join(sorted(metrics))}: mean over clients, outside every guarantee; "
        "bytes and CPU seconds: of one client (or the server) and round"
    ]
    stated = {
        f"epsilon: against {terms['against']}, delta {terms['delta']:g}, for {terms['unit']}": None
        for terms in (_terms(trial) for trial in done if trial.epsilon is not None)
    }
    lines += stated
    lines += [f"skipped: {t.name}: {t.why}" for t in record.trials if t.status == "skipped"]
    if record.spent:
        from securefed.privacy.accounting import epsilon_text

        lines.append(
            f"all trials together spent epsilon {epsilon_text(record.spent['epsilon'])}, delta "
            f"{record.spent['delta']:.3g} (basic composition)"
        )
    return lines
