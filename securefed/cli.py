"""The command line: ``securefed demo | fetch | run | verify | schema``."""

from __future__ import annotations

import importlib.resources
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from securefed.config import RunConfig, load_config, parse_config, run_file_schema
from securefed.errors import ConfigError, FetchError, LedgerTampered, SecureFedError

if TYPE_CHECKING:
    from securefed.engines.events import RoundEvent
    from securefed.engines.figures import Figures
    from securefed.engines.results import RunResult
    from securefed.engines.simulation import Federation

_TRAINING = ("torch", "transformers", "peft", "opacus", "safetensors", "gguf")
_FALLBACK = "builtin:stdlib-docstrings"
_FALLBACK_NOTE = (
    "FALLBACK CORPUS: docstrings of Python's standard library, because the addresses could not be "
    "had{why}. The figures stated for the demo do not apply."
)
_EXTRAS = dict.fromkeys(_TRAINING, "train") | {"matplotlib": "reports"}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Privacy-hardened federated fine-tuning of language models.",
)
console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)

Out = Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME-TIME-XXXXXX.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
Offline = Annotated[bool, typer.Option("--offline", help="Fetch nothing; use the cache only.")]


def _say(text: str) -> None:
    """Print a line as it is: what looks like rich's markup is part of a path."""
    console.print(text, markup=False)


def main() -> None:
    """Entry point: errors of ours become one line and exit code 1 (2 for wrong settings)."""
    # Read by torch's thread pool when it loads.  Threads that spin while they wait make a machine
    # that has other work four times slower; sleeping ones cost a quiet machine next to nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        app()
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        errors.print(
            f"error: this needs {error.name}, which is not installed: pip install "
            f"'securefed[{extra}]'",
            style="red",
            markup=False,
        )
        raise SystemExit(2) from None
    except SecureFedError as error:
        errors.print(f"error: {error}", style="red", markup=False)
        for note in getattr(error, "__notes__", []):
            errors.print(f"  {note}", markup=False)
        raise SystemExit(2 if isinstance(error, ConfigError) else 1) from None


class Watching:
    """Shows a run: one bar over rounds, one inside a round, one line a round."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._rounds = progress.add_task("rounds", total=None)
        self._inside = progress.add_task("preparing", total=None)

    def message(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(text, markup=False)

    def working(self, what: str, done: int, total: int) -> None:
        """The inner bar."""
        self._progress.update(self._inside, description=what, completed=done, total=total)

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
            else f"epsilon {epsilon_text(event.epsilon)} (server)"
        )
    if event.perplexity is not None:
        parts.append(f"held-out perplexity {event.perplexity:.1f}")
    if event.accuracy is not None:
        parts.append(f"held-out accuracy {event.accuracy:.3f}")
    if event.round:
        parts.append(f"up {event.bytes_up / 1e3:.0f} kB, down {event.bytes_down / 1e3:.0f} kB")
        if event.seconds:
            parts.append(f"{event.seconds:.0f} s")
    if event.note:
        parts.append(event.note)
    return " | ".join(parts)


@contextmanager
def _watching() -> Iterator[Watching]:
    columns = (
        TextColumn("{task.description:<11}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield Watching(progress)


@app.command()
def demo(
    clients: Annotated[
        str, typer.Option(help="'default' (eight) or 'all' (forty-one).")
    ] = "default",
    out: Out = None,
    resume: Resume = False,
    offline: Offline = False,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also train without protection, and each client alone."),
    ] = False,
) -> None:
    """Fine-tune SmolLM2-135M over presidents' addresses, end to end."""
    names = {"default": "demo.toml", "all": "demo-all.toml"}
    if clients not in names:
        raise ConfigError(f"--clients {clients!r}: must be one of {sorted(names)}")
    resource = importlib.resources.files("securefed") / names[clients]
    with importlib.resources.as_file(resource) as path:
        config = load_config(path)
    notes: list[str] = []
    if resume:
        # The run may have begun on the fallback corpus: it goes on with what it began with.
        recorded = _folder_to_resume(out) / "config.toml"
        config = load_config(recorded) if recorded.is_file() else config
        notes = [_FALLBACK_NOTE.format(why="")] if config.data.source == _FALLBACK else []
    else:
        config, notes = _with_available_corpus(config, offline)
    _run(config, out=out, resume=resume, offline=offline, compare=compare, notes=notes)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="Run file (TOML).")],
    out: Out = None,
    resume: Resume = False,
    offline: Offline = False,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also train without protection, and each client alone."),
    ] = False,
) -> None:
    """Train your own model on your own clients' data, from a run file."""
    _run(load_config(config), out=out, resume=resume, offline=offline, compare=compare, notes=[])


