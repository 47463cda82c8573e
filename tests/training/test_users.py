"""A user is drawn as one, averaged as one, clipped as one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from securefed.config import LoraSection
from securefed.crypto.prg import SeededNoiseGeneratorForTests
from securefed.engines.cohort import clipped_sum_of_sample
from securefed.errors import ConfigError
from securefed.lora.adapter import build_adapter
from securefed.lora.layout import AdapterLayout
from securefed.lora.sharing import travelling_parameters
from securefed.privacy.policy import PrivacyPolicy
from securefed.training.data import Examples
from securefed.training.dp_sgd import PerExampleGradients
from securefed.training.local import DpSgdTrainer
from securefed.training.users import clipped_sum_of_users, sampled_users, user_means

CPU = torch.device("cpu")
VOCABULARY, POISON = 40, 39


def llama():
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    section = LoraSection(rank=2, alpha=4.0, target_modules=["v_proj"])
    return build_adapter(LlamaForCausalLM(config), section, task="causal-lm")


def layout_of(model):
    found = travelling_parameters(model, "ffa")
    return AdapterLayout({name: tuple(p.shape) for name, p in found.items()})


def gradients_of(model, micro_batch=3):
    return PerExampleGradients(
        model, layout_of(model), task="causal-lm", micro_batch=micro_batch, device=CPU
    )


def examples(users, seed=0):
    """Windows of 8 tokens, one a user index; the same seed gives the same windows in a row."""
    ids = np.random.default_rng(seed).integers(1, POISON, size=(len(users), 8))
    return Examples(ids, np.ones_like(ids), None, np.array(users, dtype=np.int64))


def seeded(seed):
    return SeededNoiseGeneratorForTests(seed)


def one_by_one(model, data):
    """Each example's gradient by plain autograd and the model's own loss."""
    model.eval()
    parameters = [dict(model.named_parameters())[name] for name in layout_of(model).names]
    rows = []
    for ids in torch.from_numpy(data.input_ids):
        found = torch.autograd.grad(model(input_ids=ids[None], labels=ids[None]).loss, parameters)
        rows.append(torch.cat([g.flatten() for g in found]).double().numpy())
    return np.stack(rows)


# -- examples that know their user ---------------------------------------------------------


def test_examples_taken_keep_their_users_numbered_anew():
    data = examples([0, 1, 1, 2, 3, 3])
    taken = data.take([5, 1, 2, 4])
    assert taken.users.tolist() == [1, 0, 0, 1]
    assert taken.input_ids.tolist() == data.input_ids[[5, 1, 2, 4]].tolist()
    assert [rows.tolist() for rows in taken.rows_of_users()] == [[1, 2], [0, 3]]
    assert data.units("user") == 4
    assert data.units("example") == 6
    assert data.take([]).units("user") == 0


@pytest.mark.parametrize("users", [[0, 2], [1, 1], [-1, 0], [0]])
def test_users_are_numbered_without_gaps_one_an_example(users):
    ids = np.ones((2, 8), dtype=np.int64)
    with pytest.raises(ConfigError, match="allowed"):
        Examples(ids, ids, None, np.array(users, dtype=np.int64))


def test_without_users_nothing_is_done_for_users():
    ids = np.ones((2, 8), dtype=np.int64)
    with pytest.raises(ConfigError, match="not told apart"):
        sampled_users(Examples(ids, ids, None), 0.5, seeded(0))
    with pytest.raises(ConfigError, match="not told apart"):
        clipped_sum_of_users(gradients_of(llama()), Examples(ids, ids, None), 1.0)


# -- sampling ------------------------------------------------------------------------------


def test_a_user_is_drawn_with_all_of_its_examples_or_with_none():
    data = examples([0] * 7 + [1] + [2] * 3 + [3] * 20 + [4])
    sizes = np.bincount(data.users)
    seen = set()
    for seed in range(200):
        drawn = sampled_users(data, 0.5, seeded(seed))
        whole = {tuple(row): user for row, user in zip(data.input_ids, data.users, strict=True)}
        users = [whole[tuple(row)] for row in drawn.input_ids]
        counts = np.bincount(users, minlength=5)
        assert all(counts[user] in (0, sizes[user]) for user in range(5))
        assert users == sorted(users)  # a user's examples together
        seen.add(tuple(counts > 0))
    assert len(seen) == 32  # every set of users comes up


def test_users_are_drawn_with_the_probability_stated_whatever_they_hold():
    """Drawing by example, a user of 30 would be there in almost every step."""
    data = examples([0] * 30 + [1])
    drawn = np.zeros(2)
    for seed in range(2000):
        taken = sampled_users(data, 0.3, seeded(seed))
        drawn += [len(taken) >= 30, len(taken) in (1, 31)]
    # 6 standard deviations of a proportion of 2000
    assert np.abs(drawn / 2000 - 0.3).max() < 6 * np.sqrt(0.3 * 0.7 / 2000)


def test_at_most_so_many_of_a_users_examples_are_used_drawn_anew_for_each_step():
    data = examples([0] * 10 + [1] * 2)
    counts = np.zeros(12)
    generator = seeded(1)
    for _ in range(600):
        drawn = sampled_users(data, 1.0, generator, most=3)
        assert np.bincount(drawn.users).tolist() == [3, 2]
        rows = [int(np.flatnonzero((data.input_ids == row).all(1))[0]) for row in drawn.input_ids]
        assert len(set(rows)) == 5  # without replacement
        counts[rows] += 1
    assert counts[10:].tolist() == [600, 600]
    assert np.abs(counts[:10] / 600 - 0.3).max() < 6 * np.sqrt(0.3 * 0.7 / 600)
    with pytest.raises(ConfigError, match="examples_per_user = 0"):
        sampled_users(data, 1.0, generator, most=0)


# -- means ---------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(1, 6), max_size=6), size=st.integers(1, 5), seed=st.integers(0))
def test_means_are_those_of_each_users_rows_to_the_bit_wherever_parts_begin(counts, size, seed):
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(len(counts)), counts)
    rows = rng.normal(size=(len(users), 4)).astype(np.float32)
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    means = list(user_means(parts, users))
    assert len(means) == len(counts)
    for user, mean in enumerate(means):
        own = rows[users == user]
        np.testing.assert_allclose(mean, own.astype(np.float64).mean(axis=0), atol=1e-12)
        (alone,) = user_means([own], np.zeros(len(own), dtype=np.int64))
        assert mean.tolist() == alone.tolist()


@pytest.mark.parametrize(
    ("users", "rows", "what"),
    [([0, 1, 0], 3, "stand together"), ([0, 0], 1, "fewer rows"), ([0, 0], 3, "more rows")],
)
def test_a_user_that_would_be_clipped_twice_is_refused(users, rows, what):
    with pytest.raises(ConfigError, match=what):
        list(user_means([np.ones((rows, 2), dtype=np.float32)], np.array(users)))


def test_the_sum_is_that_of_clipped_means_computed_one_by_one():
    model = llama()
    data = examples([0] * 4 + [1] + [2] * 7 + [3] * 2)
    rows = one_by_one(model, data)
    means = np.stack([rows[data.users == user].mean(axis=0) for user in range(4)])
    norms = np.linalg.norm(means, axis=1)
    clip = float(np.median(norms))  # some are clipped and some are not
    expected = (means * np.minimum(1.0, clip / norms)[:, None]).sum(axis=0)
    for micro_batch in (1, 3, 64):
        gradients = gradients_of(model, micro_batch)
        found = clipped_sum_of_users(gradients, data, clip)
        gradients.close()
        np.testing.assert_allclose(found, expected, atol=1e-5 * clip)


def test_one_user_with_fifty_records_moves_the_sum_by_no_more_than_the_clip_norm():
    """The same data with the example as the unit: the same person moves it by many times that."""
    model = llama()
    others = examples([0, 1, 2, 2], seed=3)
    ids = np.tile(examples([0], seed=9).input_ids, (50, 1))
    ids[:, -1] = np.arange(50) % 30 + 1  # fifty records that say much the same
    both = Examples(
        np.concatenate([others.input_ids, ids]),
        np.ones((54, 8), dtype=np.int64),
        None,
        np.concatenate([others.users, np.full(50, 3)]),
    )
    clip = 0.5 * float(np.linalg.norm(one_by_one(model, both), axis=1).min())
    gradients = gradients_of(model, micro_batch=4)

    def moved(unit, data):
        policy = PrivacyPolicy(clip_norm=clip, mechanism="none", unit=unit)
        without = data.take(range(4))
        sums = [
            clipped_sum_of_sample(gradients, part, policy, seeded(0), examples_per_user=None)
            for part in (data, without)
        ]
        return float(np.linalg.norm(sums[0] - sums[1]))

    assert moved("user", both) <= clip * (1 + 1e-12)
    assert moved("user", both) > 0.5 * clip
    assert moved("example", both) > 20 * clip
    gradients.close()


def test_a_users_contribution_is_the_same_to_the_bit_whoever_else_was_drawn():
    model = llama()
    data = examples([0] * 5 + [1] * 3 + [2] + [3] * 8)
    gradients = gradients_of(model, micro_batch=3)

    def of_user(user, drawn):
        rows = np.concatenate([np.flatnonzero(data.users == other) for other in drawn])
        part = data.take(rows)
        return list(user_means(gradients.flat_rows(part), part.users))[drawn.index(user)]

    for user in range(4):
        alone = of_user(user, [user]).tolist()
        for drawn in ([0, 1, 2, 3], sorted({user, 2}), sorted({0, user})):
            assert of_user(user, drawn).tolist() == alone
    gradients.close()


def test_a_user_with_one_example_that_is_not_finite_contributes_zeros_and_spoils_no_other():
    model = llama()
    data = examples([0, 0, 1, 1, 1, 2])
    gradients = gradients_of(model)
    clean = clipped_sum_of_users(gradients, data.take([0, 1, 5]), 0.1)
    data.input_ids[3, 3] = POISON
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = torch.nan
    found = clipped_sum_of_users(gradients, data, 0.1)
    assert clean.any()
    assert found.tolist() == clean.tolist()
    assert not clipped_sum_of_users(gradients, data.take([2, 3, 4]), 0.1).any()
    gradients.close()


def test_an_empty_sample_is_zeros_without_a_call_of_the_model():
    model = llama()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    gradients = gradients_of(model)
    found = clipped_sum_of_users(gradients, sampled_users(examples([0, 1]), 0.0, seeded(0)), 1.0)
    assert found.shape == (layout_of(model).size,)
    assert not found.any()
    assert calls == []


# -- DP-SGD within one client --------------------------------------------------------------


def summed_gradients(monkeypatch, data, *, poisoned=False, **changes):
    """What a local step puts its noise on, by parameter, of one step in which all are drawn."""
    seen = []

    def watched(self):
        seen.append(torch.cat([p.summed_grad.flatten() for p in self.params]).double().numpy())
        for parameter in self.params:
            parameter.grad = parameter.summed_grad

    monkeypatch.setattr("securefed.training.local._SecretNoiseOptimizer.add_noise", watched)
    model = llama()
    if poisoned:
        with torch.no_grad():
            model.get_input_embeddings().weight[POISON] = torch.nan
    options = {
        "local_steps": 1, "sampling_probability": 1.0, "expected_batch_size": 4.0,
        "noise_multiplier": 1.0, "learning_rate": 1e-2, "micro_batch": 3, "task": "causal-lm",
        "device": CPU, "generator": seeded(1), **changes
    }  # fmt: skip
    DpSgdTrainer(layout_of(model), **options).train(model, data, 1)
    (only,) = seen
    return only


def test_a_local_step_clips_each_users_mean(monkeypatch):
    data = examples([0] * 4 + [1] + [2] * 7)
    expected = clipped_sum_of_users(gradients_of(llama()), data, 0.05)
    found = summed_gradients(monkeypatch, data, unit="user", clip_norm=0.05)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    by_example = summed_gradients(monkeypatch, data, unit="example", clip_norm=0.05)
    assert np.linalg.norm(by_example - expected) > 0.05


def test_a_local_user_that_is_not_finite_counts_as_zeros(monkeypatch):
    data = examples([0, 0, 1, 1])
    changes = {"unit": "user", "clip_norm": 0.05, "poisoned": True}
    clean = summed_gradients(monkeypatch, data.take([0, 1]), **changes)
    data.input_ids[3, 3] = POISON
    assert clean.any()
    assert summed_gradients(monkeypatch, data, **changes).tolist() == clean.tolist()


def test_dp_sgd_within_a_client_protects_no_whole_client(monkeypatch):
    with pytest.raises(ConfigError, match="'example' or one 'user'"):
        summed_gradients(monkeypatch, examples([0]), unit="client", clip_norm=0.05)
