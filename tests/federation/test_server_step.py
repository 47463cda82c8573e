"""What the server does with a round's sum, compared with the formula computed in the clear."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from securefed.config import SHARING_MODES, LoraSection
from securefed.errors import ConfigError
from securefed.federation.server_optimizer import ServerOptimizer
from securefed.federation.server_step import ServerStep
from securefed.lora.adapter import adapter_state, build_adapter
from securefed.lora.parts import AdapterParts
from securefed.lora.sharing import divide, factor_of, sharing_mode

TARGET = "intermediate.dense"  # 16 inputs, 24 outputs: A and B have different lengths


def made(sharing, kind="sgd", learning_rate=1.0):
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_labels=3,
    )  # fmt: skip
    section = LoraSection(
        rank=3, alpha=6.0, target_modules=[TARGET], modules_to_save=["classifier"], sharing=sharing
    )
    plain = BertForSequenceClassification(config)
    model = build_adapter(plain, section, task="sequence-classification")
    parts = AdapterParts(model, sharing)

    def optimizer(initial):
        return ServerOptimizer(initial, kind=kind, learning_rate=learning_rate)

    return model, parts, ServerStep(parts, optimizer)


def deltas(parts, number, clients=4):
    """What each client of a round might send: float32[dimension], zeros in the padding."""
    parts.begin(number)
    draw = np.random.default_rng(number).normal(size=(clients, parts.dimension))
    draw[:, parts.layout.used :] = 0.0
    return draw.astype(np.float32) * 0.1


def products(state):
    return {
        name: value.double() @ state[name.replace("lora_B", "lora_A")].double()
        for name, value in state.items()
        if factor_of(name) == "B"
    }


@pytest.mark.parametrize("sharing", SHARING_MODES)
def test_a_step_on_the_mean_gives_the_stated_formula_and_leaves_the_frozen_bit_for_bit(sharing):
    model, parts, server = made(sharing)
    for number in range(1, 5):
        before = adapter_state(model)
        own = deltas(parts, number)
        mean = own.astype(np.float64).sum(axis=0) / len(own)
        noised = mean.copy()
        noised[parts.layout.used :] = 5.0  # noise of the sum in coordinates that mean nothing
        sent = server.step(number, -noised)
        after = adapter_state(model)
        division = divide(model, sharing_mode(sharing), number)
        change = parts.layout.unflatten(mean)
        expected = before | {n: before[n] + change[n] for n in division.travelling}
        frozen = set(division.frozen) | set(division.kept)
        if sharing == "fedsvd":
            wanted, found = products(expected), products(after)
            for name, product in wanted.items():
                torch.testing.assert_close(found[name], product, atol=1e-5, rtol=1e-5)
            heads = [n for n in expected if factor_of(n) == "whole"]
            assert sent == sum(after[n].numel() for n in {*division.travelling, *division.frozen})
            frozen = set()
        else:
            heads = list(division.travelling)
            assert sent == parts.layout.used
        for name in heads:
            torch.testing.assert_close(after[name], expected[name], atol=1e-6, rtol=1e-6)
            assert not torch.equal(after[name], before[name])
        for name in frozen:
            assert torch.equal(after[name], before[name]), name


def test_factors_that_travel_in_turn_have_moments_of_their_own():
    """Rounds of B and A equal two Adams apart; a head has one value and two moments."""
    model, parts, server = made("rolora", kind="adam", learning_rate=0.01)
    first = adapter_state(model)
    apart = {}
    for turn, layout in enumerate(parts.layouts):
        apart[turn] = {n: torch.nn.Parameter(first[n].clone()) for n in layout.names}
    adams = {turn: torch.optim.Adam(each.values(), lr=0.01) for turn, each in apart.items()}
    for number in range(1, 6):
        turn = (number - 1) % 2
        gradient = deltas(parts, number).astype(np.float64).mean(axis=0)
        for name, value in parts.layout.unflatten(gradient).items():
            if factor_of(name) == "whole":  # where the other turn left it
                apart[turn][name].data = adapter_state(model)[name]
            apart[turn][name].grad = value
        adams[turn].step()
        server.step(number, gradient)
        state = adapter_state(model)
        for name, value in apart[turn].items():
            torch.testing.assert_close(state[name], value.detach(), atol=1e-6, rtol=1e-5)
    steps = {key: int(v) for key, v in server.state().items() if key.endswith("step")}
    assert steps == {"optimizer.step": 3, "turn-1.optimizer.step": 2}


@pytest.mark.parametrize("kind", ["sgd", "adam"])
@pytest.mark.parametrize("sharing", SHARING_MODES)
def test_a_step_goes_on_bit_for_bit_from_what_was_kept(sharing, kind):
    model, parts, server = made(sharing, kind, 0.05)
    for number in (1, 2, 3):
        server.step(number, deltas(parts, number).astype(np.float64).mean(axis=0))
    kept = {name: value.clone() for name, value in server.state().items()}
    whole = adapter_state(model)

    again, _, its_server = made(sharing, kind, 0.05)
    its_server.restore(kept)
    resumed = adapter_state(again)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    for number in (4, 5):
        gradient = deltas(parts, number).astype(np.float64).mean(axis=0)
        server.step(number, gradient)
        its_server.step(number, gradient)
    whole, resumed = adapter_state(model), adapter_state(again)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert its_server.state().keys() == server.state().keys()


def of_product(name, number):
    """A gradient of one layer's B A, the same whatever the basis."""
    generator = torch.Generator().manual_seed(1000 * number + sum(name.encode()))
    return torch.randn(24, 16, generator=generator)


