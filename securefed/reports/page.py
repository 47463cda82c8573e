"""A report in the words of one language: what every rendering draws."""

from __future__ import annotations

from securefed.reports.blocks import Page, numbered
from securefed.reports.catalogue import checked_language
from securefed.reports.document import Report
from securefed.reports.pages.closing import limitations, reproduce, sources
from securefed.reports.pages.described import aggregation, privacy, system
from securefed.reports.pages.front import front, not_this
from securefed.reports.pages.judged import crosswalk, threats
from securefed.reports.pages.measured import leakage, utility
from securefed.reports.wording import Wording


def page(report: Report, language: str) -> Page:
    """The page of a report.

    Args:
        report: all that there is to say.
        language: ``"en"`` or ``"ja"``; texts of a threat model that has no Japanese stay English,
            and are marked so.

    Raises:
        ConfigError: there is no such language.
    """
    word = Wording(checked_language(language))
    first = front(report, word)
    sections = (
        not_this(report, word),
        system(report, word),
        privacy(report, word),
        aggregation(report, word),
        leakage(report, word),
        utility(report, word),
        threats(report, word),
        crosswalk(report, word),
        limitations(report, word),
        reproduce(report, word),
    )
    numbers = numbered((*first, *sections))
    return Page(
        language=word.language,
        title=word("title", name=report.identity.name),
        first=first,
        sections=(*sections, sources(numbers, word)),
        numbers=numbers,
    )
