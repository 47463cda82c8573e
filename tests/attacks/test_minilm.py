"""What the exact family must reach on a real encoder, with the defence off: minutes, so slow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXTS = 20

# Row of examples/leakage/inversion.py, metric, and the least mean over the texts.
LEAST = [
    ("full", "token_recall", 0.99),
    ("r8", "token_recall", 0.99),
    ("r4", "token_recall", 0.95),
    ("r2", "token_recall", 0.80),
    ("ffa16", "token_recall", 0.95),
    ("b0", "token_recall", 0.95),
    ("sgd20", "token_recall", 0.95),
]
VOID = ("ffa8", "a0", "adamw5")
NO_LIFT = ("masked", "masked4", "masked4-all")


@pytest.mark.slow
def test_minilm_gives_its_texts_away_without_protection_and_not_with_masks(tmp_path):
    out = tmp_path / "inversion.jsonl"
    rows = [*(row for row, _, _ in LEAST), *VOID, *NO_LIFT]
    subprocess.run(
        [
            sys.executable,
            ROOT / "examples" / "leakage" / "inversion.py",
            "--texts",
            str(TEXTS),
            "--out",
            out,
            *(part for row in rows for part in ("--only", row)),
        ],
        check=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    found = {(line["row"], line["metric"]): line for line in lines}
    for row, metric, least in LEAST:
        assert found[row, metric]["value"] >= least, (row, found[row, metric])
        assert found[row, metric]["lift_interval"][0] > 0.5
    for row in VOID:
        assert found[row, "token_recall"]["verdict"] == "void"
    for row in NO_LIFT:
        assert found[row, "token_recall"]["lift_interval"][0] <= 0.0
        assert found[row, "exact_match"]["value"] == 0.0
