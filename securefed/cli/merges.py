"""``securefed merge``: a finished run's adapter inside its base model, for serving."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from securefed.cli.watching import quiet_libraries, say
from securefed.errors import ConfigError


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
    if rank is not None and client is not None:
        raise ConfigError("--rank and --client: give one of them")
    import torch

    from securefed.engines.merging import merge as merge_adapter
    from securefed.engines.released import Released
    from securefed.training.assets import cache_dir

    quiet_libraries()
    released = Released.of(folder)
    adapter = released.shared
    if rank is not None:
        adapter = released.at_rank(rank)
    if client is not None:
        adapter = released.client(client)
        say(
            f"note: the adapter of {client} is made from its data without noise; whoever is handed "
            "the merged model is handed what it tells of them, and no epsilon covers it"
        )
    base = released.base(
        cache=cache_dir(),
        offline=offline,
        device=torch.device("cpu"),
        dtype="float32",
        progress=say,
    )
    found = merge_adapter(released, adapter, base, out, dtype=dtype)
    say(
        f"{found.folder}: {base.name} with {adapter}, {found.dtype}; loaded again by transformers, "
        f"its logits differ from base and adapter by {found.difference:.1g} of the largest"
    )
