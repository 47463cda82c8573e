"""Each simulated client's personal adapter beside the shared one, trained last and never sent.

A client's own are ``personal/CLIENT/adapter`` (the adapter in use, in PEFT's format),
``personal/CLIENT/own.safetensors`` (the personal one itself) and ``personal/CLIENT/choice.json``
(how much of it is used, and why).  All of it is made from that client's training data without
noise.  No sum, no ledger and no other client holds any of it; only held-out figures of the adapter
in use are told, as those of the shared one are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from securefed.config import RunConfig
from securefed.errors import LedgerTampered
from securefed.lora.adapter import state_hash
from securefed.lora.interpolation import interpolated
from securefed.lora.sharing import factor_of, sharing_mode
from securefed.operations.whole_files import write_whole
from securefed.training.data import Examples
from securefed.training.personal import PersonalTrainer
from securefed.training.validation import Chosen

Tensors = dict[str, torch.Tensor]

ADAPTER, OWN, CHOICE = "adapter", "own.safetensors", "choice.json"
STAYS = (
    "at this client: the personal adapter and this choice are made from its data without noise; "
    "whoever is handed them is handed what they tell of it"
)


class PersonalAdapters:
    """Makes and keeps them, in turn in the one model that serves all clients.

    Args:
        model: the adapted model; it holds the shared adapter, and with ``sharing = "fedsa"`` the
            client's own part while :meth:`make` and :meth:`of` are at work for it.
        config: the run file; ``personal.kind = "adapter"``.
        device: where the model is.
        micro_batch: examples at a time, >= 1; ``training.micro_batch`` without it.

    Attributes:
        mixes: the a that each client uses; it stays where the client is.
    """

    def __init__(
        self,
        model: nn.Module,
        config: RunConfig,
        device: torch.device,
        *,
        micro_batch: int | None = None,
    ) -> None:
        self._trainer = PersonalTrainer(
            model,
            _parameters(model, config),
            config.personal,
            task=config.model.task,
            device=device,
            seed=config.lora.seed,
            micro_batch=micro_batch or config.training.micro_batch,
        )
        self._used: dict[str, Tensors] = {}
        self.mixes: dict[str, float] = {}

    def make(
        self, client: str, examples: Examples, folder: Path, save: Callable[[Path], None]
    ) -> None:
        """Train one client's personal adapter, choose how much of it to use, and keep both.

        A client that is found in ``folder`` with what was made from the same shared adapter is not
        trained again.

        Args:
            client: its name.
            examples: its training data.
            folder: the client's own.
            save: writes the adapter that the model holds, in PEFT's format.

        Raises:
            LedgerTampered: a file in ``folder`` is not one that this wrote.
        """
        shared = self._trainer.values()
        kept = _kept(folder, shared)
        if kept is not None:
            own, mix = kept
            self._use(client, shared, own, mix)
            return
        own, choice = self._trainer.made(examples)
        self._use(client, shared, own, choice.mix)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CHOICE).unlink(missing_ok=True)  # it is written last, and vouches for the rest
        save_file(own, folder / OWN)
        with self.of(client):
            shutil.rmtree(folder / ADAPTER, ignore_errors=True)
            save(folder / ADAPTER)
        _write_choice(client, folder, shared, choice)

    def of(self, client: str) -> AbstractContextManager[None]:
        """The adapter that the client uses in the model; afterwards what was there before."""
        return self._trainer.holding(self._used[client])

    def _use(self, client: str, shared: Tensors, own: Tensors, mix: float) -> None:
        self.mixes[client] = mix
        self._used[client] = interpolated(shared, own, mix)


def _parameters(model: nn.Module, config: RunConfig) -> dict[str, nn.Parameter]:
    """What a personal adapter changes: what trains in any round, or all of the adapter."""
    mode = sharing_mode(config.lora.sharing)
    wanted = {factor for turn in mode.turns for factor in turn} | mode.kept
    factors = {name: factor_of(name) for name, _ in model.named_parameters()}
    every = config.personal.trains == "all"
    return {
        name: parameter
        for name, parameter in sorted(model.named_parameters())
        if factors[name] is not None and (every or factors[name] in wanted)
    }


def _write_choice(client: str, folder: Path, shared: Tensors, choice: Chosen) -> None:
    record = {
        "client": client,
        "begun_from": state_hash(shared),
        "own_sha256": hashlib.sha256((folder / OWN).read_bytes()).hexdigest(),
        "noise": "none",
        "stays": STAYS,
        **asdict(choice),
    }
    write_whole(folder / CHOICE, json.dumps(record, indent=1, sort_keys=True) + "\n")


def _kept(folder: Path, shared: Tensors) -> tuple[Tensors, float] | None:
    """What an earlier process of the run finished making from the same shared adapter."""
    path = folder / CHOICE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        begun, expected = str(record["begun_from"]), str(record["own_sha256"])
        mix, found = float(record["mix"]), (folder / OWN).read_bytes()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LedgerTampered(f"{path}: is not what a run writes there ({error})") from None
    if begun != state_hash(shared):
        return None
    if hashlib.sha256(found).hexdigest() != expected or not 0.0 <= mix <= 1.0:
        raise LedgerTampered(f"{path}: is not what a run writes there beside {folder / OWN}")
    try:
        return load_file(folder / OWN), mix
    except SafetensorError as error:
        raise LedgerTampered(f"{folder / OWN}: {error}") from None
