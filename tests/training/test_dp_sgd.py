from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from securefed.config import LoraSection
from securefed.errors import ConfigError, DataError, GradientCheckError
from securefed.lora.adapter import build_adapter, save_adapter
from securefed.lora.layout import AdapterLayout
from securefed.lora.sharing import travelling_parameters
from securefed.training.data import Examples
from securefed.training.dp_sgd import PerExampleGradients, filled_micro_batch

CPU = torch.device("cpu")
WIDTH, VOCABULARY = 8, 40


def llama():
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, attention_dropout=0.5,
    )  # fmt: skip
    section = LoraSection(rank=2, alpha=4.0, target_modules=["v_proj"])
    return build_adapter(LlamaForCausalLM(config), section, task="causal-lm"), "causal-lm"


def bert():
    torch.manual_seed(6)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_labels=3, hidden_dropout_prob=0.5,
    )  # fmt: skip
    section = LoraSection(
        rank=2, alpha=4.0, target_modules=["query", "value"], modules_to_save=["classifier"]
    )
    task = "sequence-classification"
    return build_adapter(BertForSequenceClassification(config), section, task=task), task


def layout_of(model):
    found = travelling_parameters(model, "ffa")
    return AdapterLayout({name: tuple(p.shape) for name, p in found.items()})


def gradients_of(made, micro_batch=3, layout=None):
    model, task = made
    return PerExampleGradients(
        model, layout or layout_of(model), task=task, micro_batch=micro_batch, device=CPU
    )


def examples(lengths, *, seed=0, labelled=False):
    generator = np.random.default_rng(seed)
    ids = generator.integers(1, VOCABULARY, size=(len(lengths), WIDTH))
    mask = (np.arange(WIDTH)[None, :] < np.array(lengths, dtype=np.int64)[:, None]).astype(np.int64)
    labels = generator.integers(0, 3, size=len(lengths)) if labelled else None
    return Examples(ids, mask, labels)


def both(lengths, seed=0):
    return [
        (llama(), examples(lengths, seed=seed)),
        (bert(), examples(lengths, seed=seed, labelled=True)),
    ]


def one_by_one(made, data):
    """Each example's gradient by plain autograd and the model's own loss, in evaluation mode."""
    model, task = made
    model.eval()
    layout = layout_of(model)
    parameters = dict(model.named_parameters())
    rows = []
    for i in range(len(data)):
        length = int(data.attention_mask[i].sum())
        ids = torch.from_numpy(data.input_ids[i : i + 1, :length])
        labels = ids if task == "causal-lm" else torch.from_numpy(data.labels[i : i + 1])
        loss = model(input_ids=ids, labels=labels).loss
        found = torch.autograd.grad(loss, [parameters[name] for name in layout.names])
        rows.append(torch.cat([g.flatten() for g in found]).double().numpy())
    return np.stack(rows)


def test_the_sum_is_that_of_clipped_gradients_computed_one_by_one():
    for made, data in both([8, 3, 5, 8, 2]):
        expected = one_by_one(made, data)
        norms = np.linalg.norm(expected, axis=1)
        clip = float(np.median(norms))
        clipped = (expected * np.minimum(1.0, clip / norms)[:, None]).sum(axis=0)
        found = gradients_of(made, micro_batch=2).clipped_sum(data, clip)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, clipped, atol=1e-5 * clip)


@settings(max_examples=10, deadline=None)
@given(st.floats(1e-6, 1e3), st.integers(0, 5))
def test_one_examples_contribution_is_never_longer_than_the_clip_norm(clip, seed):
    found = gradients_of(llama()).clipped_sum(examples([6], seed=seed), clip)
    assert np.linalg.norm(found) <= clip


def test_the_micro_batch_does_not_change_the_sum():
    made = llama()
    data = examples([8, 3, 5, 8, 2, 7, 4])
    sums = []
    for micro_batch in (1, 3, 64):
        gradients = gradients_of(made, micro_batch)
        sums.append(gradients.clipped_sum(data, 0.05))
        gradients.close()
    np.testing.assert_allclose(sums[0], sums[1], atol=1e-7)
    np.testing.assert_allclose(sums[0], sums[2], atol=1e-7)


