"""The first page, and what a reader must not take the report for."""

from __future__ import annotations

from securefed.reports.blocks import Block, Cell, Line, Paragraph, Run, Section
from securefed.reports.document import OpenItem, Report
from securefed.reports.pages.rows import badge, bullets, definitions, table
from securefed.reports.values import Fact
from securefed.reports.wording import Wording, reference_text, referred
from securefed.threats.verdicts import Reference

CLAIM = "claim-{model}-{claim}"
"""Id of the place on the page where a claim is judged."""


def front(report: Report, word: Wording) -> tuple[Section, ...]:
    """Which run it is, what is open, and the figures with their places."""
    who = report.identity
    state = [
        word("status.finished" if who.finished else "status.unfinished"),
        word("status.anchored" if who.anchored else "status.unanchored"),
    ]
    first: list[Block] = [Paragraph((Run(text, strong=True),)) for text in state]
    first += [
        Paragraph(word.line_of("status.what")),
        definitions(who.facts[:4], word),
        Paragraph(word.line_of("references.how"), note=True),
    ]
    rows = [_open(item, word) for item in report.open_items]
    figures = [
        (
            (word.line(fact.label),),
            (word.line(fact.value),),
            _places(fact, word),
        )
        for fact in report.summary
    ]
    return (
        Section("identity", word("section.identity"), tuple(first)),
        Section(
            "open",
            word("section.open"),
            (
                Paragraph(word.line_of("open.first")),
                table("table.open", ("state", "open", "who"), rows, word),
            ),
        ),
        Section(
            "figures",
            word("section.figures"),
            (table("table.figures", ("figure", "value", "place"), figures, word),),
        ),
    )


def not_this(report: Report, word: Wording) -> Section:
    """What the report is not."""
    return Section("not_this", word("section.not_this"), (bullets(report.not_this, word),))


def _open(item: OpenItem, word: Wording) -> tuple[Cell, ...]:
    what = [word.line(item.what), *(word.line(each) for each in item.detail)]
    if item.claim is not None and item.kind != "unanswered":
        link = CLAIM.format(model=item.model, claim=item.claim)
        what[0] = (*what[0], Run(" "), Run(word("open.see"), link=link))
    what[-1] = referred(what[-1], item.references)
    return (badge(item.kind, word(f"open.kind.{item.kind}")),), tuple(what), (word.line(item.who),)


def _places(fact: Fact, word: Wording) -> Cell:
    """Every place that the figures of a fact stand at, in full."""
    found: list[Reference] = []
    for run in word.line(fact.value):
        found += [one for one in run.references if one not in found]
    found += [one for one in fact.references if one not in found]
    lines: list[Line] = [
        (Run("", references=(one,)), Run(" "), Run(reference_text(one), code=True)) for one in found
    ]
    return tuple(lines) or (word.line_of("figures.no_place"),)
