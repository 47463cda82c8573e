"""A tiny real language model and tiny clients, written to a folder: seconds instead of minutes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import tomli_w
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = [f"w{i}" for i in range(60)]


def write_model(folder: Path) -> Path:
    torch.manual_seed(0)
    vocabulary = {"<eos>": 0, "<unk>": 1} | {word: i + 2 for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>", pad_token="<eos>"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=0,
        bos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_bert(folder: Path, *, layers: int, initializer_range: float = 0.02) -> Path:
    """A classifier of two labels in place of the language model, over the same words."""
    write_model(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS) + 2,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=16,
        pad_token_id=0,
        initializer_range=initializer_range,
        num_labels=2,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def write_clients(folder: Path, count: int = 6, words: int = 640) -> Path:
    """One text file a client: two documents of a repeating pattern, so that there is to learn."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        rng = random.Random(index)
        pattern = rng.sample(WORDS[: 20 + index], 6)
        text = " ".join(pattern[i % 6] for i in range(words))
        later = " ".join(pattern[i % 6] for i in range(64))
        (folder / f"site-{index}.txt").write_text(f"{text}\n\n{later}\n")
    return folder


def write_run(folder: Path, **sections: dict[str, Any]) -> Path:
    """A run file over a tiny model and six tiny clients; ``sections`` override, None deletes."""
    values: dict[str, dict[str, Any]] = {
        "model": {"source": str(write_model(folder / "model"))},
        "data": {"source": str(write_clients(folder / "data")), "window_tokens": 8},
        "lora": {"rank": 2, "target_modules": ["q_proj", "v_proj"]},
        "training": {"rounds": 3, "server_learning_rate": 0.1, "device": "cpu", "threads": 1},
        "privacy": {
            "expected_batch": 60,
            "noise_multiplier": 0.8,
            "corrupt_fraction": 0.1,
            "dropout_fraction": 0.25,
        },
        "evaluation": {"max_windows": 4, "window_tokens": 8},
        "output": {"name": "tiny", "picture": False},
    }
    for name, section in sections.items():
        merged = values.get(name, {}) | section
        values[name] = {key: value for key, value in merged.items() if value is not None}
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(values))
    return path


class DivergingTrainer:
    """A trainer of the user's own whose training goes wrong."""

    def __init__(self, section: Any) -> None:
        self.section = section

    def train(self, model: torch.nn.Module, data: Any, round: int) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.fill_(float("nan"))