def test_a_token_mean_over_the_batch_lets_one_example_change_anothers_gradient_ours_does_not():
    made = llama()
    model, _ = made
    short, long = examples([8, 3], seed=1), examples([8, 8], seed=1)
    layout = layout_of(model)
    parameters = [dict(model.named_parameters())[name] for name in layout.names]

    def of_first_under_batch_mean(data):
        """What the first example's tokens give to the gradient of transformers' own batch loss."""
        ids, mask = torch.from_numpy(data.input_ids), torch.from_numpy(data.attention_mask)
        labels = ids.masked_fill(mask == 0, -100)
        whole = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        rest = labels.clone()
        rest[0] = -100
        others = model(input_ids=ids, attention_mask=mask, labels=rest).loss
        counted = (labels[:, 1:] != -100).sum()
        others = others * (rest[:, 1:] != -100).sum() / counted
        found = torch.autograd.grad(whole - others, parameters)
        return torch.cat([g.flatten() for g in found])

    def of_first_under_ours(data):
        (part,) = gradients.micro_batches(data)
        return torch.cat([part[name][0].flatten() for name in layout.names])

    naive = [of_first_under_batch_mean(data) for data in (short, long)]
    assert float((naive[0] - naive[1]).norm() / naive[0].norm()) > 0.2
    gradients = gradients_of(made, layout=layout)
    ours = [of_first_under_ours(data) for data in (short, long)]
    assert float((ours[0] - ours[1]).norm() / ours[0].norm()) < 1e-5


def test_what_the_model_is_given_has_one_shape_and_one_masking_whatever_was_sampled():
    """Kernels go by shape, and by whether any row is padded: neither may tell of the sample."""
    for made, data in both([8, 8, 8, 3, 8, 2, 8]):
        seen = set()

        def watch(module, arguments, named, seen=seen):
            mask = named["attention_mask"]
            seen.add((tuple(named["input_ids"].shape), bool(mask.all())))

        made[0].base_model.register_forward_pre_hook(watch, with_kwargs=True)
        gradients = gradients_of(made, micro_batch=3)
        for sample in ([0], [3], [0, 1, 2], [3, 5], [0, 1, 2, 4], list(range(7))):
            gradients.clipped_sum(data.take(sample), 0.1)
        rows = 3 if made[1] == "causal-lm" else 4  # one more, a padded one
        assert seen == {((rows, WIDTH), made[1] == "causal-lm")}


def test_an_examples_gradient_is_the_same_to_the_bit_whatever_else_was_sampled():
    for made, data in both([8, 8, 3, 8, 2, 8, 4]):
        gradients = gradients_of(made, micro_batch=3)
        layout = layout_of(made[0])

        def of_first(sample, gradients=gradients, data=data, layout=layout):
            """The first example's gradient, sampled beside others, in whatever place it stands."""
            found = [
                torch.cat([part[name].flatten(1) for name in layout.names], dim=1)
                for part in gradients.micro_batches(data.take(sample))
            ]
            return torch.cat(found)[sample.index(0)]

        alone = of_first([0])
        for sample in ([0, 1], [1, 0], [2, 4, 0], [1, 2, 3, 5, 0], [0, 2, 4], [6, 0, 5, 4]):
            assert torch.equal(of_first(sample), alone), (made[1], sample)
        gradients.close()


def test_what_fills_a_micro_batch_up_gives_nothing_to_the_sum():
    for made, data in both([8, 3, 5]):
        expected = one_by_one(made, data.take([1])).sum(axis=0)
        found = gradients_of(made, micro_batch=16).clipped_sum(data.take([1]), 1e6)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.linalg.norm(expected))


@pytest.mark.parametrize("leak", ["neighbours", "place"])
def test_bits_that_depend_on_the_micro_batch_make_it_smaller_until_they_do_not(leak):
    """Far inside the tolerance of rounding, and yet one example would move another's gradient."""
    made = llama()

    def bend(module, inputs, output):
        if leak == "neighbours":
            return output * (1 + 0.1 * output.mean())
        return output * (1 + 1e-5 * torch.arange(len(output)).view(-1, 1, 1))

    made[0].base_model.model.model.layers[0].mlp.register_forward_hook(bend)
    gradients = gradients_of(made, micro_batch=4)
    note = gradients.check(examples([8, 8, 8]))
    assert gradients.micro_batch == 1
    assert "cpu (float32)" in note
    assert "layers.0.self_attn.v_proj.lora_B" in note
    assert gradients.check(examples([8, 8, 8])) is None


