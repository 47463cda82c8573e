"""A round of distributed DP-SGD in bfloat16 and in micro-batches under a limit, on any device.

On a GPU: ``pytest -m cuda tests/training/test_devices.py``; on a CPU: ``-m slow``.
"""

import numpy as np
import pytest
import torch
from tiny import write_model, write_run
from transformers import LlamaConfig, LlamaForCausalLM

from securefed import Federation
from securefed.crypto.prg import NoiseGenerator
from securefed.engines.events import Silent

GIB = 2**30
NAMES = [f"site-{n}" for n in range(6)]


class Heard(Silent):
    def __init__(self):
        self.said = []

    def message(self, text):
        self.said.append(text)


def write(folder, device, dtype, **training):
    """Wide logits, so that memory is of the step and not of the libraries."""
    folder.mkdir(exist_ok=True)
    write_model(folder / "wide")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, eos_token_id=0, bos_token_id=0,
        pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "wide")
    return write_run(
        folder,
        model={"source": str(folder / "wide"), "dtype": dtype},
        data={"window_tokens": 32},
        training={"rounds": 1, "device": device, "micro_batch": 64} | training,
        privacy={"expected_batch": 60, "noise_multiplier": 8.0},
        evaluation={"max_windows": 1, "window_tokens": 32},
    )


def prepared(path):
    heard = Heard()
    federation = Federation.from_config(path, observer=heard)
    return federation, *federation.prepare(), heard.said


def sums(bench, settings):
    """Each client's clipped sum, its sample drawn by a public key in place of a secret one."""
    bench.begin_round(1)
    return {
        name: bench.contribution(
            settings,
            settings.sum_policy,
            name,
            1,
            NoiseGenerator.from_key(name.encode().ljust(32, b".")),
        )[0]
        for name in NAMES
    }


def compared_with_the_cpu(folder, device):
    """A round on ``device``, bfloat16 and bounded, beside one on the CPU, float32 and not."""
    _, reference, settings, _ = prepared(write(folder / "cpu", "cpu", "float32"))
    wanted = sums(reference, settings)

    _, free, settings, _ = prepared(write(folder / "free", device, "bfloat16"))
    limit = free.step_memory(settings).needed(2) / GIB
    whole = sums(free, settings)
    del free
    path = write(folder / "bound", device, "bfloat16", memory_gib=limit)
    federation, bench, settings, said = prepared(path)
    assert bench.device.type == torch.device(device).type
    assert {p.dtype for p in bench.model.parameters() if not p.requires_grad} >= {torch.bfloat16}
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    found = sums(bench, settings)
    # Where a kernel's last bits depend on the batch the check says so and takes fewer at a time.
    notes = [line for line in said if "the last bits" in line]
    assert bench.public_micro_batch(settings) == 2
    assert bool(notes) == (bench.micro_batch < 2)
    assert all(f"on {bench.device}" in note and "bfloat16" in note for note in notes)
    clip = settings.sum_policy.clip_norm
    for name, right in wanted.items():
        assert np.isfinite(found[name]).all()
        assert np.linalg.norm(found[name] - right) <= 0.15 * np.linalg.norm(right)
        # Other shapes round bfloat16 otherwise; that moves no example's share beyond the clip.
        assert np.linalg.norm(found[name] - whole[name]) <= 0.15 * np.linalg.norm(right)
        assert np.linalg.norm(found[name]) <= clip * len(bench.clients[name].train)
    result = federation.run(folder / "out")
    assert len(result.after.to_record()) > 0
    assert np.isfinite(result.after.perplexity)
    if device != "cpu":
        assert torch.cuda.max_memory_allocated() <= limit * GIB


@pytest.mark.slow
def test_a_round_in_bfloat16_under_a_limit_is_that_in_float32_without_but_for_rounding(tmp_path):
    compared_with_the_cpu(tmp_path, "cpu")


@pytest.mark.cuda
def test_a_round_on_a_gpu_keeps_to_its_memory_and_is_that_of_the_cpu_but_for_rounding(tmp_path):
    if not torch.cuda.is_available():
        pytest.fail("there is no CUDA device, and -m cuda asks for tests on one")
    compared_with_the_cpu(tmp_path, "cuda")


def test_one_example_moves_a_sum_from_a_bfloat16_model_by_one_clip_norm(tmp_path):
    """Clipping and adding are in float64, whatever the model computes in."""
    _, bench, _, _ = prepared(write(tmp_path, "cpu", "bfloat16"))
    bench.begin_round(1)
    gradients = bench._gradients.now()
    examples = bench.clients["site-0"].train
    (rows,) = [np.concatenate(list(gradients.flat_rows(examples)))]
    clip = 0.25 * float(np.linalg.norm(rows.astype(np.float64), axis=1).min())
    whole = gradients.clipped_sum(examples, clip)
    for left_out in (0, len(examples) - 1):
        rest = examples.take([row for row in range(len(examples)) if row != left_out])
        moved = np.linalg.norm(whole - gradients.clipped_sum(rest, clip))
        assert 0.999 * clip < moved <= clip * (1 + 1e-9)
