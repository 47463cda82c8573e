"""What anybody knows of texts before an update is seen: how frequent their tokens are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from securefed.attacks.frequencies import most_frequent
from securefed.errors import ConfigError

_UNSEEN = 1.0


class Background:
    """Frequencies of tokens in public texts.

    Args:
        texts: token ids of public texts, none of them attacked.
        vocabulary: how many tokens there are.
        special: ids that are left out.

    Attributes:
        log_prior: float32[vocabulary], log probability of a token at any place, by Laplace's rule;
            minus infinity for special tokens.
        ranking: tokens in the order in which to guess them where nothing else is known, a token
            that a text holds twice named twice.

    Raises:
        ConfigError: a token is not in the vocabulary.
    """

    def __init__(
        self, texts: Iterable[Sequence[int]], vocabulary: int, special: Iterable[int]
    ) -> None:
        left_out = frozenset(special)
        counts = torch.full((vocabulary,), _UNSEEN)
        self.ranking = most_frequent(known := list(texts), left_out)
        for token in self.ranking:
            if not 0 <= token < vocabulary:
                raise ConfigError(f"texts: token {token}; the vocabulary has {vocabulary}")
        for token, times in Counter(token for text in known for token in text).items():
            if token not in left_out:
                counts[token] += times
        counts[[token for token in left_out if token < vocabulary]] = 0.0
        self.log_prior = (counts / counts.sum()).log()
