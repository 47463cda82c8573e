"""What a report can be rendered as, by name; each is loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from securefed.errors import ConfigError
from securefed.reports.document import Report

Render = Callable[[Report, str], str | bytes]


@dataclass(frozen=True)
class Format:
    """A rendering.

    Attributes:
        ending: of its file's name.
        load: gives the function that makes it from a report and a language.
        spoken: whether it is in a language; else its file has none in its name.
    """

    ending: str
    load: Callable[[], Render]
    spoken: bool = True

    def file_name(self, language: str) -> str:
        """Name of the file in ``RUN/report/``."""
        return f"report.{language}.{self.ending}" if self.spoken else f"report.{self.ending}"


def _json() -> Render:
    return lambda report, language: report.to_text()


def _html() -> Render:
    from securefed.reports.html import render

    return render


def _markdown() -> Render:
    from securefed.reports.markdown import render

    return render


FORMATS: dict[str, Format] = {
    "html": Format("html", _html),
    "md": Format("md", _markdown),
    "json": Format("json", _json, spoken=False),
}


def format_of(name: str) -> Format:
    """A rendering by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in FORMATS:
        raise ConfigError(f"--format {name!r}: must be one of {', '.join(FORMATS)}")
    return FORMATS[name]
