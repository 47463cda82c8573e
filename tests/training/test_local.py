from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from securefed.config import LoraSection, TrainingSection
from securefed.crypto.prg import SeededNoiseGeneratorForTests
from securefed.errors import ConfigError, DataError
from securefed.lora.adapter import build_adapter
from securefed.lora.layout import AdapterLayout
from securefed.lora.sharing import travelling_parameters
from securefed.training.data import Examples
from securefed.training.evaluate import HeldOut, batches, evaluate, predict
from securefed.training.local import DpSgdTrainer, LocalTrainer, load_trainer
from securefed.training.steps import AdamWTrainer, SgdTrainer

CPU = torch.device("cpu")


def llama(layers=1):
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, attention_dropout=0.5,
    )  # fmt: skip
    section = LoraSection(rank=2, alpha=4.0, target_modules=["v_proj"])
    return build_adapter(LlamaForCausalLM(config), section, task="causal-lm")


def layout_of(model):
    found = travelling_parameters(model, "ffa")
    return AdapterLayout({name: tuple(p.shape) for name, p in found.items()})


def flat(model):
    return layout_of(model).flatten(travelling_parameters(model, "ffa"))


def windows(count, seed=0):
    ids = np.random.default_rng(seed).integers(1, 12, size=(count, 8))
    return Examples(ids, np.ones_like(ids), None)


def adamw(**changes):
    options = {
        "local_steps": 3, "batch_size": 4, "learning_rate": 1e-2, "task": "causal-lm",
        "device": CPU, "seed": 7, **changes
    }  # fmt: skip
    return AdamWTrainer(**options)


def dp_sgd(layout, *, noise_seed=1, **changes):
    options = {
        "local_steps": 2, "sampling_probability": 0.5, "expected_batch_size": 4.0,
        "clip_norm": 0.1, "noise_multiplier": 1.0, "learning_rate": 1e-2, "micro_batch": 2,
        "task": "causal-lm", "device": CPU, **changes
    }  # fmt: skip
    return DpSgdTrainer(layout, generator=SeededNoiseGeneratorForTests(noise_seed), **options)


def test_adamw_learns_changes_only_what_travels_and_leaves_no_gradient():
    model, data = llama(), windows(8)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}

    def nll():
        return evaluate(model, data, task="causal-lm", micro_batch=8, device=CPU).nll_sum

    before = nll()
    adamw(local_steps=30, learning_rate=5e-2).train(model, data, 1)
    assert nll() < before
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    assert all(p.grad is None for p in model.parameters())


def test_adamw_repeats_a_round_and_draws_other_batches_in_another():
    vectors = []
    for round_number in (1, 1, 2):
        model = llama()
        adamw(local_steps=1).train(model, windows(30), round_number)
        vectors.append(flat(model))
    assert np.array_equal(vectors[0], vectors[1])
    assert not np.array_equal(vectors[0], vectors[2])


def test_adamw_sees_every_example_once_before_any_twice():
    draws = adamw(local_steps=5, batch_size=2)._draws(10, 1)
    assert sorted(np.concatenate(draws)) == list(range(10))


def test_the_micro_batch_of_adamw_changes_memory_not_the_step():
    vectors = []
    for micro_batch in (1, 3, 6):
        model = llama()
        adamw(local_steps=1, batch_size=6, micro_batch=micro_batch).train(model, windows(6), 1)
        vectors.append(flat(model))
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-5)
    np.testing.assert_allclose(vectors[1], vectors[2], atol=1e-5)


def test_training_on_nothing_is_refused():
    with pytest.raises(DataError, match="no example"):
        adamw().train(llama(), windows(0), 1)


@pytest.mark.parametrize("empty_by", ["no data", "no draw"])
def test_an_empty_draw_is_a_step_of_noise_without_a_call_of_the_model(empty_by):
    model = llama()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    layout = layout_of(model)
    if empty_by == "no data":
        dp_sgd(layout).train(model, windows(0), 1)
    else:
        dp_sgd(layout, sampling_probability=1e-300).train(model, windows(50), 1)
    assert calls == []
    assert np.count_nonzero(flat(model)) == layout.size


def noised_gradients(model, data, monkeypatch, **changes):
    """What one step hands to Adam."""
    layout = layout_of(model)
    seen = []
    step = torch.optim.Adam.step

    def record(self, *args, **kwargs):
        seen.append(torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"]]))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", record)
    dp_sgd(layout, local_steps=1, **changes).train(model, data, 1)
    (gradient,) = seen
    return gradient.double().numpy()


