"""Ghost clipping by Opacus beside one gradient an example: memory and arithmetic of a step.

Run by hand: ``python tests/bench/bench_ghost_clipping.py [--tokens 128] [--examples 8]`` (model by
``securefed fetch``).  Both are counted from shapes, on tensors without contents: the most bytes of
live tensors beside the weights, and the FLOP of all matrix products.  Ghost clipping finds norms
without the gradients and then takes a second backward pass, of weighted losses (Li et al. 2022,
2110.05679).  What is wrong with its bound is shown by ``tests/training/test_ghost_clipping.py``.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import torch
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from securefed.config import LoraSection, ModelSection
from securefed.lora.adapter import build_adapter
from securefed.lora.parts import AdapterParts
from securefed.training.assets import cache_dir
from securefed.training.dp_sgd import PerExampleGradients
from securefed.training.evaluate import batches, predict
from securefed.training.memory import _Live, _tensors, made_up
from securefed.training.models import load_model

CPU = torch.device("cpu")
SETTINGS = {
    "rank 8": {"rank": 8},
    "rank 64": {"rank": 64},
    "rank 8, language head": {"rank": 8, "modules_to_save": ["lm_head"]},
}


def counted(model: nn.Module, run: Callable[[], object]) -> tuple[float, float]:
    """MiB of live tensors at most, and GFLOP."""
    with FakeTensorMode(allow_non_fake_inputs=True) as shapes:
        weights = [shapes.from_tensor(tensor) for tensor in _tensors(model)]
        with _Live(weights) as live, FlopCounterMode(display=False) as flops:
            run()
    return live.peak / 2**20, flops.get_total_flops() / 1e9


def each(model: nn.Module, parts: AdapterParts, count: int, at: int, tokens: int) -> object:
    """One gradient an example, ``at`` at a time."""
    gradients = PerExampleGradients(
        model, parts.trained, task="causal-lm", micro_batch=at, device=CPU
    )

    def run() -> None:
        for part in gradients.micro_batches(made_up(count, tokens, None)):
            del part

    try:
        return counted(model, run)
    finally:
        gradients.close()


def ghost(model: nn.Module, count: int, tokens: int) -> object:
    """Norms by one backward pass, the clipped sum by another."""
    hooks = GradSampleModuleFastGradientClipping(
        model, loss_reduction="sum", max_grad_norm=1.0, use_ghost_clipping=True
    )
    parameters = [p for p in model.parameters() if p.requires_grad]
    for module in model.modules():
        module.training = any(p.requires_grad for p in module.parameters(recurse=False))

    def run() -> None:
        (batch,) = batches(made_up(count, tokens, None), count, CPU)
        losses = predict(model, batch, "causal-lm").losses()
        losses.sum().backward(retain_graph=True)
        weights = hooks.get_clipping_coef().detach()
        hooks.disable_hooks()
        for parameter in parameters:
            parameter.grad = None
        (weights * losses).sum().backward()
        for parameter in parameters:
            parameter.grad = None

    try:
        return counted(model, run)
    finally:
        hooks.cleanup()
        model.eval()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--examples", type=int, default=8)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"SmolLM2-135M, {asked.examples} examples of {asked.tokens} tokens, float32, from shapes")
    print(f"{'what trains':<24}{'values':>12}  {'clipped':<22}{'MiB':>8}{'GFLOP':>9}")
    for name, given in SETTINGS.items():
        loaded = load_model(ModelSection(), cache=cache_dir(), offline=True, device=CPU)
        section = LoraSection(target_modules=["q_proj", "v_proj"], **given)
        model = build_adapter(loaded.model, section, task="causal-lm")
        parts = AdapterParts(model, "ffa")
        count, tokens = asked.examples, asked.tokens
        rows = {
            "each, all at once": lambda: each(model, parts, count, count, tokens),
            "each, 1 at a time": lambda: each(model, parts, count, 1, tokens),
            "ghost, all at once": lambda: ghost(model, count, tokens),
        }
        for method, row in rows.items():
            mib, gflop = row()
            print(
                f"{name:<24}{parts.dimension:>12,}  {method:<22}{mib:>8.0f}{gflop:>9.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
