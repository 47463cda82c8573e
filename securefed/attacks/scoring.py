"""How much of the truth a guess holds.  No attack imports this module.

Special tokens are left out of everything.  Recall and precision count tokens with repeats (over all
texts of a batch together), or as a set.  A text counts as an exact match if it is among the guessed
ones, each guess counting once.  ROUGE is the F1 of n-grams, or of the longest common subsequence;
texts and guesses are paired so that its sum is largest.

Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from securefed.attacks.base import Guess
from securefed.attacks.frequencies import most_frequent
from securefed.errors import ConfigError

Text = tuple[int, ...]

METRICS = (
    "token_recall",
    "token_precision",
    "set_recall",
    "set_precision",
    "exact_match",
    "rouge_1",
    "rouge_2",
    "rouge_l",
)


@dataclass(frozen=True)
class Score:
    """One guess against one client's texts; every value is in [0, 1]."""

    token_recall: float
    token_precision: float
    set_recall: float
    set_precision: float
    exact_match: float
    rouge_1: float
    rouge_2: float
    rouge_l: float


def score(guess: Guess, truth: Sequence[Sequence[int]], special: Iterable[int]) -> Score:
    """Compare a guess with the texts that were trained on.

    Args:
        guess: of an attack; one that is void scores 0 throughout.
        truth: token ids of every text, special ones included or not.
        special: ids that do not count.

    Raises:
        ConfigError: there is no text, or one has no token that counts.
    """
    left_out = frozenset(special)
    texts = [tuple(t for t in text if t not in left_out) for text in truth]
    if not texts or not all(texts):
        raise ConfigError("truth: every text needs a token that is not special; there must be one")
    guessed = [tuple(t for t in text if t not in left_out) for text in guess.texts]
    wanted = Counter(token for text in texts for token in text)
    found = Counter(token for token in guess.tokens if token not in left_out)
    common = (wanted & found).total()
    both = wanted.keys() & found.keys()
    matched = (Counter(texts) & Counter(guessed)).total()
    return Score(
        token_recall=common / wanted.total(),
        token_precision=common / max(found.total(), 1),
        set_recall=len(both) / len(wanted),
        set_precision=len(both) / max(len(found), 1),
        exact_match=matched / len(texts),
        rouge_1=_paired(texts, guessed, lambda a, b: _ngram_f1(a, b, 1)),
        rouge_2=_paired(texts, guessed, lambda a, b: _ngram_f1(a, b, 2)),
        rouge_l=_paired(texts, guessed, _subsequence_f1),
    )


def _paired(
    texts: Sequence[Text], guessed: Sequence[Text], rouge: Callable[[Text, Text], float]
) -> float:
    if not guessed:
        return 0.0
    table = np.array([[rouge(text, other) for other in guessed] for text in texts])
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum()) / len(texts)


def _f1(common: int, wanted: int, found: int) -> float:
    return 2.0 * common / (wanted + found) if common else 0.0


def _ngram_f1(text: Text, guess: Text, n: int) -> float:
    def grams(tokens: Text) -> Counter[Text]:
        return Counter(tokens[i : i + n] for i in range(len(tokens) - n + 1))

    wanted, found = grams(text), grams(guess)
    if not wanted and not found:  # texts too short to have any
        return float(text == guess)
    return _f1((wanted & found).total(), wanted.total(), found.total())


def _subsequence_f1(text: Text, guess: Text) -> float:
    longest = [0] * (len(guess) + 1)
    for token in text:
        diagonal = 0
        for at, other in enumerate(guess, start=1):
            kept, longest[at] = (
                longest[at],
                diagonal + 1 if token == other else max(longest[at], longest[at - 1]),
            )
            diagonal = kept
    return _f1(longest[-1], len(text), len(guess))


def label_accuracy(guessed: Iterable[int], truth: Sequence[int]) -> float:
    """Share of a batch's labels that were guessed, in [0, 1]; their order does not count.

    Args:
        guessed: labels, none where the attack is void.
        truth: of every text.

    Raises:
        ConfigError: there is no text.
    """
    if not truth:
        raise ConfigError("truth: no label; there must be one")
    return (Counter(truth) & Counter(guessed)).total() / len(truth)


def majority_labels(background: Iterable[int], texts: int) -> tuple[int, ...]:
    """The best guess of labels without any update: the commonest one for every text.

    Args:
        background: labels of public texts, none of them attacked.
        texts: how many labels to guess.

    Raises:
        ConfigError: there is no public label.
    """
    counts = Counter(background)
    if not counts:
        raise ConfigError("background: no label; the prior needs public ones")
    return (min(counts, key=lambda label: (-counts[label], label)),) * texts


class UnigramPrior:
    """The best guess without any update: what is frequent in other texts.

    Of n tokens it guesses those n (token, repetition) pairs that texts have most often, which is
    the multiset of n tokens with the largest expected overlap with a text of the same source.

    Args:
        background: token ids of public texts, none of them attacked.
        special: ids that are left out.

    Raises:
        ConfigError: there is no token.
    """

    def __init__(self, background: Iterable[Sequence[int]], special: Iterable[int]) -> None:
        left_out = frozenset(special)
        self._ranked = most_frequent(background, left_out)
        if not self._ranked:
            raise ConfigError("background: no token; the prior needs public texts")

    def guess(
        self, truth: Sequence[Sequence[int]], special: Iterable[int], *, least: int = 0
    ) -> Guess:
        """As many tokens as the texts have, in the order of their frequency.

        That the prior is told the number of tokens makes it better, and the lift over it smaller.

        Args:
            truth: the texts, of which only the lengths count.
            special: ids that do not count.
            least: tokens that it guesses in all at least, those beyond the texts' loose: as many as
                an attack names, so that naming many is no merit in recall.
        """
        left_out = frozenset(special)
        texts = []
        for text in truth:
            count = sum(token not in left_out for token in text)
            texts.append(self._ranked[:count])
        more = least - sum(map(len, texts))
        loose: tuple[int, ...] = ()
        if more > 0:
            left = Counter(self._ranked[:least])
            left -= Counter(token for text in texts for token in text)
            loose = tuple(left.elements())[:more]
        return Guess(tuple(texts), loose, reason="unigram prior")
