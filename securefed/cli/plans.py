"""``securefed plan``: what a run would spend; and who does what, where machines differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from securefed.config import RunConfig
    from securefed.engines.forecast import Forecast
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


def foreseen(config: RunConfig, forecast: Forecast) -> Table:
    """What a run would take: noise, bytes, memory, time."""
    rounds = config.training.rounds
    table = Table(title=f"{config.output.name}: before anything is spent", show_header=False)
    table.add_column("what")
    table.add_column("how much", overflow="fold")
    kept = f"{forecast.documents - forecast.lost:,} of {forecast.documents:,} documents"
    table.add_row("clients", f"{forecast.clients}, {forecast.examples:,} examples from {kept}")
    table.add_row("values that travel in a round", f"{forecast.dimension:,}")
    noise = f"{forecast.noise_multiplier:.4g} (std of the honest survivors' noise over the clip)"
    target = config.privacy.target_epsilon
    found = "" if target is None else f", the least for target_epsilon = {target:g}"
    table.add_row("noise multiplier", noise + found)
    table.add_row("drawn in a round", f"each unit with probability {_of(forecast)}")
    if forecast.signal is not None:
        table.add_row(
            "noise over signal, at least",
            f"{forecast.signal.ratio:.3g} in a round, {forecast.signal.over_rounds:.3g} over "
            f"{rounds} rounds (below 0.3 cost little where it was measured)",
        )
    table.add_section()
    what = "" if forecast.exact else " (contribution and adapter alone)"
    for name, value in (("up", forecast.bytes_up), ("down", forecast.bytes_down)):
        table.add_row(
            f"bytes {name}, per client{what}",
            f"{value:,.0f} a round, {value * rounds / 1e6:,.2f} MB in {rounds} rounds",
        )
    table.add_row("model on disk", f"{forecast.model_bytes / 1e6:,.0f} MB")
    table.add_row(
        "memory, resident (one step rehearsed here)", f"{forecast.memory / 2**30:.2f} GiB"
    )
    bound = config.training.memory_gib
    table.add_row("examples at a time", _at_a_time(forecast, bound))
    table.add_row("time of a round", _time(forecast, rounds))
    return table


def _at_a_time(forecast: Forecast, bound: float | None) -> str:
    gib = 2**30
    needed = f"{forecast.client_memory / gib:.2f} GiB at one client, foreseen from shapes"
    least = f"{forecast.least_memory / gib:.2f} GiB for one at a time"
    within = "" if bound is None else f"; training.memory_gib = {bound:g}"
    return f"{forecast.micro_batch}: {needed} ({least}){within}"


def _of(forecast: Forecast) -> str:
    return f"{forecast.sampling_probability:.3g}"


def _time(forecast: Forecast, rounds: int) -> str:
    simulated = forecast.simulated_seconds
    if simulated is None:
        return "not measured: with privacy.mechanism = 'local' a step draws its own sample"
    parts = ", ".join(f"{name} {_spent(value)}" for name, value in forecast.seconds.items())
    server = forecast.server_seconds
    own = "" if server is None else f"; the server {_spent(server)}"
    return (
        f"a client {_spent(sum(forecast.seconds.values()))} ({parts}){own}; in one process "
        f"{_spent(simulated)}, {_spent(simulated * rounds)} in {rounds} rounds, besides held-out "
        "figures"
    )


def _spent(seconds: float) -> str:
    if seconds >= 60.0:
        return f"{seconds / 60.0:.1f} min"
    return f"{seconds:.2g} s" if seconds >= 1.0 else f"{1e3 * seconds:.2g} ms"


def warnings_of(forecast: Forecast) -> list[str]:
    """Each hazard as a line, what stops the run first."""
    return [
        f"{'WILL NOT WORK' if hazard.stops else 'note'}: {hazard.text}"
        for hazard in forecast.hazards
    ]
