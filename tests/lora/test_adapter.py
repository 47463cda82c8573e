from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from securefed.config import LoraSection
from securefed.errors import ConfigError
from securefed.lora.adapter import (
    PROVENANCE_FILE,
    adapter_state,
    build_adapter,
    load_adapter_state,
    save_adapter,
    state_hash,
)
from securefed.lora.sharing import travelling_parameters

CAUSAL = LoraSection(rank=2, alpha=4.0, target_modules=["v_proj"])
HEADED = LoraSection(
    rank=2, alpha=4.0, target_modules=["query", "value"], modules_to_save=["classifier"]
)
IDS = torch.arange(12).view(2, 6)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def bert() -> BertForSequenceClassification:
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_labels=3,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def trained(model):
    """The same adapter with values that training could have left in what travels."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in travelling_parameters(model, "ffa").values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def test_a_fresh_adapter_changes_nothing():
    plain = llama()
    before = plain(input_ids=IDS).logits
    adapted = build_adapter(plain, CAUSAL, task="causal-lm")
    torch.testing.assert_close(adapted(input_ids=IDS).logits, before, rtol=0, atol=0)


def test_rows_of_a_are_orthonormal_and_b_is_zero():
    state = adapter_state(build_adapter(llama(), CAUSAL, task="causal-lm"))
    rows = [t for name, t in state.items() if ".lora_A." in name]
    assert len(rows) == 2
    for a in rows:
        torch.testing.assert_close(a @ a.T, torch.eye(2), atol=1e-6, rtol=0)
    assert not torch.equal(rows[0], rows[1])
    assert all(not t.any() for name, t in state.items() if ".lora_B." in name)


def test_exactly_b_travels_and_trains():
    model = build_adapter(llama(), CAUSAL, task="causal-lm")
    travelling = travelling_parameters(model, "ffa")
    assert len(travelling) == 2
    assert all(".lora_B." in name for name in travelling)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(travelling)


def test_the_classification_head_travels_whole():
    model = build_adapter(bert(), HEADED, task="sequence-classification")
    names = set(travelling_parameters(model, "ffa"))
    assert {n.rpartition(".")[2] for n in names if "modules_to_save" in n} == {"weight", "bias"}
    assert sum(".lora_B." in n for n in names) == 4


def test_an_unknown_sharing_mode_is_refused():
    with pytest.raises(ConfigError, match="'both'"):
        travelling_parameters(build_adapter(llama(), CAUSAL, task="causal-lm"), "both")


def test_a_model_without_an_adapter_is_refused():
    with pytest.raises(ConfigError, match="lora_B"):
        travelling_parameters(llama(), "ffa")
    with pytest.raises(ConfigError, match="no adapter"):
        adapter_state(llama())


def test_a_parameter_that_travels_under_a_frozen_name_too_is_refused():
    model = build_adapter(bert(), HEADED, task="sequence-classification")
    wrapper = model.base_model.model.classifier
    wrapper.original_module.weight = wrapper.modules_to_save["default"].weight
    with pytest.raises(ConfigError, match="original_module"):
        travelling_parameters(model, "ffa")


def test_a_misspelt_target_is_refused_with_what_the_model_has_even_beside_a_right_one():
    section = LoraSection(target_modules=["v_proj", "w_proj"])
    with pytest.raises(ConfigError, match=r"'w_proj'.*k_proj.*q_proj.*v_proj"):
        build_adapter(llama(), section, task="causal-lm")


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        (LoraSection(target_modules=["embed_tokens"]), "no linear module"),
        (LoraSection(rank=17, target_modules=["v_proj"]), "rank <= 16"),
        (LoraSection(target_modules=["v_proj"], modules_to_save=["head"]), "'head'.*lm_head"),
    ],
)
def test_a_section_that_does_not_fit_the_model_is_refused(section, complaint):
    with pytest.raises(ConfigError, match=complaint):
        build_adapter(llama(), section, task="causal-lm")


def test_an_unknown_task_is_refused():
    with pytest.raises(ConfigError, match="'translation'"):
        build_adapter(llama(), CAUSAL, task="translation")


def test_a_client_with_another_seed_gets_the_servers_adapter():
    server = trained(build_adapter(llama(), CAUSAL, task="causal-lm"))
    other = CAUSAL.model_copy(update={"seed": 1})
    client = build_adapter(llama(), other, task="causal-lm")
    assert state_hash(adapter_state(client)) != state_hash(adapter_state(server))
    load_adapter_state(client, adapter_state(server))
    assert state_hash(adapter_state(client)) == state_hash(adapter_state(server))


def test_a_changed_value_name_or_shape_changes_the_hash():
    state = {"a": torch.zeros(2, 2), "b": torch.zeros(1)}
    changed = [
        {**state, "b": torch.full((1,), 1e-40)},
        {**state, "a": torch.zeros(4)},
        {"a": torch.zeros(2, 2), "c": torch.zeros(1)},
        {"a": torch.zeros(2, 2)},
    ]
    assert len({state_hash(s) for s in [state, *changed]}) == 5
    assert state_hash(dict(reversed(state.items()))) == state_hash(state)


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape", "nan"])
def test_a_wrong_adapter_state_is_refused_and_changes_nothing(fault):
    model = build_adapter(llama(), CAUSAL, task="causal-lm")
    before = state_hash(adapter_state(model))
    state = {name: torch.ones_like(t) for name, t in adapter_state(model).items()}
    last = max(state)
    if fault == "missing":
        del state[last]
    elif fault == "unknown":
        state["more"] = torch.zeros(1)
    elif fault == "shape":
        state[last] = state[last].T
    else:
        state[last][0, 0] = torch.nan
    with pytest.raises(ConfigError, match="adapter state"):
        load_adapter_state(model, state)
    assert state_hash(adapter_state(model)) == before


def saved(model, folder, **changes):
    options = {
        "base_model_name": "owner/base", "base_fingerprint": "ab" * 32, "sharing": "ffa", **changes
    }  # fmt: skip
    save_adapter(model, folder, **options)
    return folder


@pytest.mark.parametrize(
    ("make", "section", "task"),
    [(llama, CAUSAL, "causal-lm"), (bert, HEADED, "sequence-classification")],
)
def test_peft_loads_what_was_saved_exactly(tmp_path, make, section, task):
    model = trained(build_adapter(make(), section, task=task))
    folder = saved(model, tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(make(), str(folder))
    ours, theirs = adapter_state(model), adapter_state(loaded)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(model(input_ids=IDS).logits, loaded(input_ids=IDS).logits)


def test_loading_as_trainable_thaws_a_and_sharing_freezes_it_again(tmp_path):
    folder = saved(build_adapter(llama(), CAUSAL, task="causal-lm"), tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(llama(), str(folder), is_trainable=True)
    assert any(p.requires_grad for n, p in loaded.named_parameters() if ".lora_A." in n)
    travelling_parameters(loaded, "ffa")
    assert not any(p.requires_grad for n, p in loaded.named_parameters() if ".lora_A." in n)


def test_a_saved_adapter_names_the_base_portably_and_no_path(tmp_path):
    base = llama()
    base.config._name_or_path = str(tmp_path / "secret" / "weights")
    base.name_or_path = base.config._name_or_path
    model = build_adapter(base, CAUSAL, task="causal-lm")
    folder = saved(model, tmp_path / "adapter")
    assert {p.name for p in folder.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", PROVENANCE_FILE
    }  # fmt: skip
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/base"
    told = json.loads((folder / PROVENANCE_FILE).read_text())
    assert told["base_fingerprint"] == "ab" * 32
    assert told["sharing"] == "ffa"
    assert told["state_sha256"] == state_hash(adapter_state(model))


@pytest.mark.parametrize("name", ["/models/base", "~/base", "../base", "a/../../b", "C:\\base", ""])
def test_a_path_as_the_base_models_name_is_refused(tmp_path, name):
    model = build_adapter(llama(), CAUSAL, task="causal-lm")
    with pytest.raises(ConfigError, match="portable"):
        saved(model, tmp_path / "adapter", base_model_name=name)
    assert not (tmp_path / "adapter").exists()


def test_saving_again_replaces_the_folder_whole_and_leaves_nothing_else(tmp_path):
    model = build_adapter(llama(), CAUSAL, task="causal-lm")
    folder = saved(model, tmp_path / "adapter")
    (folder / "stale").write_text("old")
    saved(trained(model), folder)
    assert not (folder / "stale").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]
    told = json.loads((folder / PROVENANCE_FILE).read_text())
    assert told["state_sha256"] == state_hash(adapter_state(model))


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="adapter folder"):
        saved(build_adapter(llama(), CAUSAL, task="causal-lm"), tmp_path / "file" / "adapter")


def test_a_value_that_is_infinite_only_in_the_models_own_type_is_refused():
    model = build_adapter(llama(), CAUSAL, task="causal-lm")
    state = adapter_state(model)
    name = next(iter(state))
    state[name] = torch.full(state[name].shape, 1e300, dtype=torch.float64)
    before = state_hash(adapter_state(model))
    with pytest.raises(ConfigError, match="NaN or infinity"):
        load_adapter_state(model, state)
    assert state_hash(adapter_state(model)) == before
