"""Which tokens texts have most often: what anybody can guess before an update is seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence


def most_frequent(texts: Iterable[Sequence[int]], left_out: Collection[int]) -> tuple[int, ...]:
    """Tokens in the order in which to guess them where nothing else is known.

    A token that texts hold twice is named twice: of n guesses the first n have the largest expected
    overlap with a text of the same source.

    Args:
        texts: token ids of public texts.
        left_out: ids that do not count.
    """
    pairs: Counter[tuple[int, int]] = Counter()
    for text in texts:
        counted = Counter(token for token in text if token not in left_out)
        for token, times in counted.items():
            pairs.update((token, place) for place in range(times))
    return tuple(token for token, _ in sorted(pairs, key=lambda pair: (-pairs[pair], pair)))
