"""``securefed attack`` and ``securefed audit``: what they ask for and what they show."""

from __future__ import annotations

import secrets
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from securefed.cli.audit_tables import audit_watching, draw, figures, listing, matrix
from securefed.cli.watching import console, errors, quiet_libraries, say, watching
from securefed.config import RunConfig, load_config, parse_config
from securefed.errors import ConfigError

if TYPE_CHECKING:
    from securefed.auditing.from_config import AuditedRun
    from securefed.crypto.identity import IdentityKey

_KEY = Path(".config") / "securefed" / "signing.pem"

Out = Annotated[
    Path | None,
    typer.Option(help="Folder of results; one that is there is gone on with.", show_default=False),
]
Texts = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Texts to attack, instead of the run file's own."),
]
Trials = Annotated[int | None, typer.Option(min=1, help="Trials of each cell.", show_default=False)]
Seed = Annotated[int, typer.Option(min=0, help="Of the first trial; the others follow.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change the run file: lora.rank=32; may be repeated."
    ),
]
Key = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help=f"Key that signs results, made if it is not there; default ~/{_KEY}.",
        show_default=False,
    ),
]
Password = Annotated[
    Path | None,
    typer.Option("--key-password", metavar="FILE", help="File with the key file's password."),
]
Offline = Annotated[bool, typer.Option("--offline", help="Fetch nothing; use the cache only.")]


def attack(
    name: Annotated[str | None, typer.Argument(help="Which attack; see --list.")] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the attacks and leave.")] = False,
    view: Annotated[
        str | None,
        typer.Option(
            help="What the adversary sees; see --list.  Default: plain, or the attack's own.",
            show_default=False,
        ),
    ] = None,
    defence: Annotated[
        str | None,
        typer.Option(
            help="'off', 'noise', 'masks', 'noise and masks' or 'noise-Z'; default: masks where "
            "the view is of a masked round, else off.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="RUN | CONFIG", help="Run file or run folder; default: the demo."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model instead of the run file's: a folder or a name.")
    ] = None,
    texts: Texts = None,
    trials: Trials = None,
    batch: Annotated[int, typer.Option(min=1, help="Texts of each client in a round.")] = 1,
    clients: Annotated[
        int | None,
        typer.Option(min=2, help="Clients in a round; default: the run's.", show_default=False),
    ] = None,
    seed: Seed = 0,
    seconds: Annotated[float, typer.Option(help="Limit of one trial.")] = 60.0,
    out: Out = None,
    changes: Set = None,
    key: Key = None,
    key_password: Password = None,
    offline: Offline = False,
) -> None:
    """Try one attack on what a run would send: a table, and a signed result."""
    if listed:
        table, views = listing()
        console.print(table)
        for line in views:
            say(line)
        return
    if name is None:
        raise ConfigError("attack: none is named; name one of those that --list shows")
    from securefed.auditing.catalogue import entry

    known = entry(name)
    view = known.full[0][0] if view is None and known.kind != "texts" else view or "plain"
    if view not in known.exposures:
        raise ConfigError(
            f"--view {view!r}: {name} can be tried on {', '.join(map(repr, known.exposures))}"
        )
    from securefed.attacks.base import Limits
    from securefed.auditing.cells import MASKS, Cell
    from securefed.auditing.entries import CONTROL
    from securefed.auditing.matrix import Matrix
    from securefed.auditing.profiles import AMOUNTS

    usual = [shown for seen, shown in known.full if seen == view]
    chosen = defence or (MASKS if MASKS in usual else usual[0 if known.kind == "texts" else -1])
    count = AMOUNTS["full"].trials if trials is None else trials
    seeds = tuple(range(seed, seed + count))
    wanted = Cell(name, view, chosen, batch, clients, seeds)
    known.check(wanted)
    cells = [wanted]
    baseline = known.baseline_of(view)
    if (view, chosen) not in (baseline, CONTROL):
        # No failure counts before the same attack was seen to work with the defence off.
        cells = [Cell(name, *baseline, batch, None, seeds), wanted]
    read, folder = _config(config, model, texts, changes)
    limits = Limits(seconds=seconds)
    signer = _key(key, key_password)
    quiet_libraries()
    _say_whose(read)
    run = _loaded(read, folder, offline)
    limits = replace(limits, max_tokens=_longest(run))
    target = out or _new_folder(f"{name}-{view}")
    try:
        with audit_watching() as shown:
            # Nothing but a trial is limited: this is one attack, and its trials are counted.
            whole = Matrix(run, target, signer, limits, cell_seconds=1e9, watcher=shown)
            documents = whole.measure(cells, seconds=1e9)
    except KeyboardInterrupt:
        errors.print(f"stopped; finished cells are in {target}", markup=False)
        raise typer.Exit(130) from None
    for cell, document in zip(cells, documents, strict=True):
        console.print(figures(cell, document.measurement))
        if document.measurement.reason:
            say(f"{document.measurement.verdict}: {document.measurement.reason}")
        say(f"signed result: {target / cell.name}.json")


