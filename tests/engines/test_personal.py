"""What a client keeps is taken over only from a round that was applied."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from securefed.config import LoraSection
from securefed.engines.personal import PersonalParts
from securefed.lora.adapter import build_adapter
from securefed.lora.parts import AdapterParts
from securefed.training.data import Examples
from securefed.training.dp_sgd import PerExampleGradients
from securefed.training.steps import AdamWTrainer


def model_of(sharing):
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    section = LoraSection(rank=2, target_modules=["v_proj"], sharing=sharing)
    return build_adapter(LlamaForCausalLM(config), section, task="causal-lm")


def parts_of(sharing):
    return AdapterParts(model_of(sharing), sharing)


def train(personal, parts, client, value):
    with personal.of(client):
        found = parts.kept()
        parts.load_kept({name: torch.full_like(each, value) for name, each in found.items()})
        personal.trained(client)
    return found


def held(personal, parts, client):
    with personal.of(client):
        return {float(value) for each in parts.kept().values() for value in each.unique()}


def test_each_client_finds_what_it_left_and_nobody_else_does():
    parts = parts_of("fedsa")
    personal = PersonalParts(parts)
    assert personal.some
    for client, value in (("a", 1.0), ("b", 2.0)):
        found = train(personal, parts, client, value)
        assert not any(each.any() for each in found.values())
    personal.take_over("abc")
    assert [held(personal, parts, client) for client in "abc"] == [{1.0}, {2.0}, {0.0}]
    assert not any(each.any() for each in parts.kept().values())


def test_what_an_attempt_left_that_was_not_applied_is_forgotten():
    parts = parts_of("fedsa")
    personal = PersonalParts(parts)
    train(personal, parts, "a", 1.0)
    personal.take_over("a")
    train(personal, parts, "a", 5.0)
    personal.forget_new()
    personal.take_over("a")
    assert held(personal, parts, "a") == {1.0}
    personal.forget()
    assert held(personal, parts, "a") == {0.0}


def test_what_was_trained_in_a_round_that_a_client_did_not_charge_is_forgotten():
    parts = parts_of("fedsa")
    personal = PersonalParts(parts)
    for client in "ab":
        train(personal, parts, client, 1.0)
    personal.take_over("b")  # a was late before it charged
    assert [held(personal, parts, client) for client in "ab"] == [{0.0}, {1.0}]
    personal.take_over("a")
    assert held(personal, parts, "a") == {0.0}


def test_only_the_last_two_rounds_are_kept_on_disk_and_nothing_where_nothing_is_kept(tmp_path):
    parts = parts_of("fedsa")
    personal = PersonalParts(parts)
    for number in range(4):
        train(personal, parts, "a", float(number))
        personal.take_over("a")
        personal.save(tmp_path, ("a", "b"), number)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "round-2.safetensors",
        "round-3.safetensors",
    ]
    again = PersonalParts(parts)
    again.load(tmp_path, ("a", "b"), 2)
    assert [held(again, parts, client) for client in "ab"] == [{2.0}, {0.0}]

    none = PersonalParts(parts_of("ffa"))
    assert not none.some
    none.save(tmp_path / "no", ("a",), 1)
    assert not (tmp_path / "no").exists()


def test_a_kept_b_would_let_one_example_move_the_sum_by_more_than_a_clip_norm():
    """Why the mode is refused where examples are protected by noise in the sum."""
    clip_norm, sums = 0.01, []
    for drawn in ([], [11]):  # in an earlier round of the client, besides the other eleven
        model = model_of("fedsa")
        parts = AdapterParts(model, "fedsa")
        ids = np.random.default_rng(1).integers(1, 40, size=(12, 8))
        examples = Examples(ids, np.ones_like(ids), None)
        trainer = AdamWTrainer(
            local_steps=4, batch_size=12, learning_rate=0.05, task="causal-lm",
            device=torch.device("cpu"), seed=1,
        )  # fmt: skip
        first = parts.flat()
        for sample in (range(11), drawn):
            if len(sample):
                trainer.train(model, examples.take(sample), 1)
        parts.load_flat(first)
        for name in parts.kept():
            model.get_parameter(name).requires_grad_(False)
        gradients = PerExampleGradients(
            model, parts.layout, task="causal-lm", micro_batch=4, device=torch.device("cpu")
        )
        # Now the example is not drawn, and the other eleven are.
        sums.append(gradients.clipped_sum(examples.take(range(11)), clip_norm))
    assert np.linalg.norm(sums[1] - sums[0]) > 1.5 * clip_norm
