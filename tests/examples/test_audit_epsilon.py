"""examples/leakage/audit_epsilon.py in miniature, and what its committed results say."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "examples" / "leakage"
RESULTS = SCRIPTS / "results" / "audit.jsonl"


def run(monkeypatch, out, *arguments):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("audit_epsilon")
    sizes = ["--clients", "16", "--dimension", "64", "--rounds", "12"]
    monkeypatch.setattr(sys, "argv", ["audit_epsilon.py", *sizes, "--out", str(out), *arguments])
    with pytest.raises(SystemExit) as end:
        module.main()
    return end.value.code, [json.loads(line) for line in out.read_text().splitlines()]


def test_a_policy_is_audited_for_each_noise_and_seed(monkeypatch, tmp_path):
    noise = ["--noise-multiplier", "1", "--noise-multiplier", "4"]
    code, lines = run(monkeypatch, tmp_path / "found.jsonl", *noise, "--seeds", "2")
    assert code == 0
    assert [(line["what"], line["n"]) for line in lines] == [
        ("client, z = 1", 2),
        ("client, z = 4", 2),
    ]
    assert lines[0]["mean"] > lines[1]["mean"]
    assert lines[0]["statement"]["epsilon"] > lines[1]["statement"]["epsilon"]


def test_a_self_test_names_each_fault_and_ends_well_when_all_are_found(monkeypatch, tmp_path):
    code, lines = run(monkeypatch, tmp_path / "found.jsonl", "--self-test")
    assert code == 0
    assert len({line["fault"] for line in lines}) == 5
    assert {line["violated"] for line in lines} == {1}


def test_committed_results_say_what_is_claimed_of_them():
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    full = {line["what"]: line for line in lines if line["n"] == 100}
    assert set(full) == {
        *(f"example, z = {z}" for z in (0.5, 1, 2)),
        *(f"client, z = {z}" for z in (0.5, 1, 2)),
    }
    for line in full.values():
        assert line["statement"]["against"] == "release"
        bounds, promised = np.array(line["lower_bounds"]), line["statement"]["epsilon"]
        assert line["seeds"] == list(range(100))
        assert (bounds <= promised).sum() == line["at_most_promised"] >= 90
        assert (bounds / promised).mean() >= 0.75
    faults = [line for line in lines if line["fault"] is not None]
    assert len(faults) == 10
    assert {(line["violated"], line["n"]) for line in faults} == {(20, 20)}
    masked = [line for line in lines if line["masked"]]
    assert masked
    assert {line["violated"] for line in masked} == {0}
    assert {line["dropouts"] for line in masked} == {1}
