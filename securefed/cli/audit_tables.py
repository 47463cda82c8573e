"""What ``securefed attack`` and ``securefed audit`` show: bars, a line a cell, tables, pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from securefed.cli.watching import Count, console, say
from securefed.errors import ConfigError

if TYPE_CHECKING:
    from securefed.auditing.cells import Cell
    from securefed.evidence.results import AttackDocument, Measurement


_UNBOUNDED = 1e6  # as ``auditing.entries.UNBOUNDED``, which cannot be loaded here


def listing() -> tuple[Table, list[str]]:
    """Every attack in the catalogue, and a line for each set of views that some can be tried on."""
    from securefed.auditing.catalogue import CATALOGUE

    table = Table(box=SIMPLE_HEAD, show_edge=False)
    for heading in ("attack", "goes for", "profile", "what"):
        table.add_column(heading, no_wrap=heading != "what")
    views: dict[tuple[str, ...], list[str]] = {}
    for each in CATALOGUE.values():
        table.add_row(each.name, each.kind, each.cost, each.what)
        named = views.setdefault(each.exposures, [])
        # All attacks on texts, and all games, have the same views: the kind says it.
        label = "all games" if each.kind == "game" else each.name
        label = "all on texts" if each.kind == "texts" else label
        if label not in named:
            named.append(label)
    lines = [f"{', '.join(names)}: --view {' | '.join(map(_quoted, found))}"
             for found, names in views.items()]  # fmt: skip
    return table, lines


def _quoted(view: str) -> str:
    return f"'{view}'" if " " in view else view


class AuditWatching:
    """A bar over cells, one over the present cell's trials, and a line a cell."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._cells = progress.add_task("cells", total=None)
        self._trials = progress.add_task("trials", total=None)

    def begins(self, cell: Cell, done: int, total: int) -> None:
        """The bars."""
        self._progress.update(self._cells, completed=done, total=total)
        self._progress.reset(self._trials, total=len(cell.seeds))

    def trial(self, done: int, total: int) -> None:
        """The inner bar."""
        self._progress.update(self._trials, completed=done, total=total)

    def ended(self, cell: Cell, document: AttackDocument, *, kept: bool) -> None:
        """The line."""
        self._progress.console.print(_line(cell, document, kept=kept), markup=False)


@contextmanager
def audit_watching() -> Iterator[AuditWatching]:
    """Bars for the length of a block."""
    columns = (TextColumn("{task.description:<11}"), BarColumn(), Count(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield AuditWatching(progress)


def _line(cell: Cell, document: AttackDocument, *, kept: bool) -> str:
    found, main = document.measurement, document.measurement.main
    size = f", {cell.batch} texts" if cell.batch > 1 else ""
    size += f", {cell.clients} clients" if cell.clients is not None else ""
    parts = [f"{cell.attack} on {cell.exposure}, {cell.defence}{size}"]
    if main is not None and found.verdict == "guessed":
        parts.append(
            f"{(found.headline or '').replace('_', ' ')} {main.value:.2f}{_range(main.interval)}"
        )
        if main.lift is not None:
            parts.append(f"lift {main.lift:+.2f}{_range(main.lift_interval)}")
        parts.append(f"n {found.n}")
    else:
        parts.append(f"{found.verdict.replace('_', ' ').upper()}: {found.reason}")
    if found.n and found.n < len(cell.seeds):
        parts.append(f"TIME OVER after {found.n} of {len(cell.seeds)} trials")
    parts.append("kept" if kept else f"{document.about.seconds:.0f} s")
    return " | ".join(parts)


def _range(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    low, high = interval
    return f" [{low:.2f}, {high:.2f}]" if high < _UNBOUNDED else f" [{low:.2f}, inf)"


def figures(cell: Cell, found: Measurement) -> Table:
    """All metrics of one cell."""
    title = f"{cell.attack} on {cell.exposure}, defence {cell.defence}: n = {found.n}"
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False)
    for heading in ("metric", "value", "prior", "lift over the prior"):
        table.add_column(heading, no_wrap=True)
    for name, each in found.metrics.items():
        table.add_row(
            name.replace("_", " "),
            f"{each.value:.3f}{_range(each.interval)}",
            "" if each.prior is None else f"{each.prior:.3f}",
            "" if each.lift is None else f"{each.lift:+.3f}{_range(each.lift_interval)}",
        )
    return table


def matrix(cells: Sequence[Cell], documents: Sequence[AttackDocument], title: str) -> Table:
    """One line a cell, beneath the name of its attack."""
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading in ("sees, defence", "value", "prior", "lift [95 %]", "n", "verdict"):
        table.add_column(heading, no_wrap=heading != "sees, defence")
    before = ""
    for cell, document in zip(cells, documents, strict=True):
        found, main = document.measurement, document.measurement.main
        name = cell.attack if cell.batch == 1 else f"{cell.attack}, {cell.batch} texts"
        if before != name:
            if before:
                table.add_section()
            shown = "" if found.headline is None else f": {found.headline.replace('_', ' ')}"
            table.add_row(f"[bold]{name}[/bold]{shown}")
            before = name
        sees = cell.exposure + (f", n {cell.clients}" if cell.clients is not None else "")
        figures = ["", "", ""]
        if main is not None and found.verdict == "guessed":
            figures = [
                f"{main.value:.2f}",
                "" if main.prior is None else f"{main.prior:.2f}",
                "" if main.lift is None else f"{main.lift:+.2f}{_range(main.lift_interval)}",
            ]
        verdict = {"not_applicable": "n/a", "out_of_time": "no time"}.get(found.verdict)
        row = f"  {sees}, {cell.defence}"
        table.add_row(row, *figures, str(found.n), verdict or found.verdict)
    return table


def draw(
    folder: Path, cells: Sequence[Cell], documents: Sequence[AttackDocument], title: str
) -> None:
    """The pictures that there are figures for; where none can be made, why."""
    from securefed.auditing.summary import matrix_cells, matrix_columns, roc_curves, sweep
    from securefed.reports.attack_plots import draw_cohort, draw_matrix, draw_noise, draw_roc

    def paths(name: str) -> list[Path]:
        return [folder / f"{name}.svg", folder / f"{name}.png"]

    try:
        shown = matrix_cells(cells, documents)
        draw_matrix(shown, paths("matrix"), title=title, columns=matrix_columns(shown))
        say(f"picture: {folder / 'matrix.svg'}")
        for name, over, drawn in (
            ("noise", "noise", draw_noise),
            ("cohort", "clients", draw_cohort),
        ):
            curves = sweep(cells, documents, over=over)
            if curves:
                drawn(curves, paths(name), title=title)
                say(f"picture: {folder / name}.svg")
        rocs, epsilon, delta = roc_curves(documents)
        if rocs:
            draw_roc(rocs, paths("roc"), title=title, epsilon=epsilon, delta=delta)
            say(f"picture: {folder / 'roc.svg'}")
    except ConfigError as error:
        say(f"no picture: {error}")
