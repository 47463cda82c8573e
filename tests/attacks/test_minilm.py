"""What the exact family must reach on a real encoder, with the defence off: minutes, so slow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXTS = 20

# Row of examples/leakage/inversion.py, the metric that counts, the least mean over the texts, and
# most seconds of the processor for one attack.
LEAST = [
    ("full", "token_recall", 0.99, 5.0),
    ("r32-b4", "token_recall", 0.90, 60.0),
    ("r32-b4-large", "exact_match", 0.95, 15.0),
    ("r8", "token_recall", 0.99, 60.0),
    ("r4", "token_recall", 0.95, 60.0),
    ("r2", "token_recall", 0.90, 60.0),
    ("ffa16", "token_recall", 0.95, 5.0),
    ("b0", "token_recall", 0.95, 5.0),
    ("sgd20", "token_recall", 0.95, 5.0),
    ("sum-all", "token_recall", 0.99, 15.0),
    ("rounds", "token_recall", 0.80, 30.0),
    ("released2", "token_recall", 0.95, 60.0),
]
VOID = ("ffa8", "a0", "adamw5", "masked4", "encrypted4")
NO_LIFT = ("other", "masked-forced", "encrypted-forced", "masked4-forced", "masked4-all")


@pytest.fixture
def measured(tmp_path):
    """Figures of one row, by metric."""

    def measure(row):
        out = tmp_path / "inversion.jsonl"
        script = ROOT / "examples" / "leakage" / "inversion.py"
        options = ["--texts", str(TEXTS), "--only", row, "--out", out]
        subprocess.run(
            [sys.executable, script, *options],
            check=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        return {line["metric"]: line for line in lines}

    return measure


@pytest.mark.slow
@pytest.mark.parametrize(("row", "metric", "least", "seconds"), LEAST, ids=[r[0] for r in LEAST])
def test_minilm_gives_its_texts_away_without_protection(measured, row, metric, least, seconds):
    found = measured(row)
    assert found[metric]["value"] >= least
    assert found[metric]["n"] == TEXTS
    assert found[metric]["seconds"] <= seconds
    assert found["token_recall"]["lift_interval"][0] > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("row", VOID)
def test_the_attack_says_of_itself_where_it_does_not_apply(measured, row):
    found = measured(row)["token_recall"]
    assert found["verdict"] == "void"
    assert found["void"] == found["n"] == TEXTS


@pytest.mark.slow
@pytest.mark.parametrize("row", NO_LIFT)
def test_a_guess_without_the_victims_update_is_no_better_than_the_prior(measured, row):
    found = measured(row)
    assert found["token_recall"]["verdict"] == "guessed"
    assert found["token_recall"]["void"] == 0
    assert found["token_recall"]["lift_interval"][0] <= 0.0
    assert found["exact_match"]["value"] == 0.0
