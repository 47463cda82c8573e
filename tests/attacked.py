"""Tiny models of real architectures, and real rounds over them, for attacks to be tried on."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from securefed.auditing.rounds import Bench, Setup, adapted

VICTIM = "site-00"
_SPECIAL = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
BERT_TARGETS = ("query", "value")
LLAMA_TARGETS = ("q_proj", "v_proj")


def _tokenizer(words: int, *, around: bool) -> Any:
    vocabulary = _SPECIAL | {f"w{i}": i + len(_SPECIAL) for i in range(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if around:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def bert() -> tuple[Any, Any]:
    """A classifier with absolute positions, its weights large enough for attention to matter."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=400,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=24,
        initializer_range=0.1,
        pad_token_id=0,
    )
    return BertForSequenceClassification(config).eval(), _tokenizer(396, around=True)


def llama() -> tuple[Any, Any]:
    """A language model with rotary positions and tied embeddings."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval(), _tokenizer(396, around=False)


def bench(kind: str, setup: Setup, **options: Any) -> Bench:
    """Rounds over a fresh tiny model."""
    model, tokenizer = bert() if kind == "bert" else llama()
    return Bench(adapted(model, setup, 0), tokenizer, setup, **options)


def setup(kind: str, **options: Any) -> Setup:
    """Rounds in which A travels and B is not zero, unless said otherwise."""
    encoder = kind == "bert"
    values: dict[str, Any] = {
        "task": "sequence-classification" if encoder else "causal-lm",
        "targets": BERT_TARGETS if encoder else LLAMA_TARGETS,
        "rank": 8,
        "sharing": "rolora",
        "turn": 2,
        "warm": 0.1,
        "clients": 3,
        "window_tokens": None if encoder else 8,
    }
    return Setup(**(values | options))


def texts(kind: str, seed: int, *, count: int = 1, tokens: int = 8) -> list[tuple[int, ...]]:
    """Random texts of so many tokens, special ones left out of the count."""
    rng = np.random.default_rng(seed)
    rows = rng.choice(np.arange(4, 400), size=(count, tokens), replace=False).tolist()
    return [(2, *row, 3) if kind == "bert" else tuple(row) for row in rows]


def updates(made: Bench, own: list[tuple[int, ...]], kind: str) -> dict[str, Any]:
    """The victim's update from ``own`` texts, and those of the others from texts of theirs."""
    found = {VICTIM: made.update(own)}
    for number, name in enumerate(made.names[1:], start=1):
        found[name] = made.update(texts(kind, 1000 + number))
    return found
