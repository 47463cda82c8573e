"""One tiny run with its keys and results of attacks, for all tests of reports on a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from reported import add_attacks
from tiny import write_run

from securefed import Federation


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A finished run; ``ROSTER`` lies in ``NAME.keys`` beside it.  Not to be changed."""
    base = tmp_path_factory.mktemp("reported")
    config = write_run(base, training={"rounds": 2})
    folder = Federation.from_config(config).run(base / "run").folder
    add_attacks(folder)
    return folder


@pytest.fixture
def run_folder(finished, tmp_path) -> Path:
    """A copy of it that may be changed, its keys too."""
    shutil.copytree(finished.with_name("run.keys"), tmp_path / "run.keys")
    return Path(shutil.copytree(finished, tmp_path / "run"))
