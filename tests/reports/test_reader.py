"""A reader without trust: every number on the first page is found where the page says it stands."""

import math
import re

import pytest
from html_reading import Page, follow, leaves, sources

NUMBER = re.compile(r"\d+(?:\.\d+)?")


def first_page(drawn, language):
    page = Page(drawn[language])
    return sources(page), [block for part, block in page.blocks if part.startswith("main/first")]


def holds(found, value: str) -> bool:
    for leaf in leaves(found):
        if isinstance(leaf, bool) or leaf is None:
            continue
        if isinstance(leaf, int | float):
            try:
                if math.isclose(leaf, float(value), rel_tol=1e-12):
                    return True
            except ValueError:
                continue
        elif leaf == value:
            return True
    return False


@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_figure_of_the_first_page_stands_where_the_reference_beside_it_says(
    finished, drawn, language
):
    places, blocks = first_page(drawn, language)
    followed = 0
    for block in blocks:
        targets = [follow(finished, places[mark]) for mark in block.marks]
        for value, text in block.figures:
            assert any(holds(target, value) for target in targets), (value, text, block)
            followed += 1
    assert followed >= 20


def test_every_other_number_of_the_first_page_stands_in_the_text_that_is_referred_to(
    finished, drawn
):
    places, blocks = first_page(drawn, "en")
    seen = 0
    for block in blocks:
        texts = [str(follow(finished, places[mark])) for mark in block.marks]
        for number in NUMBER.findall(block.plain):
            assert any(number in text for text in texts), (number, block)
            seen += 1
    assert seen >= 3  # the unit's size, for each adversary


def test_what_is_written_is_the_figure_that_stands_there_rounded(report, drawn):
    _, blocks = first_page(drawn, "en")
    figures = dict(figure for block in blocks for figure in block.figures)
    epsilons = [s.epsilon.value for s in report.privacy.statements]
    for epsilon in epsilons:
        shown = float(figures[str(epsilon)])
        assert epsilon <= shown <= 1.01 * epsilon  # three digits, rounded up


def test_both_languages_refer_to_the_same_places(drawn):
    english, japanese = (sources(Page(drawn[language])) for language in ("en", "ja"))
    assert sorted(english.values()) == sorted(japanese.values())


def test_each_mark_leads_to_a_listed_place(drawn):
    page = Page(drawn["en"])
    listed = sources(page)
    marks = {mark for _, block in page.blocks for mark in block.marks}
    assert marks == listed.keys()
    assert len(marks) > 50
