"""Modules put in beside LoRA: what they do, how they travel, and how they come back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from securefed.config import LoraSection
from securefed.errors import ConfigError
from securefed.lora.adapter import adapter_state, build_adapter, save_adapter, state_hash
from securefed.lora.inserted import BOTTLENECK, IA3, PROMPT
from securefed.lora.inserted_files import SECTION_FILE, load_inserted
from securefed.lora.parts import AdapterParts
from securefed.lora.sharing import factor_of, travelling_parameters
from securefed.training.data import Examples
from securefed.training.dp_sgd import PerExampleGradients
from securefed.training.evaluate import evaluate

IDS = torch.arange(1, 13).view(2, 6)
CPU = torch.device("cpu")
ALL = ["lora", "ia3", "prompt", "bottleneck"]
KINDS = ["ia3", "prompt", "bottleneck", ["lora", "ia3"], ALL]


def llama():
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def section(kind, **changes):
    return LoraSection(rank=2, target_modules=["v_proj"], kind=kind, **changes)


def filled(model):
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if factor_of(name) is not None:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def names_of(model, part):
    return [name for name, _ in model.named_parameters() if part in name.split(".")]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_inserted_modules_are_where_the_section_says_and_travel_whole(kind):
    model = build_adapter(llama(), section(kind), task="causal-lm")
    kinds = section(kind).kinds
    assert len(names_of(model, IA3)) == (6 if "ia3" in kinds else 0)
    assert len(names_of(model, BOTTLENECK)) == (16 if "bottleneck" in kinds else 0)
    assert len(names_of(model, PROMPT)) == (1 if "prompt" in kinds else 0)
    travelling = travelling_parameters(model, "ffa")
    assert {factor_of(n) for n in travelling} == {"whole"} | ({"B"} if "lora" in kinds else set())
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(travelling)


@pytest.mark.parametrize("kind", ["ia3", "bottleneck", ["lora", "ia3", "bottleneck"]], ids=str)
def test_without_a_prompt_a_fresh_adapter_changes_nothing(kind):
    before = logits(llama())
    model = build_adapter(llama(), section(kind), task="causal-lm")
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    assert (logits(filled(model)) - before).abs().max() > 1e-3


def test_prompt_tokens_stand_before_the_text_and_are_not_scored():
    plain = llama()
    model = build_adapter(llama(), section("prompt", prompt_tokens=3), task="causal-lm")
    tokens = dict(model.named_parameters())[f"{PROMPT}.tokens.weight"]
    table = plain.get_input_embeddings().weight
    drawn = [int((table == row).all(dim=1).nonzero()) for row in tokens]
    longer = torch.cat([torch.tensor(drawn).expand(2, 3), IDS], dim=1)
    found = logits(model)
    assert found.shape == (2, 9, 40)
    with torch.no_grad():
        expected = plain(input_ids=longer).logits
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    examples = Examples(IDS.numpy(), np.ones((2, 6), dtype=np.int64), None)
    scored = evaluate(model, examples, task="causal-lm", micro_batch=2, device=CPU)
    assert scored.tokens == 2 * 5
    own = torch.nn.functional.cross_entropy(
        expected[:, 3:-1].reshape(-1, 40), IDS[:, 1:].reshape(-1), reduction="sum"
    )
    assert scored.nll_sum == pytest.approx(float(own), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_per_example_gradients_of_inserted_modules_pass_the_check_of_dp_sgd(kind):
    model = filled(build_adapter(llama(), section(kind), task="causal-lm"))
    parts = AdapterParts(model, "ffa")
    gradients = PerExampleGradients(
        model, parts.layout, task="causal-lm", micro_batch=3, device=CPU
    )
    ids = np.random.default_rng(2).integers(1, 40, size=(4, 6))
    examples = Examples(ids, np.ones_like(ids), None)
    gradients.check(examples)
    rows = np.concatenate(list(gradients.flat_rows(examples)))
    start = 0
    for name, shape in parts.layout.shapes.items():  # every parameter has a gradient
        size = int(np.prod(shape))
        assert np.abs(rows[:, start : start + size]).max() > 0, name
        start += size
    total = gradients.clipped_sum(examples, 1e-3)
    assert np.linalg.norm(total) <= 4e-3


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_was_saved_loads_back_as_the_same_function(kind, tmp_path):
    wanted = section(kind)
    model = filled(build_adapter(llama(), wanted, task="causal-lm"))
    folder = tmp_path / "adapter"
    save_adapter(
        model, folder, base_model_name="o/b", base_fingerprint="0" * 64, sharing="ffa",
        section=wanted,
    )  # fmt: skip
    loaded = llama()
    if "lora" in wanted.kinds:
        loaded = PeftModel.from_pretrained(loaded, str(folder))
    load_inserted(loaded, folder)
    assert state_hash(adapter_state(loaded)) == state_hash(adapter_state(model))
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-6, rtol=1e-5)
    for path in folder.rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes()


@pytest.mark.parametrize("kind", ["ia3", "prompt"])
def test_peft_loads_what_it_has_a_format_for(kind, tmp_path):
    wanted = section(kind)
    model = filled(build_adapter(llama(), wanted, task="causal-lm"))
    save_adapter(
        model, tmp_path / "a", base_model_name="o/b", base_fingerprint="0" * 64, sharing="ffa",
        section=wanted,
    )  # fmt: skip
    loaded = PeftModel.from_pretrained(llama(), str(tmp_path / "a" / kind)).eval()
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-4)


def test_ia3_and_bottlenecks_follow_a_classifier_by_the_names_it_has():
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=4, num_labels=3,
    )  # fmt: skip
    wanted = LoraSection(
        rank=2, target_modules=["query"], modules_to_save=["classifier"],
        kind=["lora", "ia3", "bottleneck"], ia3_modules=["key", "value"],
        ia3_feedforward_modules=["output.dense"], bottleneck_modules=["output.dense"],
        bottleneck_width=3,
    )  # fmt: skip
    model = build_adapter(
        BertForSequenceClassification(config), wanted, task="sequence-classification"
    )
    parts = AdapterParts(filled(model), "ffa")
    gradients = PerExampleGradients(
        model, parts.layout, task="sequence-classification", micro_batch=2, device=CPU
    )
    ids = np.random.default_rng(2).integers(1, 40, size=(3, 6))
    gradients.check(Examples(ids, np.ones_like(ids), np.array([0, 1, 2])))
    downs = [n for n in parts.layout.names if n.endswith("down.weight")]
    assert [parts.layout.shapes[name] for name in downs] == [(3, 16), (3, 16)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": ["ia3"], "ia3_modules": ["nowhere"]}, r"ia3_modules: 'nowhere'.*k_proj"),
        ({"kind": "bottleneck", "bottleneck_modules": ["embed_tokens"]}, "embed_tokens"),
        (
            {"kind": "ia3", "ia3_modules": ["v_proj", "self_attn.v_proj"]},
            "one module would get two",
        ),
    ],
)
def test_a_place_that_is_not_there_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        build_adapter(llama(), LoraSection(**changes), task="causal-lm")


def test_a_prompt_before_a_classifiers_text_is_refused():
    with pytest.raises(ConfigError, match="'prompt' with task"):
        build_adapter(llama(), section("prompt"), task="sequence-classification")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"kind": []}, "kind"),
        ({"kind": "adapter"}, "bottleneck"),
        ({"kind": ["lora", "lora"]}, "may be named once"),
        ({"kind": "ia3", "sharing": "rolora"}, "without 'lora'"),
        ({"kind": "ia3", "modules_to_save": ["head"]}, "without 'lora'"),
        ({"prompt_tokens": 4}, "'prompt' alone"),
        ({"kind": "ia3", "bottleneck_width": 4}, "'bottleneck' alone"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(values, words):
    with pytest.raises(ValidationError, match=words):
        LoraSection(**values)


@pytest.mark.parametrize("fault", ["missing", "values", "section", "other"])
def test_a_folder_that_holds_no_such_modules_is_refused(tmp_path, fault):
    wanted = section("ia3")
    model = build_adapter(llama(), wanted, task="causal-lm")
    folder = tmp_path / "a"
    save_adapter(
        model, folder, base_model_name="o/b", base_fingerprint="0" * 64, sharing="ffa",
        section=wanted,
    )  # fmt: skip
    if fault == "missing":
        (folder / SECTION_FILE).unlink()
    elif fault == "values":
        (folder / "inserted.safetensors").write_bytes(b"no tensors")
    elif fault == "section":
        (folder / SECTION_FILE).write_text("[]")
    else:
        written = json.loads((folder / SECTION_FILE).read_text())
        written["lora"]["ia3_modules"] = ["q_proj"]
        (folder / SECTION_FILE).write_text(json.dumps(written))
    with pytest.raises(ConfigError, match="adapter folder"):
        load_inserted(llama(), folder)
