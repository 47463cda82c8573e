"""All that a client keeps from round to round, as one set of tensors: its agent writes it down."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from securefed.engines.client_state import ClientState
from securefed.engines.personal import PersonalParts
from securefed.errors import LedgerTampered

_PERSONAL, _STATE = "personal/", "state/"


class KeptParts:
    """A factor of the adapter of each client's own, and vectors that it carries over.

    Args:
        personal: the factors.
        state: the vectors.
    """

    def __init__(self, personal: PersonalParts, state: ClientState) -> None:
        self._personal, self._state = personal, state

    @property
    def some(self) -> bool:
        """Whether a client of this run keeps anything."""
        return self._personal.some or self._state.some

    def noted(self, client: str) -> dict[str, torch.Tensor]:
        """What one client keeps if it is in the sum of the attempt that it trained for last."""
        vectors = self._state.noted(client)
        return {
            f"{_PERSONAL}{name}": part for name, part in self._personal.noted(client).items()
        } | {f"{_STATE}{name}": torch.from_numpy(vector.copy()) for name, vector in vectors.items()}

    def take(self, client: str, tensors: Mapping[str, torch.Tensor] | None) -> None:
        """Have one client hold what :meth:`noted` gave; None for what it begins with.

        Raises:
            LedgerTampered: it is not of this run.
        """
        if tensors is None:
            self._personal.take(client, None)
            self._state.take(client, None)
            return
        personal, state = (
            {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            for prefix in (_PERSONAL, _STATE)
        )
        if len(personal) + len(state) != len(tensors):
            raise LedgerTampered(f"{client}: holds more than a client of this run keeps")
        self._personal.take(client, personal)
        self._state.take(client, {name: tensor.numpy() for name, tensor in state.items()})
