"""``securefed status``: where a run stands, once or again and again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from securefed.cli.watching import console, errors, round_line

if TYPE_CHECKING:
    from securefed.engines.progress import Progress, RunWatch

_SHOWN_ROUNDS = 8


def status(
    folder: Annotated[Path, typer.Argument(help="Run folder.")],
    watch: Annotated[bool, typer.Option("--watch", help="Look again until the run ends.")] = False,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Say where a run stands: stage, survivors, epsilon so far, bytes, time left."""
    from securefed.engines.progress import RunWatch

    reader = RunWatch(folder)
    if not watch:
        console.print(shown(reader.progress()))
        return
    try:
        _follow(reader, every)
    except KeyboardInterrupt:
        errors.print("stopped looking; the run goes on", markup=False)
        raise typer.Exit(130) from None


def _follow(reader: RunWatch, every: float) -> None:
    """Show a run until it is finished, or until no process writes it any more."""
    found = reader.progress()
    with Live(shown(found), console=console, auto_refresh=False) as live:
        while not found.finished and found.writing is not False:
            time.sleep(every)
            found = reader.progress()
            live.update(shown(found), refresh=True)


def shown(progress: Progress) -> RenderableType:
    """A run's state, and the lines of its last rounds."""
    from securefed.engines.settings import unit_name
    from securefed.privacy.accounting import epsilon_text

    table = Table(show_header=False, title=f"{progress.config.output.name}: {progress.folder}")
    table.add_column("what")
    table.add_column("now", overflow="fold")
    table.add_row("state", _state(progress))
    table.add_row("stage", progress.stage)
    table.add_row("rounds applied", f"{progress.applied} of {progress.rounds}")
    last = progress.events[-1]
    if last.round:
        table.add_row("survivors, last round", f"{last.survivors} of {last.cohort}")
    for who, statement in progress.guarantees.items():
        table.add_row(
            f"epsilon so far against {who.replace('_', ' ')}",
            f"{epsilon_text(statement.epsilon)} ({unit_name(progress.config)}, delta "
            f"{statement.delta:g}, {progress.charges} rounds charged)",
        )
    any_statement = next(iter(progress.guarantees.values()))
    table.add_row("accountant", any_statement.accountant)
    table.add_row("trust against the server", progress.guarantees["server"].trust)
    table.add_row("bytes up, per client", f"{progress.bytes_up:,.0f}")
    table.add_row("bytes down, per client", f"{progress.bytes_down:,.0f}")
    table.add_row("time so far", f"{progress.minutes:.0f} min (the ledger's clock, in minutes)")
    if progress.minutes_left is not None:
        table.add_row("time left", f"about {progress.minutes_left:.0f} min, at the mean pace")
    rounds = [Text(round_line(event)) for event in progress.events[-_SHOWN_ROUNDS:]]
    return Group(table, *rounds)


def _state(progress: Progress) -> str:
    if progress.finished:
        return "finished"
    if progress.writing:
        return "running"
    if progress.writing is None:
        return "not finished"
    if not progress.config.privacy.resumable:
        return "stopped, and it cannot be resumed (correlated noise)"
    again = f"--out {progress.folder} --resume"
    return f"stopped; go on with the command that began it and {again}"
