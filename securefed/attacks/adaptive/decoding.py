"""Texts by the likelihood of their inputs: one token at each place, or any number of them.

Every token is looked at once, at every place, by Capon's spectrum; the best of them and the most
frequent ones are the place's candidates.  A text is then improved a place at a time: each candidate
has a posterior probability, by gain in log-likelihood plus log prior
(:mod:`securefed.attacks.adaptive.evidence`).  The likeliest one is taken where it is likelier than
all others together, and the mean of all inputs by their probabilities where none is, so that an
uncertain place does not mislead the others.  There are two beginnings: the spectrum's best tokens,
and a pursuit from the prior's means that puts first what is surest.  The noise is estimated anew
after every sweep, so that it falls as the text becomes right.

Where the output layer's update is there as well, its likelihood is added: tokens to try come from
its derivative, and those are judged exactly (:mod:`securefed.attacks.adaptive.head`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from securefed.attacks.adaptive.evidence import Group
from securefed.attacks.adaptive.head import HeadEvidence

Inputs = Callable[[int, torch.Tensor | None], torch.Tensor]
"""Inputs float32[n, d] at a place, for tokens int64[n] or for the whole vocabulary."""

Beginning = Literal["spectrum", "pursuit"]
BEGINNINGS: tuple[Beginning, ...] = get_args(Beginning)

_CANDIDATES = 512
_FREQUENT = 256
_SWEEPS = 8
_TAKEN = 0.5  # posterior probability from which on a token is taken for right
_TOGETHER = 3  # places that a pursuit fills at once
_JUDGED = 24  # tokens of a place that are judged by the output layer


@dataclass(frozen=True)
class Weighed:
    """A text and how likely it is.

    Attributes:
        tokens: the likeliest one a place, those known beforehand too.
        sure: posterior probability of each, all other places as they are.
        log_evidence: log-likelihood plus log prior of what was taken, in nats, but for a constant:
            what beginnings and lengths are compared by.
    """

    tokens: tuple[int, ...]
    sure: tuple[float, ...]
    log_evidence: float


class Decoding:
    """One update of block 0, looked at through the vocabulary.

    Args:
        groups: the updates of its matrices.
        inputs: of the model.
        places: how many places are looked at; fewer if the time is over before, but enough for a
            text of one token.
        head: tokens that every text begins with.
        log_prior: float32[vocabulary].
        deadline: on ``time.monotonic``'s clock.
        also: tokens that are candidates everywhere, such as those that texts end with.
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
        self._head, self._deadline = list(head), deadline
        # One more that stands for an unknown token; it has no probability of its own.
        self._unknown = len(log_prior)
        self._prior = torch.cat([log_prior, torch.tensor([-torch.inf])])
        frequent = log_prior.topk(min(_FREQUENT, len(log_prior))).indices
        more = torch.cat([frequent, torch.tensor([*head, *also], dtype=torch.int64)])
        usual = log_prior.exp() / log_prior.exp().sum()
        self._know(self._head)
        self._candidates: list[torch.Tensor] = []
        self._spectra: list[torch.Tensor] = []
        self._seen: list[list[torch.Tensor]] = []
        self._direct: dict[tuple[int, int], tuple[int, torch.Tensor]] = {}
        least = len(head) + len(also) + 1
        for place in range(places):
            if place >= least and time.monotonic() >= deadline:
                break
            every = self._inputs(place, None)
            spectrum = self._spectrum(every).masked_fill(torch.isinf(log_prior), -torch.inf)
            best = spectrum.topk(min(_CANDIDATES, len(spectrum))).indices
            tokens = torch.unique(torch.cat([best, more]))
            given = torch.cat([self._inputs(place, tokens), (usual @ every)[None]])
            self._candidates.append(torch.cat([tokens, torch.tensor([self._unknown])]))
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
            total += group.spectrum(given)
        return total

    @property
    def places(self) -> int:
        """How many were looked at."""
        return len(self._candidates)

    def standing(self, place: int, token: int) -> float:
        """How far a candidate's spectrum stands out of its place's, in standard deviations."""
        spectrum = self._spectra[place]
        at = self._index(place, token)
        return float((spectrum[at] - spectrum.mean()) / spectrum.std().clamp(min=1e-9))

    # -- one token a place -----------------------------------------------------------------

    def text(self, tail: Mapping[int, int], length: int, begin: Beginning) -> Weighed:
        """The likeliest text of a length.

        Args:
            tail: tokens that it ends with, by place.
            length: all tokens.
            begin: what with.
        """
        known = dict(enumerate(self._head)) | dict(tail)
        free = [place for place in range(length) if place not in known]
        if begin == "pursuit":
            return self._improved(known, free, self._pursued(known, free))
        best = {p: int((self._spectra[p] + 1e-3 * self._prior_of(p)).argmax()) for p in free}
        return self._improved(known, free, best)

    def judged(self, text: Weighed, tail: Mapping[int, int], head: HeadEvidence) -> Weighed:
        """A text improved by the output layer's update as well.

        Args:
            text: to begin with.
            tail: as for :meth:`text`.
            head: the output layer's update.
        """
        known = dict(enumerate(self._head)) | dict(tail)
        free = [place for place in range(len(text.tokens)) if place not in known]
        begin = {
            p: self._index(p, text.tokens[p]) if text.sure[p] > _TAKEN else self._last(p)
            for p in free
        }
        return self._improved(known, free, begin, head)

    def _improved(
        self,
        known: Mapping[int, int],
        free: list[int],
        begin: Mapping[int, int],
        head: HeadEvidence | None = None,
    ) -> Weighed:
        chosen, taken = dict(begin), dict(begin)
        fixed = self._begun(known, taken)
        sure = dict.fromkeys(free, 0.0)
        for _ in range(_SWEEPS):
            before = dict(taken)
            if head is not None:
                head.refit(self._tokens(known, taken))
            for place in free:
                self._drop(place)
                scores = self._scores(place)
                if head is not None:
                    scores = self._with_head(place, scores, self._tokens(known, taken), head)
                probabilities = scores.softmax(dim=0)
                chosen[place] = int(probabilities.argmax())
                sure[place] = float(probabilities[chosen[place]])
                taken[place] = self._settle(place, probabilities)
                if time.monotonic() >= self._deadline:
                    break
            self._refit(fixed)
            if before == taken or time.monotonic() >= self._deadline:
                break
        log_evidence = sum(group.log_likelihood() for group in self._groups)
        for place, index in taken.items():
            prior = self._prior_of(place)[index]
            log_evidence += float(prior) if index != self._last(place) else 0.0
        return Weighed(
            tuple(self._tokens(known, chosen)),
            tuple(1.0 if p in known else sure[p] for p in range(len(known) + len(free))),
            log_evidence,
        )

    def _settle(self, place: int, probabilities: torch.Tensor) -> int:
        """Put the likeliest token if that is likely, else the mean; its index, or the unknown's."""
        top = int(probabilities.argmax())
        if float(probabilities[top]) > _TAKEN:
            self._put(place, top)
            return top
        for group, seen in zip(self._groups, self._seen[place], strict=True):
            mean = probabilities.to(seen.dtype) @ seen
            group.put(place, mean / mean.norm())
        return self._last(place)

    def _pursued(self, known: Mapping[int, int], free: list[int]) -> dict[int, int]:
        """Tokens put a few at a time, the surest first; uncertain ones are left unknown."""
        chosen = {p: self._last(p) for p in free}
        fixed = self._begun(known, chosen)
        while time.monotonic() < self._deadline:
            ahead = {}
            for place in (p for p in free if chosen[p] == self._last(p)):
                self._drop(place)
                top = self._scores(place).softmax(dim=0).max(dim=0)
                self._put(place, self._last(place))
                ahead[place] = (float(top.values), int(top.indices))
            best = sorted(ahead, key=lambda p: -ahead[p][0])[:_TOGETHER]
            best = [place for place in best if ahead[place][0] > _TAKEN]
            if not best:
                break
            for place in best:
                chosen[place] = ahead[place][1]
                self._put(place, chosen[place])
            self._refit(fixed)
        return chosen

    def _begun(self, known: Mapping[int, int], chosen: Mapping[int, int]) -> dict[int, int]:
        for group in self._groups:
            group.clear()
        fixed = {p: self._index(p, token) for p, token in known.items()}
        for place, index in [*fixed.items(), *chosen.items()]:
            self._put(place, index)
        self._refit(fixed)
        return fixed

    def _index(self, place: int, token: int) -> int:
        return int((self._candidates[place] == token).nonzero()[0, 0])

    def _last(self, place: int) -> int:
        """Where the unknown token is."""
        return len(self._candidates[place]) - 1

    def _prior_of(self, place: int) -> torch.Tensor:
        return self._prior[self._candidates[place]]

    def _tokens(self, known: Mapping[int, int], chosen: Mapping[int, int]) -> list[int]:
        tokens = dict(known) | {p: int(self._candidates[p][i]) for p, i in chosen.items()}
        return [tokens[place] for place in sorted(tokens)]

    def _put(self, place: int, index: int) -> None:
        for group, seen in zip(self._groups, self._seen[place], strict=True):
            group.put(place, seen[index])

    def _drop(self, place: int) -> None:
        for group in self._groups:
            group.drop(place)

    def _refit(self, fixed: Mapping[int, int]) -> None:
        for place, index in fixed.items():
            self._put(place, index)
        for group in self._groups:
            group.refit()

    def _scores(self, place: int) -> torch.Tensor:
        """Gain in log-likelihood plus log prior of a place's candidates: float64[k]."""
        total = self._prior_of(place).double()
        for number, (group, seen) in enumerate(zip(self._groups, self._seen[place], strict=True)):
            version, direct = self._direct.get((place, number), (-1, seen))
            if version != group.version:
                direct = group.direct(seen)
                self._direct[place, number] = group.version, direct
            total = total + group.gains(seen, direct)
        return total

    def _with_head(
        self, place: int, scores: torch.Tensor, text: list[int], head: HeadEvidence
    ) -> torch.Tensor:
        """Scores with the output layer's likelihood; what is not judged exactly is left out."""
        slopes = head.slopes(text, place, self._candidates[place]).double()
        guided = (scores + slopes).topk(min(_JUDGED, len(scores))).indices
        plain = scores.topk(min(_JUDGED // 3, len(scores))).indices
        tried = torch.unique(torch.cat([guided, plain]))
        texts = [
            [*text[:place], token, *text[place + 1 :]]
            for token in self._candidates[place][tried].tolist()
        ]
        found = torch.full_like(scores, -torch.inf)
        found[tried] = scores[tried] + head.log_likelihood(texts)
        return found

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
            for place in range(len(self._candidates)):
                if len(taken) == most or time.monotonic() >= self._deadline:
                    break
                scores = self._scores(place)
                scores[[index for at, index in taken.values() if at == place]] = -torch.inf
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
            found.append((float(self._scores(place)[index]), int(self._candidates[place][index])))
            for group, seen in zip(self._groups, self._seen[place], strict=True):
                group.put(each, seen[index])
        return sorted((pair for pair in found if pair[0] > 0.0), reverse=True)
