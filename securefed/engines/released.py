"""What a finished run released: its adapters, and the base model that they go on."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn

from securefed.config import RunConfig, load_config
from securefed.errors import ConfigError
from securefed.lora.inserted_files import SECTION_FILE, load_inserted
from securefed.lora.provenance import PROVENANCE_FILE
from securefed.training.assets import Progress
from securefed.training.models import LoadedModel, load_model

_PEFT_FILE, _WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Released:
    """The adapters in a run folder.

    Attributes:
        folder: of the run.
        config: its run file.
        shared: the folder of the shared adapter.
        ranks: with unlike ranks, the shared adapter's folder at each of them.
        personal: by client, the folder of the adapter that it uses; none where clients have none.
    """

    folder: Path
    config: RunConfig
    shared: Path
    ranks: dict[int, Path]
    personal: dict[str, Path]

    @classmethod
    def of(cls, folder: Path) -> Released:
        """What is in a run folder.

        Raises:
            ConfigError: it is no run folder, or its run is not finished.
        """
        config = folder / "config.toml"
        if not config.is_file():
            raise ConfigError(
                f"{config} is missing: {folder} is not a run folder; name the one that `securefed "
                "run` printed"
            )
        shared = folder / "adapter"
        if not (shared / PROVENANCE_FILE).is_file():
            raise ConfigError(
                f"{shared} is missing: a run writes its adapter when it ends, and this one has not "
                f"(securefed status {folder})"
            )
        ranks = {
            int(path.name): path / "adapter"
            for path in (folder / "ranks").glob("*")
            if re.fullmatch(r"[0-9]+", path.name) and (path / "adapter").is_dir()
        }
        personal = {
            path.parent.name: path for path in sorted((folder / "personal").glob("*/adapter"))
        }
        return cls(folder, load_config(config), shared, dict(sorted(ranks.items())), personal)

    def client(self, name: str) -> Path:
        """The folder of a client's own adapter.

        Raises:
            ConfigError: there is none.
        """
        if name not in self.personal:
            others = (
                f"those that have one: {', '.join(self.personal)}"
                if self.personal
                else "no client of this run has one (personal.kind = 'none', and lora.sharing = "
                f"{self.config.lora.sharing!r} leaves them no part)"
            )
            raise ConfigError(f"{self.folder}: client {name!r} has no adapter of its own; {others}")
        return self.personal[name]

    def at_rank(self, rank: int) -> Path:
        """The folder of the shared adapter at one of the run's ranks.

        Raises:
            ConfigError: the run has no such rank.
        """
        if rank not in self.ranks:
            there = ", ".join(map(str, self.ranks)) or f"one alone, {self.config.lora.rank}"
            raise ConfigError(f"{self.folder}: no adapter at rank {rank}; there is {there}")
        return self.ranks[rank]

    def base(
        self,
        *,
        cache: Path,
        offline: bool,
        device: torch.device,
        dtype: Literal["auto", "float32", "bfloat16"] | None = None,
        progress: Progress | None = None,
    ) -> LoadedModel:
        """The base model, checked to be the one that the run was on.

        Args:
            cache: where models are kept.
            offline: fetch nothing.
            device: where it goes.
            dtype: in place of ``model.dtype``.
            progress: told what is about to take time.

        Raises:
            ConfigError: its weights are other ones, or it cannot be loaded.
            FetchError: it is neither here nor to be had.
        """
        section = self.config.model
        if dtype is not None:
            section = section.model_copy(update={"dtype": dtype})
        loaded = load_model(section, cache=cache, offline=offline, device=device, progress=progress)
        path = self.shared / PROVENANCE_FILE
        try:
            wanted = str(json.loads(path.read_text(encoding="utf-8"))["base_fingerprint"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: is not what a run writes there ({error})") from None
        if loaded.fingerprint != wanted:
            raise ConfigError(
                f"model.source = {self.config.model.source!r}: its weights have fingerprint "
                f"{loaded.fingerprint}, and the adapter in {self.shared} was trained on {wanted}; "
                "put the weights of the run back there"
            )
        return loaded


def with_adapter(base: nn.Module, folder: Path) -> nn.Module:
    """A copy of a base model with the adapter in a folder, in evaluation mode.

    Args:
        base: left as it is; the copy takes as much memory again.
        folder: as ``save_adapter`` writes it.

    Raises:
        ConfigError: the adapter does not fit the model, or cannot be read.
    """
    _check_readable(folder)
    adapted: nn.Module = copy.deepcopy(base)
    try:
        if (folder / _PEFT_FILE).is_file():
            adapted = PeftModel.from_pretrained(adapted, str(folder))
        if (folder / SECTION_FILE).is_file():
            load_inserted(adapted, folder)
    except ConfigError:
        raise
    except (
        OSError,
        ValueError,
        RuntimeError,  # also too deep a file
        KeyError,
        TypeError,
        SafetensorError,
    ) as error:
        # Of unlike shapes torch says in its first line only that there are some.
        first = " ".join(str(error).split("\n")[:2]).split()
        raise ConfigError(
            f"adapter folder {folder}: does not fit the model, or is not as a run writes it: "
            f"{' '.join(first)[:300]}"
        ) from None
    adapted.eval()
    return adapted


def _check_readable(folder: Path) -> None:
    """Refuse a folder without an adapter, and what would be waited for without end.

    Raises:
        ConfigError: names the file.
    """
    if not any((folder / name).is_file() for name in (_PEFT_FILE, SECTION_FILE)):
        raise ConfigError(
            f"adapter folder {folder}: holds no {_PEFT_FILE}; name the folder of a finished run"
        )
    if (folder / _PEFT_FILE).exists() and not (folder / _WEIGHTS_FILE).is_file():
        raise ConfigError(f"adapter folder {folder}: {_WEIGHTS_FILE} is missing, or is no file")
    for path in sorted(folder.rglob("*")):
        if not path.is_file() and not path.is_dir():
            raise ConfigError(f"adapter folder {folder}: {path.name} is not a regular file")
