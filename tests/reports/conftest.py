"""One tiny run with its keys and results of attacks, for all tests of reports on a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from reported import add_attacks, material_of
from tiny import write_run

from securefed import Federation
from securefed.reports.build import build
from securefed.reports.catalogue import LANGUAGES
from securefed.reports.document import Report
from securefed.reports.html import render
from securefed.reports.material import Material


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A finished run; ``ROSTER`` lies in ``NAME.keys`` beside it.  Not to be changed."""
    base = tmp_path_factory.mktemp("reported")
    config = write_run(base, training={"rounds": 2})
    folder = Federation.from_config(config).run(base / "run").folder
    add_attacks(folder)
    return folder


@pytest.fixture(scope="session")
def known(finished) -> Material:
    """Its material; the judgement lies where it is said to stand."""
    found = material_of(finished)
    place = finished / found.judged_path
    place.parent.mkdir(exist_ok=True)
    assert found.judgement is not None
    place.write_text(found.judgement.model_dump_json())
    return found


@pytest.fixture(scope="session")
def report(known) -> Report:
    """Its report."""
    return build(known)


@pytest.fixture(scope="session")
def drawn(report) -> dict[str, str]:
    """It as HTML, in both languages."""
    return {language: render(report, language) for language in LANGUAGES}


@pytest.fixture
def run_folder(finished, tmp_path) -> Path:
    """A copy of it that may be changed, its keys too."""
    shutil.copytree(finished.with_name("run.keys"), tmp_path / "run.keys")
    return Path(shutil.copytree(finished, tmp_path / "run"))
