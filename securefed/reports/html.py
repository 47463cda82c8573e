"""A report as one HTML file that needs nothing beside itself.

It holds no script and loads nothing; its own policy forbids both.  Every text is escaped where it
is put in, whatever file it is from.  The same report gives the same bytes, with one version of
jinja2.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from securefed.errors import ConfigError
from securefed.reports.document import Report
from securefed.reports.page import page
from securefed.reports.wording import Wording

_TEMPLATES = Path(__file__).parent / "templates"


def render(report: Report, language: str) -> str:
    """The page.

    Args:
        report: all that there is to say.
        language: ``"en"`` or ``"ja"``.

    Raises:
        ConfigError: jinja2 is missing, or there is no such language.
    """
    try:
        import jinja2
    except ImportError:
        raise ConfigError(
            "a report as HTML needs jinja2, which is not installed: in the clone of securefed, "
            "pip install -c constraints.txt -e '.[reports]'"
        ) from None
    found = page(report, language)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("report.html").render(
        page=found,
        numbers=found.numbers,
        word=Wording(language),
        software=report.identity.software,
        digest=hashlib.sha256(report.to_text().encode()).hexdigest(),
    )
