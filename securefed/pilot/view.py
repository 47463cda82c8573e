"""The page's tables in the words of its language, and those of trials and of what was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from securefed.config.pilot import PilotConfig
from securefed.pilot.costing import mean_price, priced
from securefed.pilot.criteria import Judged
from securefed.pilot.front import front, points
from securefed.pilot.reading import Asked, Reading
from securefed.pilot.summaries import Spread, Summary
from securefed.pilot.words import Gain, Said, Words

Cell = tuple[str, ...]
"""One or several lines of text."""


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        head: names the row; what follows its first line is set small.
        cells: fewer than there are columns if the last one spans the rest.
        mark: of the row's looks: ``"chosen"``, ``"left_out"``, ``"met"``, ``"not_met"``,
            ``"not_measured"`` or none.
    """

    head: Cell
    cells: tuple[Cell, ...]
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table in words.

    Attributes:
        caption: what it shows.
        columns: headings, that of the rows' heads first.
        rows: with a cell for each further heading.
        notes: what must be known beside it.
    """

    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def numbered(found: Sequence[Summary]) -> dict[str, int]:
    """Each trial's number on the page, from 1."""
    return {one.name: number for number, one in enumerate(found, 1)}


def trials_table(
    found: Sequence[Summary], reading: Reading, config: PilotConfig, words: Words
) -> Table:
    """All trials: quality, bytes, time, memory, storage, epsilon, money, and the front."""
    best = {point.name for point in front(points(found))}
    metric = next((one.gain.metric for one in found if one.gain), "perplexity")
    columns = ["trial", metric, "worst", "bytes", "seconds", "room", "epsilon"]
    columns += ["money"] * priced(config.prices)
    rows = []
    for number, one in enumerate(found, 1):
        kind = [words(f"group.{one.group}")]
        if one.name in best and one.done:
            kind.append(words("table.on_front"))
        head = (f"{number}. {words.say(one.name, 'name')}", *kind)
        if not one.done:
            why = words("table.skipped", why=one.skipped[0].why)
            rows.append(Row(head, ((why,),), "left_out"))
            continue
        price = mean_price(one, config.prices)
        cells = (
            _quality(one, words),
            _worst(one, words),
            _spread(one.bytes, "bytes", words, one, ("bytes_up", "bytes_down")),
            _seconds(one, words),
            _room(one, words),
            (words.say(one.privacy()),),
            (money_text(None if price is None else price.mean, config, words),),
        )[: len(columns) - 1]
        chosen = reading.verdict == "go" and reading.trial is not None
        mark = "chosen" if chosen and reading.trial is one else ""
        rows.append(Row(head, cells, mark))
    return Table(
        words("table.trials"),
        tuple(words(f"column.{name}") for name in columns),
        tuple(rows),
        (words("table.note"),),
    )


def _quality(one: Summary, words: Words) -> Cell:
    if one.before is None or one.after is None or one.improvement is None:
        return (words("not_measured"),)
    lines = [
        words("table.from_to", before=one.before.mean, after=one.after.mean),
        words.say(one.gain),
    ]
    if one.improvement.count > 1:
        metric = one.gain.metric if one.gain else "perplexity"
        least, most = (Gain(metric, v) for v in (one.improvement.least, one.improvement.most))
        lines.append(words("table.seeds", least=least, most=most, count=one.improvement.count))
    return tuple(lines)


def _worst(one: Summary, words: Words) -> Cell:
    if one.worst_after is None:
        return (words("not_measured"),)
    if one.worst_before is None:
        return (words.say(one.worst_after.mean, "figure"),)
    return (words("table.from_to", before=one.worst_before.mean, after=one.worst_after.mean),)


def _seconds(one: Summary, words: Words) -> Cell:
    if one.client_seconds is None and one.pooled:
        return (words("table.no_clients"),)
    return _spread(one.client_seconds, "seconds", words, one, ("client_seconds",))


def _room(one: Summary, words: Words) -> Cell:
    """Memory and storage."""
    memory = _spread(one.memory, "memory", words, one, ("memory_bytes",))
    storage = _spread(one.storage, "bytes", words, one, ("storage_bytes",))
    return (
        words("table.memory", figure=memory[0]),
        *memory[1:],
        words("table.storage", figure=storage[0]),
        *storage[1:],
    )


def _spread(
    spread: Spread | None, kind: str, words: Words, one: Summary, names: Sequence[str]
) -> Cell:
    if spread is None:
        return (words("not_measured"),)
    text = words.say(spread.mean, kind)
    if any(name in one.estimated for name in names):
        text = words("table.estimated", figure=text)
    if spread.least == spread.most:
        return (text,)
    ends = (words.say(end, kind) for end in (spread.least, spread.most))
    return text, words("table.range", least=next(ends), most=next(ends))


def money_text(amount: float | None, config: PilotConfig, words: Words) -> str:
    """An amount in the user's currency."""
    if amount is None:
        return words("not_measured")
    return words("money", amount=amount, currency=config.prices.currency)


def criteria_table(reading: Reading, config: PilotConfig, words: Words) -> Table:
    """Each criterion: what is asked, what the trial that is spoken of gives, and who meets it."""
    rows = []
    for each in reading.asked:
        criterion = each.criterion
        bound = criterion.shown(criterion.bound)
        asked = words(
            f"ask.{criterion.key}",
            bound=bound,
            clients=config.projection.clients,
            rounds=config.projection.rounds,
        )
        outcome = "met" if each.met_by else "not_met" if each.measured else "not_measured"
        cells = ((words(f"outcome.{outcome}"),), _answers(each, reading, words))
        rows.append(Row((asked,), cells, outcome))
    columns = tuple(words(f"column.{name}") for name in ("asked", "outcome", "figures"))
    return Table(words("table.criteria"), columns, tuple(rows), (words("rule.worst_seed"),))


def _answers(each: Asked, reading: Reading, words: Words) -> Cell:
    """The figure of the trial that is spoken of, then all others by what came out."""
    criterion, lines = each.criterion, []

    def figure(one: Judged) -> Any:
        if one.figure is None and criterion.absent == "not_met":
            return Said("epsilon.none")
        return criterion.shown(one.figure)

    for one in each.judged:
        spoken_of = reading.trial is not None and one.trial == reading.trial.name
        if spoken_of and one.outcome != "not_met":
            lines.append(words("judged.mine", trial=one.trial, figure=figure(one)))
    for outcome in ("met", "not_met", "not_measured"):
        these = [one for one in each.judged if one.outcome == outcome]
        named: tuple[Said | str, ...] = tuple(one.trial for one in these)
        if outcome == "not_met":  # how far they are from it is of interest
            named = tuple(
                Said("judged.with", {"trial": one.trial, "figure": figure(one)}) for one in these
            )
        if named:
            lines.append(words(f"judged.{outcome}", trials=named))
    return tuple(lines)
