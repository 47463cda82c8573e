"""examples/leakage/README.md says what the files of results say."""

import importlib
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "leakage"
FIELDS = {"attack", "clients", "confidence", "interval", "lift", "lift_interval", "method"}
FIELDS |= {"metric", "model", "n", "predicted", "prior", "rank", "row", "seconds", "seeds", "sees"}
FIELDS |= {"tokens", "value", "verdict", "void", "warm", "what"}


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("tables")


def test_every_line_of_every_table_is_that_of_the_results(tables):
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for table in tables.tables():
        assert len(table) > 3
        assert "\n".join(table) in page


@pytest.mark.parametrize("name", ["inversion.jsonl", "sums.jsonl"])
def test_the_results_hold_figures_only(name):
    for line in (FOLDER / "results" / name).read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        assert set(found) == FIELDS
        assert isinstance(found["tokens"], int)  # how many, not which


def test_a_curve_is_at_the_prior_from_where_no_larger_sum_has_a_lift(tables):
    def cells(*lows):
        return {2**k: {"token_recall": {"lift_interval": [low, 1.0]}} for k, low in enumerate(lows)}

    assert tables.at_the_prior(cells(0.5, 0.1, -0.1, 0.0)) == "4"
    assert tables.at_the_prior(cells(0.5, -0.1, 0.1, -0.2)) == "8"
    assert tables.at_the_prior(cells(0.5, 0.2, 0.1, 0.1)) == "beyond 8"
    assert tables.at_the_prior(cells(-0.1, 0.0)) == "1"
