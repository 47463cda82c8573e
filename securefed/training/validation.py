"""A client's own validation part, and whether one adapter is better on it than another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from securefed.training.data import Examples

LEAST_EXAMPLES = 5
"""Fewer validation examples than this decide nothing."""


@dataclass(frozen=True)
class Parts:
    """Rows of a client's training examples, each in one of two parts.

    Attributes:
        fit: int64[k], what is trained on.
        validation: int64[m], what decides.
    """

    fit: NDArray[np.int64]
    validation: NDArray[np.int64]


def validation_parts(examples: Examples, fraction: float, *, seed: int) -> Parts:
    """Cut a validation part off a client's training examples.

    Whole users (documents, where no user is named) go to one part, drawn by ``seed``, if there are
    two of them; else the last examples are the validation part, so that of one long text its end
    is.

    Args:
        examples: of the client; its held-out part is not among them.
        fraction: of the users, or of the examples, in (0, 1); at least one, and never all of them.
        seed: of the draw.
    """
    users = examples.rows_of_users() if examples.users is not None else []
    if len(users) < 2:
        rows = np.arange(len(examples), dtype=np.int64)
        kept = len(rows) - _part(len(rows), fraction)
        return Parts(rows[:kept], rows[kept:])
    order = np.random.default_rng([seed, len(users)]).permutation(len(users))
    chosen = set(order[: _part(len(users), fraction)].tolist())
    divided = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for user, rows in enumerate(users):
        divided[user in chosen].append(rows)
    return Parts(*(np.sort(np.concatenate(part)) for part in divided))


def _part(count: int, fraction: float) -> int:
    return min(max(1, round(fraction * count)), max(count - 1, 0))


@dataclass(frozen=True)
class Chosen:
    """What a client chose on its validation part, and why.

    Attributes:
        mix: a, 0 for the shared adapter.
        improvement: mean loss of the shared adapter less that of the best other one; None where
            nothing could be compared.
        standard_error: of that mean of paired differences.
        validation_examples: how many decided.
    """

    mix: float
    improvement: float | None
    standard_error: float | None
    validation_examples: int


def choose_mix(
    losses: Mapping[float, NDArray[np.float64]],
    margin: float,
) -> Chosen:
    """The mix of least mean loss, if it is better than mix 0 by more than ``margin`` errors.

    With d_j the loss of the shared adapter less that of the other on validation example j of m, the
    other is taken if mean(d) > margin * std(d) / sqrt(m), std with m - 1 in the denominator.  The
    best of several is compared, so that even one that is no better is taken more often than a
    single comparison would say; examples of one text are not independent either.

    Args:
        losses: by mix, each float64[m]; mix 0 is among them.  One that is not finite is no choice.
        margin: >= 0.

    Example:
        >>> import numpy as np
        >>> shared = np.array([2.0, 2.1, 1.9, 2.2, 2.0, 1.8])
        >>> choose_mix({0.0: shared, 1.0: shared - 0.5}, margin=2.0).mix
        1.0
        >>> choose_mix({0.0: shared, 1.0: shared[::-1]}, margin=2.0).mix
        0.0
    """
    shared = losses[0.0]
    count = len(shared)
    means = {mix: float(found.mean()) for mix, found in losses.items() if mix > 0.0 and count}
    finite = {mix: mean for mix, mean in means.items() if math.isfinite(mean)}
    if count < LEAST_EXAMPLES or not finite or not np.isfinite(shared).all():
        return Chosen(0.0, None, None, count)
    best = min(finite, key=lambda mix: (finite[mix], mix))
    difference = shared - losses[best]
    improvement = float(difference.mean())
    error = float(difference.std(ddof=1)) / math.sqrt(count)
    taken = best if improvement > margin * error else 0.0
    return Chosen(taken, improvement, error, count)
