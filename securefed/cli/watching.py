"""What a run shows while it runs: messages, a line a round, and two bars."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from securefed.cli.plans import assignments

if TYPE_CHECKING:
    from securefed.engines.events import RoundEvent, StageEvent
    from securefed.federation.scheduling import Schedule

console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories of what moves a cursor, turns a line round or ends it."""


def printable(text: str, *, lines: bool = False) -> str:
    """Text with what a terminal would obey spelt out.

    A run folder is written by others, names of files and clients too.

    Args:
        text: what is to be shown.
        lines: whether line feeds stay.
    """

    def shown(character: str) -> str:
        if unicodedata.category(character) not in _UNSEEN or (lines and character == "\n"):
            return character
        return ascii(character)[1:-1]

    return "".join(map(shown, text))


def say(text: str) -> None:
    """Print lines as they are: what looks like rich's markup is part of a path."""
    console.print(printable(text, lines=True), markup=False)


def tampered(error: Exception) -> None:
    """Print what was found in a run folder that is not as it must be."""
    errors.print(f"TAMPERED: {printable(str(error))}", style="red", markup=False)


def quiet_libraries() -> None:
    """Keep other libraries' bars and notes out of ours."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    # It also warns that a new classification head is new; what must not be missing, we check.
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


class Watching:
    """Shows a run: one bar over rounds, one inside a round, one line a round.

    Args:
        progress: the bars.
        mark: what stands before every line.
        go_on: the command line that resumes the run in its folder; empty if nothing can.
    """

    def __init__(self, progress: Progress, *, mark: str = "", go_on: str = "") -> None:
        self._progress = progress
        self._rounds = progress.add_task("rounds", total=None)
        self._inside = progress.add_task("preparing", total=None)
        self._mark, self._go_on = mark, go_on

    def begun(self, folder: Path) -> None:
        """Where the run is, before its first round."""
        if self._mark:
            return  # a comparison's folder is not kept
        how = f"to go on after a crash: {self._go_on}" if self._go_on else "it cannot be resumed"
        self.message(f"run folder: {folder} ({how})")

    def message(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(f"{self._mark}{text}", markup=False)

    def planned(self, plan: Schedule) -> None:
        """The plan that the run carries out, as a table."""
        if self._mark:
            return  # a comparison goes by the plan of its run
        self._progress.console.print(assignments(plan))

    def working(self, what: str, done: int, total: int) -> None:
        """The inner bar."""
        self._progress.update(self._inside, description=what, completed=done, total=total)

    def stage_end(self, event: StageEvent) -> None:
        """Nothing: only clients that are elsewhere are waited for."""

    def round_end(self, event: RoundEvent) -> None:
        """The line of a round."""
        self._progress.update(self._rounds, completed=event.round, total=event.rounds)
        self.message(round_line(event))


def round_line(event: RoundEvent) -> str:
    """One round in one line."""
    from securefed.privacy.accounting import epsilon_text

    parts = [f"round {event.round:>3}/{event.rounds}"]
    if event.round:
        parts.append(f"{event.survivors}/{event.cohort} clients in the sum")
        parts.append(
            "UNPROTECTED"
            if event.epsilon is None
            else f"epsilon {epsilon_text(event.epsilon)} ({event.against}, delta {event.delta:g})"
        )
    if event.clip_norm is not None and event.unclipped_fraction is not None:
        within = 100.0 * event.unclipped_fraction
        parts.append(
            f"clip {event.clip_norm:g}, {within:.0f} % within it (noised)"
            if 0.0 <= within <= 100.0
            else f"clip {event.clip_norm:g}, the share within it is lost in noise"
        )
    how = "estimated from noised counts" if event.held_out_guaranteed else "no guarantee"
    if event.perplexity is not None:
        parts.append(f"held-out perplexity {event.perplexity:.1f} ({how})")
    if event.accuracy is not None:
        parts.append(f"held-out accuracy {event.accuracy:.3f} ({how})")
    if event.round:
        parts.append(f"up {event.bytes_up / 1e3:.0f} kB, down {event.bytes_down / 1e3:.0f} kB")
        if event.virtual_seconds is not None:
            parts.append(f"{event.virtual_seconds:.3g} virtual s")
        if event.seconds:
            parts.append(f"{event.seconds:.0f} s")
    if event.note:
        parts.append(event.note)
    return " | ".join(parts)


class Count(MofNCompleteColumn):
    """Nothing where it is not known how much there is to do."""

    def render(self, task: Task) -> Text:
        """Done and all of it."""
        return Text() if task.total is None else super().render(task)


@contextmanager
def watching(*, mark: str = "", go_on: str = "") -> Iterator[Watching]:
    """Bars for the length of a block; arguments as of :class:`Watching`."""
    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(),
        Count(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Watching(progress, mark=mark, go_on=go_on)
