"""Inserted modules on disk: one file of our own, and PEFT's format where PEFT has one."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import IA3Config, PromptTuningConfig, TaskType
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from securefed.config import LoraSection
from securefed.errors import ConfigError
from securefed.lora.inserted import IA3, PROMPT, Rescaling, insert
from securefed.lora.sharing import is_inserted

SECTION_FILE = "inserted.json"
VALUES_FILE = "inserted.safetensors"
_PEFT_PREFIX = "base_model.model."
_WEIGHTS = "adapter_model.safetensors"
_OF_LORA = {"rank", "alpha", "target_modules", "modules_to_save", "sharing"}


def inserted_values(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters of inserted modules by their names in the base model, float32 on the CPU."""
    return {
        name.removeprefix(_PEFT_PREFIX): parameter.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in sorted(model.named_parameters())
        if is_inserted(name)
    }


def write_inserted(
    model: nn.Module, folder: Path, section: LoraSection, *, task: str, base_model_name: str
) -> None:
    """Write what :func:`load_inserted` reads; nothing where nothing is inserted.

    ``ia3/`` and ``prompt/`` inside ``folder`` hold the same values in PEFT's format, each for a
    model that has just that (PEFT does not mix them); PEFT has none for a bottleneck.
    """
    values = inserted_values(model)
    if not values:
        return
    save_file(values, folder / VALUES_FILE)
    written = section.model_dump(mode="json", exclude_none=True, exclude=_OF_LORA)
    text = json.dumps({"task": task, "lora": written}, indent=2, sort_keys=True) + "\n"
    (folder / SECTION_FILE).write_text(text, encoding="utf-8")
    if "ia3" in section.kinds:
        _write_ia3(model, folder / "ia3", base_model_name)
    if "prompt" in section.kinds:
        tokens = values[f"{PROMPT}.tokens.weight"]
        config = PromptTuningConfig(
            task_type=TaskType.CAUSAL_LM,
            num_virtual_tokens=len(tokens),
            base_model_name_or_path=base_model_name,
            inference_mode=True,
        )
        config.save_pretrained(str(folder / "prompt"))
        save_file({"prompt_embeddings": tokens}, folder / "prompt" / _WEIGHTS)


def _write_ia3(model: nn.Module, folder: Path, base_model_name: str) -> None:
    vectors, inputs = {}, []
    for name, module in model.named_modules():
        if not isinstance(module, Rescaling):
            continue
        path = name.removeprefix(_PEFT_PREFIX).removesuffix(f".{IA3}")
        vector = module.weight.detach().to("cpu", torch.float32)
        if module.on_input:
            inputs.append(path)
        shape = (1, -1) if module.on_input else (-1, 1)
        vectors[f"{_PEFT_PREFIX}{path}.ia3_l"] = vector.reshape(shape).contiguous()
    paths = [key.removeprefix(_PEFT_PREFIX).removesuffix(".ia3_l") for key in vectors]
    config = IA3Config(
        target_modules=sorted(paths),
        feedforward_modules=sorted(inputs),
        base_model_name_or_path=base_model_name,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    save_file(vectors, folder / _WEIGHTS)


def load_inserted(model: nn.Module, folder: Path) -> None:
    """Put the inserted modules of a saved adapter into a model, LoRA or not.

    Args:
        model: the base model, or what ``PeftModel.from_pretrained(base, folder)`` gave where the
            adapter has LoRA too; changed in place.
        folder: of an adapter with inserted modules.

    Raises:
        ConfigError: the folder holds none, or they do not fit the model.
    """
    try:
        written = json.loads((folder / SECTION_FILE).read_text(encoding="utf-8"))
        values = load_file(folder / VALUES_FILE)
        section, task = LoraSection.model_validate(written["lora"]), str(written["task"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        first = (str(error).splitlines() or ["unknown reason"])[0]
        raise ConfigError(
            f"adapter folder {folder}: its inserted modules cannot be read ({first})"
        ) from None
    insert(model, section, task=task)
    own = {
        name.removeprefix(_PEFT_PREFIX): parameter
        for name, parameter in model.named_parameters()
        if is_inserted(name)
    }
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    if shapes != {name: tuple(parameter.shape) for name, parameter in own.items()}:
        raise ConfigError(
            f"adapter folder {folder}: its inserted modules have other names or shapes than this "
            "model's"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(values[name])
