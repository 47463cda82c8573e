"""An adapter merged into its base model, as plain safetensors that transformers loads alone."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from securefed.engines.released import Released, with_adapter
from securefed.errors import ConfigError
from securefed.evidence.kinds import CLOSED
from securefed.evidence.ledger import read_ledger
from securefed.lora.inserted_files import SECTION_FILE
from securefed.lora.provenance import PROVENANCE_FILE
from securefed.training.assets import Progress, cache_dir
from securefed.training.models import LoadedModel

RECORD = "securefed_merge.json"
"""JSON beside the weights: base, fingerprints, adapter hash and the run's statements."""

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PROBES, _PROBE_TOKENS = 2, 16
# Relative to the largest logit: sums in another order, and the weights' own rounding.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Merged:
    """A merged model.

    Attributes:
        folder: where it is.
        adapter: the folder of what was merged.
        base: the base model's name.
        dtype: of its weights.
        difference: largest difference of a logit from base and adapter, over the largest logit.
    """

    folder: Path
    adapter: Path
    base: str
    dtype: str
    difference: float


def merge_run(
    folder: str | Path,
    out: str | Path,
    *,
    rank: int | None = None,
    client: str | None = None,
    dtype: str = "float32",
    cache: Path | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Merged:
    """Merge an adapter of a finished run into its base model.

    Args:
        folder: the run folder.
        out: of the merged model; is made.
        rank: with unlike ranks, the shared adapter at this one; without, at the largest.
        client: this client's own adapter in place of the shared one.
        dtype: of the weights written: ``float32``, ``bfloat16`` or ``float16``.
        cache: where models are kept.
        offline: fetch nothing.
        progress: told what takes time.

    Raises:
        ConfigError: as :func:`merge`; or there is no such adapter.
        FetchError: the base model is neither here nor to be had.
    """
    if rank is not None and client is not None:
        raise ConfigError("rank and client are both given; give one of them")
    say: Progress = progress if progress is not None else lambda line: None
    released = Released.of(Path(folder))
    adapter = released.shared
    if rank is not None:
        adapter = released.at_rank(rank)
    if client is not None:
        adapter = released.client(client)
        say(
            f"note: the adapter of {client} is made from its data without noise; whoever is handed "
            "the merged model is handed what it tells of them, and no epsilon covers it"
        )
    base = released.base(
        cache=cache or cache_dir(),
        offline=offline,
        device=torch.device("cpu"),
        dtype="float32",
        progress=say,
    )
    return merge(released, adapter, base, Path(out), dtype=dtype)


def merge(released: Released, adapter: Path, base: LoadedModel, out: Path, *, dtype: str) -> Merged:
    """Write ``W + B A alpha / r`` in the place of each adapted weight, and what serves the model.

    The merge is computed in float32.  Before the folder takes its place it is loaded again by plain
    transformers, and its logits on probe tokens are compared with those of base and adapter.

    Args:
        released: the run's adapters.
        adapter: the folder of the one to merge, among these.
        base: as ``released.base`` gives it, on the CPU in float32.
        out: is made; it must not be there, or be empty.
        dtype: of the weights written: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        ConfigError: the body is quantised, the adapter holds modules that no weight can take in,
            ``out`` cannot be made, or the merged model does not say what base and adapter say;
            nothing is left behind.

    Guarantees:
        - The folder appears whole or not at all, and holds no path of this machine.
        - Tied embeddings stay tied, unless the adapter changes the output layer alone.
    """
    if dtype not in _TYPES:
        raise ConfigError(f"dtype = {dtype!r}: must be one of {', '.join(_TYPES)}")
    _check_mergeable(released, adapter)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: is there already and is not written over; name another folder")
    adapted = with_adapter(base.model, adapter)
    probes = _probes(base)
    with torch.no_grad():
        expected = adapted(**probes).logits.float()
    merged = _merged(adapted)
    merged.to(_TYPES[dtype])
    merged.config.dtype = _TYPES[dtype]
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as work:
            fresh = Path(work) / "model"
            merged.save_pretrained(str(fresh))
            base.tokenizer.save_pretrained(str(fresh))
            _forget_paths(fresh, base.name)
            difference = _difference(fresh, released.config.model.task, probes, expected)
            if not difference <= _TOLERANCE[_TYPES[dtype]]:  # also refuses nan
                raise ConfigError(
                    f"merging {adapter}: the merged model's logits differ from those of base and "
                    f"adapter by {difference:.2g} of the largest, allowed is "
                    f"{_TOLERANCE[_TYPES[dtype]]:g} for {dtype}; serve base and adapter with PEFT, "
                    "or merge to float32"
                )
            _write_record(fresh, released, adapter, base, dtype, difference)
            # safetensors makes its files readable by the owner only; the folder is for serving.
            for weights in fresh.glob("*.safetensors"):
                weights.chmod((fresh / RECORD).stat().st_mode)
            if out.exists():
                out.rmdir()
            os.replace(fresh, out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror or error})") from None
    return Merged(out, adapter, base.name, dtype, difference)


