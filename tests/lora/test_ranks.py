import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from securefed import PrivacyPolicy, secure_sliced_round
from securefed.config import LoraSection
from securefed.errors import ConfigError
from securefed.lora.adapter import (
    adapter_state,
    build_adapter,
    load_adapter_state,
    save_adapter,
    state_hash,
)
from securefed.lora.columns import at_rank
from securefed.lora.ranks import RankLayout, limited_to_rank, section_at, slice_hashes
from securefed.lora.sharing import travelling_parameters
from securefed.lora.tiers import RankTiers

TIERS = RankTiers((2, 4, 8))
SECTION = LoraSection(
    rank=8, alpha=12.0, target_modules=["v_proj", "down_proj"], modules_to_save=["lm_head"]
)
IDS = torch.arange(12).view(2, 6)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def server_state() -> dict[str, torch.Tensor]:
    """The server's adapter, with a B that training could have left."""
    model = build_adapter(llama(), SECTION, task="causal-lm")
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in travelling_parameters(model, "ffa").values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return adapter_state(model)


def model_at(state, rank: int) -> PeftModel:
    model = build_adapter(llama(), section_at(SECTION, rank), task="causal-lm")
    load_adapter_state(model, at_rank(state, rank))
    return model


def travelling(model) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in travelling_parameters(model, "ffa").items()}


def layout() -> RankLayout:
    found = travelling(build_adapter(llama(), SECTION, task="causal-lm"))
    return RankLayout(TIERS, {name: tuple(t.shape) for name, t in found.items()})


@pytest.mark.parametrize("rank", TIERS.ranks)
def test_an_adapter_at_a_lower_rank_is_the_servers_without_the_columns_above(rank):
    """The same outputs: scale, rows of A and columns of B all mean what they mean at rank 8."""
    state = server_state()
    cut = {name: t.clone() for name, t in state.items()}
    for name, tensor in cut.items():
        if ".lora_B." in name:
            tensor[:, rank:] = 0.0
    whole = build_adapter(llama(), SECTION, task="causal-lm")
    load_adapter_state(whole, cut)
    small = model_at(state, rank)
    torch.testing.assert_close(
        small(input_ids=IDS).logits, whole(input_ids=IDS).logits, rtol=1e-5, atol=1e-6
    )
    if rank < 8:  # PEFT's own scale at one alpha would not do
        wrong = LoraSection(**SECTION.model_dump() | {"rank": rank})
        other = build_adapter(llama(), wrong, task="causal-lm")
        load_adapter_state(other, at_rank(state, rank))
        gap = (other(input_ids=IDS).logits - whole(input_ids=IDS).logits).abs().max()
        assert gap > 0.01