@app.command()
def fetch(offline: Offline = False) -> None:
    """Fetch the demo's model and texts, checked against pinned hashes, into the cache."""
    from securefed.training.assets import cache_dir
    from securefed.training.assets import fetch as fetch_asset

    cache = cache_dir()
    missing = []
    for name in ("smollm2-135m-instruct", "state-of-the-union"):
        try:
            folder = fetch_asset(name, cache=cache, offline=offline, progress=_say)
        except FetchError as error:  # it says how to bring the file in by hand
            errors.print(f"{name}: {error}", markup=False)
            missing.append(name)
        else:
            _say(f"{name}: {folder}")
    if missing:
        raise FetchError(f"could not be had: {', '.join(missing)}")


@app.command()
def verify(folder: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Check a run's ledgers and recompute its epsilon.  Exit code 1: tampered, 3: unfinished."""
    from securefed.engines.verify import verify_run

    try:
        verdict = verify_run(folder)
    except LedgerTampered as error:
        errors.print(f"TAMPERED: {error}", style="red", markup=False)
        raise typer.Exit(1) from None
    for line in verdict.lines:
        _say(line)
    if not verdict.finished:
        raise typer.Exit(3)


@app.command()
def schema() -> None:
    """Print the JSON Schema of the run file."""
    typer.echo(run_file_schema(), nl=False)


def _with_available_corpus(config: RunConfig, offline: bool) -> tuple[RunConfig, list[str]]:
    """The demo's corpus, or the fallback where npm is missing or nothing can be fetched.

    A file that is there and is not the pinned one is an error: it must not change the data quietly.
    """
    from securefed.training.assets import NotFetched, cache_dir
    from securefed.training.assets import fetch as fetch_asset

    try:
        fetch_asset("state-of-the-union", cache=cache_dir(), offline=offline, progress=_say)
    except NotFetched as error:
        values = config.model_dump(mode="json", exclude_none=True)
        values["data"] |= {"source": _FALLBACK, "clients": "default"}
        values["cohort"]["simulated_dropouts"] = []
        note = _FALLBACK_NOTE.format(why=f" ({error})")
        console.print(note, style="yellow", markup=False)
        return parse_config(values), [note]
    return config, []


def _run(
    config: RunConfig,
    *,
    out: Path | None,
    resume: bool,
    offline: bool,
    compare: bool,
    notes: list[str],
) -> None:
    if resume:
        _folder_to_resume(out)
    from securefed.engines.simulation import Federation

    _quiet_libraries()
    with _watching() as watching:
        federation = Federation(config, observer=watching, offline=offline)
        result = federation.run(out, resume=resume)
    console.print(_table(config, result))
    for statement in result.guarantees.values():
        _say(str(statement))
        console.print()
    if config.output.picture:
        _draw(config, result, notes)
    if compare:  # after all that the run itself has to show: a comparison may take as long again
        with _watching() as watching:
            compared = _compare(federation, watching)
        console.print(_comparison(config, result, compared))
    _say(f"run folder: {result.folder}")


def _folder_to_resume(out: Path | None) -> Path:
    if out is None:
        raise ConfigError("--resume needs --out: the run folder to go on with")
    return out


def _quiet_libraries() -> None:
    """Keep other libraries' bars and notes out of ours."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    # It also warns that a new classification head is new; what must not be missing, we check.
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def _compare(federation: Federation, watching: Watching) -> dict[str, Figures]:
    from securefed.engines.compare import clients_alone, unprotected

    watching.message("comparing: the same run without noise (UNPROTECTED); its files are not kept")
    without = unprotected(federation, watching)
    watching.message("comparing: each client training alone (nothing is shared)")
    alone = clients_alone(federation, watching)
    return {"without noise (UNPROTECTED)": without, "each client alone": alone}


def _figure(figures: Figures, which: str) -> str:
    value = (
        figures.worst
        if which == "worst"
        else (figures.perplexity if figures.perplexity is not None else figures.accuracy)
    )
    return "not shown" if value is None else f"{value:.4g}"


def _kind(result: RunResult) -> str:
    return "perplexity" if result.after.perplexity is not None else "accuracy"


def _comparison(config: RunConfig, result: RunResult, compared: dict[str, Figures]) -> Table:
    table = Table(title=f"{config.output.name}: compared", show_header=True)
    table.add_column(f"held-out {_kind(result)}, mean over clients (outside the guarantee)")
    table.add_column("after", justify="right")
    for label, figures in {"this run": result.after, **compared}.items():
        table.add_row(label, _figure(figures, "mean"))
    return table


def _table(config: RunConfig, result: RunResult) -> Table:
    from securefed.privacy.accounting import epsilon_text

    kind = _kind(result)
    table = Table(title=f"{config.output.name}: {result.rounds} rounds", show_header=True)
    table.add_column("what")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for name, which in (("mean over clients", "mean"), ("worst client", "worst")):
        table.add_row(
            f"held-out {kind}, {name} (outside the guarantee)",
            _figure(result.before, which),
            _figure(result.after, which),
        )
    if result.before.perplexity and result.after.perplexity:
        change = result.after.perplexity / result.before.perplexity - 1.0
        table.add_row("  change of the mean", "", f"{100.0 * change:+.1f} %")
    table.add_section()
    unit = config.privacy.unit
    for who, statement in result.guarantees.items():
        table.add_row(
            f"epsilon against {who.replace('_', ' ')} ({unit} level, delta {statement.delta:g})",
            "",
            epsilon_text(statement.epsilon),
        )
    rounds = [event for event in result.events if event.round > 0]
    table.add_row("rounds charged (retries included)", "", str(result.charges))
    table.add_section()
    if rounds:

        def mean(name: str, events: list[RoundEvent] = rounds) -> float:
            return float(sum(getattr(event, name) for event in events)) / len(events)

        table.add_row("bytes up, per client and round", "", f"{mean('bytes_up'):,.0f}")
        table.add_row("bytes down, per client and round", "", f"{mean('bytes_down'):,.0f}")
        timed = [event for event in rounds if event.seconds > 0]  # since the last resume
        table.add_row(
            "client seconds a round (simulation only; never sent)",
            "",
            f"{mean('client_seconds', timed):.1f}" if timed else "not kept",
        )
        least = min(event.survivors for event in rounds)
        table.add_row("survivors, fewest in a round", "", f"{least} of {rounds[0].cohort}")
    return table


def _draw(config: RunConfig, result: RunResult, notes: list[str]) -> None:
    from securefed.reports.picture import RoundPoint, draw_run

    points = [
        RoundPoint(
            round=event.round,
            perplexity=event.perplexity,
            epsilon=event.epsilon if event.round else None,
            survivors=event.survivors,
            cohort=event.cohort,
        )
        for event in result.events
    ]
    path = result.folder / "rounds.svg"
    try:
        draw_run(
            points,
            path,
            title=_title(config),
            notes=notes,
            unit=config.privacy.unit,
            delta=config.privacy.delta,
        )
    except ConfigError as error:
        _say(f"no picture: {error}")
    else:
        _say(f"picture: {path}")


def _title(config: RunConfig) -> str:
    noise = config.privacy.noise_multiplier if config.privacy.mechanism != "none" else 0.0
    return f"{config.output.name}: noise multiplier {noise:g}, clip {config.privacy.clip_norm:g}"
