"""examples/leakage/malicious_server.py on a tiny model and a folder of texts of one's own."""

import importlib
import json
import sys
from pathlib import Path

import attacked
import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "examples" / "leakage"


@pytest.fixture
def run(tmp_path, monkeypatch):
    model, tokenizer = attacked.llama()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for client in range(8):
        rng = np.random.default_rng(client)
        folder = tmp_path / "texts" / f"site-{client}"
        folder.mkdir(parents=True)
        for number in range(2):
            words = " ".join(f"w{word}" for word in rng.choice(396, 8, replace=False))
            (folder / f"{number}.txt").write_text(words + "\n")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("malicious_server")
    source = str(tmp_path / "model")
    monkeypatch.setitem(module.MODELS, "tiny", (source, "causal-lm", ("q_proj", "v_proj")))
    monkeypatch.setitem(module.VALUES, "tiny", ("v_proj",))
    out = tmp_path / "found.jsonl"
    fixed = ["--model", "tiny", "--corpus", str(tmp_path / "texts"), "--out", str(out)]

    def called(*arguments):
        monkeypatch.setattr(
            sys, "argv", ["malicious_server.py", *fixed, "--tokens", "8", *arguments]
        )
        module.main()
        return [json.loads(line) for line in out.read_text().splitlines()]

    return called


def test_games_are_played_both_ways_and_written_as_figures(run, capsys):
    first, second = run("--trials", "1", "--only", "pasquini")
    assert first["protocol"] == "as it is"
    assert first["refused_by"]["error"] == "RemoteProtocolError"
    assert (first["recovered"], second["recovered"]) == (0.0, 7 / 8)
    assert second["refused_by"] is None
    assert not {"texts", "guess", "truth", "loose"} & first.keys()
    assert "RemoteProtocolError, 1 of 1" in capsys.readouterr().out


def test_a_planted_model_is_measured_by_clients_and_noise(run):
    bare, noised = run("--trials", "1", "--planted", "--noise", "0", "--noise", "1")
    assert bare["figures"]["set_recall_of_all"] > 0.7
    assert bare["figures"]["clients"] == 4
    assert noised["recovered"] == 0.0
    assert noised["noise"] == 1.0


def test_no_trial_is_refused(run):
    with pytest.raises(SystemExit):
        run("--trials", "0")