def audit(
    subject: Annotated[
        Path, typer.Argument(metavar="RUN | CONFIG", help="Run folder or run file (TOML).")
    ],
    profile: Annotated[str, typer.Option(help="'quick' or 'full'.")] = "quick",
    attacks: Annotated[
        list[str] | None,
        typer.Option("--attack", metavar="NAME", help="Only this one; may be repeated."),
    ] = None,
    texts: Texts = None,
    trials: Trials = None,
    seed: Seed = 0,
    seconds: Annotated[
        float | None,
        typer.Option(help="Limit of the whole audit; default 1500 (quick).", show_default=False),
    ] = None,
    cell_seconds: Annotated[
        float | None,
        typer.Option(help="Limit of one cell; default a fifth of all.", show_default=False),
    ] = None,
    out: Out = None,
    changes: Set = None,
    key: Key = None,
    key_password: Password = None,
    offline: Offline = False,
) -> None:
    """Try every attack on everything a run shows: attack x defence x exposure, signed."""
    read, folder = _config(subject, None, texts, changes)
    from securefed.attacks.base import Limits
    from securefed.auditing.matrix import Matrix
    from securefed.auditing.profiles import AMOUNTS, cells
    from securefed.auditing.summary import write_summary

    if profile not in AMOUNTS:
        raise ConfigError(f"--profile {profile!r}; allowed: {', '.join(map(repr, AMOUNTS))}")
    amount = AMOUNTS[profile]
    allowed = amount.seconds if seconds is None else seconds
    if not allowed > 0.0:
        raise ConfigError(f"--seconds {allowed}: must be > 0")
    of_cell = allowed / 5.0 if cell_seconds is None else cell_seconds
    if not of_cell > 0.0:
        raise ConfigError(f"--cell-seconds {of_cell}: must be > 0")
    signer = _key(key, key_password)
    quiet_libraries()
    _say_whose(read)
    run = _loaded(read, folder, offline)
    wanted = cells(run, profile, attacks=attacks or (), trials=trials, seed=seed)
    target = out or _new_folder(read.output.name)
    words = ["securefed", "audit", str(subject), "--profile", profile, "--out", str(target)]
    say(f"audit folder: {target} (to go on after a stop: {shlex.join(words)}, and its options)")
    limits = Limits(seconds=amount.trial_seconds, max_tokens=_longest(run))
    try:
        with audit_watching() as shown:
            whole = Matrix(run, target, signer, limits, cell_seconds=of_cell, watcher=shown)
            documents = whole.measure(wanted, seconds=allowed)
    except KeyboardInterrupt:
        errors.print(f"stopped; finished cells are in {target}", markup=False)
        raise typer.Exit(130) from None
    title = f"{read.output.name}: audit, {profile} profile ({run.state})"
    summary = write_summary(target, wanted, documents, title=title)
    console.print(matrix(wanted, documents, title))
    draw(target, wanted, documents, title)
    say(f"summary: {summary}")


def _config(
    path: Path | None, model: str | None, texts: Path | None, changes: Sequence[str] | None
) -> tuple[RunConfig, Path | None]:
    """The run file as it is audited, and the run folder if there is one."""
    from securefed.auditing.from_config import audited_file

    if path is None:
        read, folder = _demo(), None
    else:
        read, folder = audited_file(path)
    values: dict[str, Any] = read.model_dump(mode="json", exclude_none=True)
    if model is not None:
        values["model"] = {**values["model"], "source": model}
        values["model"].pop("fingerprint", None)
    if texts is not None:
        if not texts.is_dir():
            raise ConfigError(
                f"--texts {texts}: is not a folder; it must hold one file or sub-folder a client"
            )
        values["data"] |= {"source": str(texts.resolve()), "clients": "all"}
        values["cohort"].pop("simulated_dropouts", None)
    for change in changes or ():
        _change(values, change)
    changed = parse_config(values)
    if folder is not None and changed != read:
        raise ConfigError(
            "--set, --model and --texts: a run folder is audited as the run was; name the run file"
        )
    return changed, folder


def _change(values: dict[str, Any], change: str) -> None:
    name, equals, text = change.partition("=")
    section, dot, field = name.strip().partition(".")
    if not (equals and dot and field):
        raise ConfigError(f"--set {change!r}: must be SECTION.KEY=VALUE, such as lora.rank=32")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a word without quotation marks
    values[section] = {**values.get(section, {}), field: value}


def _demo() -> RunConfig:
    import importlib.resources

    resource = importlib.resources.files("securefed") / "demo.toml"
    with importlib.resources.as_file(resource) as path:
        return load_config(path)


def _key(path: Path | None, password_file: Path | None) -> IdentityKey:
    """The key that results are signed with; a new one is made where there is none, and said so."""
    from securefed.evidence.signing import key_id, signing_key

    chosen = Path.home() / _KEY if path is None else path
    password = None
    if password_file is not None:
        try:
            password = password_file.read_bytes().rstrip(b"\r\n")
        except OSError as error:
            raise ConfigError(f"--key-password {password_file}: {error.strerror}") from None
    new = not chosen.exists()
    if path is None and new:
        try:
            chosen.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"{chosen.parent}: {error.strerror}; give --key") from None
    found = signing_key(chosen, make=True, password=password)
    if new:
        say(f"made a key to sign results with: {chosen} ({key_id(found.public)[:16]})")
    return found


def _loaded(config: RunConfig, folder: Path | None, offline: bool) -> AuditedRun:
    from securefed.auditing.from_config import AuditedRun

    with watching() as shown:
        return AuditedRun.load(config, folder=folder, offline=offline, observer=shown)


def _say_whose(config: RunConfig) -> None:
    """What results of texts of one's own are: no budget pays for them."""
    if not config.data.source.startswith("builtin:"):
        say(
            "note: no text is written, but figures are made of the texts themselves, and no budget "
            "is charged: results are for those who may read these texts"
        )


def _longest(run: AuditedRun) -> int:
    return max(3, *map(len, run.texts)) + 2


def _new_folder(name: str) -> Path:
    from securefed.auditing.matrix import utc_now

    stamp = utc_now().replace(":", "").replace("-", "")
    return Path("audits") / f"{name.replace(' ', '-')}-{stamp}-{secrets.token_hex(3)}"
