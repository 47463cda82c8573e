"""examples/leakage/poisoning.py on a tiny model and made-up mails."""

import importlib
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import WORDS, write_bert

from securefed.config import LoraSection, ModelSection
from securefed.lora.adapter import build_adapter
from securefed.training.corpora import Document
from securefed.training.models import load_model

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("bench", "client_level", "frozen_attention", "poisoning")


@pytest.fixture(scope="module")
def scripts():
    folders = [str(EXAMPLES / "accuracy"), str(EXAMPLES / "leakage")]
    kept = list(sys.path)
    sys.path[:0] = folders
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path[:] = kept
        for name in NAMES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def design(scripts, tmp_path_factory):
    folder = write_bert(tmp_path_factory.mktemp("bert"), layers=3, initializer_range=0.2)
    return replace(
        scripts.poisoning.DESIGN,
        clients=6,
        groups=2,
        malicious=0,
        mails=6,
        held_out=12,
        window_tokens=10,
        trigger=("w58", "w59"),
        model=ModelSection(source=str(folder), task="sequence-classification", labels=2),
        lora=LoraSection(
            rank=2,
            alpha=2.0,
            target_modules=["layer.2.attention.self.value"],
            modules_to_save=["classifier"],
        ),
    )


def senders(count=120):
    """Wanted mails of even words, spam of odd ones."""
    found = {}
    for number in range(count):
        rng = random.Random(number)
        found[f"sender-{number}"] = [
            Document(" ".join(rng.choices(WORDS[label::2][:20], k=6)), label, f"{number}/{i}", None)
            for i, label in enumerate((0, 0, 1, 1))
        ]
    return found


def test_the_quick_model_computes_what_the_plain_one_does(scripts, design, tmp_path):
    loaded = load_model(design.model, cache=tmp_path, offline=True, device=torch.device("cpu"))
    plain = build_adapter(loaded.model, design.lora, task="sequence-classification")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in plain.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator)
    ids = torch.randint(2, 60, (5, 10), generator=generator)
    mask = (torch.arange(10) < torch.tensor([[10], [3], [7], [1], [10]])).long()

    def found(model):
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        logits = model(input_ids=ids, attention_mask=mask).logits
        return logits.detach(), torch.autograd.grad(logits.square().sum(), list(trained.values()))

    logits, gradients = found(plain)
    quick, others = found(scripts.frozen_attention.FrozenAttention(plain))
    torch.testing.assert_close(quick, logits)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


@pytest.fixture
def run(scripts, design, monkeypatch, tmp_path):
    module = scripts.poisoning
    monkeypatch.setattr(module, "DESIGN", design)
    monkeypatch.setattr(module, "fetch", lambda name, **options: tmp_path)
    monkeypatch.setattr(module, "mail_clients", lambda folder, **options: (senders(), []))
    out = tmp_path / "found.jsonl"

    def call(*arguments):
        command = ["poisoning.py", "--out", str(out), "--rounds", "1", "--seeds", "2", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        module.main()
        return [json.loads(line) for line in out.read_text().splitlines()]

    return call


def test_cells_are_measured_once_and_written_as_figures(run, capsys):
    chosen = ("--attack", "none", "--defence", "clip", "--defence", "median")
    lines = run(*chosen)
    assert [(line["attack"], line["defence"]["name"]) for line in lines] == [
        ("none", "clip"),
        ("none", "median"),
    ]
    for line in lines:
        assert (line["clients"], line["malicious"], line["rounds"]) == (6, 0, 1)
        assert len(line["accuracy"]["runs"]) == 2
        assert 0.0 <= line["success"]["interval"][0] <= line["success"]["value"] <= 1.0
        assert line["aggregation"] == "PlaintextAggregation"
    assert "median" in capsys.readouterr().out
    assert run(*chosen) == lines  # nothing is repeated
    masked = run("--attack", "none", "--defence", "clip", "--masked")
    assert masked[-1]["aggregation"] == "PairwiseAggregation"


def test_every_cell_is_of_a_known_attack_and_defence(scripts, design):
    module = scripts.poisoning
    trigger = module.Trigger((1, 2), 0)
    assert set(module.CELLS) == set(module.attacks(module.DESIGN, trigger))
    named = {name for names in module.CELLS.values() for name in names}
    assert named == set(module.defences(module.DESIGN))


def test_an_unknown_cell_is_refused(run):
    with pytest.raises(SystemExit):
        run("--attack", "nothing")


def test_mails_of_both_classes_are_halved(scripts):
    documents = [Document("w1", label, str(i), None) for i, label in enumerate((0, 0, 0, 1))]
    kept = scripts.poisoning.halved(documents, 4)
    assert [document.label for document in kept] == [0, 0, 1]
    assert np.unique([document.key for document in kept]).size == 3
