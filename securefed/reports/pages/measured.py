"""Sections on what attacks found out, and on quality and cost."""

from __future__ import annotations

from securefed.reports.blocks import Block, Cell, Heading, Paragraph, Picture, Section, Table
from securefed.reports.document import AttackRow, Curve, EpsilonBound, Report
from securefed.reports.pages.rows import badge, bullets, shown, source, table
from securefed.reports.plots import bars, by_round, heat_map, lifts, roc
from securefed.reports.values import Figure, Said
from securefed.reports.wording import Wording, known, plain

_POINTS = (0.001, 0.01, 0.1)


def leakage(report: Report, word: Wording) -> Section:
    """Attack by attack, with and without the defence."""
    found, rows = report.leakage, report.leakage.attacks
    blocks: list[Block] = [bullets(found.notes, word)]
    if rows:
        blocks += [
            Heading(word("heading.matrix")),
            Picture(
                heat_map(rows, word), word("heat.alt"), word("heat.caption"), _results(rows, word)
            ),
        ]
    by_file = {row.file: row for row in rows}
    pairs = [
        (row, None if row.baseline is None else by_file.get(row.baseline))
        for row in rows
        if row.defended and row.kind != "epsilon"
    ]
    if pairs:
        blocks += [
            Heading(word("heading.lifts")),
            Picture(
                lifts(pairs, word), word("lift.alt"), word("lift.caption"), _pairs(pairs, word)
            ),
        ]
    if found.bounds:
        blocks += _bounds(found.bounds, word)
    worst = [row for row in rows if row.worst is not None or row.average is not None]
    if worst:
        cells = [
            (
                _attack(row, word),
                shown(row.average, word),
                shown(row.worst, word),
                source((row.average, row.worst)),
            )
            for row in worst
        ]
        columns = ("attack", "average", "worst", "source")
        blocks += [Heading(word("heading.worst")), table("table.worst", columns, cells, word)]
    if found.curves:
        blocks += [
            Heading(word("heading.roc")),
            Picture(
                roc(found.curves, word),
                word("roc.alt"),
                word("roc.caption"),
                _curves(found.curves, word),
            ),
        ]
    return Section("leakage", word("section.leakage"), tuple(blocks))


def _bounds(bounds: list[EpsilonBound], word: Wording) -> list[Block]:
    """What canaries say of the promised epsilons."""
    rows = []
    for bound in bounds:
        head = Said(key="as.code", values={"name": bound.attack})
        defence = Said(key="as.defence", values={"name": bound.defence})
        kind = "exceeded" if bound.exceeded else "within"
        verdict = badge("refuted" if bound.exceeded else "guessed", word(f"bound.{kind}"))
        rows.append(
            (
                word.cell(head, defence),
                word.cell(known("bound_of", bound.of)),
                shown(bound.value, word),
                shown(bound.promised, word),
                (verdict,),
                source((bound.value,)),
            )
        )
    columns = ("attack", "of", "least", "promised", "result", "source")
    return [
        Heading(word("heading.bounds")),
        Paragraph(word.line_of("bounds.what"), note=True),
        table("table.bounds", columns, rows, word),
    ]


def _attack(row: AttackRow, word: Wording) -> Cell:
    where = Said(
        key="attack.where",
        values={
            "exposure": known("exposure", row.exposure),
            "defence": Said(key="as.defence", values={"name": row.defence}),
        },
    )
    head = Said(key="as.code", values={"name": row.attack})
    return word.cell(head, where)


def _results(rows: list[AttackRow], word: Wording) -> Table:
    cells = []
    for row in rows:
        verdict: Cell = (badge(row.verdict, word(f"result.{row.verdict}")),)
        if row.reason is not None:
            verdict = (*verdict, word.line(row.reason))
        if not row.anchored:
            verdict = (*verdict, word.line_of("attack.unanchored"))
        metric = () if row.metric is None else word.line_of("as.metric", name=row.metric)
        cells.append(
            (
                _attack(row, word),
                (metric,),
                shown(row.value, word),
                shown(None if row.kind == "epsilon" else row.prior, word),
                shown(None if row.kind == "epsilon" else row.lift, word),
                shown(row.n, word),
                verdict,
                source((row.n,)),
            )
        )
    columns = ("attack", "metric", "reached", "prior", "lift", "trials", "result", "source")
    return table("table.attacks", columns, cells, word)


