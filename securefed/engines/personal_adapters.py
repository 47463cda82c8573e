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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from securefed.config import PersonalSection, RunConfig
from securefed.engines.run_folder import write_whole
from securefed.errors import LedgerTampered
from securefed.lora.adapter import state_hash
from securefed.lora.interpolation import interpolated
from securefed.lora.sharing import factor_of, sharing_mode
from securefed.training.data import Examples
from securefed.training.evaluate import example_losses
from securefed.training.steps import AdamWTrainer
from securefed.training.validation import Chosen, choose_mix, validation_parts

Tensors = dict[str, torch.Tensor]

ADAPTER, OWN, CHOICE = "adapter", "own.safetensors", "choice.json"
STAYS = (
    "at this client: the personal adapter and this choice are made from its data without noise; "
    "whoever is handed them is handed what they tell of it"
)


class PersonalAdapters:
    """Trains, chooses and keeps them, in turn in the one model that serves all clients.

    Args:
        model: the adapted model; it holds the shared adapter, and with ``sharing = "fedsa"`` the
            client's own part while :meth:`make` and :meth:`of` are at work for it.
        config: the run file; ``personal.kind = "adapter"``.
        device: where the model is.

    Guarantees:
        - After each call the model's values and what trains in it are as they were before.
        - Validation examples are of the client's training data, never of its held-out part; while
          it chooses, a client trains on none of them.
        - A personal adapter that is not finite is not used: the client keeps the shared one.
    """

    def __init__(self, model: nn.Module, config: RunConfig, device: torch.device) -> None:
        self._model, self._device = model, device
        self._config, self._section = config, config.personal
        self._trained = _trained(model, config.lora.sharing, self._section)
        self._used: dict[str, Tensors] = {}
        self.mixes: dict[str, float] = {}

    # -- making ----------------------------------------------------------------------------

    def make(
        self, client: str, examples: Examples, folder: Path, save: Callable[[Path], None]
    ) -> None:
        """Train one client's personal adapter, choose how much of it to use, and keep both.

        Run by: client.  A client that is found in ``folder`` with what was made from the same
        shared adapter is not trained again.

        Args:
            client: its name.
            examples: its training data.
            folder: the client's own.
            save: writes the adapter that the model holds, in PEFT's format.
        """
        shared = self._values()
        kept = self._kept(folder, shared)
        if kept is None:
            own, choice = self._made(client, examples, shared)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CHOICE).unlink(missing_ok=True)  # it is written last, and vouches for both
            save_file(own, folder / OWN)
            self.mixes[client] = choice.mix
            self._used[client] = interpolated(shared, own, choice.mix)
            with self.of(client):
                shutil.rmtree(folder / ADAPTER, ignore_errors=True)
                save(folder / ADAPTER)
            self._write_choice(client, folder, shared, choice)
            return
        own, self.mixes[client] = kept
        self._used[client] = interpolated(shared, own, self.mixes[client])

    def _made(self, client: str, examples: Examples, shared: Tensors) -> tuple[Tensors, Chosen]:
        section = self._section
        if section.mix != "choose":
            own = self._train(examples, shared)
            return own, Chosen(section.mix if _is_finite(own) else 0.0, None, None, 0)
        parts = validation_parts(examples, section.validation_fraction, seed=self._config.lora.seed)
        validation = examples.take(parts.validation)
        own = self._train(examples.take(parts.fit), shared)
        losses = {0.0: self._losses(validation, shared)}
        if _is_finite(own):
            for mix in section.choices:
                losses[mix] = self._losses(validation, interpolated(shared, own, mix))
        choice = choose_mix(losses, section.margin)
        if choice.mix > 0.0 and section.refit:
            again = self._train(examples, shared)
            own = again if _is_finite(again) else own
        return own, choice

    def _train(self, examples: Examples, shared: Tensors) -> Tensors:
        """The personal adapter after its steps from the shared one, if there is data."""
        if len(examples) == 0:
            return shared
        section, training = self._section, self._config.training
        steps = AdamWTrainer(
            local_steps=section.steps,
            batch_size=section.batch_size,
            learning_rate=section.learning_rate,
            task=self._config.model.task,
            device=self._device,
            seed=self._config.lora.seed,
            micro_batch=training.micro_batch,
            proximal_mu=section.pull,
        )
        every = dict(self._model.named_parameters(remove_duplicate=False))
        trains = {name: parameter.requires_grad for name, parameter in every.items()}
        try:
            for parameter in every.values():
                parameter.requires_grad_(False)
            for parameter in self._trained.values():
                parameter.requires_grad_(True)
            steps.train(self._model, examples, training.rounds + 1)
            return self._values()
        finally:
            for name, parameter in every.items():
                parameter.requires_grad_(trains[name])
            self._load(shared)

    def _losses(self, examples: Examples, tensors: Tensors) -> Any:
        before = self._values()
        self._load(tensors)
        try:
            return example_losses(
                self._model,
                examples,
                task=self._config.model.task,
                micro_batch=self._config.training.micro_batch,
                device=self._device,
            )
        finally:
            self._load(before)

    # -- in use ----------------------------------------------------------------------------

    @contextmanager
    def of(self, client: str) -> Iterator[None]:
        """The adapter that the client uses in the model; afterwards what was there before."""
        before = self._values()
        self._load(self._used[client])
        try:
            yield
        finally:
            self._load(before)

    def _values(self) -> Tensors:
        return {
            name: parameter.detach().to("cpu", torch.float32, copy=True).contiguous()
            for name, parameter in self._trained.items()
        }

    def _load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(tensors[name])

    # -- on disk ---------------------------------------------------------------------------

    def _write_choice(self, client: str, folder: Path, shared: Tensors, choice: Chosen) -> None:
        record = {
            "client": client,
            "begun_from": state_hash(shared),
            "own_sha256": hashlib.sha256((folder / OWN).read_bytes()).hexdigest(),
            "noise": "none",
            "stays": STAYS,
            **asdict(choice),
        }
        write_whole(folder / CHOICE, json.dumps(record, indent=1, sort_keys=True) + "\n")

    def _kept(self, folder: Path, shared: Tensors) -> tuple[Tensors, float] | None:
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


def _trained(model: nn.Module, sharing: str, section: PersonalSection) -> dict[str, nn.Parameter]:
    """The parameters of a personal adapter: what trains in any round, or all of the adapter."""
    mode = sharing_mode(sharing)
    wanted = {factor for turn in mode.turns for factor in turn} | mode.kept
    factors = {name: factor_of(name) for name, _ in model.named_parameters()}
    return {
        name: parameter
        for name, parameter in sorted(model.named_parameters())
        if factors[name] is not None and (section.trains == "all" or factors[name] in wanted)
    }


def _is_finite(tensors: Tensors) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in tensors.values())