def test_a_saved_adapter_of_a_lower_rank_is_loaded_by_peft(tmp_path):
    small = model_at(server_state(), 4)
    save_adapter(
        small, tmp_path / "adapter", base_model_name="builtin:x", base_fingerprint="00",
        sharing="ffa",
    )  # fmt: skip
    loaded = PeftModel.from_pretrained(llama(), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(loaded(input_ids=IDS).logits, small(input_ids=IDS).logits)
    assert loaded.peft_config["default"].r == 4
    assert loaded.peft_config["default"].lora_alpha == 6.0


def test_vectors_of_lower_tiers_are_the_beginning_of_the_highest_and_come_back_bit_for_bit():
    state, slices = server_state(), layout()
    vectors = {}
    for tier, rank in enumerate(TIERS.ranks, start=1):
        own = travelling(model_at(state, rank))
        vectors[tier] = slices.flatten(own, tier)
        assert vectors[tier].size == sum(slices.widths[:tier])
        back = slices.unflatten(vectors[tier])
        assert back.keys() == own.keys()
        assert all(torch.equal(back[name], own[name]) for name in own)
    for tier in (1, 2):
        np.testing.assert_array_equal(vectors[3][: vectors[tier].size], vectors[tier])


def test_the_order_takes_a_flat_vector_apart_into_slices():
    state, slices = server_state(), layout()
    own = travelling(model_at(state, 8))
    flat = slices.whole.flatten(own)
    order = slices.order()
    np.testing.assert_array_equal(np.sort(order), np.arange(flat.size))
    for tier, rank in enumerate(TIERS.ranks, start=1):
        held = sum(slices.widths[:tier])
        np.testing.assert_array_equal(
            flat[order[:held]], slices.flatten(travelling(model_at(state, rank)), tier)
        )


@pytest.mark.parametrize("rank", TIERS.ranks)
def test_within_a_limit_one_model_trains_as_a_model_of_that_rank(rank):
    """AdamW with decay, from a trained B: the same outputs before, after, and the same columns."""
    state, slices = server_state(), layout()
    small, large = model_at(state, rank), model_at(state, 8)
    before = {name: tensor.clone() for name, tensor in travelling(large).items()}
    tier = TIERS.tier(rank)

    def trained(model):
        step = torch.optim.AdamW(
            travelling_parameters(model, "ffa").values(), lr=0.05, weight_decay=0.1
        )
        for _ in range(3):
            step.zero_grad()
            model(input_ids=IDS, labels=IDS).loss.backward()
            step.step()
        return model(input_ids=IDS).logits

    wanted = trained(small)
    with limited_to_rank(large, rank):
        travelling_parameters(large, "ffa")
        torch.testing.assert_close(trained(large), wanted, rtol=1e-4, atol=1e-5)
        own = {n: t.clone() for n, t in travelling(large).items()}
    held = sum(slices.widths[:tier])
    np.testing.assert_allclose(
        slices.whole.flatten(own)[slices.order()[:held]],
        slices.flatten(travelling(small), tier),
        atol=1e-5,
    )
    for name, tensor in travelling(large).items():
        if ".lora_B." in name:
            assert not own[name][:, rank:].any()
            assert torch.equal(tensor[:, rank:], before[name][:, rank:])
            assert rank == 8 or tensor[:, rank:].any()
    with pytest.raises(ConfigError, match=r"rank = 9: must be 1\.\.8"):
        with limited_to_rank(large, 9):
            pass


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 12), min_size=1, max_size=4, unique=True).map(sorted),
    outs=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    head=st.booleans(),
)
def test_every_coordinate_is_in_one_slice(ranks, outs, head):
    tiers = RankTiers(tuple(ranks))
    shapes = {f"m{i}.lora_B.weight": (out, tiers.largest) for i, out in enumerate(outs)}
    if head:
        shapes["h.modules_to_save.default.weight"] = (3, 2)
    slices = RankLayout(tiers, shapes)
    assert sum(slices.widths) == sum(out * tiers.largest for out in outs) + 6 * head
    numbered = slices.unflatten(np.arange(sum(slices.widths), dtype=np.float32))
    seen = torch.cat([tensor.reshape(-1) for tensor in numbered.values()])
    assert sorted(seen.tolist()) == list(range(sum(slices.widths)))
    # Columns of slice s lie in the s-th part of the vector, whole parameters in the first.
    ends = np.cumsum(slices.widths)
    for name, tensor in numbered.items():
        for number in range(1, len(ranks) + 1):
            first, after = tiers.bounds(number)
            part = tensor[:, first:after] if ".lora_B." in name else tensor
            start = ends[number - 1] - slices.widths[number - 1]
            if ".lora_B." in name or number == 1:
                assert ((part >= start) & (part < ends[number - 1])).all()


def test_ranks_become_tiers_from_public_figures():
    ranks = {"a": 2, "b": 3, "c": 4, "d": 100}
    assert [TIERS.tier(rank) for rank in ranks.values()] == [1, 1, 2, 3]
    assert TIERS.members(ranks) == [4, 2, 1]
    merged = TIERS.merged(2)
    assert merged.ranks == (2, 4)
    assert [merged.tier(rank) for rank in ranks.values()] == [1, 1, 2, 2]
    with pytest.raises(ConfigError, match=r"rank = 1: the lowest tier has rank 2"):
        TIERS.tier(1)
    for wrong in ((), (0, 2), (4, 4), (8, 4)):
        with pytest.raises(ConfigError, match="must be ranks >= 1 that rise"):
            RankTiers(wrong)


def test_merged_tiers_keep_the_scale():
    """alpha follows from the server's rank, not from the highest tier that stands."""
    at = section_at(SECTION, 4)
    assert at.alpha / at.rank == SECTION.alpha / SECTION.rank
    for rank in (0, 9):
        with pytest.raises(ConfigError, match=r"must be 1\.\.8"):
            section_at(SECTION, rank)
        with pytest.raises(ConfigError, match=r"must be 1\.\.8"):
            at_rank(server_state(), rank)


