"""Sections on the system, its privacy and its secure sum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from securefed.reports.blocks import Block, Cell, Definitions, Heading, Paragraph, Picture, Section
from securefed.reports.diagram import data_flow
from securefed.reports.document import Report, Role, Statement
from securefed.reports.pages.rows import bullets, definitions, shown, source, table
from securefed.reports.values import Item, Said, Value
from securefed.reports.wording import Wording


def system(report: Report, word: Wording) -> Section:
    """Parties and flows."""
    found = report.system
    roles = [
        (
            word.cell(role.name, *_count(role)),
            word.cell(*role.sees),
            (word.line(role.trusted),),
        )
        for role in found.roles
    ]
    labels = {node.id: word.line(node.label) for node in found.nodes}
    flows = [
        (
            word.cell(str(flow.number)),
            ((*labels[flow.source], *word.line(" → "), *labels[flow.target]),),
            (word.line(flow.what),),
            (word.line(flow.how),),
            (word.line(_actors(flow.seen_by), "code"),) if flow.seen_by else word.cell("—"),
        )
        for flow in found.flows
    ]
    picture = Picture(
        data_flow(found, word),
        word("diagram.alt"),
        word("diagram.caption"),
        table("table.flows", ("number", "between", "what", "protected", "seen_by"), flows, word),
    )
    blocks: tuple[Block, ...] = (
        Paragraph(word.line(found.purpose)),
        definitions(found.facts, word),
        Heading(word("heading.roles")),
        table("table.roles", ("role", "sees", "trusted"), roles, word),
        Heading(word("heading.flows")),
        picture,
    )
    return Section("system", word("section.system"), blocks)


def _count(role: Role) -> list[Said]:
    values: dict[str, Value] = {} if role.count is None else {"count": role.count}
    return [Said(key="role.client_count", values=values)] if values else []


def _actors(names: Sequence[str]) -> list[Item]:
    """Ids of actors without those of their threat models, each once."""
    return list(dict.fromkeys(name.partition("/")[2] for name in names))


def privacy(report: Report, word: Wording) -> Section:
    """Statements in words, after their hazards."""
    blocks: list[Block] = [
        Paragraph(word.line_of("privacy.first")),
        Heading(word("heading.hazards")),
        bullets(report.privacy.hazards, word),
    ]
    for statement in report.privacy.statements:
        blocks += _statement(statement, word)
    return Section("privacy", word("section.privacy"), tuple(blocks))


def _statement(found: Statement, word: Wording) -> Iterator[Block]:
    against = Said(key=f"against.{found.against}")
    yield Heading(word(f"statement.heading_{found.subject}", against=against))
    values: dict[str, Value] = {
        "against": against,
        "view": Said(key=f"view.{found.against}"),
        "epsilon": found.epsilon,
        "delta": found.delta,
        "rounds": found.rounds,
        "unit": found.unit,
    }
    key = "statement.protected" if found.protected else "statement.unprotected"
    yield Paragraph(word.line(Said(key=key, values=values)))

    def row(name: str, *lines: Value) -> tuple[Cell, Cell]:
        return (word.line_of(f"statement.{name}"),), word.cell(*lines)

    pairs = [
        row("unit", found.unit),
        row("adjacency", found.adjacency),
        row("delta", found.delta),
        row("rounds", found.rounds),
        row("mechanism", found.mechanism),
        row("sampling", found.sampling),
        row("accountant", found.accountant),
        row("second", _second(found)),
        row("trust", *found.trust),
        row("assumptions", *found.assumptions),
    ]
    yield Definitions(tuple((head[0], cell) for head, cell in pairs))


def _second(found: Statement) -> Value:
    if not found.protected:
        return Said(key="statement.nothing")
    if found.second is None or found.least is None:
        return Said(key="statement.no_second")
    return Said(
        key="statement.second_is",
        values={"epsilon": found.second, "delta": found.delta, "least": found.least},
    )


def aggregation(report: Report, word: Wording) -> Section:
    """Parameters of the secure sum, and who was in it."""
    found = report.aggregation
    rows = [
        (
            shown(row.round, word),
            shown(row.cohort, word),
            shown(row.survivors, word),
            shown(row.lost, word),
            shown(row.late, word),
            shown(row.silent, word),
            shown(row.refused, word),
            source((row.survivors, row.cohort)),
        )
        for row in found.rounds
    ]
    columns = ("round", "cohort", "survivors", "lost", "late", "silent", "refused", "source")
    blocks: list[Block] = [Paragraph(word.line(each)) for each in found.statement]
    blocks += [
        Heading(word("heading.parameters")),
        definitions(found.parameters, word),
        Paragraph(word.line_of("aggregation.derived"), note=True),
        Heading(word("heading.rounds")),
    ]
    if rows:
        blocks.append(table("table.rounds", columns, rows, word))
        blocks.append(Paragraph(word.line_of("aggregation.columns"), note=True))
    else:
        blocks.append(Paragraph(word.line_of("aggregation.no_round")))
    return Section("aggregation", word("section.aggregation"), tuple(blocks))
