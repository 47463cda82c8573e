"""A user as the unit of privacy: all of its examples are drawn, averaged and clipped as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.prg import NoiseGenerator
from securefed.errors import ConfigError
from securefed.phases import Phase, unmeasured
from securefed.privacy.clipping import L2Clip
from securefed.privacy.samplers import poisson_sample, uniform_subset
from securefed.training.data import Examples
from securefed.training.dp_sgd import PerExampleGradients


def sampled_users(
    examples: Examples,
    probability: float,
    generator: NoiseGenerator,
    *,
    most: int | None = None,
) -> Examples:
    """A secret Poisson sample of users: all of a user's examples or none.

    Args:
        examples: with users told apart.
        probability: q in [0, 1], of each user, independently.
        generator: the secret words.
        most: at most this many of a drawn user's examples are taken, >= 1; which ones is drawn
            uniformly without replacement.  All of them without it.

    Returns:
        The examples taken, those of one user together; users are numbered anew.

    Raises:
        ConfigError: users are not told apart, or an argument is outside that.

    Guarantees:
        - Whether a user is drawn, and which of its examples, depends on that user's own number of
          examples and on words that are used for no other user.
    """
    if most is not None and most < 1:
        raise ConfigError(f"examples_per_user = {most}; it must be >= 1")
    rows = examples.rows_of_users()
    taken = []
    for user in poisson_sample(len(rows), probability, generator):
        own = rows[user]
        if most is not None and len(own) > most:
            own = own[uniform_subset(len(own), most, generator)]
        taken.append(own)
    return examples.take(np.concatenate([np.empty(0, dtype=np.int64), *taken]))


def clipped_sum_of_users(
    gradients: PerExampleGradients,
    examples: Examples,
    clip_norm: float,
    count_weight: float = 0.0,
    kept: NDArray[np.int64] | None = None,
    *,
    phase: Phase = unmeasured,
) -> NDArray[np.float64]:
    """Sum of the users' mean gradients, each clipped as one.

    However many examples a user has, it moves the sum by a vector of norm <= C.

    Args:
        gradients: of the model.
        examples: of the users drawn, a user's together (:func:`sampled_users`); none are fine.
        clip_norm: C > 0.
        count_weight: of each user's bit under adaptive clipping (``L2Clip``); 0 for none.
        kept: int64[k], the coordinates to which each mean is cut *before* it is clipped; all of
            them without it.
        phase: told when a mean is clipped.

    Returns:
        float64[k] (float64[d] without ``kept``), followed by the bits' sum where there are any;
        zeros without calling the model for no examples.

    Raises:
        ConfigError: users are not told apart, or ``clip_norm`` is not a finite number > 0.
        DataError, GradientCheckError: as ``PerExampleGradients.clipped_sum``.

    Guarantees:
        - Each user contributes a vector of norm <= C, rounding included, that depends on no other
          user's examples (as an example's does, see :class:`PerExampleGradients`).
        - A user with an example whose gradient holds NaN or infinity contributes zeros, as an
          example with one does.
    """
    clip = L2Clip(clip_norm, count_weight)
    length = gradients.dimension if kept is None else len(kept)
    total = np.zeros(length + clip.bits, dtype=np.float64)
    for mean in user_means(gradients.flat_rows(examples), examples.users):
        with phase("clip"):
            total += clip.clip_rows((mean if kept is None else mean[kept])[None])
    return total


def user_means(
    gradients: Iterable[NDArray[np.float32]], users: NDArray[np.int64] | None
) -> Iterator[NDArray[np.float64]]:
    """Each user's mean gradient; one user's sum is held at a time, never all rows.

    Args:
        gradients: float32[k, d] at a time, together one row an example, in their order.
        users: int64[n], the user of each row, as ``Examples`` has it; a user's rows stand together.

    Yields:
        float64[d]: one a user, in order; not finite where a row of that user's is not.

    Raises:
        ConfigError: users are not told apart, there are not as many rows as ``users`` says, or a
            user's do not stand together: it would come, and be clipped, twice.

    Guarantees:
        - A mean depends on that user's rows alone, to the last bit: they are added one by one,
          wherever micro-batches begin.
    """
    if users is None:
        raise ConfigError("examples: users are not told apart, which unit = 'user' needs")
    starts = np.flatnonzero(np.diff(users, prepend=-1))
    if len(np.unique(users)) != len(starts):
        raise ConfigError("users: a user's examples do not stand together")
    counts = np.diff(starts, append=len(users))
    total: NDArray[np.float64] | None = None
    place = seen = 0
    for part in gradients:
        for row in part:
            if place == len(counts):
                raise ConfigError(f"gradients: more rows than the {len(users)} of users")
            total = row.astype(np.float64) if total is None else total + row
            seen += 1
            if seen == counts[place]:
                yield total / seen
                total, place, seen = None, place + 1, 0
    if place != len(counts):
        raise ConfigError(f"gradients: fewer rows than the {len(users)} of users")
