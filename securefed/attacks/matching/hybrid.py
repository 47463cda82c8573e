"""The exact family's tokens, put in order and completed by gradient matching.

Spans say which tokens there are, and not always in what order; of a language model's last token,
which is a target and never an input, they say nothing.  The distance of gradients tells both: it is
0 for the right texts alone.  Nothing continuous is moved, and no prior of language is used.
"""

from __future__ import annotations

import time
from dataclasses import replace
from types import MappingProxyType

import torch

from securefed.attacks.base import AdversaryView, Attack, Guess, Limits, PublicKnowledge
from securefed.attacks.inversion.inputs import around
from securefed.attacks.matching.attack import every_labelling, frame_of
from securefed.attacks.matching.descent import Descent, Schedule
from securefed.attacks.matching.distances import CosineDistance
from securefed.attacks.matching.gradients import CandidateGradients
from securefed.attacks.matching.head import labels_from_head
from securefed.attacks.matching.language import DiscreteSteps, Language
from securefed.attacks.matching.priors import UniformPrior
from securefed.attacks.matching.projection import Projection
from securefed.attacks.matching.target import observed_gradient

MATCHES = 1e-3
"""Distance up to which texts are taken for those that made the update."""

_LAST = 32
_BEGINNINGS = 8
_TURNS = 2


class HybridMatching:
    """Seeds a search over orders and last tokens with what another attack found.

    Args:
        seed: an attack of the exact family.
    """

    name = "hybrid"

    def __init__(self, seed: Attack) -> None:
        self._seed = seed

    def run(
        self,
        view: AdversaryView,
        public: PublicKnowledge,
        *,
        generator: torch.Generator,
        limits: Limits,
    ) -> Guess:
        """See :class:`~securefed.attacks.base.Attack`; void where the seed is void."""
        deadline = time.monotonic() + limits.seconds
        first = self._seed.run(view, public, generator=generator, limits=limits)
        observed, reason = observed_gradient(view, public)
        if first.verdict == "void":
            return Guess(verdict="void", reason=first.reason)
        if observed is None:  # nothing to match with: what the spans say is all there is
            return replace(first, reason=f"{first.reason}; {reason}")
        tokens = sorted(set(first.tokens))
        gradients = CandidateGradients(public, tuple(observed.tensors))
        length = self._length(first, public)
        if not tokens or length is None:
            return first
        projection = Projection(public, gradients.table, public.special_tokens)
        descent = Descent(gradients, observed, CosineDistance(), projection, Schedule(), deadline)
        frame = frame_of(public, length)
        language = Language(UniformPrior(), weight=0.0, sweeps=2)
        steps = DiscreteSteps(
            language, descent, gradients, projection, frame, public.special_tokens, generator
        )
        read = labels_from_head(public, observed, generator)
        labellings: list[torch.Tensor | None] = [None]
        if not gradients.language:
            every = [read] if read else every_labelling(public.batch_size, gradients.classes)
            one_hot = torch.nn.functional.one_hot
            labellings = [one_hot(torch.tensor(e), gradients.classes).float() for e in every]
        best, least = None, float("inf")
        for number in range(_BEGINNINGS):
            for labels in labellings:
                begun = self._begun(first, frame, tokens, generator, shuffled=number > 0)
                texts = begun
                # An order that is nearly right tells the last token better, and that the order.
                for _ in range(_TURNS if gradients.language else 1):
                    near = self._near(texts, tokens)
                    if gradients.language:
                        near = self._ended(near, descent.last_tokens(texts, _LAST))
                    texts, cost = steps.improve(near, labels)
                    if cost < least:
                        best, least = texts, cost
                    if least < MATCHES or descent.late:
                        break
            if least < MATCHES or descent.late:
                break
        if best is None:
            return first
        special = public.special_tokens
        rows = [tuple(t for t in row if t not in special) for row in best.tolist()]
        figures = MappingProxyType({**first.figures, "distance": least})
        how = "matched exactly" if least < MATCHES else "the nearest match"
        # What did not match is less likely than what the spans allow.
        return replace(
            first,
            texts=tuple(rows) if least < MATCHES or not first.texts else first.texts,
            loose=() if least < MATCHES or not first.texts else first.loose,
            reason=f"{first.reason}; {how}",
            figures=figures,
        )

    @staticmethod
    def _length(first: Guess, public: PublicKnowledge) -> int | None:
        """Special tokens included; None where it is not known."""
        if public.window_tokens is not None:
            return public.window_tokens
        lengths = {len(text) for text in first.texts}
        if len(lengths) != 1:
            return None
        return lengths.pop() + sum(map(len, around(public)))

    @staticmethod
    def _begun(
        first: Guess,
        frame: torch.Tensor,
        tokens: list[int],
        generator: torch.Generator,
        *,
        shuffled: bool,
    ) -> torch.Tensor:
        """The seed's texts, and where it has none, or after a failure, its tokens at random."""
        drawn = torch.randint(len(tokens), frame.shape, generator=generator)
        texts = torch.where(frame < 0, torch.tensor(tokens)[drawn], frame)
        free = [row.nonzero()[:, 0].tolist() for row in frame < 0]
        given = first.texts
        if shuffled or not given:
            order = torch.randperm(len(tokens), generator=generator).tolist()
            given = tuple(tuple(tokens[i] for i in order) for _ in free[:1])
        for row, text in zip(range(len(free)), given, strict=False):
            for place, token in zip(free[row], text, strict=False):
                texts[row, place] = token if token >= 0 else texts[row, place]
        return texts

    @staticmethod
    def _near(texts: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        """int64[b, w, k]: what stands there, and all tokens."""
        listed = torch.tensor(tokens).expand(*texts.shape, len(tokens))
        return torch.cat([texts[..., None], listed], dim=-1)

    @staticmethod
    def _ended(near: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """The same choices, and at the last place those that may end a text."""
        count = max(near.shape[-1], last.shape[-1])
        spread = torch.arange(count).clamp(max=near.shape[-1] - 1)
        wider = near[..., spread].clone()
        wider[:, -1] = last[:, torch.arange(count) % last.shape[-1]]
        return wider
