"""examples/guides/load.md says what the files of results say."""

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "guides"


@pytest.fixture
def load_tables(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("load_tables")


def test_every_line_of_every_table_is_that_of_the_results(load_tables):
    page = (FOLDER / "load.md").read_text(encoding="utf-8")
    for table in load_tables.tables():
        assert len(table) > 2
        assert "\n".join(table) in page


def test_results_of_load_are_of_complete_rounds(load_tables):
    for made, echo in load_tables.cells():
        assert made["silent"] >= 1
        by_stage = {each["stage"]: each["messages"] for each in made["stages"]}
        assert by_stage["hello"] == made["clients"]
        assert by_stage["unmask"] == made["clients"] - made["silent"]
        assert echo["messages"] == sum(by_stage.values())
        assert ("graph" in by_stage) == (made["clients"] >= 200)
