"""``securefed flower``: a ready Flower app from a run file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import securefed
from securefed.cli.flower_simulation import simulate
from securefed.cli.keys import public_key
from securefed.cli.watching import quiet_libraries, say
from securefed.config import RunConfig, load_config
from securefed.errors import ConfigError

_UNKNOWN_MODEL = "0" * 64

flower = typer.Typer(no_args_is_help=True, help="Federations between machines, over Flower.")


flower.command()(simulate)


@flower.callback()
def _flower() -> None:
    pass


@flower.command()
def init(
    config: Annotated[Path, typer.Argument(help="Run file (TOML).")],
    folder: Annotated[Path, typer.Argument(help="Folder to make the app in; new or empty.")],
    server: Annotated[str, typer.Option(help="The server's public identity key.")],
    client: Annotated[
        list[str] | None,
        typer.Option(help="ID of a client to write an example policy for; may be repeated."),
    ] = None,
    hold_seconds: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="answers.hold_seconds of the policies, where samples are secret or own code "
            "trains: well above what "
            "the work of a round takes at the slowest owner; default 120.",
        ),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Fetch nothing; use the cache only.")
    ] = False,
) -> None:
    """Write a Flower app, the run file that all parties share, and example policies of owners."""
    from securefed.agent.example import HOLD_SECONDS, example_policy
    from securefed.agent.policy import dump_policy
    from securefed.engines.deployed import common_config, config_digest
    from securefed.engines.deployment import ENVIRONMENT, RUN_FILE, places
    from securefed.engines.flower_app import PLACES, POLICIES, app_files, write_files

    own = load_config(config)
    read = common_config(own)
    key = public_key(server, "--server").raw.hex()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there already; choose another folder")
    place, digest = folder.resolve(), config_digest(read)
    model = _fingerprint(own, offline=offline)
    files = app_files(
        read,
        name=f"securefed-{read.output.name}",
        version=securefed.__version__,
        settings={
            RUN_FILE: digest,
            "resume": False,
            "offline": offline,
            "stage-seconds": 600.0,
            "wait-seconds": 120.0,
        },
    )
    files[PLACES] = places(own, place)
    for name in client or ["client-id"]:
        policy = example_policy(
            read,
            client=name,
            server=key,
            digest=digest,
            model=model or _UNKNOWN_MODEL,
            hold_seconds=hold_seconds or HOLD_SECONDS,
        )
        files[f"{POLICIES}/{name}.toml"] = dump_policy(policy)
    write_files(folder, files)
    say(f"run file {digest}: {folder / 'run.toml'}")
    say(f"app: {folder}")
    say(f"the server's places: {folder / PLACES}, for {ENVIRONMENT} of the SuperLink's environment")
    say(f"example policies: {folder / POLICIES}; each owner reads, tightens and keeps its own")
    if model is None:
        say(
            "model.fingerprint is not set: write the weights' fingerprint, which securefed client "
            "names when it refuses the model, into runs.models of each policy"
        )


def _fingerprint(config: RunConfig, *, offline: bool) -> str | None:
    """Of the base model, if it is pinned or can be found without asking a model hub."""
    section = config.model
    if section.fingerprint is not None:
        return section.fingerprint
    if not section.source.startswith("builtin:") and not Path(section.source).is_dir():
        return None
    from securefed.training.assets import cache_dir
    from securefed.training.models import found_fingerprint

    quiet_libraries()
    return found_fingerprint(section, cache=cache_dir(), offline=offline, progress=say)
