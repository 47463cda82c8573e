"""What stands on the page, in the words of its language: tables of texts, and facts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from securefed.config.pilot import PilotConfig
from securefed.pilot.compared import Compared
from securefed.pilot.costing import mean_price, price_per_point
from securefed.pilot.criteria import Judged, epsilon_terms
from securefed.pilot.front import front, points
from securefed.pilot.projecting import Projection, project
from securefed.pilot.protections import Protection
from securefed.pilot.reading import Asked, Reading, shown
from securefed.pilot.records import PilotRecord
from securefed.pilot.summaries import Spread, Summary
from securefed.pilot.words import Gain, Said, Words, signed

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
            _spread(one.client_seconds, "seconds", words, one, ("client_seconds",)),
            _room(one, words),
            (words.say(one.privacy()),),
            (_money(None if price is None else price.mean, config, words),),
        )
        chosen = reading.verdict == "go" and reading.trial is not None
        mark = "chosen" if chosen and reading.trial is one else ""
        rows.append(Row(head, cells, mark))
    metric = next((one.gain.metric for one in found if one.gain), "perplexity")
    columns = ("trial", metric, "worst", "bytes", "seconds", "room", "epsilon", "money")
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


def _money(amount: float | None, config: PilotConfig, words: Words) -> str:
    if amount is None:
        return words("not_measured")
    return words("money", amount=amount, currency=config.prices.currency)


def criteria_table(reading: Reading, config: PilotConfig, words: Words) -> Table:
    """Each criterion: what is asked, what the trial that is spoken of gives, and who meets it."""
    rows = []
    for each in reading.asked:
        criterion = each.criterion
        bound = shown(criterion.key, criterion.bound, criterion)
        asked = words(
            f"ask.{criterion.key}",
            bound=bound,
            currency=config.prices.currency,
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
        return shown(criterion.key, one.figure, criterion)

    for one in each.judged:
        if reading.trial is not None and one.trial == reading.trial.name:
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


def points_of_gain(difference: float | None, words: Words) -> str:
    """A difference between two improvements, in hundredths."""
    if difference is None or not math.isfinite(difference):
        return words.say(difference)
    return words("points", number=signed(100.0 * difference))


def protections_table(priced: Sequence[Protection], config: PilotConfig, words: Words) -> Table:
    """What each protection adds by itself."""
    rows = []
    for one in priced:
        lines = [points_of_gain(one.improvement, words)]
        if one.maybe_chance and one.improvement is not None:
            lines.append(words("protection.chance"))
        rows.append(
            Row(
                (words(f"protection.{one.name}"),),
                (
                    (words.say(one.bytes, "bytes"),),
                    (words.say(one.seconds, "seconds"),),
                    tuple(lines),
                    (_money(one.money, config, words),),
                ),
            )
        )
    names = ("protection", "more_bytes", "more_seconds", "more_quality", "more_money")
    columns = tuple(words(f"column.{name}") for name in names)
    return Table(words("table.protections"), columns, tuple(rows), (words("protection.how"),))


def projection_table(
    record: PilotRecord, found: Sequence[Summary], config: PilotConfig, words: Words
) -> Table:
    """What each candidate would cost at the user's size, and how that was come by."""
    to, rows, basis = config.projection, [], dict[str, None]()
    for one in found:
        if one.group not in ("base", "sweep") or not one.done:
            continue
        head = (words.say(one.name, "name"),)
        whole = project(record, one, clients=to.clients, rounds=to.rounds, prices=config.prices)
        if whole is None:
            rows.append(Row(head, ((words("projection.none"),),)))
            continue
        basis.update(dict.fromkeys(words.say(item) for item in whole.basis))
        point = price_per_point(one, config.prices)
        rows.append(Row(head, _projected(whole, point, config, words)))
    names = ("trial", "moved", "work", "server", "whole", "point")
    columns = tuple(words(f"column.{name}") for name in names)
    caption = words("table.projection", clients=to.clients, rounds=to.rounds)
    return Table(caption, columns, tuple(rows), tuple(basis))


