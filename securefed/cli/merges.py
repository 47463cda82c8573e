"""``securefed merge``: a finished run's adapter inside its base model, for serving."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from securefed.cli.watching import quiet_libraries, say


def merge(
    folder: Annotated[Path, typer.Argument(help="Run folder of a finished run.")],
    out: Annotated[Path, typer.Argument(help="Folder of the merged model; is made.")],
    rank: Annotated[
        int | None, typer.Option(help="With unlike ranks: the shared adapter at this one.")
    ] = None,
    client: Annotated[
        str | None, typer.Option(help="A client's own adapter; it is made without noise.")
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="Of the weights written: float32, bfloat16 or float16.")
    ] = "float32",
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing.")] = False,
) -> None:
    """Merge a run's adapter into its base model: safetensors that plain transformers loads."""
    from securefed.engines.merging import merge_run

    quiet_libraries()
    found = merge_run(
        folder, out, rank=rank, client=client, dtype=dtype, offline=offline, progress=say
    )
    say(
        f"{found.folder}: {found.base} with {found.adapter}, {found.dtype}; loaded again by "
        f"transformers, its logits differ from base and adapter by {found.difference:.1g} of the "
        "largest"
    )