def _check_mergeable(released: Released, adapter: Path) -> None:
    kept = released.config.model.quantize
    if kept != "none":
        raise ConfigError(
            f"model.quantize = {kept!r}: the run's adapter was trained against weights of "
            f"{kept.removeprefix('int')} bits, and a sum with the adapter does not fit these; "
            "merging it into the whole weights would make another model. Serve base and adapter "
            "with PEFT, or train with quantize = 'none'"
        )
    if (adapter / SECTION_FILE).is_file():
        kinds = ", ".join(kind for kind in released.config.lora.kinds if kind != "lora")
        raise ConfigError(
            f"lora.kind holds {kinds}: these are modules of their own, which no weight of the base "
            "takes in; load them with securefed.lora.inserted_files.load_inserted"
        )


def _merged(adapted: Any) -> Any:
    """The base model with the adapter in its weights."""
    if not isinstance(adapted, PeftModel):
        raise ConfigError("adapter: holds no LoRA layers; there is nothing to merge")
    body = adapted.get_base_model()
    inside, outside = body.get_input_embeddings(), body.get_output_embeddings()
    text = body.config.get_text_config()
    if (
        outside is not None
        and text.tie_word_embeddings
        and (_is_adapted(inside) or _is_adapted(outside))
    ):
        # One weight for both: what is merged into the one must not change the other.
        shared = {id(parameter) for parameter in inside.parameters()}
        for module in outside.modules():
            weight = dict(module.named_parameters(recurse=False)).get("weight")
            if weight is not None and id(weight) in shared:
                module.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        body.config.tie_word_embeddings = text.tie_word_embeddings = False
    return adapted.merge_and_unload(safe_merge=True)


def _is_adapted(module: nn.Module) -> bool:
    return any(
        "lora_" in name or "modules_to_save" in name for name, _ in module.named_parameters()
    )


def _probes(base: LoadedModel) -> dict[str, torch.Tensor]:
    """Made-up tokens, all of them given: nothing of any client's data."""
    generator = torch.Generator().manual_seed(0)
    model: Any = base.model
    rows = model.get_input_embeddings().weight.shape[0]
    most = int(getattr(model.config, "max_position_embeddings", _PROBE_TOKENS))
    width = max(2, min(_PROBE_TOKENS, most - 4))
    ids = torch.randint(0, min(len(base.tokenizer), rows), (_PROBES, width), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _difference(
    folder: Path, task: str, probes: dict[str, torch.Tensor], expected: torch.Tensor
) -> float:
    classifier = task == "sequence-classification"
    kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    loaded = kind.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    loaded.eval()
    with torch.no_grad():
        found = loaded(**probes).logits.float()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def _forget_paths(folder: Path, name: str) -> None:
    """Name the base by its portable name wherever transformers wrote where it lay."""
    for path in folder.glob("*.json"):
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and (found := {"_name_or_path", "name_or_path"} & set(values)):
            values |= dict.fromkeys(found, name)
            path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _write_record(
    folder: Path,
    released: Released,
    adapter: Path,
    base: LoadedModel,
    dtype: str,
    difference: float,
) -> None:
    provenance = json.loads((adapter / PROVENANCE_FILE).read_text(encoding="utf-8"))
    last = next(
        r for r in reversed(read_ledger(released.folder / "ledger.jsonl")) if r.kind == CLOSED
    )
    personal = adapter in released.personal.values()
    record = {
        "base_model": base.name,
        "base_fingerprint": base.fingerprint,
        "adapter_state_sha256": provenance["state_sha256"],
        "dtype": dtype,
        "largest_relative_difference_of_logits": difference,
        # A personal adapter is made from its client's data without noise: no statement covers it.
        "guarantees": [] if personal else last.body["guarantees"],
    }
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    (folder / RECORD).write_text(text, encoding="utf-8")