def test_the_noise_of_a_step_has_the_stated_std_once_whatever_the_micro_batches(monkeypatch):
    data = windows(8)
    options = {"clip_norm": 1e-3, "noise_multiplier": 5.0, "sampling_probability": 1.0}
    found = [
        noised_gradients(llama(8), data, monkeypatch, micro_batch=m, noise_seed=seed, **options)
        for seed, m in enumerate((1, 3, 64, 1))
    ]
    values = np.concatenate(found) * 4.0 / 5e-3
    # The clipped sum adds at most 8 C in norm over all coordinates: small beside 5 C in each.
    deviation = 5.0 / math.sqrt(2 * values.size)
    assert abs(values.std() - 1.0) < deviation + 8**2 / (2 * 25 * len(found[0]))
    assert abs(values.mean()) < 5.0 / math.sqrt(values.size) + 0.05


def test_without_visible_noise_a_step_is_the_clipped_sum_over_the_expected_batch(monkeypatch):
    from securefed.training.dp_sgd import PerExampleGradients

    data = windows(5)
    model = llama()
    gradients = PerExampleGradients(
        model, layout_of(model), task="causal-lm", micro_batch=2, device=CPU
    )
    expected = gradients.clipped_sum(data, 0.1) / 4.0
    gradients.close()
    found = noised_gradients(
        model, data, monkeypatch, noise_multiplier=1e-9, sampling_probability=1.0
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def low_precision():
    """bfloat16 weights, a head among what trains: PEFT holds LoRA's factors in float32, it not."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    section = LoraSection(rank=2, target_modules=["v_proj"], modules_to_save=["lm_head"])
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    return build_adapter(model, section, task="causal-lm")


def test_one_example_moves_the_sum_of_low_precision_gradients_by_one_clip_norm(monkeypatch):
    """A sum that is rounded to 8 bits before its noise would move by more: one unit in the last
    place of 64 clipped gradients in one direction is half a clip norm.
    """
    data, sums = windows(1), []
    kinds = {p.dtype for p in travelling_parameters(low_precision(), "ffa").values()}
    assert kinds == {torch.float32, torch.bfloat16}
    for count in (64, 65):
        found = noised_gradients(
            low_precision(), data.take([0] * count), monkeypatch, micro_batch=32,
            clip_norm=0.1, noise_multiplier=1e-9, sampling_probability=1.0,
            expected_batch_size=1.0,
        )  # fmt: skip
        sums.append(found)
    assert np.linalg.norm(sums[0]) == pytest.approx(64 * 0.1, rel=1e-3)
    assert np.linalg.norm(sums[1] - sums[0]) <= 0.1 * (1 + 1e-4)


def test_steps_on_low_precision_weights_train_them():
    model = low_precision()
    before = flat(model)
    dp_sgd(layout_of(model), local_steps=3).train(model, windows(8), 1)
    assert np.count_nonzero(flat(model) != before) > 0.5 * len(before)
    assert all(p.grad is None for p in model.parameters())


def test_local_steps_too_small_for_low_precision_weights_add_up():
    """Forty steps of at most an eighth of a unit in the last place below 1; in bfloat16, none."""
    model, data = low_precision(), windows(6)
    (head,) = [p for p in model.parameters() if p.requires_grad and p.dtype == torch.bfloat16]
    with torch.no_grad():
        head.fill_(1.0)
    loss = predict(model.eval(), next(batches(data, 6, CPU)), "causal-lm").losses().mean()
    largest = float(torch.autograd.grad(loss, head)[0].abs().max())
    found = []
    for micro_batch in (6, 2):
        with torch.no_grad():
            head.fill_(1.0)
        SgdTrainer(
            local_steps=40, batch_size=6, learning_rate=2.0**-11 / largest, task="causal-lm",
            device=CPU, seed=1, micro_batch=micro_batch,
        ).train(model, data, 1)  # fmt: skip
        found.append(head.detach().float() - 1.0)
        assert head.grad is None
    assert float(found[0].abs().max()) >= 2.0**-7
    assert float((found[0] - found[1]).norm()) <= 0.15 * float(found[0].norm())


def test_dp_sgd_leaves_no_hook_and_no_gradient_behind():
    model = llama()
    dp_sgd(layout_of(model), sampling_probability=1.0).train(model, windows(5), 1)
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_dp_sgd_draws_other_noise_in_each_round():
    model = llama()
    trainer = dp_sgd(layout_of(model))
    vectors = []
    for _ in range(2):
        with torch.no_grad():
            for parameter in travelling_parameters(model, "ffa").values():
                parameter.zero_()
        trainer.train(model, windows(0), 1)
        vectors.append(flat(model))
    assert not np.array_equal(vectors[0], vectors[1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"local_steps": 0}, {"sampling_probability": 0.0}, {"sampling_probability": 1.1},
        {"expected_batch_size": 0.0}, {"clip_norm": math.inf}, {"noise_multiplier": 0.0},
        {"learning_rate": -1.0}, {"micro_batch": 0}, {"task": "translation"},
    ],
)  # fmt: skip
def test_a_dp_sgd_setting_out_of_range_is_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        dp_sgd(AdapterLayout({"a": (1,)}), **wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"local_steps": 0}, {"batch_size": 0}, {"learning_rate": math.nan}, {"seed": -1}],
)
def test_an_adamw_setting_out_of_range_is_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        adamw(**wrong)


TRAINER = """
class Mine:
    def __init__(self, section):
        self.steps = section.local_steps
    def train(self, model, data, round):
        for p in model.parameters():
            p.data.add_(self.steps)

class Bare:
    def __init__(self, section):
        pass

class Greedy:
    def __init__(self, section, more):
        pass

not_a_class = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_trainer_for_tests.py").write_text(TRAINER)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_trainer_for_tests"


def test_a_trainer_of_the_users_own_is_made_with_the_section(own_module):
    trainer = load_trainer(f"{own_module}:Mine", TrainingSection(local_steps=2))
    assert isinstance(trainer, LocalTrainer)
    model = torch.nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    trainer.train(model, windows(1), 1)
    assert model.weight.item() == pytest.approx(before + 2)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("{}:Absent", "no class Absent"),
        ("{}:not_a_class", "no class not_a_class"),
        ("{}:Bare", "no method train"),
        ("{}:Greedy", "one argument"),
        ("{}", "module:Class"),
        ("no_such_module_at_all:Mine", "PYTHONPATH"),
    ],
)
def test_a_trainer_that_cannot_be_had_is_refused_with_the_reason(own_module, path, complaint):
    with pytest.raises(ConfigError, match=complaint):
        load_trainer(path.format(own_module), TrainingSection())


