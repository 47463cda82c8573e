"""A step's memory is foreseen from shapes, and a limit on it changes no sum."""

import gc
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_bert, write_model, write_run
from torch._subclasses.fake_tensor import FakeTensor
from transformers import LlamaConfig, LlamaForCausalLM

from securefed import Federation
from securefed.config import parse_config
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.events import Silent
from securefed.errors import ConfigError
from securefed.federation.update_codec import UpdateCodec
from securefed.training.dp_sgd import PerExampleGradients
from securefed.training.memory import StepMemory, _Live, made_up, step_memory

CPU = torch.device("cpu")
GIB = 2**30
BENCH = Path(__file__).parents[1] / "bench" / "bench_memory_limit.py"


@given(
    first=st.integers(1, 10**9),
    each=st.integers(1, 10**9),
    filler=st.integers(0, 10**9),
    asked=st.integers(1, 64),
    limit=st.integers(1, 10**11),
)
def test_what_fits_is_the_most_that_fits(first, each, filler, asked, limit):
    memory = StepMemory(held=10**9, first=first, each=each, filler=filler)
    if memory.needed(1) > limit:
        with pytest.raises(ConfigError, match="memory_gib"):
            memory.most(asked, limit)
        return
    most = memory.most(asked, limit)
    assert 1 <= most <= asked
    assert memory.needed(most) <= limit
    assert most == asked or memory.needed(most + 1) > limit - 2  # bytes are whole


def test_the_bytes_of_a_step_are_counted_to_the_last_one_and_nothing_is_computed():
    model = torch.nn.Linear(1000, 10)

    def run(count):
        first = torch.full((count, 1000), torch.nan)
        assert isinstance(first, FakeTensor)  # shapes alone
        second = first * 2.0
        del first
        third = second + 1.0  # two of the three at once, never three
        del second
        return model(third)

    memory = step_memory(run, model, travelling=2, most=5)
    kept = 4 * 4 * 2
    assert memory.first == memory.each == 2 * 4000 + kept
    assert memory.filler == 0
    assert memory.held == 4 * 10_010 + 750 * 2**20 + 10 * 8 * 2


class Heard(Silent):
    def __init__(self):
        self.said = []

    def message(self, text):
        self.said.append(text)


def adapted(folder, **sections):
    federation = Federation.from_config(write_run(folder, **sections))
    return federation, *federation.prepare()


@pytest.mark.parametrize("task", ["causal-lm", "sequence-classification"])
def test_what_is_foreseen_is_what_real_tensors_take(tmp_path, task):
    bench = classifier(tmp_path) if task != "causal-lm" else adapted(tmp_path)[1]
    bench.close_gradients()
    labels = bench.config.model.labels
    gradients = PerExampleGradients(
        bench.model, bench.parts.trained, task=task, micro_batch=1, device=CPU
    )

    def run(count):
        return list(gradients.at_a_time(count).micro_batches(made_up(count, 8, labels)))

    memory = step_memory(run, bench.model, travelling=0, most=16)
    for count in (1, 2, 6, 16):
        gc.collect()
        with _Live([*bench.model.parameters(), *bench.model.buffers()]) as live:
            run(count)
        foreseen = memory.first + (count - 1) * memory.each + memory.filler * (count > 1)
        assert live.peak <= 1.15 * foreseen
        assert foreseen <= 1.25 * live.peak


def classifier(folder):
    data = folder / "labelled"
    data.mkdir()
    for site in range(6):
        rows = [{"text": f"w{i % 20} w{site}", "label": i % 2} for i in range(24)]
        (data / f"site-{site}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return adapted(
        folder,
        model={
            "source": str(write_bert(folder / "bert", layers=1)),
            "task": "sequence-classification",
            "labels": 2,
        },
        data={"source": str(data), "label_field": "label", "window_tokens": 8},
        lora={"target_modules": ["query"], "modules_to_save": ["classifier"]},
    )[1]


def encoded(bench, settings, number=1):
    """What each client would mask, with a public key in the place of its secret one."""
    bench.begin_round(number)
    codec = UpdateCodec(settings.sum_policy, settings.plan, bytes(32))
    found = {}
    for name in settings.sizes:
        generator = NoiseGenerator.from_key(name.encode().ljust(32, b"."))
        found[name] = bench.encoder(settings, number, name)(
            bench.clients[name].train, codec, generator
        )
    return found


def test_under_a_limit_fewer_at_a_time_are_computed_and_the_same_integers_are_masked(tmp_path):
    sections = {"privacy": {"expected_batch": 450, "noise_multiplier": 8.0}}
    _, free, settings = adapted(tmp_path, **sections)
    assert free.micro_batch == 9  # 75 expected examples a client, filled up to one size
    whole = encoded(free, settings)
    memory = free.step_memory(settings)
    limit = memory.needed(2) / GIB
    assert memory.needed(3) / GIB > limit
    path, heard = write_run(tmp_path, training={"memory_gib": limit}, **sections), Heard()
    bench, settings = Federation.from_config(path, observer=heard).prepare()
    assert any("2 examples at a time, instead of 16" in line for line in heard.said)
    assert bench.micro_batch == 2
    assert bench.public_micro_batch(settings) == 2
    assert bench.step_memory(settings) == memory  # of shapes alone: what was drawn changes nothing
    bound = encoded(bench, settings)
    assert all(np.array_equal(bound[name], whole[name]) for name in whole)


