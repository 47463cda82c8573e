"""Vectors that each simulated client keeps from round to round and never sends."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from securefed.errors import LedgerTampered

Vectors = Mapping[str, NDArray[np.float64]]


class ClientState:
    """What clients carry over: the control of SCAFFOLD, what sparsification cut off.

    In a run folder it lies in ``personal/CLIENT/state-N.safetensors``, each client's own, after N
    rounds.  It is made from that client's data: no other client, no sum and no ledger holds any of
    it.  A round that fails changes nothing, and of one that ends only what survivors noted counts:
    the others' vectors were not in the sum.

    Args:
        shapes: length of each vector, by name; they begin as zeros.
    """

    def __init__(self, shapes: Mapping[str, int]) -> None:
        self._shapes = dict(shapes)
        self._held: dict[str, Vectors] = {}
        self._new: dict[str, Vectors] = {}

    def of(self, client: str, name: str) -> NDArray[np.float64]:
        """One client's vector, as the last round that it survived left it; not to be changed."""
        held = self._held.get(client)
        return np.zeros(self._shapes[name]) if held is None else held[name]

    def note(self, client: str, vectors: Vectors) -> None:
        """What the client will hold if it is in the sum of the present attempt."""
        self._new[client] = vectors

    def take_over(self, survivors: Collection[str]) -> None:
        """A round was summed: survivors hold what they noted in it, the others what they held."""
        self._held |= {name: self._new[name] for name in survivors if name in self._new}
        self._new = {}

    def forget_new(self) -> None:
        """An attempt begins: what one before it left is not taken over."""
        self._new = {}

    @property
    def some(self) -> bool:
        """Whether clients carry anything over."""
        return bool(self._shapes)

    def noted(self, client: str) -> Vectors:
        """What the client holds if it is in the sum of the present attempt."""
        new = self._new.get(client)
        return {name: self.of(client, name) for name in self._shapes} if new is None else new

    def take(self, client: str, vectors: Vectors | None) -> None:
        """Have the client hold what :meth:`noted` gave; None for zeros.

        Raises:
            LedgerTampered: they are other vectors than this run's.
        """
        if vectors is None:
            self._held.pop(client, None)
            return
        self._check(vectors, client)
        self._held[client] = vectors

    def _check(self, found: Vectors, where: object) -> None:
        expected = {name: (length,) for name, length in self._shapes.items()}
        if {name: vector.shape for name, vector in found.items()} != expected:
            raise LedgerTampered(f"{where}: holds other vectors than this run's")

    # -- on disk ---------------------------------------------------------------------------

    def save(self, folder: Path, clients: Collection[str], number: int) -> None:
        """Keep all vectors after ``number`` rounds; those of two rounds before are dropped."""
        for client in clients if self._shapes else ():
            own = folder / client
            own.mkdir(parents=True, exist_ok=True)
            partial = own / ".partial-state"
            tensors = {name: torch.from_numpy(self.of(client, name)) for name in self._shapes}
            save_file(tensors, partial)
            partial.replace(_path(own, number))
            _path(own, number - 2).unlink(missing_ok=True)

    def load(self, folder: Path, clients: Collection[str], number: int) -> None:
        """Take back what :meth:`save` kept.

        Raises:
            LedgerTampered: a file is missing, or holds other vectors.
        """
        for client in clients if self._shapes else ():
            path = _path(folder / client, number)
            try:
                found = {name: tensor.numpy() for name, tensor in load_file(path).items()}
            except (OSError, SafetensorError) as error:
                raise LedgerTampered(f"{path}: {error}") from None
            self._check(found, path)
            self._held[client] = found


def _path(own: Path, number: int) -> Path:
    return own / f"state-{number}.safetensors"
