"""What goes into a layer, for any token or text, by running the model itself up to there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from securefed.attacks.base import PublicKnowledge
from securefed.errors import ConfigError

_ATTENTION = frozenset(
    {"query", "key", "value", "q_proj", "k_proj", "v_proj"}
    | {"c_attn", "qkv_proj", "query_key_value", "Wqkv", "q_lin", "k_lin", "v_lin"}
)
"""Linear layers of the usual architectures that read a block's input, positions and all."""
_QUERIES = frozenset({"query", "q_proj", "q_lin"})
_KEYS = frozenset({"key", "k_proj", "k_lin"})
_NUMBER = re.compile(r"\.(?:layer|layers|h|block|blocks)\.([0-9]+)\.")
_LORA = re.compile(r"\.lora_([AB])\.[^.]+(\.core)?\.weight$")
_WHOLE = re.compile(r"(?:\.base_layer|\.modules_to_save\.[^.]+)?\.weight$")
_CHUNK = 8192


@dataclass(frozen=True, eq=False)
class Observed:
    """The update of one matrix of one attention layer.

    Attributes:
        module: the linear layer's name, without what an adapter adds to it.
        query: whether it makes queries.
        rows: float32[m, dim], whose rows are combinations of inputs.
        lift: float32[dim, d] through which inputs are seen; None where they are seen as they are.
        factor: ``"A"``, ``"B"`` (also Fed-SB's R) or ``"full"``.
    """

    module: str
    query: bool
    rows: torch.Tensor
    lift: torch.Tensor | None
    factor: str

    @property
    def key(self) -> bool:
        """Whether it makes keys: without rotary positions its rows are differences of inputs."""
        return self.module.rpartition(".")[2] in _KEYS


def observed(
    public: PublicKnowledge, tensors: dict[str, torch.Tensor]
) -> dict[int, list[Observed]]:
    """Updates of layers that read a block's input, by the block's number.

    Args:
        public: the model, with A where it is frozen.
        tensors: an update, by parameter.
    """
    parameters = dict(public.model.named_parameters(remove_duplicate=False))
    modules = dict(public.model.named_modules())
    found: dict[int, list[Observed]] = {}
    for name in sorted(tensors):
        lora, whole = _LORA.search(name), _WHOLE.search(name)
        if lora is None and (whole is None or ".lora_" in name):
            continue
        stem = name[: lora.start()] if lora else name[: whole.start() if whole else None]
        kind, number = stem.rpartition(".")[2], _NUMBER.search(name)
        if kind not in _ATTENTION or number is None:
            continue
        rows, lift, factor = tensors[name], None, "full"
        if lora is None and type(modules.get(stem)).__name__ == "Conv1D":
            rows = rows.T
        elif lora is not None and lora[2]:
            lift, factor = parameters[name.replace(".core.", ".down.")], "B"
        elif lora is not None and lora[1] == "B":
            down = name.replace(".lora_B.", ".lora_A.")
            if down not in parameters:
                continue
            lift, factor = parameters[down], "B"
        elif lora is not None:
            factor = "A"
        lifted = None if lift is None else lift.detach().float()
        found.setdefault(int(number[1]), []).append(
            Observed(stem, kind in _QUERIES, rows.float(), lifted, factor)
        )
    return found


def around(public: PublicKnowledge) -> tuple[list[int], list[int]]:
    """What stands before and after every text, such as [CLS] and [SEP]."""
    tokens = [int(token) for token in public.tokenizer("")["input_ids"]]
    return tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :]


def reading_layers(model: nn.Module) -> dict[int, str]:
    """By block, the name of a linear layer that reads its input, whether it trains or not."""
    found: dict[int, str] = {}
    for name, _ in model.named_modules():
        number = _NUMBER.search(name)
        if number is not None and name.rpartition(".")[2] in _ATTENTION:
            found.setdefault(int(number[1]), name)
    return found


class _Reached(Exception):  # the rest of the model is not run
    pass


class InputReader:
    """Reads the input of attention layers.

    Args:
        model: in evaluation mode.
        modules: by block, the name of a linear layer that reads its input.
        kept: where inputs of the whole vocabulary are kept for later readers of the same base
            model, by place; nothing is kept without it.

    Attributes:
        vocabulary: how many tokens the model embeds.
        absolute: whether a token's first input depends on its place.
        causal: whether a place sees none after it.

    Raises:
        ConfigError: block 0 is not among them.
    """

    def __init__(
        self,
        model: nn.Module,
        modules: dict[int, str],
        kept: dict[int, torch.Tensor] | None = None,
    ) -> None:
        if 0 not in modules:
            raise ConfigError("modules: none reads the input of block 0")
        self._model = cast(Any, model)
        self._kept = kept
        self._modules = {block: model.get_submodule(name) for block, name in modules.items()}
        embedding: torch.Tensor = self._model.get_input_embeddings().weight
        self._device = embedding.device
        self.vocabulary = int(embedding.shape[0])
        first = self.first([1, 2], 0), self.first([1, 2], 1)
        self.absolute = not torch.allclose(*first)
        self.causal = True
        if 1 in self._modules:
            one, other = self.at(1, [[1, 2, 3], [1, 2, 4]])
            self.causal = torch.allclose(one[0], other[0], atol=1e-5)

    @property
    def blocks(self) -> frozenset[int]:
        """Blocks whose input can be read."""
        return frozenset(self._modules)

    def at(
        self, block: int, ids: Sequence[Sequence[int]] | torch.Tensor, **options: Any
    ) -> torch.Tensor:
        """float32[n, w, d]: the input of a block for texts of one length."""
        given = torch.as_tensor(ids, dtype=torch.int64, device=self._device)
        return self._reached(
            block, input_ids=given, attention_mask=torch.ones_like(given), **options
        )

    def embedded(self, block: int, embeddings: torch.Tensor) -> torch.Tensor:
        """float32[n, w, d]: the same for token embeddings float32[n, w, d], positions not added."""
        given = embeddings.to(self._device)
        mask = torch.ones(given.shape[:2], dtype=torch.int64, device=self._device)
        return self._reached(block, inputs_embeds=given, attention_mask=mask)

    def _reached(self, block: int, **given: Any) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def stop(_: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            seen.append(given[0].detach())
            raise _Reached

        hook = self._modules[block].register_forward_pre_hook(stop)
        try:
            with torch.no_grad():
                self._model(**given)
        except _Reached:
            pass
        finally:
            hook.remove()
        return seen[0].float().cpu()

    def first(self, tokens: Sequence[int] | torch.Tensor, place: int) -> torch.Tensor:
        """float32[n, d]: the input of block 0 for tokens at one place of a text."""
        given = torch.as_tensor(tokens, dtype=torch.int64)
        parts = []
        for start in range(0, len(given), _CHUNK):
            part = given[start : start + _CHUNK]
            where = torch.full((len(part), 1), place, dtype=torch.int64, device=self._device)
            parts.append(self.at(0, part[:, None], position_ids=where)[:, 0])
        return torch.cat(parts)

    def every(self, place: int) -> torch.Tensor:
        """float32[vocabulary, d]: the same for every token."""
        if self._kept is None:
            return self.first(torch.arange(self.vocabulary), place)
        if place not in self._kept:
            self._kept[place] = self.first(torch.arange(self.vocabulary), place)
        return self._kept[place]
