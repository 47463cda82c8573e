"""``securefed evaluate``: what a finished run made, on a set of one's own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from securefed.cli.watching import console, quiet_libraries, say
from securefed.errors import ConfigError

if TYPE_CHECKING:
    from securefed.engines.evaluating import Evaluation
    from securefed.training.scores import Measured


def evaluate(
    folder: Annotated[Path, typer.Argument(help="Run folder of a finished run.")],
    data: Annotated[
        Path | None,
        typer.Option(help="A folder, laid out as data.source; default: the run's held-out parts."),
    ] = None,
    personal: Annotated[
        bool, typer.Option("--personal", help="Also each client's own adapter, on its own set.")
    ] = False,
    metric: Annotated[
        str | None, typer.Option(help="A metric of your own, module:function; needs --data.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing.")] = False,
) -> None:
    """Measure base, shared and personal adapters, with intervals."""
    from securefed.engines.evaluating import evaluate_run

    if data is not None and not data.is_dir():
        raise ConfigError(
            f"--data {data}: there is no such folder; it must be laid out as data.source, one file "
            "or sub-folder a client"
        )
    quiet_libraries()
    found = evaluate_run(
        folder,
        data=data,
        personal=personal,
        metric=metric,
        offline=offline,
        device=device,
        progress=say,
    )
    console.print(shown(found))
    say(
        "95 % intervals, over documents or users; too short for a handful of them. Measured here, "
        "on data without noise: no epsilon covers these figures; hand them on with care"
    )


def shown(found: Evaluation) -> Table:
    """One line an adapter and set."""
    table = Table(title=f"{found.kind} on {found.source}")
    table.add_column("adapter")
    table.add_column("set")
    against = "of the base's" if found.kind == "perplexity" else "points over the base"
    headings = [found.kind, against, *([found.metric] if found.metric else []), "n", "of"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in found.rows:
        scale = 100.0
        changed = "" if row.change is None else _with_interval(row.change, scale, digits=3)
        if found.kind == "perplexity" and changed:
            changed += " %"
        own = [] if not found.metric else ["" if row.metric is None else _with_interval(row.metric)]
        n, clusters = f"{row.figure.n:,}", f"{row.figure.clusters:,}"
        table.add_row(row.adapter, row.who, _with_interval(row.figure), changed, *own, n, clusters)
    table.caption = "n: predictions scored; of: so many documents or users"
    return table


def _with_interval(found: Measured, scale: float = 1.0, digits: int = 4) -> str:
    value = f"{scale * found.value:.{digits}g}"
    if math.isnan(found.low):
        return f"{value} (one, or all alike: no interval)"
    return f"{value} ({scale * found.low:.{digits}g} to {scale * found.high:.{digits}g})"