def test_what_is_foreseen_is_of_the_turn_that_takes_most_and_the_turn_stays(tmp_path):
    _, one, settings = adapted(tmp_path)
    _, two, same = adapted(tmp_path, lora={"sharing": "rolora"})  # A takes turns with B
    two.begin_round(3)
    turn = two.parts.turn
    assert two.step_memory(same).each > one.step_memory(settings).each
    assert two.parts.turn == turn


def test_personal_adapters_keep_to_the_limit_too(tmp_path):
    free, settings = adapted(tmp_path)[1:]
    limit = free.step_memory(settings).needed(2) / GIB
    own = {"kind": "adapter"}
    bound = adapted(tmp_path, training={"memory_gib": limit}, personal=own)[1]
    assert bound.micro_batch == 2
    assert bound.own_adapters._trainer._micro_batch == 2


def test_a_model_of_which_not_one_example_fits_is_refused_with_figures(tmp_path):
    path = write_run(tmp_path, training={"memory_gib": 0.25})
    with pytest.raises(ConfigError) as refused:
        Federation.from_config(path).prepare()
    said = str(refused.value)
    assert said.startswith("training.memory_gib = 0.25: a step on one example at a time takes")
    assert re.search(r"about 0\.\d\d GiB \(0\.\d\d for weights and libraries", said)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_limit_must_be_positive_and_is_not_for_a_trainer_of_ones_own(value):
    with pytest.raises(ConfigError, match="memory_gib"):
        parse_config({"training": {"memory_gib": value}})
    own = {"memory_gib": 4.0, "trainer": "own:Trainer"}
    with pytest.raises(ConfigError, match="memory_gib with trainer"):
        parse_config({"training": own, "privacy": {"unit": "client"}})


def test_local_steps_keep_to_the_limit_too_and_move_as_far(tmp_path):
    sections = {"privacy": {"unit": "client", "expected_batch": None, "noise_multiplier": 8.0}}
    local = {"local_steps": 2, "batch_size": 8, "rounds": 1}
    _, free, settings = adapted(tmp_path, training=local, **sections)
    limit = free.step_memory(settings).needed(3) / GIB
    _, bound, same = adapted(tmp_path, training=local | {"memory_gib": limit}, **sections)
    assert (free.micro_batch, bound.micro_batch) == (16, 3)
    for bench in (free, bound):
        bench.begin_round(1)
    name = "site-0"
    whole, _ = free.contribution(settings, settings.sum_policy, name, 1, NoiseGenerator())
    parts, _ = bound.contribution(same, same.sum_policy, name, 1, NoiseGenerator())
    assert np.linalg.norm(whole) > 0.0
    np.testing.assert_allclose(parts, whole, atol=1e-4 * np.linalg.norm(whole))


@pytest.mark.slow
def test_held_out_windows_are_bounded_by_tokens(tmp_path):
    _, free, settings = adapted(tmp_path)
    limit = free.step_memory(settings).needed(4) / GIB
    _, bound, _ = adapted(
        tmp_path, training={"memory_gib": limit}, evaluation={"window_tokens": 16}
    )
    assert bound._held_out_at_a_time == 2
    np.testing.assert_allclose(bound.figures("site-0"), adapted(
        tmp_path, evaluation={"window_tokens": 16}
    )[1].figures("site-0"), rtol=1e-5)  # fmt: skip


@pytest.mark.slow
def test_a_larger_model_takes_fewer_at_a_time(tmp_path):
    """A limit bites by the model's own sizes: wide logits are most of a step."""
    write_model(tmp_path / "wide")
    config = LlamaConfig(
        vocab_size=4096, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    _, narrow, settings = adapted(tmp_path)
    _, wide, same = adapted(tmp_path, model={"source": str(tmp_path / "wide")})
    assert wide.step_memory(same).each > 10 * narrow.step_memory(settings).each


@pytest.mark.slow
def test_a_clients_step_keeps_to_a_hard_limit_of_4_gb_and_gives_the_same_integers(tmp_path):
    """SmolLM2-135M, windows of 256: sixteen at a time would take 9.4 GB and are refused it."""
    spec = importlib.util.spec_from_file_location("bench_memory_limit", BENCH)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    common = {"tokens": 256, "examples": 12}
    free = bench.child(at=4, out=tmp_path / "free.npz", **common)
    assert free.returncode == 0, free.stderr
    killed = bench.child(at=16, out=tmp_path / "no.npz", hard=4e9, **common)
    assert killed.returncode != 0
    assert "allocate" in killed.stderr or "Cannot allocate" in killed.stderr
    bound = bench.child(at=16, out=tmp_path / "bound.npz", hard=4e9, limit=4e9, **common)
    assert bound.returncode == 0, bound.stderr
    found = json.loads(bound.stdout.splitlines()[-1])
    assert 1 < found["used"] < 16
    assert found["peak"] < 4e9
    first, second = np.load(tmp_path / "free.npz"), np.load(tmp_path / "bound.npz")
    apart = np.linalg.norm(first["total"] - second["total"]) / float(first["clip"])
    assert apart < 1e-5
    assert (first["integers"] != second["integers"]).mean() < 0.01
