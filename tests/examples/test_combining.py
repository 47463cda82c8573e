"""combining.py and personal.py of examples/accuracy in miniature, and their quick model."""

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
from tiny import WORDS, write_bert

from securefed.config import LoraSection, ModelSection
from securefed.errors import DataError
from securefed.training.corpora import Document
from securefed.training.data import Examples
from securefed.training.steps import AdamWTrainer

FOLDER = Path(__file__).parents[2] / "examples" / "accuracy"
LORA = LoraSection(
    rank=2,
    alpha=6.0,
    target_modules=["layer.2.attention.self.value"],
    modules_to_save=["classifier"],
)


@pytest.fixture(scope="module")
def scripts():
    names = ("bench", "quick", "combining", "personal")
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


def mails(count: int, seed: int, label: int) -> list[Document]:
    rng = random.Random(f"{seed} {label}")
    words = WORDS[:30] if label else WORDS[30:]
    return [
        Document(" ".join(rng.choices(words, k=rng.randint(4, 12))), label, f"{seed}-{i}", None)
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def senders() -> dict[str, list[Document]]:
    return {f"s{n}": mails(20 + 20 * n, n, 0) + mails(40, n, 1) for n in range(6)}


@pytest.fixture(scope="module")
def experiment(scripts, senders, tmp_path_factory):
    folder = write_bert(tmp_path_factory.mktemp("bert"), layers=3, initializer_range=0.2)
    design = scripts.combining.Design(
        rounds=2,
        local_steps=2,
        clients=4,
        mails=20,
        seeds=(1,),
        tuning_seeds=(2,),
        model=ModelSection(source=str(folder), task="sequence-classification", labels=2),
        lora=LORA,
        window_tokens=8,
    )
    return scripts.combining.Experiment(
        design, senders, cache=tmp_path_factory.mktemp("cache"), offline=True
    )


def test_the_quick_model_gives_the_real_ones_logits_and_steps(scripts, experiment):
    model = experiment.model(3)
    documents = mails(6, 9, 0) + mails(6, 9, 1)
    examples = scripts.bench.tokenized(documents, model.tokenizer, 8)
    assert len(set(examples.attention_mask.sum(axis=1))) > 1  # padding is tried too
    rng = np.random.default_rng(0)
    values = rng.normal(0, 0.3, model.layout.size).astype(np.float32)
    model.load(values)
    quick = scripts.quick.Quick(model, examples)  # compares the logits with these values
    assert quick.layout.size == model.layout.size
    quick.load(quick.flat())
    numbers = np.arange(len(examples))[:, None]
    numbered = Examples(numbers, np.ones_like(numbers), examples.labels)
    options = {"local_steps": 3, "batch_size": 6, "learning_rate": 0.01, "seed": 1}
    options |= {"task": "sequence-classification", "device": torch.device("cpu")}
    before = np.sort(quick.flat())
    AdamWTrainer(**options).train(model.module, examples, 1)
    AdamWTrainer(**options).train(quick, numbered, 1)
    np.testing.assert_allclose(np.sort(quick.flat()), np.sort(model.flat()), atol=1e-4)
    assert np.abs(np.sort(quick.flat()) - before).max() > 0.005


def test_a_quick_model_that_differs_is_refused(scripts, experiment, monkeypatch):
    model = experiment.model(3)
    examples = scripts.bench.tokenized(mails(4, 9, 0), model.tokenizer, 8)
    rng = np.random.default_rng(0)
    model.load(rng.normal(0, 0.3, model.layout.size).astype(np.float32))
    frozen = scripts.quick.Quick._frozen
    monkeypatch.setattr(
        scripts.quick.Quick,
        "_frozen",
        lambda self, hidden, mask, value: frozen(self, hidden, torch.ones_like(mask), value),
    )
    with pytest.raises(DataError, match="differs from the real one"):
        scripts.quick.Quick(model, examples)


def test_dirichlet_clients_have_unlike_labels_and_share_no_mail(scripts, experiment):
    design = experiment.design
    clients = scripts.combining.by_dirichlet(experiment._mails, design, 1)
    assert [len(own) for own in clients.values()] == [20] * 4
    shares = [np.mean([d.label for d in own]) for own in clients.values()]
    assert max(shares) - min(shares) > 0.5
    ids = [id(d) for own in clients.values() for d in own]
    assert len(set(ids)) == len(ids)
    with pytest.raises(DataError, match="too few mails"):
        scripts.combining.by_dirichlet(([], []), design, 1)


def test_senders_are_the_smallest_to_the_largest(scripts, experiment, senders):
    chosen = scripts.combining.by_sender(senders, experiment.design)
    assert list(chosen) == ["s0", "s2", "s3", "s5"]


def test_the_arms_run_resume_and_are_told(scripts, experiment, tmp_path, monkeypatch):
    some = [replace(scripts.combining.ARMS[i], choices=()) for i in (1, 4, 7, 8, 10)]
    monkeypatch.setattr(scripts.combining, "ARMS", [scripts.combining.ARMS[0], *some])
    path = tmp_path / "combining.jsonl"
    scripts.combining.run_all(experiment, scripts.bench.Results(path), Console(quiet=True))
    results = scripts.bench.Results(path)
    tuned = sum(len(arm.choices) for arm in scripts.combining.ARMS)
    assert len(results.runs) == 2 * (tuned + len(scripts.combining.ARMS))
    for run in results.runs:
        assert 0.0 <= run["worst"] <= run["mean"] <= 1.0
    bytes_of = {run["arm"]: run["input_bytes"] for run in results.runs}
    assert bytes_of["SCAFFOLD, local SGD"] > bytes_of["plain mean"]
    assert bytes_of["a quarter of the coordinates"] < bytes_of["plain mean"]
    before = path.read_bytes()
    scripts.combining.run_all(experiment, scripts.bench.Results(path), Console(quiet=True))
    assert path.read_bytes() == before
    shown = scripts.combining.table(results, experiment.design)
    assert len(shown.splitlines()) == 2 + 2 * len(scripts.combining.ARMS)


def test_the_table_of_the_readme_is_that_of_the_results(scripts):
    results = scripts.bench.Results(FOLDER / "results" / "combining.jsonl")
    told = scripts.combining.table(results, scripts.combining.Design())
    assert told in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert len({run["seed"] for run in results.runs}) == 6


def test_rules_for_own_adapters_run_resume_and_leave_the_shared_one_as_it_was(
    scripts, experiment, tmp_path
):
    plan = scripts.personal.Plan(design=experiment.design, steps=8, rates=(0.05,))
    path = tmp_path / "personal.jsonl"
    scripts.personal.run_all(experiment, plan, scripts.bench.Results(path), Console(quiet=True))
    results = scripts.bench.Results(path)
    assert len(results.runs) == 2 * (1 + len(scripts.personal.RULES))
    by_rule = {run["rule"]: run for run in results.runs if run["data"] == "dirichlet"}
    assert by_rule["shared"]["own"] == by_rule["shared"]["harmed"] == 0
    assert by_rule["its own"]["own"] == 4
    assert by_rule["its own"]["mean_nll"] < by_rule["shared"]["mean_nll"]
    before = path.read_bytes()
    scripts.personal.run_all(experiment, plan, scripts.bench.Results(path), Console(quiet=True))
    assert path.read_bytes() == before
    shown = scripts.personal.table(results, plan)
    assert shown.count("\n") == 1 + 2 * len(scripts.personal.RULES)
    model, clients = experiment.made("dirichlet", 1)
    held = model.flat()
    rule = scripts.personal.RULES[3]
    scripts.personal.personal_run(model, clients, plan, rule, 0.05, 1)
    assert np.array_equal(model.flat(), held)