def test_evaluation_equals_the_models_own_loss_and_keeps_its_modes():
    model, data = llama(), windows(5)
    ids = torch.from_numpy(data.input_ids)
    with torch.no_grad():
        logits = model(input_ids=ids).logits[:, :-1]
        loss = float(model(input_ids=ids, labels=ids).loss)
    model.train()
    held_out = evaluate(model, data, task="causal-lm", micro_batch=2, device=CPU)
    assert held_out.tokens == 5 * 7
    assert held_out.examples == 5
    assert held_out.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert held_out.correct == int((logits.argmax(-1) == ids[:, 1:]).sum())
    assert all(module.training for module in model.modules())


def test_padding_is_neither_scored_nor_seen():
    model, data = llama(), windows(4)
    data.attention_mask[:, 5:] = 0
    padded = evaluate(model, data, task="causal-lm", micro_batch=4, device=CPU)
    short = Examples(data.input_ids[:, :5].copy(), data.attention_mask[:, :5].copy(), None)
    cut = evaluate(model, short, task="causal-lm", micro_batch=4, device=CPU)
    assert padded.tokens == cut.tokens == 4 * 4
    assert padded.nll_sum == pytest.approx(cut.nll_sum, rel=1e-5)


def test_classification_is_scored_once_an_example():
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=4, num_labels=3,
    )  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    data = windows(6)
    labelled = Examples(data.input_ids, data.attention_mask, np.arange(6) % 3)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(data.input_ids)).logits
    found = evaluate(model, labelled, task="sequence-classification", micro_batch=4, device=CPU)
    assert found.tokens == found.examples == 6
    assert found.correct == int((logits.argmax(-1) == torch.arange(6) % 3).sum())
    assert found.accuracy == found.correct / 6
    with pytest.raises(DataError, match="labels"):
        evaluate(model, data, task="sequence-classification", micro_batch=4, device=CPU)


def test_figures_of_nothing_are_refused_and_an_overflow_is_infinite():
    with pytest.raises(DataError, match="no prediction"):
        _ = HeldOut(0.0, 0, 0, 0).perplexity
    with pytest.raises(DataError, match="no prediction"):
        _ = HeldOut(0.0, 0, 0, 0).accuracy
    assert HeldOut(1e6, 1, 0, 1).perplexity == math.inf


