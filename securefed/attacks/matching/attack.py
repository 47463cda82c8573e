"""The optimisation family: DLG, cosine and TAG gradient matching, and LAMP.

    dummy embeddings and labels  ->  their gradient  ->  its distance from the observed one
        -> smaller step by step, from several beginnings
        -> LAMP: now and then the order of tokens that suits gradient and language best
    the best one's nearest tokens

Nothing is told to the attacker beyond view and public knowledge unless ``length`` or ``labels`` are
given; both make it stronger than an adversary that has to find them out.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

from securefed.attacks.base import AdversaryView, Guess, Limits, PublicKnowledge
from securefed.attacks.inversion.inputs import around
from securefed.attacks.matching.descent import RUNGS, Candidates, Descent, Schedule
from securefed.attacks.matching.distances import (
    CosineDistance,
    Distance,
    L2Distance,
    TagDistance,
)
from securefed.attacks.matching.gradients import CandidateGradients
from securefed.attacks.matching.head import labels_from_head
from securefed.attacks.matching.language import DiscreteSteps, Language
from securefed.attacks.matching.lengths import likely_lengths
from securefed.attacks.matching.priors import LanguagePrior
from securefed.attacks.matching.projection import Projection
from securefed.attacks.matching.target import ObservedGradient, observed_gradient
from securefed.errors import ConfigError

LABELLINGS = 8
"""Up to so many possible labellings of a batch each get a beginning of their own."""


@dataclass(frozen=True, eq=False)
class Matched:
    """What matching found.

    Attributes:
        texts: int64[b, w], special tokens included.
        labels: of each text; None for language models.
        distance: what was left of it at the last step.
        steps: taken.
    """

    texts: torch.Tensor
    labels: tuple[int, ...] | None
    distance: float
    steps: int


class GradientMatching:
    """Moves embeddings until their gradient is the observed one, and reads tokens off them.

    Args:
        distance: between gradients.
        name: results are filed under it.
        schedule: steps, restarts and rates.
        language: for LAMP's discrete steps; None: none are made.
        length: of every text, special tokens included, where it is **told to the attacker**, which
            makes it stronger; None: from the window or the rank of the update, or tried.
        labels: of the texts, likewise; None: from the head's gradient where it is in the update,
            else found together with the texts.

    Raises:
        ConfigError: a length below 1.
    """

    def __init__(
        self,
        distance: Distance,
        *,
        name: str,
        schedule: Schedule | None = None,
        language: Language | None = None,
        length: int | None = None,
        labels: Sequence[int] | None = None,
    ) -> None:
        if length is not None and length < 1:
            raise ConfigError(f"length = {length}; it must be >= 1")
        self.name, self.distance, self.language, self.length = name, distance, language, length
        self.schedule = Schedule() if schedule is None else schedule
        self.labels = None if labels is None else tuple(labels)

    def run(
        self,
        view: AdversaryView,
        public: PublicKnowledge,
        *,
        generator: torch.Generator,
        limits: Limits,
    ) -> Guess:
        """See :class:`~securefed.attacks.base.Attack`."""
        observed, reason = observed_gradient(view, public)
        if observed is None:
            return Guess(verdict="void", reason=reason)
        found = self.match(view, public, observed, generator=generator, limits=limits)
        special = public.special_tokens
        texts = [tuple(t for t in row if t not in special) for row in found.texts.tolist()]
        figures = {
            "distance": found.distance,
            "steps": float(found.steps),
            "length": float(found.texts.shape[1]),
            "scale known": float(observed.scaled),
        }
        finite = {name: value for name, value in figures.items() if math.isfinite(value)}
        return Guess(tuple(texts), reason="gradient matching", figures=MappingProxyType(finite))

    def match(
        self,
        view: AdversaryView,
        public: PublicKnowledge,
        observed: ObservedGradient,
        *,
        generator: torch.Generator,
        limits: Limits,
    ) -> Matched:
        """Texts and labels together; ``observed`` is the view's, the rest as of :meth:`run`."""
        deadline = time.monotonic() + limits.seconds
        gradients = CandidateGradients(public, tuple(observed.tensors))
        projection = Projection(public, gradients.table, public.special_tokens)
        schedule = self.schedule
        descent = Descent(gradients, observed, self.distance, projection, schedule, deadline)
        labels = self.labels or labels_from_head(public, observed, generator)
        labellings = self._labellings(labels, public.batch_size, gradients)
        lengths: tuple[int, ...] = (self.length or 0,)
        if self.length is None:
            lengths = likely_lengths(view, public, limits, 1 + sum(map(len, around(public))))
        best: tuple[Candidates, DiscreteSteps | None, torch.Tensor] | None = None
        for length in lengths:
            frame = frame_of(public, length)
            discrete = None
            if self.language is not None:
                discrete = DiscreteSteps(
                    self.language,
                    descent,
                    gradients,
                    projection,
                    frame,
                    public.special_tokens,
                    generator,
                )
            begun = descent.begin(frame, labellings, generator)
            tried = self._until(descent, begun, RUNGS[0], frame, discrete)
            if best is None or tried.distances.min() < best[0].distances.min():
                best = tried, discrete, frame
        if best is None:
            raise ConfigError(f"max_tokens = {limits.max_tokens}; no length is allowed by it")
        candidates, discrete, frame = best
        for share in (*RUNGS[1:], 1.0):
            candidates = _better_half(candidates)
            candidates = self._until(descent, candidates, share, frame, discrete)
        return self._read(candidates, projection, frame, discrete)

    def _labellings(
        self, labels: tuple[int, ...] | None, texts: int, gradients: CandidateGradients
    ) -> list[tuple[int, ...] | None]:
        """Of each beginning: all possible ones if they are few, else to be found."""
        restarts = self.schedule.restarts
        if labels is not None:
            return [labels] * restarts
        every = [] if gradients.language else every_labelling(texts, gradients.classes)
        if not every:
            return [None] * restarts
        return [every[i % len(every)] for i in range(max(restarts, len(every)))]

    def _until(
        self,
        descent: Descent,
        candidates: Candidates,
        share: float,
        frame: torch.Tensor,
        discrete: DiscreteSteps | None,
    ) -> Candidates:
        return descent.run(
            candidates,
            math.ceil(share * self.schedule.steps),
            frame >= 0,
            None if discrete is None else discrete.reorder,
            0 if self.language is None else self.language.period,
        )

    def _read(
        self,
        candidates: Candidates,
        projection: Projection,
        frame: torch.Tensor,
        discrete: DiscreteSteps | None,
    ) -> Matched:
        at = int(candidates.distances.argmin())
        nearest = 1 if self.language is None else self.language.nearest
        near = projection.at_places(candidates.embeddings[at], nearest)
        labels = None if candidates.labels is None else candidates.labels[at]
        if labels is not None and candidates.soft:
            labels = labels.softmax(dim=-1)
        if discrete is None:
            texts = torch.where(frame < 0, near[..., 0], frame)
        else:
            texts, _ = discrete.improve(near, labels)
        named = None if labels is None else tuple(labels.argmax(dim=-1).tolist())
        return Matched(texts, named, float(candidates.distances[at]), candidates.taken)


