"""The page's tables of costs: of protections, of the projection, and since an earlier pilot."""

from __future__ import annotations

import math
from collections.abc import Sequence

from securefed.config.pilot import PilotConfig
from securefed.pilot.compared import Compared, Moved
from securefed.pilot.costing import price_per_point, priced
from securefed.pilot.projecting import Projection, project
from securefed.pilot.protections import Protection
from securefed.pilot.records import PilotRecord
from securefed.pilot.summaries import Summary
from securefed.pilot.view import Cell, Row, Table, money_text
from securefed.pilot.words import Said, Words
from securefed.reports.catalogue import signed


def points_of_gain(difference: float | None, words: Words) -> str:
    """A difference between two improvements, in hundredths."""
    if difference is None or not math.isfinite(difference):
        return words.say(difference)
    return words("points", number=signed(100.0 * difference))


def protections_table(found: Sequence[Protection], config: PilotConfig, words: Words) -> Table:
    """What each protection adds by itself."""
    columns = ["protection", "more_bytes", "more_seconds", "more_quality"]
    columns += ["more_money"] * priced(config.prices)
    rows = []
    for one in found:
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
                    (money_text(one.money, config, words),),
                )[: len(columns) - 1],
            )
        )
    return Table(
        words("table.protections"),
        tuple(words(f"column.{name}") for name in columns),
        tuple(rows),
        (words("protection.how"),),
    )


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
    names = ["trial", "moved", "work", "server"] + ["whole", "point"] * priced(config.prices)
    columns = tuple(words(f"column.{name}") for name in names)
    caption = words("table.projection", clients=to.clients, rounds=to.rounds)
    return Table(caption, columns, tuple(rows), tuple(basis))


def _projected(
    whole: Projection, point: float | None, config: PilotConfig, words: Words
) -> tuple[tuple[str, ...], ...]:
    each, every = whole.seconds_each, whole.device_seconds
    amounts = (whole.money, point) if priced(config.prices) else ()
    money = ((money_text(amount, config, words),) for amount in amounts)
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
        *money,
    )


def compared_table(compared: Compared, words: Words) -> Table:
    """What moved since the earlier pilot; figures that neither has are left out."""
    moved = {
        name: [one for one in figures if (one.then, one.now) != (None, None)]
        for name, figures in compared.trials.items()
    }
    unchanged = tuple(
        name for name, figures in moved.items() if all(one.change == "same" for one in figures)
    )
    shown = {name: figures for name, figures in moved.items() if name not in unchanged}
    columns = [
        what
        for what in ("quality", "bytes", "seconds", "epsilon", "money")
        if any(one.what == what for figures in shown.values() for one in figures)
    ]
    rows = []
    for name, figures in shown.items():
        by_name = {one.what: one for one in figures}
        cells = tuple(_then_and_now(by_name.get(what), words) for what in columns)
        rows.append(Row((words.say(name, "name"),), cells))
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
    heads = tuple(words(f"column.{name}") for name in ("trial", *columns))
    return Table(words("table.compared"), heads, tuple(rows), tuple(notes))


def _then_and_now(moved: Moved | None, words: Words) -> Cell:
    if moved is None:
        return (words("not_measured"),)
    change = words(f"change.{moved.change}")
    if moved.change == "same":
        return words.say(moved.now), change
    return words("table.then_now", then=moved.then, now=moved.now), change