def test_a_sound_model_keeps_its_micro_batch():
    for made, data in both([8, 3, 5, 8, 6]):
        gradients = gradients_of(made, micro_batch=5)
        assert gradients.check(data) is None
        assert gradients.micro_batch == 5


@pytest.mark.parametrize(
    ("most", "expected", "labelled", "device", "size"),
    [
        (16, 16.0, False, "cpu", 4),
        (16, 3.1, False, "cpu", 2),
        (16, 0.01, False, "cpu", 1),
        (4, 1000.0, False, "cpu", 4),
        (32, 9.6, True, "cpu", 5),
        (16, 3.1, False, "cuda", 16),
    ],
)
def test_the_size_of_a_micro_batch_follows_from_public_figures(
    most, expected, labelled, device, size
):
    task = "sequence-classification" if labelled else "causal-lm"
    assert filled_micro_batch(most, expected, task, torch.device(device)) == size


def test_no_examples_give_zeros_without_a_call_of_the_model():
    made = llama()
    calls = []
    made[0].register_forward_hook(lambda *_: calls.append(1))
    gradients = gradients_of(made)
    found = gradients.clipped_sum(examples([]), 1.0)
    assert found.shape == (layout_of(made[0]).size,)
    assert not found.any()
    assert calls == []
    gradients.clipped_sum(examples([8]), 1.0)
    assert calls == [1]


def test_an_example_whose_gradient_is_not_finite_counts_as_zeros_and_spoils_no_other():
    made = llama()
    data = examples([8, 8, 8], seed=2)
    data.input_ids[:] = np.where(data.input_ids == 7, 8, data.input_ids)
    expected = gradients_of(made)
    clean = expected.clipped_sum(data.take([0, 2]), 0.1)
    expected.close()
    data.input_ids[1, 3] = 7
    with torch.no_grad():
        made[0].get_input_embeddings().weight[7] = torch.nan
        # The head is its own tensor, so token 7 is poisonous only where it is read.
    gradients = gradients_of(made)
    found = gradients.clipped_sum(data, 0.1)
    np.testing.assert_allclose(found, clean, atol=1e-7)
    assert not gradients.clipped_sum(data.take([1]), 0.1).any()


def test_calls_leave_gradients_modes_and_parameters_alone_and_repeat_exactly():
    for made, data in both([8, 3, 5]):
        model = made[0]
        model.train()
        modes = [module.training for module in model.modules()]
        marked = dict(model.named_parameters())[layout_of(model).names[0]]
        marked.grad = torch.ones_like(marked)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        gradients = gradients_of(made)
        first = gradients.clipped_sum(data, 0.1)
        gradients.check(data)
        assert np.array_equal(gradients.clipped_sum(data, 0.1), first)
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(marked.grad, torch.ones_like(marked))
        assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
        assert sum(p.grad is not None for p in model.parameters()) == 1


def test_closing_takes_every_hook_off_and_a_second_set_is_refused_before():
    made = llama()
    gradients = gradients_of(made)
    with pytest.raises(GradientCheckError, match="twice"):
        gradients_of(made)
    gradients.close()
    gradients.close()
    assert not any(m._forward_hooks or m._backward_hooks for m in made[0].modules())
    gradients_of(made).close()


def test_the_check_passes_on_sound_models_and_on_a_single_example():
    for made, data in both([8, 3, 5, 8, 6]):
        gradients = gradients_of(made)
        gradients.check(data)
        gradients.check(data.take([0]))


def test_a_model_that_mixes_its_examples_fails_the_check():
    made = llama()

    def mix(module, inputs, output):
        return output - 0.5 * output.mean(dim=0, keepdim=True)

    made[0].base_model.model.model.layers[0].mlp.register_forward_hook(mix)
    with pytest.raises(GradientCheckError, match="not independent"):
        gradients_of(made).check(examples([8, 8, 8]))