def _better_half(candidates: Candidates) -> Candidates:
    keep = -(-len(candidates.distances) // 2)
    return candidates.chosen(candidates.distances.argsort()[:keep])


def frame_of(public: PublicKnowledge, length: int) -> torch.Tensor:
    """int64[batch_size, length]: what stands around every text, such as [CLS] and [SEP]; else -1.

    Args:
        public: the tokenizer and the batch's size.
        length: of every text, special tokens included.
    """
    head, tail = around(public)
    frame = torch.full((public.batch_size, length), -1)
    frame[:, : len(head)] = torch.tensor(head, dtype=torch.int64)
    frame[:, length - len(tail) :] = torch.tensor(tail, dtype=torch.int64)
    return frame


def every_labelling(texts: int, classes: int) -> list[tuple[int, ...]]:
    """All labels that a batch may have, in any order; none if there are more than LABELLINGS."""
    if math.comb(texts + classes - 1, texts) > LABELLINGS:
        return []
    return list(itertools.combinations_with_replacement(range(classes), texts))


def dlg(*, schedule: Schedule | None = None, length: int | None = None) -> GradientMatching:
    """Deep leakage from gradients.  Source: Zhu, Liu and Han 2019 (1906.08935)."""
    return GradientMatching(L2Distance(), name="dlg", schedule=schedule, length=length)


def cosine(*, schedule: Schedule | None = None, length: int | None = None) -> GradientMatching:
    """Inverting gradients.  Source: Geiping et al. 2020 (2003.14053)."""
    return GradientMatching(CosineDistance(), name="cosine", schedule=schedule, length=length)


def tag(*, schedule: Schedule | None = None, length: int | None = None) -> GradientMatching:
    """TAG.  Source: Deng et al. 2021 (2103.06819)."""
    return GradientMatching(TagDistance(), name="tag", schedule=schedule, length=length)


def lamp(
    prior: LanguagePrior,
    *,
    distance: Distance | None = None,
    schedule: Schedule | None = None,
    length: int | None = None,
) -> GradientMatching:
    """LAMP, by default with the cosine.  Source: Balunovic et al. 2022 (2202.08827).

    Args:
        prior: of the texts' language.
        distance: the paper's other one is TAG.
        schedule: steps, restarts and rates.
        length: as of :class:`GradientMatching`.
    """
    return GradientMatching(
        CosineDistance() if distance is None else distance,
        name="lamp",
        schedule=schedule,
        language=Language(prior),
        length=length,
    )
