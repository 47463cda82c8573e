"""What travels in each mode, and whether its mean is what the mode says."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from securefed.config import SHARING_MODES, LoraSection, parse_config
from securefed.config.lora import REFUSED_MODES
from securefed.errors import ConfigError
from securefed.lora.adapter import adapter_state, build_adapter, save_adapter
from securefed.lora.parts import AdapterParts
from securefed.lora.refactoring import refactored, turned_moments
from securefed.lora.sharing import MODES, divide, factor_of, sharing_mode

IDS = torch.arange(12).view(2, 6)
TASK = "sequence-classification"


def bert():
    torch.manual_seed(4)
    config = BertConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_labels=3,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def section(sharing, **changes):
    values = {"rank": 3, "alpha": 6.0, "target_modules": ["query", "value"]}
    values |= {"modules_to_save": ["classifier"], "sharing": sharing}
    return LoraSection(**values | changes)


def adapted(sharing, **changes):
    return build_adapter(bert(), section(sharing, **changes), task=TASK)


def filled(model, seed=0):
    """Every factor with values that training could have left."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if factor_of(name) is not None:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def weights(tensors):
    """Effective weights by layer, in float64: B A, or B R A, and whatever is trained in full."""
    found = {}
    for name, value in tensors.items():
        if factor_of(name) == "B":
            stem = name.replace(".lora_B.", ".lora_A.").removesuffix(".weight")
            down = tensors.get(f"{stem}.weight", tensors.get(f"{stem}.down.weight")).double()
            if f"{stem}.core.weight" in tensors:
                down = tensors[f"{stem}.core.weight"].double() @ down
            found[name] = value.double() @ down
        elif factor_of(name) == "whole":
            found[name] = value.double()
    return found


def test_every_mode_of_the_run_file_is_there():
    assert tuple(MODES) == SHARING_MODES
    assert all(mode.exact == (mode.approximated == "") for mode in MODES.values())


@pytest.mark.parametrize(
    ("sharing", "rounds", "kept"),
    [
        ("ffa", ["B", "B", "B"], ""),
        ("rolora", ["B", "A", "B"], ""),
        ("fedsa", ["A", "A", "A"], "B"),
        ("fedit", ["AB", "AB", "AB"], ""),
        ("fedsb", ["R", "R", "R"], ""),
        ("fedsvd", ["B", "B", "B"], ""),
    ],
)
def test_what_travels_what_is_kept_and_what_trains(sharing, rounds, kept):
    model = adapted(sharing)
    for number, wanted in enumerate(rounds, 1):
        division = divide(model, sharing_mode(sharing), number)
        expected = {"core" if letter == "R" else letter for letter in wanted} | {"whole"}
        assert {factor_of(name) for name in division.travelling} == expected
        assert {factor_of(name) for name in division.kept} == set(kept)
        trains = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trains == division.travelling.keys() | division.kept.keys()
        everything = {name for name, _ in model.named_parameters() if factor_of(name)}
        assert trains | division.frozen.keys() == everything
        assert not trains & division.frozen.keys()


