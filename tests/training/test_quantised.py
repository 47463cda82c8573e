import math
import os
import subprocess
import sys

import pytest
import torch
from tiny import write_run
from torch import nn
from torch.nn import functional

from securefed import Federation
from securefed.errors import ConfigError
from securefed.training.quantised import QuantisedLinear, parameter_count


def linear(inputs=128, outputs=24, *, bias=True, seed=0):
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("inputs", [128, 48, 22])
def test_no_weight_moves_by_more_than_half_a_step(bits, inputs):
    layer = linear(inputs)
    packed = QuantisedLinear(layer, bits)
    moved = (packed.whole(torch.float32) - layer.weight).abs()
    group = inputs // packed.scale.shape[1]
    assert torch.all(moved <= 0.5001 * packed.scale.repeat_interleave(group, dim=1))
    assert packed.weight.numel() * packed.weight.element_size() == bits * layer.weight.numel() // 8


def test_every_value_of_both_widths_survives():
    for bits, most in ((8, 127), (4, 7)):
        layer = linear(64, 2 * most + 1)
        with torch.no_grad():  # a row for each value, and the largest one in every row
            layer.weight.copy_(torch.arange(-most, most + 1)[:, None].expand(-1, 64))
            layer.weight[:, 0] = most
        packed = QuantisedLinear(layer, bits)
        assert torch.allclose(packed.whole(torch.float32), layer.weight, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_are_those_of_the_rounded_weights_and_none_are_kept(bits):
    layer = linear()
    packed = QuantisedLinear(layer, bits)
    given = torch.randn(5, 128, requires_grad=True)
    kept = []

    def keep(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = packed(given)
    assert max(kept, default=0) < packed.weight.numel()
    out.pow(2).sum().backward()
    plain = given.detach().clone().requires_grad_()
    functional.linear(plain, packed.whole(torch.float32), layer.bias).pow(2).sum().backward()
    assert torch.equal(given.grad, plain.grad)
    assert packed.weight.grad is None


def test_zeros_stay_zeros_and_odd_layers_are_refused():
    layer = linear()
    with torch.no_grad():
        layer.weight.zero_()
    assert not QuantisedLinear(layer, 4).whole(torch.float32).any()
    with pytest.raises(ConfigError, match="7 inputs"):
        QuantisedLinear(linear(7), 4)
    with pytest.raises(ConfigError, match="bits = 2"):
        QuantisedLinear(layer, 2)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_a_run_on_a_quantised_base_passes_the_gradient_check_and_learns(tmp_path, quantize):
    path = write_run(tmp_path, model={"quantize": quantize}, training={"rounds": 2})
    federation = Federation.from_config(path)
    bench, _ = federation.prepare()
    assert bench.gradients_checked
    layers = [m for m in bench.model.modules() if isinstance(m, QuantisedLinear)]
    assert len(layers) == 14  # seven in each of two blocks
    plain, _ = Federation.from_config(write_run(tmp_path, model={"quantize": "none"})).prepare()
    assert parameter_count(bench.model) == parameter_count(plain.model)
    ids = torch.arange(2, 10)[None]
    with torch.no_grad():
        moved = (bench.model(ids).logits - plain.model(ids).logits).abs().max()
    assert 0 < moved < (0.02 if quantize == "int8" else 0.3)
    result = federation.run(tmp_path / "out")
    assert result.after.perplexity < result.before.perplexity
    assert math.isfinite(result.after.perplexity)


_PEAK = """
import gc, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from securefed.engines.metering import ResidentMemory
from securefed.training.quantised import quantise
torch.set_num_threads(1)
sizes = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=12)
heads = dict(num_attention_heads=9, num_key_value_heads=3, vocab_size=512)
model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval().requires_grad_(False)
if int(sys.argv[1]) < 32:
    quantise(model, int(sys.argv[1]))
gc.collect()
ids, memory = torch.ones((4, 32), dtype=torch.int64), ResidentMemory()
embedded = model.get_input_embeddings()(ids).requires_grad_()
model(inputs_embeds=embedded, labels=ids).loss.backward()
memory.begin()
model(inputs_embeds=embedded, labels=ids).loss.backward()
print(memory.peak())
"""


@pytest.mark.slow
def test_training_takes_less_memory():
    """43 million weights: 170 MB whole."""
    peak = {
        bits: int(subprocess.run(
            [sys.executable, "-c", _PEAK, str(bits)],
            check=True,
            capture_output=True,
            text=True,
            # Large tensors go back to the system when they are freed, as a client would have it.
            env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        ).stdout)
        for bits in (32, 8, 4)
    }  # fmt: skip
    print({bits: f"{most / 2**20:.0f} MiB" for bits, most in peak.items()})
    assert peak[32] - peak[8] > 80 << 20
    assert peak[8] > peak[4]