def test_each_client_checks_the_slices_that_it_holds():
    state = server_state()
    whole = slice_hashes(state, TIERS)
    assert len(set(whole)) == 3
    for tier, rank in enumerate(TIERS.ranks, start=1):
        assert slice_hashes(at_rank(state, rank), TIERS) == whole[:tier]
    for name in state:
        other = {key: tensor.clone() for key, tensor in state.items()}
        last = other[name][:, -1] if ".lora_B." in name else other[name][-1]
        last += 1.0  # of A and B the last rank: it is in slice 3 alone
        changed = [a != b for a, b in zip(slice_hashes(other, TIERS), whole, strict=True)]
        assert changed == ([False, False, True] if ".lora_" in name else [True, False, False])
    with pytest.raises(ConfigError, match="of rank 3; it must be one of"):
        slice_hashes(at_rank(state, 3), TIERS)
    assert state_hash(at_rank(state, 8)) == state_hash(state)


def test_what_cannot_be_sliced_is_refused():
    with pytest.raises(ConfigError, match="A travels"):
        RankLayout(TIERS, {"m.lora_A.weight": (8, 3), "m.lora_B.weight": (3, 8)})
    with pytest.raises(ConfigError, match="no parameter named lora_B"):
        RankLayout(TIERS, {"m.modules_to_save.weight": (8, 3)})
    with pytest.raises(ConfigError, match="8 columns"):
        RankLayout(TIERS, {"m.lora_B.weight": (3, 4)})
    slices = RankLayout(TIERS, {"m.lora_B.weight": (3, 8)})
    with pytest.raises(ConfigError, match="has rank 4; tier 1 has rank 2"):
        slices.flatten({"m.lora_B.weight": torch.zeros(3, 4)}, 1)
    with pytest.raises(ConfigError, match=r"tier = 4"):
        slices.flatten({"m.lora_B.weight": torch.zeros(3, 8)}, 4)
    with pytest.raises(ConfigError, match=r"allowed lengths \[6, 12, 24\]"):
        slices.unflatten(np.zeros(7))
    assert slices.fingerprint() != RankLayout(TIERS, {"m.lora_B.weight": (4, 8)}).fingerprint()


def test_clients_of_unlike_ranks_train_sum_and_get_back_adapters_of_their_own_rank():
    """Eleven clients, real models: each trains at its own rank, one sliced round, no noise.

    The server's mean is, column by column, that of the clients that have the column; and the weight
    change which it makes is the mean of the clients' weight changes, slice by slice.
    """
    state, slices = server_state(), layout()
    ranks = {f"c{i}": (2, 2, 2, 2, 4, 4, 4, 8, 8, 8, 8)[i] for i in range(11)}
    before, deltas = {}, {}
    for i, (name, rank) in enumerate(ranks.items()):
        model = model_at(state, rank)
        before[name] = {n: t.clone() for n, t in travelling(model).items()}
        trained = travelling_parameters(model, "ffa")
        ids = torch.randint(0, 40, (4, 6), generator=torch.Generator().manual_seed(i))
        step = torch.optim.SGD(trained.values(), lr=0.5)
        for _ in range(2):
            step.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            step.step()
        after = travelling(model)
        deltas[name] = slices.flatten(
            {n: after[n] - before[name][n] for n in after}, TIERS.tier(rank)
        )
    result = secure_sliced_round(
        deltas,
        widths=slices.widths,
        privacy=PrivacyPolicy(clip_norm=1e3, mechanism="none"),
        drop={"c9": "consistency", "c0": "masked_input"},
    )
    assert [len(result.survivors[n]) for n in (1, 2, 3)] == [10, 7, 4]
    mean = slices.unflatten(result.mean(3))
    own = {name: slices.unflatten(delta) for name, delta in deltas.items()}
    for name, tensor in mean.items():
        for number in range(1, 4):
            first, after_last = TIERS.bounds(number)
            whole = ".lora_B." not in name
            if whole and number > 1:
                continue
            cut = slice(None) if whole else slice(first, after_last)
            held = torch.stack([own[str(who)][name][:, cut] for who in result.survivors[number]])
            torch.testing.assert_close(tensor[:, cut], held.mean(0), rtol=0, atol=1e-4)
    # Each client's adapter, of its own rank, is the server's new one cut to that rank.
    new = dict(state)
    for name, tensor in mean.items():
        new[name] = state[name] + tensor
    for tier, rank in enumerate(TIERS.ranks, start=1):
        for name, tensor in slices.unflatten(result.mean(tier)).items():
            torch.testing.assert_close(
                at_rank(state, rank)[name] + tensor, at_rank(new, rank)[name], rtol=0, atol=0
            )