def _projected(
    whole: Projection, point: float | None, config: PilotConfig, words: Words
) -> tuple[tuple[str, ...], ...]:
    each, every = whole.seconds_each, whole.device_seconds
    return (
        (
            words("projection.each", figure=words.say(whole.bytes_each, "bytes")),
            words("projection.measured", figure=words.say(whole.measured_bytes, "bytes")),
            words("projection.all_bytes", figure=words.say(whole.bytes, "bytes")),
        ),
        (
            words("projection.each", figure=words.say(each, "seconds")),
            words("projection.all_seconds", figure=words.say(every, "seconds")),
        )
        if each is not None
        else (words("not_measured"),),
        (words.say(whole.server_seconds, "seconds"),),
        (_money(whole.money, config, words),),
        (_money(point, config, words),),
    )


def compared_table(compared: Compared, words: Words) -> Table:
    """What moved since the earlier pilot."""
    unchanged = tuple(
        name
        for name, moved in compared.trials.items()
        if all(one.change == "same" for one in moved)
    )
    rows = [
        Row(
            (words.say(name, "name"),),
            tuple(
                (
                    words.say(one.now)
                    if one.change == "same"
                    else words("table.then_now", then=one.then, now=one.now),
                    words(f"change.{one.change}"),
                )
                for one in moved
            ),
        )
        for name, moved in compared.trials.items()
        if name not in unchanged
    ]
    names = ("trial", "quality", "bytes", "seconds", "epsilon", "money")
    columns = tuple(words(f"column.{name}") for name in names)
    verdicts = words(
        "compared.verdicts",
        then=Said(f"verdict_word.{compared.then}"),
        now=Said(f"verdict_word.{compared.now}"),
    )
    notes = [verdicts]
    for key, trials in (
        ("unchanged", unchanged),
        ("only_then", compared.only_then),
        ("only_now", compared.only_now),
    ):
        if trials:
            notes.append(words(f"compared.{key}", trials=trials))
    return Table(words("table.compared"), columns, tuple(rows), tuple(notes))


def facts(
    record: PilotRecord, found: Sequence[Summary], config: PilotConfig, words: Words
) -> list[tuple[str, str]]:
    """What was tried, on what, and what it spent: pairs of a name and a text."""
    machine: Mapping[str, Any] = record.machine
    model = str(_deep(record.run, "model", "source")).rpartition("/")[2]
    data = str(_deep(record.run, "data", "source")).rpartition("/")[2]
    pairs = [
        ("fact.model", model),
        ("fact.data", words("fact.public" if record.public else "fact.private", data=data)),
        ("fact.trials", words("fact.counted", **_counts(record), seconds=record.seconds)),
        ("fact.spent", _spent(record, found, words)),
        ("fact.machine", "; ".join(f"{key}: {value}" for key, value in machine.items())),
        ("fact.software", record.software),
        ("fact.prices", _prices(config, words)),
    ]
    return [(words(key), text) for key, text in pairs if text]


def _counts(record: PilotRecord) -> dict[str, int]:
    done = sum(trial.status == "done" for trial in record.trials)
    return {"done": done, "planned": len(record.trials)}


def _spent(record: PilotRecord, found: Sequence[Summary], words: Words) -> str:
    if not record.spent:
        return words("fact.nothing_spent" if record.public else "not_measured")
    return words(
        "fact.charged",
        epsilon=record.spent["epsilon"],
        delta=record.spent["delta"],
        terms=epsilon_terms(found),
    )


def _prices(config: PilotConfig, words: Words) -> str:
    prices = config.prices
    return words(
        "fact.priced",
        per_gb=prices.per_gb,
        per_device_hour=prices.per_device_hour,
        per_server_hour=prices.per_server_hour,
        currency=prices.currency,
    )


def _deep(values: Mapping[str, Any], section: str, key: str) -> Any:
    found = values.get(section)
    return found.get(key, "") if isinstance(found, Mapping) else ""
