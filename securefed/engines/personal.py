"""What each simulated client keeps of an adapter and never sends."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from securefed.errors import LedgerTampered
from securefed.lora.parts import AdapterParts

Tensors = dict[str, torch.Tensor]


class PersonalParts:
    """Each client's own factors, in turn in the one model that serves all of them.

    In a run folder they lie in ``personal/CLIENT/round-N.safetensors``, each client's own.  They
    are made from that client's data, with noise only under ``mechanism = "local"``, and nothing of
    them leaves it: no other client's training, no sum and no ledger holds any of it.

    Args:
        parts: the adapter as it was made; what a client keeps begins as it is there.
    """

    def __init__(self, parts: AdapterParts) -> None:
        self._parts = parts
        self._first = parts.kept()
        self._held: dict[str, Tensors] = {}
        self._new: dict[str, Tensors] = {}

    @property
    def some(self) -> bool:
        """Whether the sharing mode has such a part at all."""
        return bool(self._first)

    @contextmanager
    def of(self, client: str) -> Iterator[None]:
        """The client's own part in the model; afterwards the first values again."""
        self._parts.load_kept(self._held.get(client, self._first))
        try:
            yield
        finally:
            self._parts.load_kept(self._first)

    def trained(self, client: str) -> None:
        """Within :meth:`of`: note what training has made of the part."""
        if self.some:
            self._new[client] = self._parts.kept()

    def take_over(self, charged: Collection[str]) -> None:
        """A round was summed: who charged it keeps what it noted, the others what they held.

        Under ``mechanism = "local"`` a part comes out of noised steps, and what a client sends
        later follows from it: steps that it never charged must leave nothing behind.
        """
        self._held |= {name: self._new[name] for name in charged if name in self._new}
        self._new = {}

    def forget_new(self) -> None:
        """A round begins: what an attempt before it left is not taken over."""
        self._new = {}

    def noted(self, client: str) -> Tensors:
        """What the client holds if the present attempt counts."""
        return self._new.get(client) or self._held.get(client, self._first)

    def take(self, client: str, tensors: Tensors | None) -> None:
        """Have the client hold what :meth:`noted` gave; None for what it begins with.

        Raises:
            LedgerTampered: it is not of this adapter.
        """
        if tensors is None:
            self._held.pop(client, None)
            return
        self._check(tensors, client)
        self._held[client] = tensors

    def put_back(self) -> None:
        """The first values in the model, whatever was loaded into it."""
        self._parts.load_kept(self._first)

    def forget(self) -> None:
        """Every client begins anew."""
        self._held, self._new = {}, {}

    # -- on disk ---------------------------------------------------------------------------

    def save(self, folder: Path, clients: tuple[str, ...], number: int) -> None:
        """Keep each client's part after ``number`` rounds; that of two rounds before is dropped."""
        if not self.some:
            return
        for client in clients:
            own = folder / client
            own.mkdir(parents=True, exist_ok=True)
            partial = own / ".partial"
            save_file(self._held.get(client, self._first), partial)
            partial.replace(_path(own, number))
            _path(own, number - 2).unlink(missing_ok=True)

    def load(self, folder: Path, clients: tuple[str, ...], number: int) -> None:
        """Take back what :meth:`save` kept.

        Raises:
            LedgerTampered: a file is missing, or is not of this adapter.
        """
        if not self.some:
            return
        for client in clients:
            path = _path(folder / client, number)
            try:
                found = load_file(path)
            except (OSError, SafetensorError) as error:
                raise LedgerTampered(f"{path}: {error}") from None
            self._check(found, path)
            self._held[client] = found

    def _check(self, found: Tensors, where: object) -> None:
        shapes = {name: value.shape for name, value in found.items()}
        if shapes != {name: value.shape for name, value in self._first.items()}:
            raise LedgerTampered(f"{where}: is not a part of this run's adapter")

    def save_adapters(
        self, folder: Path, clients: tuple[str, ...], write: Callable[[Path], None]
    ) -> None:
        """Write each client's whole adapter, shared and own part, to ``CLIENT/adapter``."""
        if not self.some:
            return
        for client in clients:
            with self.of(client):
                shutil.rmtree(folder / client / "adapter", ignore_errors=True)
                write(folder / client / "adapter")


def _path(own: Path, number: int) -> Path:
    return own / f"round-{number}.safetensors"
