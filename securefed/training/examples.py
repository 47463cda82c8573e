"""Examples: what one optimisation step sees, and the unit of example-level privacy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from securefed.config import Unit
from securefed.errors import ConfigError, DataError

Task = Literal["causal-lm", "sequence-classification"]


class Tokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    @property
    def pad_token_id(self) -> int | None:
        """The padding token, if there is one."""

    @property
    def chat_template(self) -> Any:
        """How conversations are put in words, if the model says so."""

    def apply_chat_template(self, conversation: Any, /, **options: Any) -> Any:
        """Put a conversation in words."""

    def __call__(self, text: list[str], /, **options: Any) -> Any:
        """Tokenize: a mapping with ``input_ids``, one list of token ids a text."""


@dataclass(frozen=True, eq=False)
class Examples:
    """n examples of w tokens each.

    Attributes:
        input_ids: int64[n, w].
        attention_mask: int64[n, w], 1 for a token, 0 for padding, which comes last; all ones for
            causal language modelling.
        labels: int64[n], the classes; None for causal language modelling.
        users: int64[n], the user that each example is of: 0 .. m - 1, each with an example; None
            where users are not told apart.
        targets: int64[n, w], 1 for a token whose prediction counts (causal language modelling);
            None for all of them.
        weights: float64[n], by which each example's loss is multiplied in training; None for 1.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    users: NDArray[np.int64] | None = None
    targets: NDArray[np.int64] | None = None
    weights: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        shapes = [self.attention_mask.shape == self.input_ids.shape, self.input_ids.ndim == 2]
        arrays = [self.input_ids, self.attention_mask]
        if self.targets is not None:
            shapes.append(self.targets.shape == self.input_ids.shape)
            arrays.append(self.targets)
        if self.weights is not None:
            shapes += [
                self.weights.shape == (len(self.input_ids),),
                self.weights.dtype == np.float64,
                bool(np.isfinite(self.weights).all() and (self.weights > 0.0).all()),
            ]
        for per_row in (self.labels, self.users):
            if per_row is not None:
                shapes.append(per_row.shape == (len(self.input_ids),))
                arrays.append(per_row)
        if not all(shapes) or any(array.dtype != np.int64 for array in arrays):
            raise ConfigError(
                "examples: allowed are int64 arrays of shapes [n, w] (input_ids, attention_mask, "
                "targets) and [n] (labels, users), and finite float64[n] > 0 (weights)"
            )
        if self.users is not None and not np.array_equal(
            np.unique(self.users), np.arange(np.max(self.users, initial=-1) + 1)
        ):
            raise ConfigError("users: allowed are 0 .. m - 1, each of them with an example")

    def __len__(self) -> int:
        return len(self.input_ids)

    def units(self, unit: Unit) -> int:
        """How many they are as sampling counts them: users for ``"user"``, else examples.

        Raises:
            ConfigError: users are asked for and not told apart.
        """
        return len(self.rows_of_users()) if unit == "user" else len(self)

    def rows_of_users(self) -> list[NDArray[np.int64]]:
        """The rows of each user, m arrays in ascending order: a partition of 0 .. n - 1.

        Raises:
            ConfigError: users are not told apart.
        """
        if self.users is None:
            raise ConfigError("examples: users are not told apart, which unit = 'user' needs")
        order = np.argsort(self.users, kind="stable").astype(np.int64, copy=False)
        return np.split(order, np.cumsum(np.bincount(self.users))[:-1]) if len(self) else []

    def take(self, indices: NDArray[np.integer] | Sequence[int]) -> Examples:
        """Some of the examples, in the order asked for.

        Args:
            indices: int[k], each in 0 .. n - 1; may be empty, may repeat.

        Returns:
            k examples, copied; those of their users that have one are numbered anew, in order.

        Raises:
            ConfigError: an index is out of range.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < len(self):
            raise ConfigError(f"indices: out of range; allowed: 0 .. {len(self) - 1}")
        labels = None if self.labels is None else self.labels[chosen]
        users = None
        if self.users is not None:
            users = np.unique(self.users[chosen], return_inverse=True)[1].astype(np.int64)
        targets = None if self.targets is None else self.targets[chosen]
        weights = None if self.weights is None else self.weights[chosen]
        return Examples(
            self.input_ids[chosen], self.attention_mask[chosen], labels, users, targets, weights
        )

    def weighed(self, class_weights: Sequence[float] | None) -> Examples:
        """The same examples, each with the weight of its class; as they are for None.

        Raises:
            DataError: they have no labels.
        """
        if class_weights is None:
            return self
        if self.labels is None:
            raise DataError("examples: class_weights need labels; there are none")
        return replace(self, weights=np.asarray(class_weights, dtype=np.float64)[self.labels])


@dataclass(frozen=True, eq=False)
class ClientData:
    """One client's examples; no document and no user gives to both parts.

    A lone document of a causal language model is the exception, where no user is named: its last
    tokens are held out, and no token is in both parts.

    Attributes:
        client_id: the client.
        train: what updates are computed from.
        held_out: what is only ever measured on.
        documents: how many there are to train on.
        lost: how many of them are shorter than a window, so that nothing of them trains.
    """

    client_id: str
    train: Examples
    held_out: Examples
    documents: int = 0
    lost: int = 0


def client_sizes(clients: Mapping[str, ClientData], unit: Unit) -> dict[str, int]:
    """Each client's public size, in the order given: training examples, or users for "user"."""
    return {client: data.train.units(unit) for client, data in clients.items()}
