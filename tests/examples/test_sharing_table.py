"""examples/accuracy/sharing.py in miniature: no figure of it comes without the work."""

import importlib
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import WORDS, write_clients, write_model
from transformers import BertConfig, BertForSequenceClassification

from securefed.config import ModelSection
from securefed.training.corpora import Document

FOLDER = Path(__file__).parents[2] / "examples" / "accuracy"
NAMES = (
    *("bench", "quick", "combining"),
    *("sharing_tasks", "sharing_rounds", "sharing_wire", "sharing_table", "sharing"),
)
SMALL = {
    "clients": 4,
    "left_out": 2,
    "held_out": 4,
    "tiers": (4, 4, 4, 2),
    "core_rank": 3,
    "window_tokens": 8,
    "rounds": 2,
    "local_steps": 2,
    "batch_size": 8,
    "personal_steps": 3,
    "seeds": (1,),
    "bfloat16": False,
}


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(FOLDER))
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def speeches(scripts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("speeches")
    task = replace(
        scripts.sharing_tasks.SPEECHES,
        source=str(write_clients(folder / "data")),
        model=ModelSection(source=str(write_model(folder / "model"))),
        **SMALL,
    )
    ground = scripts.sharing_tasks.Speeches(task, cache=folder, offline=True)
    return scripts.sharing.Experiment(ground)


def mails(count: int, seed: int, label: int) -> list[Document]:
    rng = random.Random(f"{seed} {label}")
    words = WORDS[:30] if label else WORDS[30:]
    return [
        Document(" ".join(rng.choices(words, k=rng.randint(4, 12))), label, f"{seed}-{i}", None)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def mail(scripts, tmp_path_factory):
    folder = write_model(tmp_path_factory.mktemp("bert"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        pad_token_id=0,
        num_labels=2,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    task = replace(
        scripts.sharing_tasks.MAILS,
        model=ModelSection(source=str(folder), task="sequence-classification", labels=2),
        **SMALL,
    )
    senders = {f"s{n}": mails(20 + 10 * n, n, 0) + mails(20, n, 1) for n in range(8)}
    ground = scripts.sharing_tasks.Mails(task, senders, cache=folder, offline=True)
    return scripts.sharing.Experiment(ground)


def quietly(scripts, experiment, path):
    results = scripts.bench.Results(path)
    scripts.sharing.run_all(experiment, results, Console(quiet=True))
    return scripts.bench.Results(path)


@pytest.mark.parametrize("which", ["speeches", "mail"])
def test_every_method_runs_is_measured_and_resumes(which, scripts, request, tmp_path):
    experiment = request.getfixturevalue(which)
    path = tmp_path / "sharing.jsonl"
    results = quietly(scripts, experiment, path)
    task, runs = experiment.task.name, results.runs
    for arm in scripts.sharing.ARMS:
        (own,) = scripts.sharing_table.of(runs, task, arm.name)
        assert all(np.isfinite(v) for v in own.values() if isinstance(v, float))
        assert own["nll"] <= own["worst_nll"]
        assert own["train_seconds"] > 0.0
        tried = {run["rate"] for run in runs if run.get("arm") == arm.name and run["seed"] == 10}
        assert 2 < len(tried) <= scripts.sharing.MOST_TRIED
        assert own["rate"] in tried
    before = path.read_bytes()
    quietly(scripts, experiment, path)
    assert path.read_bytes() == before
    shown = scripts.sharing_table.tables(results)
    assert len(shown.splitlines()) == 5 + len(scripts.sharing.ARMS)
