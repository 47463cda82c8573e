"""Build, hand over and save a LoRA adapter."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn

from securefed.config import LoraSection
from securefed.errors import ConfigError
from securefed.lora.columns import at_rank, check_rank, columns, rank_axis
from securefed.lora.core import folded, put_in_cores
from securefed.lora.inserted import insert
from securefed.lora.inserted_files import write_inserted
from securefed.lora.provenance import PROVENANCE_FILE
from securefed.lora.sharing import is_adapter_parameter, travelling_parameters

_TASKS = {"causal-lm": TaskType.CAUSAL_LM, "sequence-classification": TaskType.SEQ_CLS}


def build_adapter(model: nn.Module, section: LoraSection, *, task: str) -> nn.Module:
    """Put an adapter on a base model.  Of LoRA: rows of A orthonormal, B (or Fed-SB's R) zero.

    Orthonormal rows give every coordinate of B the same scale, so one clip norm fits all layers.
    Only the server calls this for its values: the same seed gives other bits on other machines,
    so clients build the structure and then load the server's :func:`adapter_state`.

    Args:
        model: the base model; it is changed in place.
        section: kinds, rank, alpha, target modules, modules to save, sharing mode and seed.
        task: ``causal-lm`` or ``sequence-classification``.

    Returns:
        The PEFT model, without LoRA dropout, in evaluation mode; without LoRA ``model`` itself.

    Raises:
        ConfigError: ``task`` is unknown, a target is no linear module of the model (the message
            lists those it has), a module to save is not there, or the rank is larger than the
            input of a target (``fedsb``, ``fedsvd``: or its output).

    Guarantees:
        - Its output equals that of the base model, as B = 0 or R = 0 and inserted modules change
          nothing at first; except with prompt tokens.
        - Exactly what trains in round 1 under ``section.sharing`` has ``requires_grad``.

    Source: Hu et al. 2021, "LoRA" (2106.09685), section 4.1; Sun et al. 2024 (2403.12313) for a
    frozen A with orthonormal rows.
    """
    if task not in _TASKS:
        raise ConfigError(f"task = {task!r}; allowed: {', '.join(map(repr, _TASKS))}")
    adapted = _with_lora(model, section, task) if "lora" in section.kinds else model
    insert(adapted, section, task=task)
    travelling_parameters(adapted, section.sharing)
    adapted.eval()
    return adapted


def _with_lora(model: nn.Module, section: LoraSection, task: str) -> nn.Module:
    _check_targets(model, section)
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        target_modules=list(section.target_modules),
        modules_to_save=list(section.modules_to_save) or None,
        lora_dropout=0.0,
        bias="none",
        task_type=_TASKS[task],
    )
    adapted: nn.Module = get_peft_model(model, config)
    _initialise(adapted, section.seed)
    if section.sharing == "fedsb":
        put_in_cores(adapted)
    return adapted


def _ends_with(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith("." + wanted)


def _is_linear(module: nn.Module) -> bool:
    # GPT-2's Conv1D is a linear layer with its weight transposed; PEFT adapts it as one.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _check_targets(model: nn.Module, section: LoraSection) -> None:
    """PEFT takes a target list of which one entry fits; a misspelt one must not pass silently."""
    modules = {name: module for name, module in model.named_modules() if name}
    linear = [name for name, module in modules.items() if _is_linear(module)]
    has = sorted({name.rpartition(".")[2] for name in linear})
    for target in section.target_modules:
        found = [name for name in linear if _ends_with(name, target)]
        if not found:
            raise ConfigError(
                f"lora.target_modules: {target!r} is no linear module of this model; it has "
                f"{', '.join(has) or 'none'}"
            )
        for name in found:
            inputs, outputs = _widths(modules[name])
            if section.rank > inputs:
                raise ConfigError(
                    f"lora.rank = {section.rank}; {name} has {inputs} inputs, so that A's rows can "
                    f"be orthonormal only for a rank <= {inputs}"
                )
            if section.sharing in ("fedsb", "fedsvd") and section.rank > outputs:
                raise ConfigError(
                    f"lora.rank = {section.rank}; {name} has {outputs} outputs, so that it has "
                    f"singular vectors, which lora.sharing = {section.sharing!r} needs, only for "
                    f"a rank <= {outputs}"
                )
    for wanted in section.modules_to_save:
        if not any(_ends_with(name, wanted) for name in modules):
            tops = sorted({name.rpartition(".")[2] for name in modules} - {""})
            raise ConfigError(
                f"lora.modules_to_save: {wanted!r} is no module of this model; it has "
                f"{', '.join(name for name in tops if not name.isdigit())}"
            )


def _widths(module: nn.Module) -> tuple[int, int]:
    """How many inputs and outputs a linear module has."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    inputs, outputs = module.get_parameter("weight").shape
    return int(inputs), int(outputs)


def _initialise(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parameters: dict[str, nn.Parameter] = dict(model.named_parameters())
    with torch.no_grad():
        for name in sorted(parameters):
            parameter = parameters[name]
            if ".lora_A." in name:
                rank, width = parameter.shape
                normal = torch.randn(width, rank, generator=generator, dtype=torch.float64)
                orthonormal, _ = torch.linalg.qr(normal)
                parameter.copy_(orthonormal.T)
            elif ".lora_B." in name:
                parameter.zero_()


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of the adapter, the frozen A included: what the server hands to its clients.

    Returns:
        Parameter name to a float32 copy on the CPU, sorted by name.

    Raises:
        ConfigError: the model has no adapter.
    """
    state = {
        name: parameter.detach().to("cpu", torch.float32, copy=True).contiguous()
        for name, parameter in sorted(model.named_parameters(remove_duplicate=False))
        if is_adapter_parameter(name)
    }
    if not state:
        raise ConfigError("model: it has no adapter")
    return state


def load_adapter_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy an adapter's tensors into a model that has the same structure.

    Args:
        model: a PEFT model made with the same section.
        state: as :func:`adapter_state` gives it.

    Raises:
        ConfigError: names or shapes differ, or a value is NaN or infinite; the model is then
            unchanged.
    """
    own = {
        name: parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if is_adapter_parameter(name)
    }
    missing, unknown = sorted(set(own) - set(state)), sorted(set(state) - set(own))
    if missing or unknown:
        raise ConfigError(
            f"adapter state: missing {missing or 'nothing'}, unknown {unknown or 'none'}"
        )
    for name, parameter in own.items():
        if state[name].shape != parameter.shape:
            raise ConfigError(
                f"adapter state: {name} has shape {tuple(state[name].shape)}; this model has "
                f"{tuple(parameter.shape)}"
            )
        # As it will be held: a finite float64 may be infinite as float32.
        if not bool(torch.isfinite(state[name].to(parameter.dtype)).all()):
            raise ConfigError(f"adapter state: {name} holds NaN or infinity")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def state_hash(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256, in hexadecimal, over names, shapes and float32 values in order of the names."""
    digest = hashlib.sha256(b"securefed adapter state 1\0")
    for name in sorted(state):
        values = state[name].detach().to("cpu", torch.float32).contiguous().numpy()
        # The shape ends the header, and fixes how many bytes of values follow it.
        digest.update(json.dumps([name, list(values.shape)]).encode() + b"\0")
        digest.update(values.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def save_adapter(
    model: nn.Module,
    folder: Path,
    *,
    base_model_name: str,
    base_fingerprint: str,
    sharing: str,
    section: LoraSection | None = None,
    task: str = "causal-lm",
    rank: int | None = None,
) -> None:
    """Write the adapter in PEFT's format, whole or not at all.

    ``PeftModel.from_pretrained(base, folder)`` loads its LoRA layers, and ``load_inserted`` what
    was put in beside them.  :data:`PROVENANCE_FILE` stands beside it.
    For ``fedsb`` R A is written as A: an ordinary LoRA adapter of the same function.

    Args:
        model: as ``build_adapter`` gives it.
        folder: is made, or replaced if it is there.
        base_model_name: a hub or built-in name; no absolute path, no ``..``.
        base_fingerprint: of the base weights, hexadecimal.
        sharing: the sharing mode that the adapter was trained under.
        section: the section that it was built with; needed where modules are inserted.
        task: likewise.
        rank: the first directions alone, at the scale of the whole (:mod:`securefed.lora.ranks`);
            all of them without it.

    Raises:
        ConfigError: ``base_model_name`` is a path of this machine, the model has no such rank, or
            the folder cannot be written.

    Guarantees:
        - No file holds a path of this machine.
        - A call that is killed leaves the old folder, the new one or (between two renames)
          neither, but never a part.
    """
    if (
        not base_model_name
        or base_model_name.startswith(("/", "~", "."))
        or "\\" in base_model_name
        or ".." in base_model_name.split("/")
    ):
        raise ConfigError(
            "base_model_name: it must be a portable name, such as owner/name or builtin:NAME, "
            "not a path of this machine"
        )
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
            fresh = Path(work) / "new"
            fresh.mkdir()
            if isinstance(model, PeftModel):
                _write_peft(model, fresh, base_model_name, rank)
            if section is not None:
                write_inserted(model, fresh, section, task=task, base_model_name=base_model_name)
            state = adapter_state(model)
            provenance = {
                "base_model": base_model_name,
                "base_fingerprint": base_fingerprint,
                "sharing": sharing,
                "state_sha256": state_hash(state if rank is None else at_rank(state, rank)),
            }
            _write_json(fresh / PROVENANCE_FILE, provenance)
            for path in fresh.rglob("*"):
                _sync(path)
            if folder.exists():
                os.replace(folder, Path(work) / "old")
            os.replace(fresh, folder)
        # safetensors makes its files readable by the owner only; the folder is for sharing.
        for shared in folder.rglob("*.safetensors"):
            shared.chmod((folder / PROVENANCE_FILE).stat().st_mode)
    except OSError as error:
        raise ConfigError(f"adapter folder {folder}: {error.strerror or error}") from error


def _write_peft(model: PeftModel, folder: Path, base_model_name: str, rank: int | None) -> None:
    state = folded(model.state_dict())
    if rank is not None:
        state = {n: t if rank_axis(n) is None else columns(n, t, 0, rank) for n, t in state.items()}
    # "auto" would ask the model hub whether the vocabulary has changed.
    model.save_pretrained(
        str(folder),
        safe_serialization=True,
        save_embedding_layers=False,
        state_dict=state,
    )
    # PEFT's model card repeats the folder that the base model came from.
    (folder / "README.md").unlink(missing_ok=True)
    config_path = folder / "adapter_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_model_name
    config["revision"] = None
    if rank is not None:
        check_rank(rank, config["r"])
        config["lora_alpha"] = config["lora_alpha"] * rank / config["r"]
        config["r"] = rank
    _write_json(config_path, config)


def _write_json(path: Path, values: Mapping[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
