"""What a run writes, and how: whole files appear at once, lines are appended and flushed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from securefed.engines.accounts import ACCOUNT, HISTOGRAM_ACCOUNT
from securefed.engines.openings import OPENINGS
from securefed.engines.threat_model_files import THREAT_MODELS
from securefed.errors import ConfigError, LedgerTampered
from securefed.operations.whole_files import sync, write_whole

_OWNERS_ALONE = 0o700
"""Of folders with what clients keep for themselves: parts made from their data without noise, and
costs that tell of a secret sample."""


class RunFolder:
    """Paths and writers of one run.

    ``config.toml``, ``ledger.jsonl`` with ``ledger.head.json``, ``metrics.jsonl``, ``costs.json``,
    ``adapter/``, ``checkpoints/round-N/`` and, in a simulation, each client's own
    ``clients/ID/budget.jsonl`` and ``clients/ID/costs.json`` (with histograms of held-out figures
    also ``clients/ID/histograms.jsonl``) and, where there is a decryptor, its
    ``decryptor/openings.jsonl``; with ``evaluation.show_clients`` also ``shown.json``, with
    ``cohort.ranks`` the adapter at each rank in ``ranks/RANK/adapter/``, and where clients keep a
    part of the adapter, an adapter of their own or other state, ``personal/ID/``;
    ``threat_models/``, as they were when the run was begun.  Beside it lies ``NAME.keys/``
    (:mod:`securefed.engines.identities`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.toml"
        self.ledger = path / "ledger.jsonl"
        self.metrics = path / "metrics.jsonl"
        self.costs = path / "costs.json"
        self.shown = path / "shown.json"
        self.adapter = path / "adapter"
        self.ranks = path / "ranks"
        self.checkpoints = path / "checkpoints"
        self.initial = self.checkpoints / "initial.safetensors"
        self.clients = path / "clients"
        self.personal = path / "personal"
        self.threat_models = path / THREAT_MODELS
        self.keys = path.with_name(path.name + ".keys")

    def check_new(self) -> None:
        """Refuse a folder that cannot become a run folder, before any work is done.

        Raises:
            ConfigError: the folder exists and is not empty, is a mount point, or cannot be made; or
                keys of another run lie where its own belong.
        """
        above = self.path.absolute().parent
        while not above.exists():
            above = above.parent
        try:
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise ConfigError(
                    f"run folder {self.path} is there already; choose another --out, or --resume it"
                )
            if self.path.is_mount():
                raise ConfigError(self._mounted())
            if self.keys.exists() or self.keys.is_symlink():
                raise ConfigError(
                    f"run folder {self.path}: {self.keys} is there already, with the identity keys "
                    "of a run that was called so; choose another --out, or move them away"
                )
            with tempfile.TemporaryDirectory(prefix=".securefed-", dir=above):
                pass
        except OSError as error:
            raise ConfigError(
                f"run folder {self.path}: cannot be made in {above} ({error.strerror})"
            ) from error

    def _mounted(self) -> str:
        return (
            f"run folder {self.path}: is a mount point, which nothing can take the place of; name "
            f"a folder inside it: --out {self.path / 'run'}"
        )

    def check_resumable(self) -> None:
        """Refuse a folder that holds no run.

        Raises:
            ConfigError: a file that a run always has is missing.
        """
        for path in (self.config, self.ledger):
            if not path.is_file():
                raise ConfigError(f"--resume: {path} is missing; there is no run to go on with")

    @contextmanager
    def being_made(self, config_text: str) -> Iterator[RunFolder]:
        """A folder beside this one that takes its place when the block ends well.

        Raises:
            ConfigError: this folder exists and is not empty, or cannot be made (a full disk, say);
                nothing is left behind.

        Guarantees:
            - Files and folders, keys too, are flushed before the folder takes its place.
        """
        self.check_new()
        partial = self._partial
        moved = False
        try:
            for left in (partial.path, partial.keys):
                shutil.rmtree(left, ignore_errors=True)
            partial.checkpoints.mkdir(parents=True)
            partial.clients.mkdir(mode=_OWNERS_ALONE)
            write_whole(partial.config, config_text)
            yield partial
            _sync_tree(partial.path)
            if partial.keys.is_dir():
                _sync_tree(partial.keys)
            partial.path.rename(self.path)
            moved = True
            self.take_keys()
            sync(self.path.parent)
        except (OSError, SafetensorError) as error:
            if getattr(error, "errno", None) == errno.EBUSY:  # mounted from the same disk
                raise ConfigError(self._mounted()) from error
            what = getattr(error, "strerror", None) or error
            raise ConfigError(f"run folder {self.path}: cannot be made ({what})") from error
        finally:
            shutil.rmtree(partial.path, ignore_errors=True)
            if not moved:
                shutil.rmtree(partial.keys, ignore_errors=True)

    def take_keys(self) -> None:
        """Move the keys that were made with this run to their place, if they are not there.

        A kill may have come after the run folder was moved and before its keys were.

        Raises:
            OSError: they cannot be moved.
        """
        made = self._partial.keys
        if made.is_dir() and not self.keys.exists():
            made.rename(self.keys)
            sync(self.keys.parent)

    @property
    def _partial(self) -> RunFolder:
        """Where the folder is made, beside its place."""
        return RunFolder(self.path.with_name(f".{self.path.name}.partial"))

    def write_threat_models(self, files: Mapping[str, bytes]) -> None:
        """Keep the threat models that the run is begun under."""
        self.threat_models.mkdir()
        for name, data in files.items():
            (self.threat_models / name).write_bytes(data)

    def budget(self, client_id: str) -> Path:
        """The budget file of a simulated client (data loading admits only ids fit for a name)."""
        folder = self.clients / client_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder / ACCOUNT

    def histograms(self, client_id: str) -> Path:
        """What a client has spent on histograms of held-out figures: an account of its own."""
        return self.budget(client_id).with_name(HISTOGRAM_ACCOUNT)

    def openings(self) -> Path:
        """The decryptor's ledger."""
        path = self.path / OPENINGS
        path.parent.mkdir(exist_ok=True)
        return path

    def client_costs(self, client_id: str) -> Path:
        """What a simulated client's own work cost it: its own file, like its account."""
        return self.clients / client_id / "costs.json"

    def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Append one JSON line, flushed to disk."""
        with self.metrics.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, sort_keys=True, allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def rewrite_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Replace the metrics by these lines, at once."""
        text = "".join(json.dumps(line, sort_keys=True, allow_nan=False) + "\n" for line in lines)
        write_whole(self.metrics, text)

    def write_shown(self, shown: Mapping[str, Any]) -> None:
        """Keep what is shown of single clients: for the owner of a simulation."""
        write_whole(self.shown, json.dumps({**shown, "guaranteed": False}, sort_keys=True) + "\n")

    def save_adapter(self, write: Callable[[Path], None]) -> None:
        """Let ``write`` put the adapter in its place, and flush it."""
        write(self.adapter)
        _sync_tree(self.adapter)
        sync(self.path)

    def save_ranks(self, write: Callable[[Path], None]) -> None:
        """Let ``write`` put the adapter at each rank in its place, and flush it, if any."""
        write(self.ranks)
        if self.ranks.exists():
            _sync_tree(self.ranks)
            sync(self.path)

    def save_personal(self, write: Callable[[Path], None]) -> None:
        """Let ``write`` put what clients keep in its place, and flush it, if there is any.

        Guarantees:
            - The folder is made for its owner alone (mode 0700), before anything is in it: a
              personal adapter inside is written to be handed on, and readable by all.
        """
        self.personal.mkdir(mode=_OWNERS_ALONE, exist_ok=True)
        write(self.personal)
        if not any(self.personal.iterdir()):
            self.personal.rmdir()
            return
        _sync_tree(self.personal)
        sync(self.path)

    def save_checkpoint(self, round_number: int, tensors: dict[str, torch.Tensor]) -> None:
        """Write ``checkpoints/round-N`` at once and drop the one before the last."""
        final = self.checkpoints / f"round-{round_number}"
        partial = self.checkpoints / f".partial-{round_number}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(tensors, partial / "state.safetensors")
        _sync_tree(partial)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        sync(self.checkpoints)
        old = self.checkpoints / f"round-{round_number - 2}"
        shutil.rmtree(old, ignore_errors=True)

    def load_checkpoint(self, round_number: int) -> dict[str, torch.Tensor] | None:
        """The state after ``round_number`` rounds, or None.

        Raises:
            LedgerTampered: the file is not one that ``save_checkpoint`` wrote.
        """
        path = self.checkpoints / f"round-{round_number}" / "state.safetensors"
        try:
            return load_file(path) if path.is_file() else None
        except SafetensorError as error:
            raise LedgerTampered(f"{path}: {error}") from None


def _sync_tree(path: Path) -> None:
    """Flush every file in a folder, then the folders, the outermost last."""
    for folder, _, files in os.walk(path, topdown=False):
        for name in files:
            sync(Path(folder) / name)
        sync(Path(folder))