@pytest.mark.parametrize("sharing", SHARING_MODES)
def test_a_fresh_adapter_of_every_mode_changes_nothing(sharing):
    plain = bert()
    before = plain(input_ids=IDS).logits
    model = build_adapter(plain, section(sharing), task=TASK)
    torch.testing.assert_close(model(input_ids=IDS).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("sharing", SHARING_MODES)
def test_the_mean_of_what_travels_is_the_mean_of_the_weights_exactly_where_the_mode_says_so(
    sharing,
):
    mode = sharing_mode(sharing)
    model = filled(adapted(sharing))
    for number in range(1, len(mode.turns) + 1):
        division = divide(model, mode, number)
        clients = []
        for client in range(3):
            own = adapter_state(model)
            generator = torch.Generator().manual_seed(10 + client)
            for name in (*division.travelling, *division.kept):
                own[name] = torch.randn(own[name].shape, generator=generator)
            clients.append(own)
        served = adapter_state(model) | {
            name: torch.stack([own[name] for own in clients]).mean(dim=0)
            for name in division.travelling
        }
        of_mean, each = weights(served), [weights(own) for own in clients]
        distance = max(
            float((of_mean[name] - torch.stack([w[name] for w in each]).mean(dim=0)).abs().max())
            for name in of_mean
        )
        assert (distance < 1e-5) == mode.exact, distance
        assert mode.exact or distance > 0.1


@pytest.mark.parametrize("sharing", SHARING_MODES)
def test_peft_loads_a_saved_adapter_of_every_mode_as_the_same_function(sharing, tmp_path):
    model = filled(adapted(sharing))
    save_adapter(
        model, tmp_path / "a", base_model_name="o/b", base_fingerprint="0" * 64, sharing=sharing
    )
    loaded = PeftModel.from_pretrained(bert(), str(tmp_path / "a"))
    torch.testing.assert_close(
        loaded(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=1e-4, atol=1e-4
    )
    assert (adapted(sharing)(input_ids=IDS).logits - model(input_ids=IDS).logits).abs().max() > 0.01


def test_fed_sb_puts_r_between_the_first_singular_vectors_of_the_base_weight():
    model = adapted("fedsb")
    state = adapter_state(model)
    name = next(n for n in state if factor_of(n) == "B")
    up, down = state[name], state[name.replace("lora_B.default", "lora_A.default.down")]
    torch.testing.assert_close(up.T @ up, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(down @ down.T, torch.eye(3), atol=1e-5, rtol=0)
    base = dict(model.named_parameters())[name.replace("lora_B.default", "base_layer")].detach()
    largest = torch.linalg.svdvals(base)[:3]
    torch.testing.assert_close(up.T @ base @ down.T, largest.diag(), atol=1e-5, rtol=0)
    cores = [value for n, value in state.items() if factor_of(n) == "core"]
    assert [tuple(core.shape) for core in cores] == [(3, 3)] * 4
    assert not any(core.any() for core in cores)


def test_fed_sb_follows_a_base_weight_that_is_held_transposed():
    torch.manual_seed(7)
    config = GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    plain = GPT2LMHeadModel(config).eval()
    wanted = section("fedsb", target_modules=["c_attn"], modules_to_save=[])
    model = build_adapter(plain, wanted, task="causal-lm")
    state = adapter_state(model)
    name = next(n for n in state if factor_of(n) == "B")
    layer = dict(model.named_modules())[name.removesuffix(".lora_B.default.weight")]
    up, down = state[name], state[name.replace("lora_B.default", "lora_A.default.down")]
    core = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        layer.lora_A["default"].core.weight.copy_(core)
        x = torch.randn(2, 16, generator=torch.Generator().manual_seed(2))
        found = layer(x) - layer.base_layer(x)
    expected = 2.0 * x @ (up @ core @ down).T
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    # What PEFT would merge into the base weight is the same.
    torch.testing.assert_close(layer.get_delta_weight("default").T, 2.0 * up @ core @ down)


@pytest.mark.parametrize("sharing", ["fedsb", "fedsvd"])
def test_a_rank_beyond_a_targets_outputs_is_refused_where_singular_vectors_are_needed(sharing):
    class Narrow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.query = torch.nn.Linear(16, 2)

    wanted = section(sharing, target_modules=["query"], modules_to_save=[])
    with pytest.raises(ConfigError, match=r"lora\.rank = 3; query has 2 outputs.*rank <= 2"):
        build_adapter(Narrow(), wanted, task="causal-lm")


def test_rounds_of_two_kinds_have_vectors_of_one_length_and_the_shorter_ends_in_zeros():
    model = filled(adapted("rolora", target_modules=["intermediate.dense"]))
    parts = AdapterParts(model, "rolora")
    used = [layout.used for layout in parts.layouts]
    assert used[0] > used[1]  # 24 outputs, 16 inputs
    assert parts.dimension == used[0] == parts.layouts[0].size == parts.layouts[1].size
    parts.begin(2)
    vector = parts.flat()
    assert vector.shape == (parts.dimension,)
    assert not vector[used[1] :].any()
    assert vector[: used[1]].all()
    before = adapter_state(model)
    vector[used[1] :] = 7.0  # noise that the padding would carry
    parts.load_flat(vector)
    after = adapter_state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_modes_and_layouts_have_different_fingerprints():
    prints = {AdapterParts(adapted(sharing), sharing).fingerprint() for sharing in SHARING_MODES}
    assert len(prints) == len(SHARING_MODES)


def test_values_put_aside_to_check_gradients_come_back_bit_for_bit():
    model = adapted("fedit")
    before = adapter_state(model)
    with AdapterParts(model, "fedit").away_from_zero():
        ups = [v for n, v in adapter_state(model).items() if factor_of(n) == "B"]
        assert all(up.all() for up in ups)
    after = adapter_state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


# -- FedSVD ------------------------------------------------------------------------------------


def factors(seed, outputs=5, inputs=7, rank=3, *, orthonormal=True):
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(inputs, rank, generator=generator, dtype=torch.float64)
    if orthonormal:
        down = torch.linalg.qr(down)[0]
    up = torch.randn(outputs, rank, generator=generator)
    return {"x.lora_A.default.weight": down.T.float(), "x.lora_B.default.weight": up}


@pytest.mark.parametrize("orthonormal", [True, False])
def test_refactoring_keeps_the_product_and_gives_a_orthonormal_rows(orthonormal):
    tensors = factors(3, orthonormal=orthonormal)
    up, down = tensors["x.lora_B.default.weight"], tensors["x.lora_A.default.weight"]
    found = refactored(tensors)
    new_up, new_down = (found.tensors[name] for name in ("x.lora_B.default.weight",
                                                         "x.lora_A.default.weight"))  # fmt: skip
    torch.testing.assert_close(new_up @ new_down, up @ down, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(new_down @ new_down.T, torch.eye(3), atol=1e-6, rtol=0)
    # B = U S: orthogonal columns, as long as the singular values.
    squares = new_up.T @ new_up
    values = torch.linalg.svdvals((up @ down).double())[:3].float()
    torch.testing.assert_close(squares, values.square().diag(), atol=1e-4, rtol=1e-4)
    # A gradient of the product, seen from the old B and from the new one.
    gradient = torch.randn(5, 7, generator=torch.Generator().manual_seed(9)).double()
    turn = found.turns["x.lora_B.default.weight"]
    expected = gradient @ new_down.double().T
    torch.testing.assert_close(gradient @ down.double().T @ turn, expected, atol=1e-5, rtol=1e-5)


def test_refactoring_nothing_yet_keeps_the_span_and_a_zero_product():
    tensors = factors(3)
    tensors["x.lora_B.default.weight"] = torch.zeros(5, 3)
    found = refactored(tensors).tensors
    assert not found["x.lora_B.default.weight"].any()
    down, new = tensors["x.lora_A.default.weight"], found["x.lora_A.default.weight"]
    torch.testing.assert_close(new.T @ new, down.T @ down, atol=1e-6, rtol=0)


def test_dependent_rows_and_unknown_moments_are_refused():
    tensors = factors(3)
    tensors["x.lora_A.default.weight"][:] = 0.0
    with pytest.raises(ConfigError, match=r"x\.lora_A.*linearly dependent"):
        refactored(tensors)
    with pytest.raises(ConfigError, match="'third_moment'"):
        turned_moments("third_moment", {}, {})


# -- the run file ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "name"),
    [*((name, name) for name in REFUSED_MODES), ("FLoRA", "flora"), ("top_k", "top-k")],
)
def test_methods_that_need_individual_updates_are_refused_with_the_reason(written, name):
    with pytest.raises(ValidationError, match=r"individual updates.*") as refusal:
        LoraSection(sharing=written)
    assert REFUSED_MODES[name] in str(refusal.value)
    assert "'ffa'" in str(refusal.value)


def test_an_unknown_mode_is_refused_with_what_is_allowed():
    with pytest.raises(ValidationError, match="fedsvd"):
        LoraSection(sharing="best")


@pytest.mark.parametrize("mechanism", ["distributed", "central", "none"])
@pytest.mark.parametrize("unit", ["example", "user"])
def test_a_kept_b_is_refused_where_single_examples_or_users_are_protected_in_the_sum(
    unit, mechanism
):
    values = {"lora": {"sharing": "fedsa"}, "privacy": {"unit": unit, "mechanism": mechanism}}
    with pytest.raises(ConfigError, match=rf"fedsa.*unit = '{unit}'.*bounds nothing"):
        parse_config(values)
    values["privacy"]["unit"] = "client"
    assert parse_config(values).lora.sharing == "fedsa"


def test_noise_that_cancels_over_rounds_is_refused_where_coordinates_change():
    for sharing in ("rolora", "fedsvd"):
        values = {
            "lora": {"sharing": sharing},
            "privacy": {"sampling": "cyclic", "mechanism": "central"},
        }
        with pytest.raises(ConfigError, match=f"{sharing}.*same coordinates"):
            parse_config(values)


@pytest.mark.parametrize("sharing", ["ffa", "fedsa"])
def test_a_layer_under_two_names_is_refused_by_both(sharing):
    """Its change would stand twice in the vector, and noise of one of the two would be lost."""
    model = bert()
    model.bert.encoder.layer[1] = model.bert.encoder.layer[0]
    with pytest.raises(ConfigError, match=r"layer\.0\..* and .*layer\.1\..* are one parameter"):
        build_adapter(model, section(sharing), task=TASK)