def test_an_example_whose_gradient_is_not_finite_does_not_spoil_a_dp_sgd_step(monkeypatch):
    data = windows(4)  # tokens 1 to 11
    options = {"noise_multiplier": 1e-9, "sampling_probability": 1.0, "micro_batch": 4}
    clean = noised_gradients(llama(), data.take([0, 1, 3]), monkeypatch, **options)
    data.input_ids[2, 4] = 30
    model = llama()
    with torch.no_grad():
        model.get_input_embeddings().weight[30] = torch.nan
    monkeypatch.undo()
    found = noised_gradients(model, data, monkeypatch, **options)
    np.testing.assert_allclose(found, clean, atol=1e-6)
    assert clean.any()


# -- drift on unlike data -----------------------------------------------------------------


def sgd(**changes):
    options = {
        "local_steps": 4, "batch_size": 4, "learning_rate": 0.5, "task": "causal-lm",
        "device": CPU, "seed": 7, **changes
    }  # fmt: skip
    return SgdTrainer(**options)


def gradient_of(model, data):
    """The mean gradient of the examples at the model's present values, flat."""
    before = flat(model)
    sgd(local_steps=1, batch_size=len(data), learning_rate=1.0).train(model, data, 1)
    found = before - flat(model)
    put(model, before)
    return found


def put(model, vector):
    tensors = layout_of(model).unflatten(vector)
    with torch.no_grad():
        for name, parameter in travelling_parameters(model, "ffa").items():
            parameter.copy_(tensors[name])


def test_sgd_steps_are_the_recursion_with_pull_and_correction():
    """y <- y - eta (g(y) + mu (y - x) + c - c_i), step by step, on the whole data."""
    model, data = llama(), windows(4)
    layout, rate, mu = layout_of(model), 0.5, 0.3
    rng = np.random.default_rng(0)
    start = rng.normal(size=layout.size).astype(np.float32)
    added = rng.normal(size=layout.size).astype(np.float32)
    expected = start.copy()
    for _ in range(3):
        put(model, expected)
        expected = expected - rate * (gradient_of(model, data) + mu * (expected - start) + added)
    put(model, start)
    options = {"local_steps": 3, "learning_rate": rate, "proximal_mu": mu}
    sgd(**options, correction=layout.unflatten(added)).train(model, data, 1)
    np.testing.assert_allclose(flat(model), expected, atol=2e-5)
    put(model, start)
    sgd(**options).train(model, data, 1)
    assert np.abs(flat(model) - expected).max() > 0.1


@pytest.mark.parametrize("make", [adamw, sgd])
def test_the_stronger_the_pull_the_shorter_the_way(make):
    ways = []
    for mu in (0.0, 1.0, 100.0):
        model = llama()
        rate = 0.005 if make is sgd else 0.01
        make(local_steps=20, learning_rate=rate, proximal_mu=mu).train(model, windows(8), 1)
        ways.append(float(np.linalg.norm(flat(model))))  # B starts at zero
    assert ways[0] > 1.005 * ways[1] > 1.005**2 * ways[2] > 0


def test_the_pull_of_local_dp_sgd_is_of_released_values_alone():
    """On no data at all steps are noise; the pull then changes them by a known recursion."""
    seen = {}
    for mu in (0.0, 5.0):
        model = llama()
        gradients = []
        step = torch.optim.Adam.step

        def record(self, *args, gradients=gradients, step=step, **kwargs):
            grads = [p.grad.flatten() for g in self.param_groups for p in g["params"]]
            values = [p.detach().flatten().clone() for g in self.param_groups for p in g["params"]]
            gradients.append((torch.cat(grads), torch.cat(values)))
            return step(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.optim.Adam, "step", record)
            dp_sgd(layout_of(model), local_steps=3, proximal_mu=mu).train(model, windows(0), 1)
        seen[mu] = gradients
    for (plain, _), (pulled, values) in zip(seen[0.0], seen[5.0], strict=True):
        torch.testing.assert_close(pulled, plain + 5.0 * values)  # w_0 is zero
    assert float(seen[5.0][2][1].abs().max()) > 0


@pytest.mark.parametrize("mu", [-1.0, math.inf, math.nan])
def test_a_pull_out_of_range_is_refused(mu):
    with pytest.raises(ConfigError, match="proximal_mu"):
        adamw(proximal_mu=mu)


def test_a_trainer_of_a_library_that_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "securefed.training.trl_trainer", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install -c constraints\.txt -e '\.\[trl\]'"):
        load_trainer("securefed.training.trl_trainer:SftTrainer", TrainingSection())
