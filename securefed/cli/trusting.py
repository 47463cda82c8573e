"""Options that name whom a reader trusts; the same in every command that checks a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.")]
TrustedRoster = Annotated[
    Path | None,
    typer.Option(help="Keys that you trust (NAME.keys/roster.json); without it: not anchored."),
]
Signers = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Public key of who signs results and statements; may be repeated.",
    ),
]
