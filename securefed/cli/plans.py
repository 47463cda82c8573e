"""What ``securefed plan`` shows: who does what, and what each lever buys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from securefed.engines.planning import Planning
    from securefed.federation.scheduling import Schedule


def assignments(schedule: Schedule) -> Table:
    """One line a client."""
    table = Table(title="plan", show_header=True)
    table.add_column("client")
    for heading in ("rank", "steps", "micro-batch", "rounds", "train s", "all s", "work"):
        table.add_column(heading, justify="right")
    for name, client in schedule.clients.items():
        given = client.assignment
        table.add_row(
            name,
            str(given.rank),
            str(given.local_steps),
            str(given.micro_batch),
            "all" if given.period == 1 else f"1 of {given.period}",
            f"{client.parts['training']:.3g}",
            f"{client.seconds:.3g}",
            f"{100.0 * client.work:.0f} %",
        )
    return table


def bought(planning: Planning) -> Table:
    """How long a round takes under each plan."""
    plan = planning.schedule
    uniform = plan.uniform_seconds
    (bits,) = {client.assignment.bits for client in plan.clients.values()}
    table = Table(title=f"mean round, {bits} bits a value", show_header=True)
    table.add_column("what differs between clients")
    table.add_column("seconds", justify="right")
    table.add_column("of uniform", justify="right")
    rows = {"nothing (uniform)": uniform, **planning.alone, "all that may": plan.mean_seconds}
    for name, seconds in rows.items():
        shown = ("no plan", "") if seconds is None else _shares(seconds, uniform)
        table.add_row(name, *shown)
    return table


def _shares(seconds: float, uniform: float) -> tuple[str, str]:
    return f"{seconds:.3g}", f"{100.0 * seconds / uniform:.0f} %"
