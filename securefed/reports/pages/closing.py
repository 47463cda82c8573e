"""The last sections: limitations, how to make the report again, and where figures stand."""

from __future__ import annotations

from collections.abc import Mapping

from securefed.reports.blocks import Code, Heading, Paragraph, Run, Section, Table
from securefed.reports.document import Report
from securefed.reports.pages.rows import bullets, definitions
from securefed.reports.wording import Wording, reference_text
from securefed.threats.verdicts import Reference

SOURCE = "source-{number}"
"""Id of the place on the page where a reference is listed."""


def limitations(report: Report, word: Wording) -> Section:
    """What was not looked at, or cannot be known."""
    return Section("limitations", word("section.limitations"), (bullets(report.limitations, word),))


def reproduce(report: Report, word: Wording) -> Section:
    """Commands, and digests of what the report is made from."""
    lines = []
    for each in report.reproduce.commands:
        lines += [f"# {word.text(each.what)}", each.command]
    return Section(
        "reproduce",
        word("section.reproduce"),
        (
            Paragraph(word.line_of("reproduce.first")),
            Code("\n".join(lines)),
            Heading(word("heading.run")),
            definitions([*report.identity.facts[4:], *report.reproduce.facts], word),
        ),
    )


def sources(numbers: Mapping[Reference, int], word: Wording) -> Section:
    """Every reference by its number."""
    rows = tuple(
        (
            ((Run(f"[{number}]", anchor=SOURCE.format(number=number)),),),
            ((Run(reference_text(reference), code=True),),),
            ((Run(reference.sha256 or "—", code=reference.sha256 is not None),),),
        )
        for reference, number in numbers.items()
    )
    columns = tuple(word(f"column.{name}") for name in ("number", "place", "digest"))
    return Section(
        "sources",
        word("section.sources"),
        (
            Paragraph(word.line_of("references.how")),
            Table(word("table.sources"), columns, rows),
        ),
    )
