"""The pilot on one page: ``pilot.html``, which needs nothing beside itself, and ``pilot.csv``.

The page holds no script and loads nothing; its own policy forbids both.  Every text is escaped
where it is put in.  The same record gives the same page, to the byte, with the same versions of
jinja2 and matplotlib.
"""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from securefed.errors import ConfigError
from securefed.pilot.compared import compare
from securefed.pilot.facts import facts
from securefed.pilot.missing import missing
from securefed.pilot.plots import plots
from securefed.pilot.protections import protections
from securefed.pilot.reading import read_pilot
from securefed.pilot.records import PilotRecord
from securefed.pilot.settings import pilot_config
from securefed.pilot.stages import stages
from securefed.pilot.summaries import Summary, summaries
from securefed.pilot.tables import trials_csv
from securefed.pilot.view import criteria_table, numbered, trials_table
from securefed.pilot.view_costs import compared_table, projection_table, protections_table
from securefed.pilot.words import Words
from securefed.privacy.accounting import PrivacyGuarantee

PAGE = "pilot.html"
TABLE = "pilot.csv"

_TEMPLATE = "page.html"


def write_page(folder: Path, record: PilotRecord, *, previous: PilotRecord | None) -> list[Path]:
    """Write the page and the table of a pilot.

    Args:
        folder: where to; it is there already.
        record: of the pilot.
        previous: of an earlier one, to say what changed since; None for none.

    Returns:
        The files that were written.

    Raises:
        ConfigError: jinja2 or matplotlib is missing, a record holds no pilot file of this version,
            or a file cannot be written.
    """
    written = []
    for name, text in ((PAGE, page(record, previous=previous)), (TABLE, trials_csv(record))):
        path = folder / name
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error
        written.append(path)
    return written


def page(record: PilotRecord, *, previous: PilotRecord | None = None) -> str:
    """The page as HTML; see :func:`write_page`."""
    try:
        import jinja2
    except ImportError:
        raise ConfigError(
            "a pilot's page needs jinja2, which is not installed: in the clone of securefed, "
            "pip install -c constraints.txt -e '.[reports]'"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template(_TEMPLATE).render(_context(record, previous))


def _context(record: PilotRecord, previous: PilotRecord | None) -> dict[str, Any]:
    config, found, reading = pilot_config(record), summaries(record), read_pilot(record)
    words = Words(config.language)
    priced = protections(found, config.prices)
    compared = None if previous is None else compare(record, previous)
    return {
        "language": config.language,
        "word": words,
        "say": words.say,
        "title": words("title", name=config.name),
        "reading": reading,
        "one_seed": max((len(one.done) for one in found), default=0) == 1,
        "decides": config.decision.decides,
        "trials": trials_table(found, reading, config, words),
        "criteria": criteria_table(reading, config, words),
        "plots": plots(found, priced, numbered(found), words, config.prices.currency),
        "protections": protections_table(priced, config, words),
        "projection": projection_table(record, found, config, words),
        "stages": stages(record, config, reading),
        "compared": compared,
        "moved": None if compared is None else compared_table(compared, words),
        "missing": missing(record, config, found),
        "facts": facts(record, found, config, words),
        "digest": hashlib.sha256(record.to_text().encode()).hexdigest(),
        "commands": [
            shlex.join(("securefed", "verify", trial.folder))
            for trial in record.trials
            if trial.folder and trial.status == "done"
        ],
        "guarantees": _statements(reading.trial, words),
    }


def _statements(trial: Summary | None, words: Words) -> list[str]:
    """The full statements of the trial that the page speaks of, one for each adversary."""
    if trial is None:
        return []
    head = words("as.name", value=trial.name)
    return [f"{head}\n{_statement(held)}" for held in trial.done[0].guarantees]


def _statement(held: Mapping[str, Any]) -> str:
    values = dict(held)
    try:
        values["assumptions"] = tuple(values["assumptions"])
        if not isinstance(values["epsilon"], int | float):
            values["epsilon"] = math.inf
        return str(PrivacyGuarantee(**values))
    except (KeyError, TypeError) as error:
        raise ConfigError(f"the pilot's record holds no valid guarantee ({error})") from None
