"""Markdown says what the page says, and no text of a run can end a table or become a link."""

import re

import pytest
import report_sample as sample

from securefed.reports.blocks import Picture, Table
from securefed.reports.catalogue import LANGUAGES
from securefed.reports.markdown import render, section
from securefed.reports.page import page
from securefed.reports.values import Verbatim

HOSTILE = "a | b \\| c\n\n# c <b> [d](http://e) ![f](g) `h` *i*"


def rows(text: str) -> list[list[str]]:
    found: list[list[str]] = []
    for line in text.splitlines():
        if not line.startswith("| "):
            found.append([])
        else:
            found[-1:] = [[*(found[-1] if found else []), line]]
    return [table for table in found if table]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_table_of_the_page_is_there_with_all_its_cells(report, language):
    found = page(report, language)
    text = render(report, language)
    tables = rows(text)
    drawn = sum(
        isinstance(block, Table | Picture)
        for part in (*found.first, *found.sections)
        for block in part.blocks
    )
    assert len(tables) == drawn
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
        assert len(widths) == 1
    for part in (*found.first, *found.sections):
        assert f"## {part.title}" in text


def test_no_text_of_a_run_is_markup():
    hostile = Verbatim(verbatim=HOSTILE)
    attack = sample.attack(attack=HOSTILE, reason=hostile, metric=HOSTILE)
    base = sample.report()
    report = sample.report(
        leakage=base.leakage.model_copy(update={"attacks": [attack]}), limitations=[hostile]
    )
    text = render(report, "en")
    assert not re.search(r"^# c", text, re.MULTILINE)
    outside = re.sub(r"`+[^`]*`+", "", text)
    assert not re.search(r"(?<!\\)\[[^\]]*\]\(", outside)
    assert "<b>" not in outside
    for table in rows(text):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_a_section_alone_can_stand_under_another_heading(report):
    found = page(report, "en")
    part = next(each for each in found.sections if each.id == "utility")
    text = section(part, found.numbers, level=3)
    assert text.startswith("### Utility and cost\n")
    assert "#### Cost" in text


def test_a_backslash_before_a_pipe_does_not_free_it():
    text = render(sample.report(leakage=sample.report().leakage), "en")
    assert "<code>" not in text
    attack = sample.attack(attack="a \\| b")
    leakage = sample.report().leakage.model_copy(update={"attacks": [attack], "curves": []})
    shown = render(sample.report(leakage=leakage), "en")
    assert "| <code>a \\\\\\| b</code>" in shown
