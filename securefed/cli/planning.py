"""``securefed plan``: check a run file against model and data, and say what a run would spend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from securefed.cli.closing import statements
from securefed.cli.plans import assignments, bought, foreseen, warnings_of
from securefed.cli.watching import console, quiet_libraries, say, watching
from securefed.config import load_config


def plan(
    config: Annotated[Path, typer.Argument(help="Run file (TOML).")],
    out: Annotated[
        Path | None, typer.Option(help="Also write it, and what it follows from, as JSON.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Fetch nothing.")] = False,
) -> None:
    """Check model and data; say epsilon, bytes, memory and time; name what will not work.

    Nothing is spent and no run folder is made.  With cohort.profiles in the run file: also who
    does how much and how often, from what the clients' machines can do.
    """
    read = load_config(config)
    from securefed.engines.forecast import forecast
    from securefed.engines.planning import plan_cohort
    from securefed.engines.simulation import Federation
    from securefed.operations.whole_files import write_whole

    quiet_libraries()
    with watching() as shown:
        bench, settings = Federation(read, observer=shown, offline=offline).prepare()
        shown.message("measuring how fast this machine trains, encodes and masks")
        found = forecast(bench, settings)
        planned = plan_cohort(read, bench, settings) if read.cohort.profiles else None
    record: dict[str, object] = {"forecast": found.to_record()}
    if planned is not None:
        record |= planned.to_record()
    if out is not None:
        write_whole(out, json.dumps(record, indent=1) + "\n")
    for line in found.arrangement:
        say(line)
    say("\n" + statements(read, found.guarantees) + "\n")
    say("That is after all rounds; each retry of a round is charged once more.")
    console.print(foreseen(read, found))
    if planned is not None:
        console.print(assignments(planned.schedule))
        for name, client in planned.schedule.clients.items():
            say(f"{name}: {client.reason}")
        console.print(bought(planned))
    for line in warnings_of(found):
        say(line)
    if not found.hazards:
        say("nothing was found that will not work")
