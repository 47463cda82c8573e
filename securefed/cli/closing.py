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
    from securefed.engines.noised_histogram import NoisedHistogram
    from securefed.engines.results import RunResult
    from securefed.privacy.accounting import Adversary, PrivacyGuarantee


def statements(config: RunConfig, guarantees: Mapping[Adversary, PrivacyGuarantee]) -> str:
    """What holds against each adversary; what is the same against all of them is said once."""
    from securefed.engines.settings import unit_name

    share = "What the statements against the adversaries share:"
    return _said_once(share, list(guarantees.values()), unit_name(config))


def statements_of_figures(result: RunResult) -> str:
    """The same of a run's histograms of held-out figures."""
    share = (
        "Held-out figures are noised counts of clients, which spend privacy of their own; what the "
        "statements on them share:"
    )
    return _said_once(share, list(result.histogram_guarantees.values()), "one client")


def _said_once(share: str, every: list[PrivacyGuarantee], unit: str) -> str:
    lines = {statement: str(statement).splitlines()[:-1] for statement in every}
    shared = [line for line in lines[every[0]] if all(line in own for own in lines.values())]
    assumed = [a for a in every[0].assumptions if all(a in s.assumptions for s in every)]
    paragraphs = [
        [share, f"Unit: {every[0].unit}.", *shared, f"Assumptions: {'; '.join(assumed)}."]
    ]
    for statement in every:
        head, *rest = [line for line in lines[statement] if line not in shared]
        besides = [a for a in statement.assumptions if a not in assumed]
        paragraphs.append(
            [
                head.replace(statement.unit, unit),
                *rest,
                *([f"Assumptions besides: {'; '.join(besides)}."] if besides else []),
            ]
        )
    return "\n\n".join("\n".join(paragraph) for paragraph in paragraphs)


_SPREAD = ("least", "lower quartile", "median", "upper quartile", "most")


def _figure(figures: Figures) -> str:
    value = figures.perplexity if figures.perplexity is not None else figures.accuracy
    return "not measured" if value is None else _number(value)


def _number(value: float) -> str:
    return f"{value:#.4g}".rstrip(".")


def _kind(config: RunConfig) -> str:
    return "perplexity" if config.model.task == "causal-lm" else "accuracy"


def comparison(config: RunConfig, result: RunResult, compared: Mapping[str, Figures]) -> Table:
    """The run beside what it is compared with."""
    table = Table(title=f"{config.output.name}: compared", show_header=True)
    table.add_column(f"held-out {_kind(config)}, mean over clients (outside the guarantee)")
    table.add_column("after", justify="right")
    counted = config.evaluation.figures == "histogram"
    own = "this run (estimated from noised counts)" if counted else "this run"
    for label, figures in {own: result.after, **compared}.items():
        table.add_row(label, _figure(figures))
    return table


def table(config: RunConfig, result: RunResult) -> Table:
    """What the run gained and what it cost."""
    from securefed.engines.settings import unit_name
    from securefed.privacy.accounting import epsilon_text

    measured = [result.before, result.after, *([result.personal] if result.personal else [])]
    table = Table(title=f"{config.output.name}: {result.rounds} rounds", show_header=True)
    table.add_column("what")
    for heading in ("before", "after", "personal")[: len(measured)]:
        table.add_column(heading, justify="right")
    for name, values in held_out_rows(config, measured, result.gain):
        table.add_row(name, *values)
    table.add_section()
    for who, statement in result.guarantees.items():
        table.add_row(
            f"epsilon against {who.replace('_', ' ')} ({unit_name(config)}, delta "
            f"{statement.delta:g})",
            "",
            epsilon_text(statement.epsilon),
        )
    for who, statement in result.histogram_guarantees.items():
        table.add_row(
            f"held-out figures: epsilon against {who.replace('_', ' ')} (one client, delta "
            f"{statement.delta:g}, {result.histogram_charges} histograms; beside the above)",
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


def held_out_rows(
    config: RunConfig, measured: list[Figures], gain: NoisedHistogram | None
) -> list[tuple[str, list[str]]]:
    """The rows of held-out figures, each with one value for each time that they were measured.

    Args:
        config: the run file.
        measured: before the first round, after the last, and of the adapters that clients use.
        gain: how these compare with the last shared adapter.
    """
    kind = f"held-out {_kind(config)}"
    if config.evaluation.figures == "histogram":
        return _noised_rows(kind, measured, gain)
    mean = f"{kind}, mean over clients (outside the guarantee)"
    rows = [(mean, [_figure(each) for each in measured])]
    before = measured[0].perplexity
    if before:
        after = [each.perplexity or before for each in measured[1:]]
        changes = [f"{100.0 * (value / before - 1.0):+.1f} %" for value in after]
        rows.append(("  change of the mean", ["", *changes]))
    if any(each.worst is not None for each in measured):
        why = "outside the guarantee; shown because this simulation owns all clients"
        worst = ["not shown" if each.worst is None else _number(each.worst) for each in measured]
        rows.append((f"{kind}, worst client ({why})", worst))
        for place, name in enumerate(
            ("least", "lower quartile", "median", "upper quartile", "most")
        ):
            values = [_number(each.spread[place]) if each.spread else "" for each in measured]
            rows.append((f"  {name} over clients", values))
    return rows


def _noised_rows(
    kind: str, measured: list[Figures], gain: NoisedHistogram | None
) -> list[tuple[str, list[str]]]:
    found = [each.histogram for each in measured]
    geometric = "geometric mean" if "perplexity" in kind else "mean"
    rows = [
        (
            f"{kind}, {geometric} over clients, estimated from noised counts (95 % and half a bin)",
            [_estimate(each) for each in found],
        ),
        ("  worst bin seen beyond the noise", [_worst_bin(each) for each in found]),
    ]
    if gain is not None:
        blank = [""] * (len(measured) - 1)
        what = "nats of log perplexity" if "perplexity" in kind else "points of accuracy / 100"
        rows.append((f"  gain of the personal adapters, {what}", [*blank, _estimate(gain)]))
        rows.append(("  worst bin of the gain seen", [*blank, _worst_bin(gain)]))
    return rows


def _estimate(found: NoisedHistogram | None) -> str:
    if found is None:
        return "not measured"
    low, high = found.interval
    return f"{_number(found.mean)} ({_number(low)} to {_number(high)})"


def _worst_bin(found: NoisedHistogram | None) -> str:
    if found is None or found.worst_bin is None:
        return "none"
    low, high = found.worst_bin
    return f"{_number(low)} to {_number(high)}"


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
            estimated=bool(result.histogram_guarantees),
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
