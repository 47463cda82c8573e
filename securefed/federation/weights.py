"""How much a client counts in a mean: by public figures alone, within a cap."""

from __future__ import annotations

from collections.abc import Mapping

from securefed.config import TrainingSection


def client_weights(training: TrainingSection, sizes: Mapping[str, int]) -> dict[str, float]:
    """w_i for every client of the cohort.

    ``"examples"``: w_i = min(n_i, r n_min) / max_j min(n_j, r n_min), with n_i the public number of
    examples of client i, n_min the cohort's least and r = ``max_weight_ratio``.  ``"uniform"``: 1.

    A client multiplies its update by w_i *before* the clip, so the sensitivity stays the clip norm
    C; as w_i <= 1, C bounds the heaviest client's update as it does without weights.  The sum is
    divided by the sum of the survivors' weights, which everybody can compute: nothing else of a
    client decides what it counts.

    Args:
        training: of the run file.
        sizes: n_i >= 1 by client, of the whole cohort: a weight does not depend on who survives.

    Returns:
        Weights in (0, 1], the largest of them 1, no two further apart than the factor r.

    Example:
        >>> section = TrainingSection(client_weights="examples", max_weight_ratio=4.0)
        >>> client_weights(section, {"a": 10, "b": 20, "c": 900})
        {'a': 0.25, 'b': 0.5, 'c': 1.0}
    """
    if training.client_weights == "uniform":
        return dict.fromkeys(sizes, 1.0)
    cap = training.max_weight_ratio * min(sizes.values())
    capped = {name: min(float(size), cap) for name, size in sizes.items()}
    most = max(capped.values())
    return {name: size / most for name, size in capped.items()}
