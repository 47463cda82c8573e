"""Scripts of examples/leakage on a tiny model and a folder of texts of one's own."""

import importlib
import json
import sys
from pathlib import Path

import attacked
import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "examples" / "leakage"


@pytest.fixture
def script(tmp_path, monkeypatch):
    model, tokenizer = attacked.bert()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    corpus = tmp_path / "texts"
    corpus.mkdir()
    for client in range(8):
        rng = np.random.default_rng(client)
        (corpus / f"site-{client}").mkdir()
        for number in range(4):
            words = " ".join(f"w{word}" for word in rng.choice(396, 12, replace=False))
            (corpus / f"site-{client}" / f"{number}.txt").write_text(words + "\n")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("inversion")
    source = str(tmp_path / "model")
    monkeypatch.setitem(
        module.MODELS, "tiny", (source, "sequence-classification", ("query", "value"))
    )
    monkeypatch.setitem(module.KEYS, "tiny", ("key",))
    return module, corpus


def run(script, monkeypatch, out, *arguments):
    module, corpus = script
    monkeypatch.setattr(
        sys,
        "argv",
        ["inversion.py", "--model", "tiny", "--corpus", str(corpus), "--out", str(out), *arguments],
    )
    module.main()
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_rows_are_measured_and_written_as_figures(script, monkeypatch, tmp_path, capsys):
    out = tmp_path / "found.jsonl"
    chosen = ["--only", "r32", "--only", "ffa8", "--only", "masked", "--only", "sum-all"]
    lines = run(script, monkeypatch, out, "--texts", "2", *chosen)
    found = {line["row"]: line for line in lines if line["metric"] == "token_recall"}
    assert {name: line["value"] for name, line in found.items()} == {
        "r32": 1.0,
        "ffa8": 0.0,
        "masked": 0.0,
        "sum-all": 1.0,
    }
    assert {name: line["verdict"] for name, line in found.items()} == {
        "r32": "guessed",
        "ffa8": "void",
        "masked": "void",
        "sum-all": "guessed",
    }
    assert found["r32"]["predicted"]["outcome"] == "all"
    assert found["r32"]["n"] == 2
    # Figures only: no token and no text is written.
    texts = {"texts", "guess", "truth", "text"}
    assert all(not texts & line.keys() for line in lines)
    assert "r32 1.00" in capsys.readouterr().out


def test_every_client_of_a_sum_counts_and_the_attack_must_guess(script, monkeypatch, tmp_path):
    chosen = ["--sums", "--only", "A r=32, 2", "--only", "B r=16, 4"]
    lines = run(script, monkeypatch, tmp_path / "sums.jsonl", "--texts", "4", *chosen)
    found = {line["row"]: line for line in lines if line["metric"] == "token_recall"}
    assert {name: line["n"] for name, line in found.items()} == {"A r=32, 2": 4, "B r=16, 4": 8}
    assert all(line["void"] == 0 for line in found.values())
    assert found["A r=32, 2"]["value"] == 1.0
    assert found["B r=16, 4"]["value"] < 0.5


def test_an_unknown_row_is_refused(script, monkeypatch, tmp_path):
    with pytest.raises(SystemExit):
        run(script, monkeypatch, tmp_path / "none.jsonl", "--only", "nothing")


@pytest.mark.slow
def test_gradient_matching_is_measured_in_the_same_way(script, monkeypatch, tmp_path, capsys):
    _, corpus = script
    out = tmp_path / "matched.jsonl"
    chosen = ["--attack", "cosine", "--attack", "lamp", "--only", "r32", "--only", "masked"]
    small = ["--texts", "1", "--steps", "4", "--restarts", "1", "--seconds", "2"]
    lines = run((importlib.import_module("matching"), corpus), monkeypatch, out, *small, *chosen)
    found = {(line["attack"], line["row"]) for line in lines}
    assert found == {(name, row) for name in ("cosine", "lamp") for row in ("r32", "masked")}
    assert all(line["n"] == 1 and line["verdict"] == "guessed" for line in lines)
    assert not {"texts", "guess", "truth", "text"} & set().union(*lines)
    assert "lamp r32" in capsys.readouterr().out
