"""How likely a text is as a text of its language, for attacks that know what language it is in."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from securefed.errors import ConfigError

_START = -1


class LanguagePrior(Protocol):
    """Public knowledge of a language."""

    def nll(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Mean negative log-likelihood of a token, in nats: float32[n].

        Args:
            texts: token ids of the attacked model, special tokens left out; none empty.
        """
        ...


class UniformPrior:
    """Knows nothing: every text is as likely as any other."""

    def nll(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """See :class:`LanguagePrior`."""
        return torch.zeros(len(texts))


class NGramPrior:
    """Trigrams of public texts, smoothed by shorter ones down to the uniform distribution.

    With c(h) the count of a history h and t(h) of different tokens that follow it,
    p(w | h) = (c(h w) + t(h) p(w | h without its first)) / (c(h) + t(h)).

    Args:
        background: token ids of public texts, none of them attacked.
        special: ids that are left out.
        vocabulary: how many tokens there are, >= 1.

    Raises:
        ConfigError: there is no token, or the vocabulary is empty.

    Source: Witten and Bell 1991, method C, interpolated.
    """

    def __init__(
        self, background: Iterable[Sequence[int]], special: Iterable[int], vocabulary: int
    ) -> None:
        if vocabulary < 1:
            raise ConfigError(f"vocabulary = {vocabulary}; it must be >= 1")
        self._left_out, self._vocabulary = frozenset(special), vocabulary
        self._follow: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for text in background:
            for history, token in self._places(text):
                for start in range(len(history) + 1):
                    self._follow[history[start:]][token] += 1
        if not self._follow:
            raise ConfigError("background: no token; the prior needs public texts")
        self._totals = {history: seen.total() for history, seen in self._follow.items()}

    def _places(self, text: Sequence[int]) -> list[tuple[tuple[int, int], int]]:
        kept = [_START, _START, *(token for token in text if token not in self._left_out)]
        return [((kept[i - 2], kept[i - 1]), kept[i]) for i in range(2, len(kept))]

    def _probability(self, history: tuple[int, ...], token: int) -> float:
        found = 1.0 / self._vocabulary
        for start in range(len(history), -1, -1):
            seen = self._follow.get(history[start:])
            if seen is None:
                break  # a longer history has not been seen either
            kinds = len(seen)
            total = self._totals[history[start:]]
            found = (seen.get(token, 0) + kinds * found) / (total + kinds)
        return found

    def nll(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """See :class:`LanguagePrior`."""
        found = []
        for text in texts:
            places = self._places(text)
            logs = [math.log(self._probability(history, token)) for history, token in places]
            found.append(-sum(logs) / max(len(logs), 1))
        return torch.tensor(found, dtype=torch.float32)


class CausalModelPrior:
    """A causal language model that everybody has.

    Args:
        model: in evaluation mode; ``model(input_ids, attention_mask).logits``.
        tokenizer: of that model, with a padding token.
        attacked: tokenizer of the attacked model, by which its tokens become text; None where both
            models have the same one.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, attacked: Any | None = None) -> None:
        self._model, self._tokenizer, self._attacked = model, tokenizer, attacked

    def nll(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """See :class:`LanguagePrior`; the mean is over tokens of the attacked model."""
        own = [self._own(text) for text in texts]
        width = max(map(len, own))
        start = self._tokenizer.bos_token_id
        first = self._tokenizer.pad_token_id if start is None else start
        ids = torch.full((len(own), width + 1), self._tokenizer.pad_token_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        ids[:, 0], mask[:, 0] = first, 1
        for row, text in enumerate(own):
            ids[row, 1 : len(text) + 1] = torch.tensor(text)
            mask[row, 1 : len(text) + 1] = 1
        with torch.no_grad():
            logits = self._model(input_ids=ids, attention_mask=mask).logits
        logs = logits[:, :-1].float().log_softmax(dim=-1)
        chosen = logs.gather(2, ids[:, 1:, None])[:, :, 0] * mask[:, 1:]
        counts = torch.tensor([max(len(text), 1) for text in texts])
        mean: torch.Tensor = -chosen.sum(dim=1) / counts
        return mean

    def _own(self, text: Sequence[int]) -> list[int]:
        if self._attacked is None:
            return list(text)
        words = self._attacked.decode(list(text))
        return list(self._tokenizer(words, add_special_tokens=False)["input_ids"])
