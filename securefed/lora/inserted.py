"""Small modules put into a model beside LoRA or alone: IA3, prompt tokens, bottleneck adapters.

They are plain torch modules, called by hooks on the modules that they change, so that they go
together with each other and with PEFT's LoRA layers (PEFT mixes neither with LoRA), and so that
Opacus follows each of them.  Whether per-example gradients are right is shown before the first
round, as for any other part (``PerExampleGradients.check``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from securefed.config import LoraSection
from securefed.errors import ConfigError

IA3, PROMPT, BOTTLENECK = "inserted_ia3", "inserted_prompt", "inserted_bottleneck"
_IA3_OUTPUTS, _IA3_INPUTS = ("k_proj", "v_proj"), ("down_proj",)
_BOTTLENECKS = ("o_proj", "down_proj")
_PROMPT_TOKENS, _WIDTH = 8, 8


class Rescaling(nn.Module):
    """``x -> x * weight``, one factor a coordinate, ones at first.

    Args:
        size: how many.
        on_input: whether x is the input of the module that this one is put into (PEFT calls it
            feed-forward then), or its output.

    Source: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
    In-Context Learning" (IA3, 2205.05638).
    """

    def __init__(self, size: int, *, on_input: bool) -> None:
        super().__init__()
        self.on_input = on_input
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, ..., size]``, in the type of ``x``."""
        scaled: torch.Tensor = x * self.weight
        return scaled.to(x.dtype)


class Bottleneck(nn.Module):
    """``h -> h + up(GELU(down(h)))``, with ``up`` zero at first: nothing changes.

    Args:
        size: of h.
        width: of what lies between.
        generator: draws ``down``, of std 0.01.

    Source: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP" (1902.00751),
    section 2.1; there both projections begin near zero, here ``up`` at zero.
    """

    def __init__(self, size: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(size, width), nn.Linear(width, size)
        with torch.no_grad():
            self.down.weight.copy_(0.01 * torch.randn(width, size, generator=generator))
            for parameter in (self.down.bias, self.up.weight, self.up.bias):
                parameter.zero_()

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """``[n, ..., size]``, in the type of ``h``."""
        inner = nn.functional.gelu(self.down(h.to(self.down.weight.dtype)))
        added: torch.Tensor = self.up(inner).to(h.dtype)
        return h + added


class PromptTokens(nn.Module):
    """Vectors that stand before every input's embeddings.

    They change what the model says from the start: they begin as embeddings of tokens drawn from
    the vocabulary.

    Source: Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning"
    (2104.08691), section 2.1.
    """

    def __init__(self, vectors: torch.Tensor) -> None:
        super().__init__()
        self.tokens = nn.Embedding(*vectors.shape)
        with torch.no_grad():
            self.tokens.weight.copy_(vectors)

    def forward(self, rows: int) -> torch.Tensor:
        """float32[rows, tokens, size]: a copy for every example, whose gradient is its own."""
        count = self.tokens.num_embeddings
        index = torch.arange(count, device=self.tokens.weight.device)
        found: torch.Tensor = self.tokens(index.expand(rows, count))
        return found


def insert(model: nn.Module, section: LoraSection, *, task: str) -> None:
    """Put in what ``section.kind`` names besides LoRA.

    Args:
        model: with its LoRA layers, if it is to have any; changed in place.
        section: which modules, where and how large.
        task: ``causal-lm`` or ``sequence-classification``.

    Raises:
        ConfigError: a module is not there or is not linear, or the model has no place for a
            prompt.
    """
    generator = torch.Generator().manual_seed(section.seed)
    if "ia3" in section.kinds:
        for module, _, outputs in _targets(model, section.ia3_modules, _IA3_OUTPUTS, "ia3_modules"):
            _add(module, IA3, Rescaling(outputs, on_input=False))
        for module, inputs, _ in _targets(
            model, section.ia3_feedforward_modules, _IA3_INPUTS, "ia3_feedforward_modules"
        ):
            _add(module, IA3, Rescaling(inputs, on_input=True))
    if "bottleneck" in section.kinds:
        for module, _, outputs in _targets(
            model, section.bottleneck_modules, _BOTTLENECKS, "bottleneck_modules"
        ):
            made = Bottleneck(outputs, section.bottleneck_width or _WIDTH, generator)
            _add(module, BOTTLENECK, made)
    if "prompt" in section.kinds:
        if task != "causal-lm":
            raise ConfigError(
                f"lora.kind: 'prompt' with task = {task!r}: a classifier that reads the last token "
                "or a fixed place would read another one; use it with 'causal-lm'"
            )
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
        weight = embeddings.weight.detach()
        drawn = torch.randint(
            len(weight), (section.prompt_tokens or _PROMPT_TOKENS,), generator=generator
        )
        vectors = weight[drawn.to(weight.device)].float()
        prompt = PromptTokens(vectors).to(weight.device)
        model.add_module(PROMPT, prompt)
        model.register_forward_pre_hook(_before_embeddings(embeddings, prompt), with_kwargs=True)


def _targets(
    model: nn.Module, given: Sequence[str] | None, otherwise: Sequence[str], field: str
) -> list[tuple[nn.Module, int, int]]:
    """Each linear module with such a name, LoRA's layer in the place of the one inside it."""
    found = []
    for target in otherwise if given is None else given:
        ends = [
            (module, _widths(module))
            for name, module in model.named_modules()
            if name == target or name.endswith(f".{target}")
        ]
        linear = [(module, *widths) for module, widths in ends if widths is not None]
        if not linear:
            raise ConfigError(
                f"lora.{field}: {target!r} is no linear module of this model; it has "
                f"{', '.join(_linear_names(model)) or 'none'}"
            )
        found += linear
    return found


def _widths(module: nn.Module) -> tuple[int, int] | None:
    base = getattr(module, "base_layer", module)
    if isinstance(base, nn.Linear):
        return base.in_features, base.out_features
    if type(base).__name__ == "Conv1D":  # GPT-2's, with its weight transposed
        inputs, outputs = base.get_parameter("weight").shape
        return int(inputs), int(outputs)
    return None


def _linear_names(model: nn.Module) -> list[str]:
    names = {name.rpartition(".")[2] for name, m in model.named_modules() if _widths(m) is not None}
    return sorted(names - {"base_layer", "default", "down", "core", "up", ""})


def _add(module: nn.Module, name: str, part: Rescaling | Bottleneck) -> None:
    if hasattr(module, name):
        raise ConfigError(f"lora.kind: one module would get two parts of kind {name!r}")
    part.to(next(module.parameters()).device)
    module.add_module(name, part)
    if isinstance(part, Rescaling) and part.on_input:
        module.register_forward_pre_hook(lambda _, given: (part(given[0]), *given[1:]))
    else:
        module.register_forward_hook(lambda _, __, output: part(output))


def _before_embeddings(
    embeddings: nn.Module, prompt: PromptTokens
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]:
    def hook(
        module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids = named.pop("input_ids")
        vectors = embeddings(ids)
        before = prompt(len(ids)).to(vectors.dtype)
        named["inputs_embeds"] = torch.cat([before, vectors], dim=1)
        if (mask := named.get("attention_mask")) is not None:
            named["attention_mask"] = torch.cat([mask.new_ones(before.shape[:2]), mask], dim=1)
        return given, named

    return hook
