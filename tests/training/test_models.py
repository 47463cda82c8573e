from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from securefed.config import ModelSection
from securefed.errors import ConfigError, FetchError
from securefed.training import models
from securefed.training.assets import fetch
from securefed.training.models import load_model, resolve_device, weights_fingerprint

CPU = torch.device("cpu")


def tokenizer(**special):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {word: i for i, word in enumerate(["<end>", "<pad>", "a", "b", "c"])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<end>")), **special
    )


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama with a tokenizer that has no padding token."""
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    out = tmp_path / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(out)
    tokenizer(eos_token="<end>").save_pretrained(out)
    return out


def loaded(source, tmp_path, progress=None, **changes):
    section = ModelSection(source=str(source), **changes)
    cache = tmp_path / "cache"
    return load_model(section, cache=cache, offline=True, device=CPU, progress=progress)


def edit_json(path, **changes):
    values = json.loads(path.read_text())
    values.update(changes)
    path.write_text(json.dumps(values))


def test_a_local_folder_is_loaded_under_a_portable_name(folder, tmp_path):
    found = loaded(folder, tmp_path)
    assert found.name == "tiny-llama"
    assert found.fingerprint == weights_fingerprint(folder)
    assert not found.model.training
    assert found.tokenizer.pad_token == "<end>"
    assert found.model.config.pad_token_id == found.tokenizer.pad_token_id
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}


def test_the_dtype_is_the_one_asked_for(folder, tmp_path):
    found = loaded(folder, tmp_path, dtype="bfloat16")
    assert {p.dtype for p in found.model.parameters()} == {torch.bfloat16}


def test_the_pinned_fingerprint_is_accepted_and_another_is_refused_with_both(folder, tmp_path):
    right = weights_fingerprint(folder)
    assert loaded(folder, tmp_path, fingerprint=right).fingerprint == right
    with pytest.raises(ConfigError, match=f"{'0' * 64}.*{right}"):
        loaded(folder, tmp_path, fingerprint="0" * 64)


def test_weights_or_config_change_the_fingerprint_and_other_files_do_not(folder):
    before = weights_fingerprint(folder)
    (folder / "README.md").write_text("notes")
    assert weights_fingerprint(folder) == before
    edit_json(folder / "config.json", rope_theta=3.0)
    changed = weights_fingerprint(folder)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert len({before, changed, weights_fingerprint(folder)}) == 3


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused_unopened(folder, tmp_path, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ConfigError, match=f"pickles.*{name}"):
        loaded(folder, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_that_brings_code_is_refused(folder, tmp_path, name):
    edit_json(folder / name, auto_map={"AutoModelForCausalLM": "evil.Model"})
    with pytest.raises(ConfigError, match=f"{name}.*auto_map"):
        loaded(folder, tmp_path)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "no \\*.safetensors"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
        (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no"), "cannot be loaded"),
        (lambda f: edit_json(f / "config.json", model_type="unheard-of"), "cannot be loaded"),
        (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "tokenizer"),
    ],
)
def test_a_spoilt_folder_is_refused_with_the_reason(folder, tmp_path, spoil, complaint):
    spoil(folder)
    with pytest.raises(ConfigError, match=complaint):
        loaded(folder, tmp_path)


def test_a_tokenizer_without_padding_and_end_is_refused(folder, tmp_path):
    for path in folder.glob("*token*"):
        path.unlink()
    tokenizer().save_pretrained(folder)
    with pytest.raises(ConfigError, match="neither a padding"):
        loaded(folder, tmp_path)


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder, tmp_path):
    bigger = tokenizer(eos_token="<end>")
    bigger.add_tokens([f"w{i}" for i in range(10)])
    bigger.save_pretrained(folder)
    with pytest.raises(ConfigError, match="15 tokens, the model embeds 8"):
        loaded(folder, tmp_path)


def test_an_encoder_without_a_language_model_head_is_refused_for_causal_lm(tmp_path):
    out = tmp_path / "encoder"
    config = BertConfig(
        vocab_size=8, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=4, is_decoder=True,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(out)
    tokenizer(eos_token="<end>").save_pretrained(out)
    with pytest.raises(ConfigError, match="lack what task = 'causal-lm'"):
        loaded(out, tmp_path)


def test_a_fresh_classification_head_is_the_same_each_time_and_leaves_the_generator(
    folder, tmp_path
):
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    options = {"task": "sequence-classification", "labels": 3}
    first = loaded(folder, tmp_path, **options).model.score.weight
    assert torch.equal(torch.rand(1), expected)
    second = loaded(folder, tmp_path, **options).model.score.weight
    assert first.shape == (3, 16)
    assert torch.equal(first, second)


@pytest.mark.parametrize("source", ["builtin:gpt-9", "./absent", "/absent/folder", "a/b/c"])
def test_a_source_that_is_nothing_is_refused(source, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.source"):
        loaded(source, tmp_path)


def test_a_hub_name_that_is_not_cached_is_refused_offline(tmp_path):
    with pytest.raises(FetchError, match="offline"):
        loaded("no-such-owner/no-such-model-at-all", tmp_path)


@pytest.mark.parametrize("text", ["gpu", "cuda:x", "cuda:-1", "mps", "", "cpu:1"])
def test_an_unknown_device_is_refused(text):
    with pytest.raises(ConfigError, match=r"training\.device"):
        resolve_device(text)


def test_devices_are_those_of_the_machine():
    assert resolve_device("cpu") == CPU
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolve_device("auto").type == expected
    with pytest.raises(ConfigError, match="CUDA devices"):
        resolve_device("cuda:99")


@pytest.fixture
def gguf_folder(tmp_path):
    """A one-layer Llama in a GGUF file, written with gguf's own writer."""
    import gguf

    out = tmp_path / "quantised"
    out.mkdir()
    writer = gguf.GGUFWriter(str(out / "tiny.gguf"), "llama")
    for name, value in {
        "block_count": 1, "context_length": 32, "embedding_length": 16,
        "feed_forward_length": 24, "head_count": 4, "head_count_kv": 2,
    }.items():  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(4)
    writer.add_vocab_size(12)
    writer.add_tokenizer_model("gpt2")
    words = ["<end>", "a", "b", "c", "d", "e", "ab", "abc"]
    writer.add_token_list(words)
    writer.add_token_types([3] + [1] * 7)
    writer.add_token_merges(["a b", "ab c"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    generator = torch.Generator().manual_seed(1)
    block = "blk.0."
    for name, shape in {
        "token_embd.weight": (12, 16), "output.weight": (12, 16), "output_norm.weight": (16,),
        block + "attn_norm.weight": (16,), block + "ffn_norm.weight": (16,),
        block + "attn_q.weight": (16, 16), block + "attn_k.weight": (8, 16),
        block + "attn_v.weight": (8, 16), block + "attn_output.weight": (16, 16),
        block + "ffn_gate.weight": (24, 16), block + "ffn_up.weight": (24, 16),
        block + "ffn_down.weight": (16, 24),
    }.items():  # fmt: skip
        writer.add_tensor(name, torch.randn(shape, generator=generator).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_gguf_weights_are_converted_once_and_a_changed_conversion_is_refused(gguf_folder, tmp_path):
    said = []
    first = loaded(gguf_folder, tmp_path, progress=said.append)
    (line,) = said
    assert line.startswith("tiny.gguf: converting to float32, once")
    assert first.name == "quantised"
    assert {p.dtype for p in first.model.parameters()} == {torch.float32}
    (made,) = (tmp_path / "cache" / "models").iterdir()
    assert weights_fingerprint(made) == first.fingerprint
    assert "transformers_version" not in json.loads((made / "config.json").read_text())
    stamp = (made / "model.safetensors").stat().st_mtime_ns
    assert loaded(gguf_folder, tmp_path, progress=said.append).fingerprint == first.fingerprint
    assert len(said) == 1
    assert (made / "model.safetensors").stat().st_mtime_ns == stamp
    edit_json(made / "config.json", rope_theta=3.0)
    with pytest.raises(ConfigError, match=f"has changed.*{first.fingerprint}"):
        loaded(gguf_folder, tmp_path)


def test_two_gguf_files_in_a_folder_are_refused(gguf_folder, tmp_path):
    (gguf_folder / "other.gguf").write_bytes((gguf_folder / "tiny.gguf").read_bytes())
    with pytest.raises(ConfigError, match=r"several GGUF files \(other.gguf, tiny.gguf\)"):
        loaded(gguf_folder, tmp_path)


def test_a_broken_gguf_file_is_refused_and_leaves_no_folder(gguf_folder, tmp_path):
    (gguf_folder / "tiny.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(ConfigError, match=r"tiny\.gguf cannot be read"):
        loaded(gguf_folder, tmp_path)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_the_real_encoder_loads_with_a_fresh_head_and_gives_right_per_example_gradients(
    tmp_path_factory,
):
    import os
    from pathlib import Path

    import numpy as np

    from securefed.config import LoraSection
    from securefed.lora.adapter import build_adapter
    from securefed.lora.layout import AdapterLayout
    from securefed.lora.sharing import travelling_parameters
    from securefed.training.data import Examples
    from securefed.training.dp_sgd import PerExampleGradients

    own = os.environ.get("SECUREFED_CACHE")
    cache = Path(own) if own else tmp_path_factory.getbasetemp() / "asset-cache"
    fetch("minilm-l6-v2", cache=cache)
    task = "sequence-classification"
    section = ModelSection(source="builtin:minilm-l6-v2", task=task, labels=2)
    found = load_model(section, cache=cache, offline=True, device=CPU)
    assert found.name == "builtin:minilm-l6-v2"
    lora = LoraSection(
        rank=8, alpha=16.0, target_modules=["query", "value"], modules_to_save=["classifier"]
    )
    model = build_adapter(found.model, lora, task=task)
    shapes = {n: tuple(p.shape) for n, p in travelling_parameters(model, "ffa").items()}
    layout = AdapterLayout(shapes)
    assert layout.size == 6 * 2 * 384 * 8 + 2 * 384 + 2
    coded = found.tokenizer(
        ["the harvest was good", "no", "taxes fell in the second year of the war"],
        padding="max_length", max_length=12, truncation=True, return_tensors="np",
    )  # fmt: skip
    data = Examples(
        coded["input_ids"].astype(np.int64),
        coded["attention_mask"].astype(np.int64),
        np.array([1, 0, 1]),
    )
    gradients = PerExampleGradients(model, layout, task=task, micro_batch=2, device=CPU)
    gradients.check(data)
    total = gradients.clipped_sum(data, 0.5)
    assert 0.0 < np.linalg.norm(total) <= 1.5


def test_the_builtin_names_are_assets():
    from securefed.training.assets import ASSETS

    assert set(models.BUILTIN.values()) <= set(ASSETS)
