"""``securefed flower``: a ready Flower app from a run file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import securefed
from securefed.cli.flower_simulation import simulate
from securefed.cli.keys import public_key
from securefed.cli.watching import say
from securefed.config import load_config
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
) -> None:
    """Write a Flower app, the run file that all parties share, and example policies of owners."""
    from securefed.agent.example import example_policy
    from securefed.agent.policy import dump_policy
    from securefed.engines.deployed import common_config, config_digest
    from securefed.engines.flower_app import POLICIES, app_files, write_files

    read = common_config(load_config(config))
    key = public_key(server, "--server").raw.hex()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is there already; choose another folder")
    place, digest = folder.resolve(), config_digest(read)
    settings = {
        "run-file": str(place / "run.toml"),
        "roster": str(place.parent / "roster.json"),
        "key": str(place.parent / "server.pem"),
        "out": str(place.parent / "runs" / read.output.name),
        "model": "" if read.model.source.startswith("builtin:") else str(place.parent / "model"),
        "resume": False,
        "offline": False,
        "stage-seconds": 600.0,
        "wait-seconds": 120.0,
    }
    files = app_files(
        read, name=f"securefed-{read.output.name}", version=securefed.__version__, settings=settings
    )
    model = read.model.fingerprint or _UNKNOWN_MODEL
    for name in client or ["client-id"]:
        policy = example_policy(read, client=name, server=key, digest=digest, model=model)
        files[f"{POLICIES}/{name}.toml"] = dump_policy(policy)
    write_files(folder, files)
    say(f"run file {digest}: {folder / 'run.toml'}")
    say(f"app: {folder}; where the server's files lie is in its pyproject.toml")
    say(f"example policies: {folder / POLICIES}; each owner reads, tightens and keeps its own")
    if read.model.fingerprint is None:
        say(
            "model.fingerprint is not set: write the weights' fingerprint, which securefed client "
            "names when it refuses the model, into runs.models of each policy"
        )