def _pairs(pairs: list[tuple[AttackRow, AttackRow | None]], word: Wording) -> Table:
    def lift(row: AttackRow | None) -> Cell:
        if row is None:
            return (word.line_of("lift.none"),)
        if row.verdict != "guessed" or row.lift is None:
            return (badge(row.verdict, word(f"result.{row.verdict}")),)
        return shown(row.lift, word)

    cells = [
        (
            _attack(row, word),
            lift(row),
            lift(bare),
            source((row.n, None if bare is None else bare.n)),
        )
        for row, bare in pairs
    ]
    return table("table.lifts", ("attack", "with", "without", "source"), cells, word)


def _curves(curves: list[Curve], word: Wording) -> Table:
    """True positive rates at three false positive rates."""
    rows = []
    for curve in curves:
        name = word.line_of("roc.curve", attack=curve.attack, defence=curve.defence)
        at = [max((y for x, y in curve.points if x <= rate), default=0.0) for rate in _POINTS]
        cells = tuple(word.cell(Figure(value=value, kind="figure")) for value in at)
        bound = word.line_of("roc.no_bound")
        if curve.bound is not None:
            epsilon, delta = curve.bound
            bound = word.line_of("roc.bound", epsilon=epsilon, delta=delta)
        rows.append(((name,), *cells, (bound,)))
    columns = ("attack", "tpr_001", "tpr_01", "tpr_1", "bound")
    return table("table.roc", columns, rows, word)


def utility(report: Report, word: Wording) -> Section:
    """Held-out figures by round, and costs."""
    found = report.utility
    blocks: list[Block] = [Paragraph(word.line(each)) for each in found.statement]
    metrics = [
        metric
        for metric in ("perplexity", "accuracy")
        if any(getattr(row, metric).value is not None for row in found.rounds)
    ]
    rows = [
        (
            shown(row.round, word),
            *(shown(getattr(row, metric), word) for metric in metrics),
            shown(row.epsilon, word),
            shown(row.bytes_up, word),
            shown(row.bytes_down, word),
            source((row.round,)),
        )
        for row in found.rounds
    ]
    columns = ("round", *metrics, "spent", "up", "down", "source")
    by_rounds = table("table.utility", columns, rows, word)
    for metric in ("perplexity", "accuracy"):
        if sum(getattr(row, metric).value is not None for row in found.rounds) > 1:
            svg = by_round(found.rounds, metric, word)
            alt = word(f"rounds.alt_{metric}")
            blocks.append(Picture(svg, alt, word(f"rounds.caption_{metric}"), by_rounds))
            break
    else:
        if rows:
            blocks.append(by_rounds)
    blocks.append(bullets(found.notes, word))
    blocks.append(Heading(word("heading.costs")))
    costs = [
        ((word.line(row.label),), shown(row.value, word), source((row.value,)))
        for row in found.costs
    ]
    if not costs:
        blocks.append(Paragraph(word.line_of("cost.none")))
        return Section("utility", word("section.utility"), tuple(blocks))
    listed = table("table.costs", ("cost", "value", "source"), costs, word)
    drawn = [
        (plain(word.line(row.label)), float(row.value.value), plain(word.line(row.value)))
        for row in found.costs
        if row.value.kind == "bytes"
        and isinstance(row.value.value, int | float)
        and row.label.key.startswith(("cost.bytes", "cost.server_bytes"))
    ]
    if drawn:
        blocks.append(Picture(bars(drawn, word), word("cost.alt"), word("cost.caption"), listed))
    else:
        blocks.append(listed)
    return Section("utility", word("section.utility"), tuple(blocks))