def gradient_in(parts, state, number):
    """The gradient of what travels: G A^T of every B, and something for the head."""
    found = {}
    for name, shape in parts.layout.shapes.items():
        if factor_of(name) == "B":
            found[name] = of_product(name, number) @ state[name.replace("lora_B", "lora_A")].T
        else:
            found[name] = torch.full(shape, 0.1 * number)
    return parts.layout.flatten(found).astype(np.float64)


@pytest.mark.parametrize(("kind", "the_same"), [("sgd", True), ("adam", False)])
def test_re_factoring_alone_is_a_change_of_basis_that_only_adaptive_optimisers_see(kind, the_same):
    runs = {}
    for sharing in ("ffa", "fedsvd"):
        model, parts, server = made(sharing, kind, 0.05)
        for number in (1, 2, 3, 4):
            server.step(number, gradient_in(parts, adapter_state(model), number))
        runs[sharing] = products(adapter_state(model))
    distance = max(float((runs["ffa"][n] - runs["fedsvd"][n]).abs().max()) for n in runs["ffa"])
    assert (distance < 1e-4) == the_same, distance
    assert the_same or distance > 1e-2


def test_adams_first_moment_is_turned_with_the_basis():
    model, parts, server = made("fedsvd", "adam", 0.05)
    for number in (1, 2, 3):
        server.step(number, gradient_in(parts, adapter_state(model), number))
    state = adapter_state(model)
    moments = parts.layout.unflatten(server.state()["optimizer.exp_avg"].numpy())
    for name in parts.layout.names:
        if factor_of(name) == "B":
            g1, g2, g3 = (of_product(name, number) for number in (1, 2, 3))
            mean = 0.1 * (0.81 * g1 + 0.9 * g2 + g3)  # beta1 = 0.9
            expected = mean @ state[name.replace("lora_B", "lora_A")].T
            torch.testing.assert_close(moments[name], expected, atol=1e-5, rtol=1e-4)


def test_a_checkpoint_of_another_adapter_is_refused():
    _, _, server = made("ffa")
    _, _, other = made("fedit")
    with pytest.raises(ConfigError, match="checkpoint of"):
        server.restore(other.state())
