"""The membership scripts of examples/leakage on tiny models and texts of one's own."""

import importlib
import json
import random
import sys
from pathlib import Path

import attacked
import pytest
from tiny import WORDS, write_run

SCRIPTS = Path(__file__).parents[2] / "examples" / "leakage"


@pytest.fixture
def run_file(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for client in range(3):
        rng = random.Random(client)
        words = [" ".join(rng.choice(WORDS) for _ in range(n)) for n in (240, 64)]
        (texts / f"site-{client}.txt").write_text("\n\n".join(words) + "\n")
    return write_run(
        tmp_path,
        data={"source": str(texts), "window_tokens": 8},
        lora={"rank": 8, "alpha": 16.0, "sharing": "fedit", "target_modules": ["up_proj"]},
        training={"rounds": 1, "local_steps": 12, "batch_size": 4, "local_learning_rate": 0.03,
                  "server_optimizer": "sgd", "server_learning_rate": 1.0},
        privacy={"unit": "client", "mechanism": "none", "clip_norm": 100.0, "expected_batch": None,
                 "noise_multiplier": None, "corrupt_fraction": 0.0, "dropout_fraction": 0.0},
        cohort={"min_clients": 3},
    )  # fmt: skip


@pytest.fixture
def script(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def run(name, *arguments):
        out = tmp_path / f"{name}.jsonl"
        monkeypatch.setattr(sys, "argv", [name, "--out", str(out), *map(str, arguments)])
        importlib.import_module(name).main()
        assert WORDS[0] not in out.read_text()
        return [json.loads(line) for line in out.read_text().splitlines()]

    return run


def rows(script, run_file, *arguments):
    lines = script(
        "membership", "--run", run_file, "--per-client", 8, "--population", 10, "--rounds", 1,
        "--batch", 4, "--rate", 0.03, "--expected-batch", 6, *arguments,
    )  # fmt: skip
    found = {(line["target"], line["attack"]): line for line in lines}
    assert len(found) == len(lines)
    assert all((line["clients"], line["trained_on"]) == (3, 12) for line in lines)
    return found


def test_runs_without_privacy_are_attacked_at_home_and_for_real(script, run_file):
    found = rows(
        script, run_file, "--only", "none", "--runs", 6, "--offline-runs", 2, "--local-steps", 10
    )
    assert len(found) == 6 + 2 + 6
    for attack in ("loss", "lira-online", "rmia-online", "lira-offline"):
        assert found["at home", attack]["auc_interval"][0] > 0.6, attack
    assert found["real", "loss"]["auc"] > 0.7
    assert all(line["epsilon"] is None and line["bound"] is None for line in found.values())


@pytest.mark.slow
def test_runs_with_privacy_stand_beside_what_their_epsilon_allows(script, run_file):
    found = rows(script, run_file, "--only", "dp1", "--runs", 4, "--real", 0, "--local-steps", 2)
    line = found["at home", "loss"]
    assert 0.5 < line["epsilon"] <= 1.0
    assert line["auc"] < 0.7
    assert not line["violates"]
    assert len(line["bound"]) == len(line["roc"])
    assert found["at home", "lira-online"]["verdict"] == "void"  # three shadow runs are too few


def canaries(script, run_file, row):
    lines = script(
        "canaries", "--run", run_file, "--only", row, "--copies", 0, "--copies", 4,
        "--prefix", 3, "--reference", 200, "--per-client", 8, "--expected-batch", 6,
    )  # fmt: skip
    return {line["copies"]: line for line in lines}


def test_canaries_are_exposed_without_privacy(script, run_file):
    found = canaries(script, run_file, "none")
    assert found[4]["sampled"] > 6.0
    assert found[4]["sampled"] > found[0]["sampled"]


@pytest.mark.slow
def test_canaries_are_not_exposed_with_privacy(script, run_file):
    found = canaries(script, run_file, "dp8")
    assert found[4]["sampled"] < 6.0
    assert not found[4]["extracted"]


def test_sums_of_small_cohorts_are_measured_by_noise(script, tmp_path):
    model, tokenizer = attacked.bert()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    for client in range(2):
        rng = random.Random(client)
        (tmp_path / "mails" / f"site-{client}").mkdir(parents=True)
        for number in range(30):
            text = " ".join(f"w{rng.randrange(396)}" for _ in range(8))
            (tmp_path / "mails" / f"site-{client}" / f"{number}.txt").write_text(text + "\n")
    lines = script(
        "membership_sums", "--model", tmp_path / "model", "--corpus", tmp_path / "mails",
        "--clients", 2, "--noise", 0, "--noise", 20, "--population", 30, "--trials", 3,
    )  # fmt: skip
    found = {(line["noise_multiplier"], line["attack"]): line for line in lines}
    assert found[0.0, "alignment-whitened"]["auc"] > 0.8
    assert found[0.0, "alignment-whitened"]["epsilon"] is None
    assert found[20.0, "alignment-whitened"]["epsilon"] < 1.0
    assert found[20.0, "alignment-whitened"]["auc_interval"][0] < 0.6
