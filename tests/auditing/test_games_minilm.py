"""A hostile server against a real encoder and real sentences: minutes, so slow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run(out, *arguments):
    subprocess.run(
        [
            sys.executable,
            ROOT / "examples" / "leakage" / "malicious_server.py",
            "--out",
            out,
            *arguments,
        ],
        check=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_a_planted_minilm_gives_the_tokens_of_eight_clients_away_and_noise_stops_it(tmp_path):
    noise = ("--noise", "0", "--noise", "0.01", "--noise", "1")
    bare, little, full = run(
        tmp_path / "found.jsonl", "--planted", "--clients", "8", "--trials", "10", *noise
    )
    assert bare["recovered"] >= 0.95
    assert bare["figures"]["set_recall_of_all"] >= 0.95
    assert bare["figures"]["set_precision"] >= 0.95
    # Noise that leaves nothing to the span test leaves most to this.
    assert little["recovered"] >= 0.85
    assert full["recovered"] <= 0.02


def test_each_game_ends_on_minilm_as_it_does_on_tiny_models(tmp_path):
    games = ("pasquini", "small-cohort", "two-lists", "retry")
    lines = run(
        tmp_path / "found.jsonl", "--trials", "10", *(p for g in games for p in ("--only", g))
    )
    for line in lines:
        weakened = line["protocol"] != "as it is"
        assert line["refused"] == (0 if weakened else line["trials"])
        assert line["recovered"] >= 0.95 if weakened else line["recovered"] == 0.0
