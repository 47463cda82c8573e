"""From tokens to texts: which of them stand together, by the input of block 1.

What goes into block 1 depends on a place's own token and on the others that block 0 lets it see.
Only the texts that were trained on give inputs that lie in block 1's span, at all of their places.

Decoders are read from the left: a prefix is kept if its last place fits, and extended by every
token.  Encoders see all places at once, so whole texts are improved, a place at a time, from
several beginnings: a text that is half right is better than one that is not, and leads to the right
one.  What is made better is the sum of sines, not of misfits: their scale differs from place to
place, and would hide the way.

Source: the left-to-right search is that of DAGER (2405.15586), section 4.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence

import torch

from securefed.attacks.inversion.inputs import InputReader
from securefed.attacks.inversion.span import Spans

TEXT_SLACK = 4.5
"""Misfit at block 1 up to which a text is taken for one that was trained on."""

_PREFIXES = 64
_PRODUCT = 512
_SWEEPS = 6
_KICKS = 6
_KICKED = 3
_AT_ONCE = 128


class Assembler:
    """Puts candidate tokens together.

    Args:
        reader: of the model's inputs.
        spans: of block 1.
        deadline: on ``time.monotonic``'s clock.
        generator: of beginnings.
    """

    def __init__(
        self, reader: InputReader, spans: Spans, *, deadline: float, generator: torch.Generator
    ) -> None:
        self._reader, self._spans = reader, spans
        self._deadline, self._generator = deadline, generator

    def misfits(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Misfit at block 1: float32[n, w] for texts of one length w."""
        return self._judged(texts, self._spans.misfit)

    def sines(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Sine of the angle to block 1's span: float32[n, w]."""
        return self._judged(texts, self._spans.sine)

    def _judged(
        self, texts: Sequence[Sequence[int]], by: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        found = []
        for start in range(0, len(texts), _AT_ONCE):
            inputs = self._reader.at(1, list(texts[start : start + _AT_ONCE]))
            found.append(by(inputs.flatten(0, 1)).view(inputs.shape[:2]))
        return torch.cat(found)

    # -- decoders --------------------------------------------------------------------------

    def prefixes(
        self, tokens: Sequence[int], longest: int, opening: Sequence[int] = ()
    ) -> list[tuple[int, ...]]:
        """Texts that fit at every place, the longest ones, best first.

        Args:
            tokens: candidates.
            longest: tokens at most.
            opening: further candidates of the first place.
        """
        first = [(token,) for token in dict.fromkeys([*tokens, *opening])]
        beam = self._kept(first, self._spans.opening())
        ended: list[tuple[float, tuple[int, ...]]] = []
        for _ in range(longest - 1):
            if time.monotonic() >= self._deadline:
                break
            longer = self._kept(
                [
                    (*text, token)
                    for _, text in beam
                    for token in tokens
                    # A token after nothing but itself attends to itself alone: it always fits.
                    if {token} != set(text)
                ]
            )
            parents = {text[:-1] for _, text in longer}
            ended += [(cost, text) for cost, text in beam if text not in parents]
            if not longer:
                beam = []
                break
            beam = longer
        texts = [*beam, *ended]
        texts.sort(key=lambda found: (-len(found[1]), found[0]))
        return [text for _, text in texts]

    def _kept(
        self, texts: Sequence[tuple[int, ...]], spans: Spans | None = None
    ) -> list[tuple[float, tuple[int, ...]]]:
        if not texts:
            return []
        costs = self._judged(texts, (spans or self._spans).misfit)[:, -1]
        fit = [(float(cost), text) for cost, text in zip(costs, texts, strict=True) if cost <= 1.0]
        return sorted(fit)[:_PREFIXES]

    # -- encoders --------------------------------------------------------------------------

    def whole(
        self, candidates: Sequence[Sequence[int]], wanted: int, *, beginnings: int = 24
    ) -> list[tuple[int, ...]]:
        """Texts of one length that fit at every place, best first.

        Args:
            candidates: tokens that may stand at each place.
            wanted: how many texts there are at most.
            beginnings: how often to begin anew.
        """
        if math.prod(map(len, candidates)) <= _PRODUCT:
            every = list(itertools.product(*candidates))
            worst = self.misfits(every).amax(dim=1)
            order = worst.argsort().tolist()
            return [every[index] for index in order if worst[index] <= TEXT_SLACK][:wanted]
        found: dict[tuple[int, ...], float] = {}
        for _ in range(beginnings):
            if time.monotonic() >= self._deadline or len(found) == wanted:
                break
            text, cost = self._descended(self._beginning(candidates, found), candidates)
            for _ in range(_KICKS):
                if self._worst(text) <= TEXT_SLACK or time.monotonic() >= self._deadline:
                    break
                other, lower = self._descended(self._kicked(text, candidates), candidates)
                if lower < cost:
                    text, cost = other, lower
            worst_place = self._worst(text)
            if worst_place <= TEXT_SLACK:
                found[text] = worst_place
        return sorted(found, key=lambda text: found[text])

    def _worst(self, text: tuple[int, ...]) -> float:
        return float(self.misfits([text]).max())

    def _beginning(
        self, candidates: Sequence[Sequence[int]], found: dict[tuple[int, ...], float]
    ) -> tuple[int, ...]:
        text = []
        for place, tokens in enumerate(candidates):
            used = {known[place] for known in found}
            fresh = [token for token in tokens if token not in used] or list(tokens)
            at = int(torch.randint(len(fresh), (1,), generator=self._generator))
            text.append(fresh[at])
        return tuple(text)

    def _kicked(
        self, text: tuple[int, ...], candidates: Sequence[Sequence[int]]
    ) -> tuple[int, ...]:
        """The text with a few places drawn anew, those that fit worst most likely."""
        sines = self.sines([text])[0].clamp(min=1e-6)
        sines[[len(tokens) < 2 for tokens in candidates]] = 0.0
        count = min(_KICKED, int((sines > 0.0).sum()))
        changed = list(text)
        for place in torch.multinomial(sines, count, generator=self._generator).tolist():
            at = int(torch.randint(len(candidates[place]), (1,), generator=self._generator))
            changed[place] = candidates[place][at]
        return tuple(changed)

    def _descended(
        self, text: tuple[int, ...], candidates: Sequence[Sequence[int]]
    ) -> tuple[tuple[int, ...], float]:
        cost = float(self.sines([text]).sum())
        for _ in range(_SWEEPS):
            before = cost
            for place in torch.randperm(len(text), generator=self._generator).tolist():
                if len(candidates[place]) < 2 or time.monotonic() >= self._deadline:
                    continue
                tried = [(*text[:place], token, *text[place + 1 :]) for token in candidates[place]]
                costs = self.sines(tried).sum(dim=1)
                at = int(costs.argmin())
                text, cost = tried[at], float(costs[at])
            if cost >= before - 1e-6:
                break
        return text, cost


def longest(texts: list[tuple[int, ...]], wanted: int) -> list[tuple[int, ...]]:
    """The first texts that are no beginnings of others."""
    kept: list[tuple[int, ...]] = []
    for text in texts:
        if len(kept) < wanted and not any(other[: len(text)] == text for other in kept):
            kept.append(text)
    return kept
