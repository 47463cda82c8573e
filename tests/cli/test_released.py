"""`securefed evaluate` and `securefed merge` on a finished run."""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraModel, PeftModel
from tiny import write_bert, write_clients, write_run
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from securefed import Federation
from securefed.config import LoraSection, ModelSection, load_config
from securefed.engines.evaluating import evaluate_run
from securefed.engines.merging import merge
from securefed.engines.released import Released
from securefed.errors import ConfigError
from securefed.lora.adapter import build_adapter, save_adapter
from securefed.training import scores
from securefed.training.models import load_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of unlike ranks, after which each client has an adapter of its own."""
    base = tmp_path_factory.mktemp("released")
    path = write_run(
        base,
        training={"rounds": 1},
        cohort={
            "ranks": [
                {"rank": 1, "clients": ["site-0", "site-1", "site-2"]},
                {"rank": 2, "clients": "others"},
            ],
        },
        personal={"kind": "adapter", "steps": 3, "mix": 1.0},
    )
    return Federation.from_config(path).run(base / "out").folder


def base_of(released: Released):
    return released.base(cache=released.folder, offline=True, device=CPU, dtype="float32")


def logits(model, ids) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids).logits


# -- merging -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "adapter"),
    [
        ([], "adapter"),
        (["--rank", "1"], "ranks/1/adapter"),
        (["--client", "site-3"], "personal/site-3/adapter"),
    ],
    ids=["shared", "at a rank", "of a client"],
)
def test_plain_transformers_says_what_base_and_adapter_say(cli, finished, options, adapter):
    code, out, err = cli("merge", finished, "merged", *options, "--offline")
    assert code == 0, err
    assert "logits differ" in out
    ids = torch.arange(2, 14).unsqueeze(0)
    base = AutoModelForCausalLM.from_pretrained(finished.parent / "model")
    plain = logits(base, ids)
    expected = logits(PeftModel.from_pretrained(base, finished / adapter), ids)
    merged = AutoModelForCausalLM.from_pretrained("merged")
    assert torch.allclose(logits(merged, ids), expected, atol=1e-5)
    assert not torch.allclose(expected, plain, atol=1e-3)
    assert merged.config.tie_word_embeddings
    assert AutoTokenizer.from_pretrained("merged")("w1 w2")["input_ids"] == [3, 4]
    assert not list(Path("merged").glob("adapter*"))
    modes = {path.stat().st_mode for path in Path("merged").iterdir()}
    assert len(modes) == 1
    written = "".join(path.read_text() for path in Path("merged").glob("*.json"))
    assert str(finished.parent) not in written
    record = json.loads(Path("merged/securefed_merge.json").read_text())
    assert len(record["guarantees"]) == (0 if "--client" in options else 3)
    assert ("without noise" in out) == ("--client" in options)


def test_an_adapted_output_layer_leaves_tied_embeddings_as_they_were(finished, tmp_path):
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    section = LoraSection(rank=2, target_modules=["q_proj", "lm_head"], seed=1)
    released = Released.of(copy)
    adapted = build_adapter(base_of(released).model, section, task="causal-lm")
    moved = [p for name, p in adapted.named_parameters() if "lora_B" in name]
    torch.manual_seed(0)
    for parameter in moved:
        torch.nn.init.normal_(parameter, std=0.3)
    fingerprint = base_of(released).fingerprint
    save_adapter(
        adapted, copy / "adapter", base_model_name="m", base_fingerprint=fingerprint, sharing="ffa"
    )
    found = merge(
        released, released.shared, base_of(released), tmp_path / "merged", dtype="float32"
    )
    assert found.difference < 1e-5
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(finished.parent / "model")
    ids = torch.arange(2, 14).unsqueeze(0)
    expected = logits(PeftModel.from_pretrained(base, copy / "adapter"), ids)
    assert torch.allclose(logits(merged, ids), expected, atol=1e-4)
    embedded = merged.get_input_embeddings().weight
    assert torch.equal(embedded, base.get_input_embeddings().weight)
    assert not torch.equal(embedded, merged.get_output_embeddings().weight)
    assert not merged.config.tie_word_embeddings


def test_a_classifiers_trained_head_is_merged(finished, tmp_path):
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    write_bert(tmp_path / "bert", layers=1)
    model = ModelSection(source=str(tmp_path / "bert"), task="sequence-classification", labels=2)
    section = LoraSection(rank=2, target_modules=["value"], modules_to_save=["classifier"])
    config = load_config(copy / "config.toml").model_copy(update={"model": model, "lora": section})
    released = Released(copy, config, copy / "adapter", {}, {})
    base = load_model(model, cache=tmp_path, offline=True, device=CPU)
    adapted = build_adapter(base.model, section, task="sequence-classification")
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    save_adapter(
        adapted,
        copy / "adapter",
        base_model_name="bert",
        base_fingerprint=base.fingerprint,
        sharing="ffa",
    )
    merge(released, released.shared, base_of(released), tmp_path / "merged", dtype="float32")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    ids = torch.arange(2, 12).unsqueeze(0)
    assert torch.allclose(logits(plain, ids), logits(adapted, ids), atol=1e-5)


def test_what_cannot_be_merged_is_refused_with_a_reason(finished, tmp_path):
    released = Released.of(finished)
    base = base_of(released)
    small = released.config.model.model_copy(update={"quantize": "int8"})
    quantised = Released(
        finished, released.config.model_copy(update={"model": small}), released.shared, {}, {}
    )
    with pytest.raises(ConfigError, match=r"model.quantize = 'int8'.*8 bits.*PEFT"):
        merge(quantised, released.shared, base, tmp_path / "merged", dtype="float32")
    with pytest.raises(ConfigError, match=r"dtype = 'int8': must be one of float32"):
        merge(released, released.shared, base, tmp_path / "merged", dtype="int8")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    with pytest.raises(ConfigError, match="not written over"):
        merge(released, released.shared, base, tmp_path / "there", dtype="float32")
    with pytest.raises(ConfigError, match="no adapter at rank 7; there is 1, 2"):
        released.at_rank(7)
    with pytest.raises(ConfigError, match=r"client 'nobody'.*site-0"):
        released.client("nobody")
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    (copy / "adapter" / "inserted.json").write_text("{}")
    with pytest.raises(ConfigError, match="modules of their own"):
        merge(Released.of(copy), copy / "adapter", base, tmp_path / "merged", dtype="float32")
    assert not (tmp_path / "merged").exists()


def test_a_merged_model_that_says_otherwise_is_not_kept(finished, tmp_path, monkeypatch):
    released = Released.of(finished)
    monkeypatch.setattr(LoraModel, "merge_and_unload", lambda self, **_: self.unload())
    with pytest.raises(ConfigError, match="logits differ from those of base and adapter"):
        merge(released, released.shared, base_of(released), tmp_path / "merged", dtype="float32")
    assert list(tmp_path.iterdir()) == []


def test_a_base_model_that_has_changed_is_refused(finished, tmp_path):
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    path = copy / "adapter" / "securefed_adapter.json"
    text = path.read_text()
    known = json.loads(text)["base_fingerprint"]
    path.write_text(text.replace(known, "0" * 64))
    with pytest.raises(ConfigError, match=r"was trained on 0000.*put the weights of the run back"):
        base_of(Released.of(copy))


# -- evaluating ----------------------------------------------------------------------------


def words(model, tokenizer, documents):
    """A metric: how many words a document has."""
    return [len(document.text.split()) for document in documents]


def test_base_shared_and_personal_adapters_are_measured_with_intervals(cli, finished):
    code, out, err = cli("evaluate", finished, "--personal", "--device", "cpu", "--offline")
    assert code == 0, err
    found = evaluate_run(finished, personal=True, device="cpu", offline=True)
    assert [(row.adapter, row.who) for row in found.rows[:2]] == [
        ("base", "all"),
        ("shared", "all"),
    ]
    assert len(found.rows) == 2 + 3 * 6
    for row in found.rows[:2]:
        assert row.figure.low < row.figure.value < row.figure.high
        assert row.figure.n == 6 * 4 * 7  # four windows a client, seven predictions each
    assert found.rows[1].change is not None
    ratio = found.rows[1].figure.value / found.rows[0].figure.value
    assert math.isclose(found.rows[1].change.value, ratio)
    own = [row for row in found.rows if row.adapter == "personal"]
    assert any(row.figure.value != found.rows[1].figure.value for row in own)
    assert f"{found.rows[0].figure.value:.4g}" in out
    assert "no epsilon covers these figures" in out


def test_a_set_of_ones_own_and_a_metric_of_ones_own(cli, finished, tmp_path, monkeypatch):
    data = write_clients(tmp_path / "mine", count=2, words=80)
    module = tmp_path / "my_metrics.py"
    module.write_text(
        "def words(model, tokenizer, documents):\n    return [7.0 for _ in documents]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ["evaluate", finished, "--data", data, "--device", "cpu", "--offline"]
    code, out, err = cli(*command, "--metric", "my_metrics:words")
    assert code == 0, err
    assert "my_metrics:words" in out
    assert "7 (one, or all alike: no interval)" in " ".join(out.split())
    found = evaluate_run(finished, data=data, metric=words, device="cpu", offline=True)
    assert found.rows[0].metric is not None
    assert found.rows[0].metric.value == 80 + 64
    code, _, err = cli(*command, "--metric", "my_metrics:nothing")
    assert (code, "has no function nothing" in err) == (2, True)
    module.write_text(module.read_text() + "\ndef short(model, documents):\n    return []\n")
    sys.modules.pop("my_metrics")
    code, _, err = cli(*command, "--metric", "my_metrics:short")
    said = " ".join(err.split())
    assert (code, "called as metric(model, tokenizer, documents)" in said) == (2, True), err
    assert "it is now short(model, documents)" in said
    with pytest.raises(ConfigError, match="it gave a dict that is no sequence of numbers"):
        evaluate_run(finished, data=data, metric=lambda *_: {}, device="cpu", offline=True)
    code, _, err = cli("evaluate", finished, "--metric", "my_metrics:words")
    assert (code, "needs --data" in err) == (2, True)
    with pytest.raises(ConfigError, match="one finite figure for each of the 2 documents"):
        evaluate_run(finished, data=data, metric=lambda *_: [1.0], device="cpu", offline=True)


def test_personal_adapters_need_clients_of_the_same_names(finished, tmp_path):
    data = write_clients(tmp_path / "mine", count=2, words=80)
    for path in list(data.iterdir()):
        path.rename(path.with_name(f"other-{path.name}"))
    with pytest.raises(ConfigError, match="matched by name: the set has other-site-0"):
        evaluate_run(finished, data=data, personal=True, device="cpu", offline=True)


def test_a_run_that_is_not_finished_has_nothing_to_measure_or_merge(cli, finished, tmp_path):
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(copy / "adapter")
    for command in (["evaluate", copy], ["merge", copy, "out"]):
        code, _, err = cli(*command)
        assert code == 2
        assert "securefed status" in err
    code, _, err = cli("merge", ".", "out")
    assert (code, "not a run folder" in err) == (2, True)


def test_intervals_cover_what_they_should_when_examples_depend_within_clusters():
    rng = np.random.default_rng(0)
    groups, each = 40, 10
    clusters = np.repeat(np.arange(groups), each)
    counts = np.full(groups * each, 3)
    hits = naive = 0
    for _ in range(400):
        values = rng.normal(size=groups)[clusters] + 0.1 * rng.normal(size=groups * each)
        found = scores.ratio(3 * values, counts, clusters)
        alone = scores.ratio(3 * values, counts, np.arange(groups * each))
        hits += found.low <= 0.0 <= found.high
        naive += alone.low <= 0.0 <= alone.high
    assert 0.92 <= hits / 400 <= 0.98
    assert naive / 400 < 0.7  # what examples taken for independent would claim


def test_the_docstring_example_runs():
    import doctest

    assert doctest.testmod(scores).failed == 0
