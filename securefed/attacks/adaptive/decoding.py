"""Texts by the likelihood of their inputs: one token at each place, or any number of them.

Every token is looked at once, at every place, by Capon's spectrum; the best of them and the most
frequent ones are the place's candidates.  A text is then improved a place at a time, by gain in
log-likelihood plus log prior (:mod:`securefed.attacks.adaptive.evidence`), from two beginnings: the
spectrum's best, and a pursuit that adds what stands out most.  The noise is estimated anew after
every sweep, so that it falls as the text becomes right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from securefed.attacks.adaptive.evidence import Group

Inputs = Callable[[int, torch.Tensor | None], torch.Tensor]
"""Inputs float32[n, d] at a place, for tokens int64[n] or for the whole vocabulary."""

_CANDIDATES = 1024
_FREQUENT = 512
_SWEEPS = 10


@dataclass(frozen=True)
class Weighed:
    """A text and how likely it is.

    Attributes:
        tokens: one a place, those known beforehand too.
        sure: posterior probability of each, all others taken for right.
        log_posterior: of the text, in nats, but for a constant.
    """

    tokens: tuple[int, ...]
    sure: tuple[float, ...]
    log_posterior: float


class Decoding:
    """One update of block 0, looked at through the vocabulary.

    Args:
        groups: the updates of its matrices.
        inputs: of the model.
        places: how many places are looked at.
        head: tokens that every text begins with.
        log_prior: float32[vocabulary].
        deadline: on ``time.monotonic``'s clock.
        also: tokens that are candidates everywhere, such as those that texts end with.

    Attributes:
        candidates: by place, int64[k].
    """

    def __init__(
        self,
        groups: Sequence[Group],
        inputs: Inputs,
        places: int,
        head: Sequence[int],
        log_prior: torch.Tensor,
        *,
        deadline: float,
        also: Sequence[int] = (),
    ) -> None:
        self._groups, self._inputs = list(groups), inputs
        self._head, self._prior, self._deadline = list(head), log_prior, deadline
        self._barred = torch.isinf(log_prior)
        frequent = log_prior.topk(min(_FREQUENT, len(log_prior))).indices
        more = torch.cat([frequent, torch.tensor(list(also), dtype=torch.int64)])
        self._know(self._head)
        self.candidates: list[torch.Tensor] = []
        self._spectra: list[torch.Tensor] = []
        self._seen: list[list[torch.Tensor]] = []
        for place in range(places):
            spectrum = self._spectrum(self._inputs(place, None))
            spectrum[self._barred] = -torch.inf
            best = spectrum.topk(min(_CANDIDATES, len(spectrum))).indices
            tokens = torch.unique(torch.cat([best, more]))
            given = self._inputs(place, tokens)
            self.candidates.append(tokens)
            self._spectra.append(self._spectrum(given))
            self._seen.append([group.seen(given) for group in self._groups])

    def _know(self, tokens: Sequence[int]) -> None:
        for group in self._groups:
            group.clear()
            for place, token in enumerate(tokens):
                given = self._inputs(place, torch.tensor([token]))
                group.put(place, group.seen(given)[0])

    def _spectrum(self, given: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(len(given))
        for group in self._groups:
            total += group.spectrum(group.seen(given))
        return total

    def spectrum_of(self, place: int, token: int) -> float:
        """How far a candidate's spectrum stands out of its place's, in standard deviations."""
        spectrum = self._spectra[place]
        finite = spectrum[torch.isfinite(spectrum)]
        at = int((self.candidates[place] == token).nonzero()[0, 0])
        return float((spectrum[at] - finite.mean()) / finite.std().clamp(min=1e-9))

    # -- one token a place -----------------------------------------------------------------

    def text(self, tail: Mapping[int, int], length: int) -> Weighed:
        """The likeliest text of a length.

        Args:
            tail: tokens that it ends with, by place.
            length: all tokens.
        """
        known = dict(enumerate(self._head)) | dict(tail)
        free = [place for place in range(length) if place not in known]
        begun = [
            {p: self._listed(p, self._spectra[p] + 1e-3 * self._prior_of(p)) for p in free},
            {},
        ]
        found = [self._improved(known, free, begin) for begin in begun]
        return max(found, key=lambda weighed: weighed.log_posterior)

    def _prior_of(self, place: int) -> torch.Tensor:
        return self._prior[self.candidates[place]]

    def _listed(self, place: int, scores: torch.Tensor) -> int:
        scores = scores.masked_fill(self._barred[self.candidates[place]], -torch.inf)
        return int(scores.argmax())

    def _put(self, place: int, index: int) -> None:
        for group, seen in zip(self._groups, self._seen[place], strict=True):
            group.put(place, seen[index])

    def _drop(self, place: int) -> None:
        for group in self._groups:
            group.drop(place)

    def _scores(self, place: int) -> torch.Tensor:
        """Gain in log-likelihood plus log prior of a place's candidates: float64[k]."""
        total = self._prior_of(place).double()
        for group, seen in zip(self._groups, self._seen[place], strict=True):
            total = total + group.gains(seen)
        return total

    def _improved(
        self, known: Mapping[int, int], free: list[int], begin: Mapping[int, int]
    ) -> Weighed:
        for group in self._groups:
            group.clear()
        fixed = {p: int((self.candidates[p] == t).nonzero()[0, 0]) for p, t in known.items()}
        chosen = dict(begin)
        for place, index in [*fixed.items(), *chosen.items()]:
            self._put(place, index)
        self._refit(fixed)
        while len(chosen) < len(free):  # a pursuit: what stands out most comes first
            tops = {p: self._scores(p).max(dim=0) for p in free if p not in chosen}
            place = max(tops, key=lambda p: float(tops[p].values))
            chosen[place] = int(tops[place].indices)
            self._put(place, chosen[place])
            self._refit(fixed)
        sure = dict.fromkeys(free, 0.0)
        for _ in range(_SWEEPS):
            before = dict(chosen)
            for place in free:
                self._drop(place)
                scores = self._scores(place)
                chosen[place] = int(scores.argmax())
                sure[place] = float(scores.softmax(dim=0)[chosen[place]])
                self._put(place, chosen[place])
            self._refit(fixed)
            if before == chosen or time.monotonic() >= self._deadline:
                break
        log_posterior = sum(group.log_likelihood() for group in self._groups)
        log_posterior += sum(float(self._prior_of(p)[chosen[p]]) for p in free)
        tokens = known | {p: int(self.candidates[p][chosen[p]]) for p in free}
        places = sorted(tokens)
        return Weighed(
            tuple(tokens[p] for p in places),
            tuple(sure.get(p, 1.0) for p in places),
            log_posterior,
        )

    def _refit(self, fixed: Mapping[int, int]) -> None:
        for place, index in fixed.items():
            self._put(place, index)
        for group in self._groups:
            group.refit()

    # -- any number of tokens --------------------------------------------------------------

    def loose(self, most: int) -> list[tuple[float, int]]:
        """Gain and token of all (place, token) that stand out of the noise, largest gain first.

        Args:
            most: how many there are at most.
        """
        self._know(self._head)
        taken: dict[int, tuple[int, int]] = {}
        key = len(self._head)
        for _ in range(most):
            before = len(taken)
            for place in range(len(self.candidates)):
                if len(taken) == most or time.monotonic() >= self._deadline:
                    break
                scores = self._scores(place)
                used = [index for at, index in taken.values() if at == place]
                scores[used] = -torch.inf
                index = int(scores.argmax())
                if float(scores[index]) <= 0.0:
                    continue
                for group, seen in zip(self._groups, self._seen[place], strict=True):
                    group.put(key, seen[index])
                taken[key] = place, index
                key += 1
            for group in self._groups:
                group.refit()
            if len(taken) == before:
                break
        found = []
        for each, (place, index) in taken.items():
            self._drop(each)
            found.append((float(self._scores(place)[index]), int(self.candidates[place][index])))
            for group, seen in zip(self._groups, self._seen[place], strict=True):
                group.put(each, seen[index])
        return sorted((pair for pair in found if pair[0] > 0.0), reverse=True)