def test_a_module_that_the_hooks_do_not_follow_rightly_fails_the_check():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):
            return weight.clone()

        @staticmethod
        def backward(ctx, gradient):
            return 2.0 * gradient

    class Bent(torch.nn.Linear):
        def forward(self, x):
            return torch.nn.functional.linear(x, Doubled.apply(self.weight))

    made = llama()
    made[0].base_model.model.model.layers[0].self_attn.v_proj.lora_B["default"].__class__ = Bent
    # Registered as a linear layer, so that Opacus uses its formula for one.
    from opacus.grad_sample import GradSampleModule

    GradSampleModule.GRAD_SAMPLERS[Bent] = GradSampleModule.GRAD_SAMPLERS[torch.nn.Linear]
    try:
        with pytest.raises(GradientCheckError, match=r"layers\.0\..*computed alone"):
            gradients_of(made).check(examples([8, 8]))
    finally:
        del GradSampleModule.GRAD_SAMPLERS[Bent]


def test_a_travelling_parameter_that_the_loss_does_not_use_is_named():
    made = llama()
    layer = made[0].base_model.model.model.layers[1].self_attn.v_proj
    layer.lora_B["default"].forward = lambda x: torch.zeros(*x.shape[:-1], 8)
    with pytest.raises(GradientCheckError, match=r"layers\.1\..*no per-example gradient"):
        gradients_of(made).check(examples([8, 8]))


def test_gradient_checkpointing_is_refused_before_and_after_the_hooks():
    made = llama()
    gradients = gradients_of(made)
    made[0].base_model.model.gradient_checkpointing_enable()
    with pytest.raises(GradientCheckError, match="gradient checkpointing"):
        gradients.check(examples([8, 8]))
    with pytest.raises(GradientCheckError, match="gradient checkpointing"):
        gradients.clipped_sum(examples([8, 8]), 1.0)
    gradients.close()
    with pytest.raises(GradientCheckError, match="gradient checkpointing"):
        gradients_of(made)


def test_an_adapter_loaded_as_trainable_has_a_thawed_and_is_refused(tmp_path):
    model, _ = llama()
    layout = layout_of(model)
    save_adapter(
        model, tmp_path / "a", base_model_name="x/y", base_fingerprint="0" * 64, sharing="ffa"
    )
    base = model.unload()
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "a"), is_trainable=True)
    with pytest.raises(GradientCheckError, match=r"lora_A.*is_trainable"):
        gradients_of((loaded, "causal-lm"), layout=layout)


def test_a_frozen_travelling_parameter_is_refused_by_name():
    made = llama()
    layout = layout_of(made[0])
    dict(made[0].named_parameters())[layout.names[0]].requires_grad_(False)
    with pytest.raises(GradientCheckError, match=r"frozen or absent: .*layers"):
        gradients_of(made, layout=layout)


def test_an_adapter_of_another_type_is_refused():
    base = llama()[0].unload()
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["v_proj"]))
    layout = layout_of(model)
    model.peft_config["default"].peft_type = "LOHA"
    with pytest.raises(GradientCheckError, match="LOHA"):
        gradients_of((model, "causal-lm"), layout=layout)


def test_a_dora_adapter_is_refused():
    base = llama()[0].unload()
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["v_proj"], use_dora=True))
    layout = layout_of(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name and ".lora_A." not in name)
    with pytest.raises(GradientCheckError, match="magnitude"):
        gradients_of((model, "causal-lm"), layout=layout)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf")])
def test_a_clip_norm_out_of_range_is_refused(clip):
    with pytest.raises(ConfigError, match="clip_norm"):
        gradients_of(llama()).clipped_sum(examples([8]), clip)


def test_a_check_without_examples_and_classification_without_labels_are_refused():
    with pytest.raises(DataError, match="at least one"):
        gradients_of(llama()).check(examples([]))
    gradients = gradients_of(bert())
    with pytest.raises(DataError, match="labels"):
        gradients.clipped_sum(examples([8]), 1.0)
