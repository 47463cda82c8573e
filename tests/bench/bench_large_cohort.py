"""Rounds of large cohorts through the real halves, against the cost model, and its table to 10^6.

Run by hand::

    python tests/bench/bench_large_cohort.py [--clients N ...] [--values D] [--drop 0.05] \
        [--corrupt 0.01] [--seed 0] [--workers 1]

Each size is one round in this process; its sum is compared with the plain sum of the survivors.
``--drop`` of the clients still there fall silent before each stage, the first included.  Unit costs
are measured before and after each round, and the model takes their means; for a whole client and
for the server it predicts bytes to 1 % and time to within a factor of 1.3.  Seconds are CPU
seconds: on a machine with other work they are higher, for rounds and units alike.  250, 1,000 and
2,500 clients take some 0.3, 3 and 13 minutes of CPU time, and memory of 2.7 KiB an edge and
direction.
"""

import argparse
from dataclasses import asdict

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from securefed.engines.events import Silent
from securefed.engines.large_cohort import CohortRun, run_cohort
from securefed.engines.parallel import ParallelMasks
from securefed.engines.unit_costs import measure_units
from securefed.errors import ConfigError
from securefed.federation.costs import CohortPlan, RoundCost, UnitCosts, predict
from securefed.secagg.carriers import apply_masks

TABLE = (100, 1_000, 10_000, 100_000, 1_000_000)


class Watching(Silent):
    """A bar inside a stage, and a line at its end."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("preparing", total=None)

    def message(self, text: str) -> None:
        self._progress.console.print(text, markup=False)

    def working(self, what: str, done: int, total: int) -> None:
        self._progress.update(self._task, description=what, completed=done, total=total)


def mean(first: UnitCosts, second: UnitCosts) -> UnitCosts:
    """Unit by unit."""
    later = asdict(second)
    return UnitCosts(**{name: (cost + later[name]) / 2 for name, cost in asdict(first).items()})


def show_plan(plan: CohortPlan) -> str:
    p = plan.parameters
    return (
        f"{plan.clients} clients, {plan.values} values of {plan.bits} bits, {plan.drop:.0%} lost "
        f"before each stage ({1 - plan.present['unmask'] / plan.clients:.1%} in all), "
        f"{p.corrupt} corrupt: degree {p.degree}, threshold {p.threshold}, {p.quorum} of "
        f"{p.witnesses + 1} signatures"
    )


def show_ratios(run: CohortRun, cost: RoundCost) -> list[str]:
    """Predicted over measured, by stage and in all."""
    lines = ["predicted / measured   bytes up  bytes down  client CPU  server CPU"]
    for stage in run.stages:
        wanted = cost.stages[stage.stage]
        down = wanted.bytes_down / stage.bytes_down.mean if stage.bytes_down.mean else 1.0
        lines.append(
            f"  {stage.stage:<18} {wanted.bytes_up / stage.bytes_up.mean:>10.4f} {down:>11.4f} "
            f"{wanted.client_seconds / stage.client_seconds.mean:>11.2f} "
            f"{wanted.server_seconds / stage.server_seconds:>11.2f}"
        )
    lines.append(
        f"  {'round':<18} {cost.bytes_up / run.bytes_up:>10.4f} "
        f"{cost.bytes_down / run.bytes_down:>11.4f} "
        f"{cost.client_seconds / run.client_seconds:>11.2f} "
        f"{cost.server_seconds / run.server_seconds:>11.2f}"
    )
    return lines


def show_table(given: argparse.Namespace, units: UnitCosts) -> list[str]:
    lines = [
        "predicted, a client that stays and the server (server bytes: in and out):",
        f"{'clients':>9} {'k':>4} {'t':>4} {'q':>4} {'kB up':>7} {'kB down':>8} {'client s':>9} "
        f"{'of which O(n): s':>16} {'kB':>7} {'server s':>10} {'server GB':>10}",
    ]
    for clients in TABLE:
        plan = plan_of(given, clients)
        try:
            cost, p = predict(plan, units), plan.parameters
        except ConfigError as error:
            lines.append(f"{clients:>9} {error}")
            continue
        linear_seconds, linear_bytes = cost.linear(units)
        lines.append(
            f"{clients:>9} {p.degree:>4} {p.threshold:>4} {p.quorum:>4} "
            f"{cost.bytes_up / 1e3:>7.0f} {cost.bytes_down / 1e3:>8.0f} "
            f"{cost.client_seconds:>9.3f} {linear_seconds:>16.3f} {linear_bytes / 1e3:>7.0f} "
            f"{cost.server_seconds:>10.0f} {cost.server_bytes / 1e9:>10.1f}"
        )
    return lines


def plan_of(given: argparse.Namespace, clients: int) -> CohortPlan:
    return CohortPlan(
        clients=clients,
        values=given.values,
        bits=given.bits,
        drop=given.drop,
        corrupt=given.corrupt,
        seed=given.seed,
    )


def main() -> None:
    """Run every size, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, nargs="*", default=[250, 1_000, 2_500])
    parser.add_argument("--values", type=int, default=1_000)
    parser.add_argument("--bits", type=int, default=32)
    parser.add_argument("--drop", type=float, default=0.05)
    parser.add_argument("--corrupt", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes that remove masks")
    given = parser.parse_args()
    masks = apply_masks if given.workers == 1 else ParallelMasks(given.workers)
    console = Console(highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn())
    units = measure_units()
    for clients in given.clients:
        plan = plan_of(given, clients)
        console.print(show_plan(plan))
        with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
            run = run_cohort(plan, observer=Watching(progress), remove_masks=masks)
        after = measure_units()
        cost, units = predict(plan, mean(units, after)), after
        console.print(
            f"the sum of {run.survivors} survivors is exact; {run.cpu_seconds:.0f} CPU seconds\n"
            f"a client: {run.bytes_up:.0f} bytes up, {run.bytes_down:.0f} down, "
            f"{run.client_seconds:.4f} CPU s; the server: {run.server_seconds:.2f} CPU s"
        )
        console.print("\n".join(show_ratios(run, cost)) + "\n")
    shown = " ".join(f"{name} {1e6 * cost:.3g}" for name, cost in asdict(units).items())
    console.print(f"units, in microseconds: {shown}\n")
    console.print("\n".join(show_table(given, units)))


if __name__ == "__main__":
    main()
