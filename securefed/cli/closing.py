"""What a run shows at its end: its statements, its picture and its table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from securefed.cli.watching import say
from securefed.config import RunConfig
from securefed.errors import ConfigError

if TYPE_CHECKING:
    from securefed.engines.events import RoundEvent
    from securefed.engines.figures import Figures
    from securefed.engines.results import RunResult


def statements(config: RunConfig, result: RunResult) -> str:
    """What holds against each adversary; what is the same against all of them is said once."""
    from securefed.engines.settings import unit_name

    every = list(result.guarantees.values())
    lines = {statement: str(statement).splitlines()[:-1] for statement in every}
    shared = [line for line in lines[every[0]] if all(line in own for own in lines.values())]
    assumed = [a for a in every[0].assumptions if all(a in s.assumptions for s in every)]
    paragraphs = [
        [
            "What the statements against the adversaries share:",
            f"Unit: {every[0].unit}.",
            *shared,
            f"Assumptions: {'; '.join(assumed)}.",
        ]
    ]
    for statement in every:
        head, *rest = [line for line in lines[statement] if line not in shared]
        besides = [a for a in statement.assumptions if a not in assumed]
        paragraphs.append(
            [
                head.replace(statement.unit, unit_name(config)),
                *rest,
                *([f"Assumptions besides: {'; '.join(besides)}."] if besides else []),
            ]
        )
    return "\n\n".join("\n".join(paragraph) for paragraph in paragraphs)


def _figure(figures: Figures, which: str) -> str:
    value = (
        figures.worst
        if which == "worst"
        else (figures.perplexity if figures.perplexity is not None else figures.accuracy)
    )
    return "not shown" if value is None else f"{value:#.4g}".rstrip(".")


def _kind(result: RunResult) -> str:
    return "perplexity" if result.after.perplexity is not None else "accuracy"


def comparison(config: RunConfig, result: RunResult, compared: Mapping[str, Figures]) -> Table:
    """The run beside what it is compared with."""
    table = Table(title=f"{config.output.name}: compared", show_header=True)
    table.add_column(f"held-out {_kind(result)}, mean over clients (outside the guarantee)")
    table.add_column("after", justify="right")
    for label, figures in {"this run": result.after, **compared}.items():
        table.add_row(label, _figure(figures, "mean"))
    return table


def table(config: RunConfig, result: RunResult) -> Table:
    """What the run gained and what it cost."""
    from securefed.engines.settings import unit_name
    from securefed.privacy.accounting import epsilon_text

    kind = _kind(result)
    table = Table(title=f"{config.output.name}: {result.rounds} rounds", show_header=True)
    table.add_column("what")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    rows = [("mean", "mean over clients (outside the guarantee)")]
    if result.before.worst is not None or result.after.worst is not None:
        why = "shown because this simulation owns all clients"
        rows.append(("worst", f"worst client (outside the guarantee; {why})"))
    for which, name in rows:
        table.add_row(
            f"held-out {kind}, {name}",
            _figure(result.before, which),
            _figure(result.after, which),
        )
        if which == "mean" and result.before.perplexity and result.after.perplexity:
            change = result.after.perplexity / result.before.perplexity - 1.0
            table.add_row("  change of the mean", "", f"{100.0 * change:+.1f} %")
    table.add_section()
    for who, statement in result.guarantees.items():
        table.add_row(
            f"epsilon against {who.replace('_', ' ')} ({unit_name(config)}, delta "
            f"{statement.delta:g})",
            "",
            epsilon_text(statement.epsilon),
        )
    rounds = [event for event in result.events if event.round > 0]
    table.add_row("rounds charged (retries included)", "", str(result.charges))
    table.add_section()
    if rounds:

        def mean(name: str, events: list[RoundEvent] = rounds) -> float:
            return float(sum(getattr(event, name) for event in events)) / len(events)

        table.add_row("bytes up, per client and round", "", f"{mean('bytes_up'):,.0f}")
        table.add_row("bytes down, per client and round", "", f"{mean('bytes_down'):,.0f}")
        timed = [event for event in rounds if event.seconds > 0]  # since the last resume
        table.add_row(
            "client seconds a round (simulation only; never sent)",
            "",
            f"{mean('client_seconds', timed):.1f}" if timed else "not kept",
        )
        encrypting = mean("encrypting_seconds", timed) if timed else 0.0
        if encrypting:
            table.add_row("seconds encrypting, per client and round", "", f"{encrypting:.2f}")
        least = min(rounds, key=lambda event: (event.survivors / event.cohort, event.survivors))
        shown = f"{least.survivors} of {least.cohort}"
        table.add_row("survivors, fewest in a round", "", shown)
        virtual = [e.virtual_seconds for e in rounds if e.virtual_seconds is not None]
        if virtual:
            table.add_row(
                "virtual seconds a round, by the plan's profiles",
                "",
                f"{sum(virtual) / len(virtual):.3g}",
            )
    return table


def draw(config: RunConfig, result: RunResult, notes: list[str]) -> None:
    """Draw ``rounds.svg`` into the run folder, and say so or why not."""
    from securefed.engines.settings import unit_name
    from securefed.reports.picture import RoundPoint, draw_run

    points = [
        RoundPoint(
            round=event.round,
            perplexity=event.perplexity,
            epsilon=event.epsilon if event.round else None,
            survivors=event.survivors,
            cohort=event.cohort,
            silent=event.silent,
        )
        for event in result.events
    ]
    path = result.folder / "rounds.svg"
    try:
        draw_run(
            points,
            path,
            title=_title(config, result),
            notes=notes,
            unit=unit_name(config).removeprefix("one "),
            delta=config.privacy.delta,
            against=result.events[-1].against,
        )
    except ConfigError as error:
        say(f"no picture: {error}")
    else:
        say(f"picture: {path}")


def _title(config: RunConfig, result: RunResult) -> str:
    noise, clip = result.noise_multiplier, f"{config.privacy.clip_norm:g}"
    if config.privacy.adaptive_clip is not None:
        clip = f"from {clip}, adaptive"
    return f"{config.output.name}: noise multiplier {noise:.4g}, clip {clip}"
