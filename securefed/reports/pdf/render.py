"""The whole PDF: a first page with what matters, then contents, then every part."""

from __future__ import annotations

import importlib
from datetime import UTC, datetime
from typing import Any

from securefed.errors import ConfigError
from securefed.reports.blocks import Heading, Page, Section, lines_of
from securefed.reports.document import Report
from securefed.reports.page import page
from securefed.reports.pdf.sheet import Sheet
from securefed.reports.pdf.text import EXTRA
from securefed.reports.wording import Wording


def render(report: Report, language: str) -> bytes:
    """A report as a PDF; the same report gives the same bytes.

    Raises:
        ConfigError: the extra ``reports`` is not installed.
    """
    return draw(page(report, language), report)


def draw(words: Page, report: Report) -> bytes:
    """A page that is in words already, as a PDF.

    The date of the file is that of the ledger's last record, and not of the clock.

    Raises:
        ConfigError: as :func:`render`.
    """
    pdf = _document()
    identity = report.identity
    pdf.set_title(words.title)
    pdf.set_subject(f"{identity.name}, ledger {identity.head}")
    pdf.set_creator(identity.software)
    pdf.set_lang(words.language)
    pdf.set_creation_date(_moment(identity.closed))
    foot = f"{words.title} · {identity.head[:16]}"
    sheet = Sheet(pdf, words.language, foot, words.numbers, _places(words))
    sheet.heading(words.title, 1)
    for section in words.first:
        _section(sheet, section)
    sheet.reserve_contents()
    for section in words.sections:
        _section(sheet, section)
    sheet.fill_contents(Wording(words.language)("pdf.contents"))
    return bytes(pdf.output())


def _places(words: Page) -> set[str]:
    """Ids of all that can be linked to."""
    sections = (*words.first, *words.sections)
    found = {section.id for section in sections}
    found |= {b.id for s in sections for b in s.blocks if isinstance(b, Heading) and b.id}
    return found | {run.anchor for line in lines_of(sections) for run in line if run.anchor}


def _section(sheet: Sheet, section: Section) -> None:
    below = section.blocks[0] if section.blocks else None
    sheet.heading(section.title, 2, below, section.id)
    sheet.several(section.blocks)


def _document() -> Any:
    try:
        fpdf = importlib.import_module("fpdf")
    except ModuleNotFoundError:
        raise ConfigError(
            f"a report as PDF needs fpdf2, which is not installed: in the clone of securefed, "
            f"pip install -c constraints.txt -e '.[{EXTRA}]'"
        ) from None
    pdf = fpdf.FPDF(orientation="portrait", unit="mm", format="A4")
    pdf.set_auto_page_break(False)
    pdf.set_margin(0)
    pdf.viewer_preferences = fpdf.ViewerPreferences(display_doc_title=True)
    return pdf


def _moment(time: str) -> datetime:
    """RFC 3339 as a moment.

    Raises:
        ConfigError: it is not.
    """
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        raise ConfigError(f"closed = {time!r}: must be a time as in RFC 3339") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
