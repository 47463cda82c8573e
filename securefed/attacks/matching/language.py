"""LAMP's discrete steps: orders and tokens that suit gradient and language best.

Source: Balunovic et al. 2022, "LAMP: Extracting Text from Gradients with Language Model Priors"
(2202.08827), section 4.2, for choosing among moves by distance and prior; replacing single tokens
of the finished text is this module's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from securefed.attacks.matching.descent import Candidates, Descent
from securefed.attacks.matching.gradients import CandidateGradients
from securefed.attacks.matching.moves import moved
from securefed.attacks.matching.priors import LanguagePrior
from securefed.attacks.matching.projection import Projection


@dataclass(frozen=True, eq=False)
class Language:
    """What is known of the language, and how much it counts.

    Args:
        prior: of texts.
        weight: of its nats a token, beside the distance, >= 0.
        period: steps between two discrete ones, >= 1.
        moves: tried at a time, >= 1.
        rounds: of improving the finished text, each of so many moves, >= 0.
        nearest: tokens that may stand at each place then, >= 1.
    """

    prior: LanguagePrior
    weight: float = 0.05
    period: int = 50
    moves: int = 32
    rounds: int = 30
    nearest: int = 10


class DiscreteSteps:
    """Tries moves.

    Args:
        language: the prior and how much to try.
        descent: which judges.
        gradients: for the embeddings of tokens.
        projection: to tokens.
        frame: int64[b, w]: tokens that are known, and -1 at all other places.
        special: tokens that the prior does not look at.
        generator: of the moves.
    """

    def __init__(
        self,
        language: Language,
        descent: Descent,
        gradients: CandidateGradients,
        projection: Projection,
        frame: torch.Tensor,
        special: frozenset[int],
        generator: torch.Generator,
    ) -> None:
        self._language, self._descent = language, descent
        self._gradients, self._projection = gradients, projection
        self._frame, self._special, self._generator = frame, special, generator
        numbers = torch.arange(frame.numel()).view(frame.shape)
        self._places = [row[known < 0].tolist() for row, known in zip(numbers, frame, strict=True)]

    def reorder(self, candidates: Candidates) -> Candidates:
        """Each candidate in the best of some orders of its embeddings, the present one included."""
        embeddings = candidates.embeddings.clone()
        for row, own in enumerate(candidates.embeddings):
            if self._descent.late:
                break
            texts = torch.where(self._frame < 0, self._projection.nearest(own), self._frame)
            orders = moved(self._places, self._frame.numel(), self._language.moves, self._generator)
            orders = torch.cat([torch.arange(self._frame.numel())[None], orders])
            tried = own.flatten(0, 1)[orders].view(-1, *own.shape)
            labels = None if candidates.labels is None else candidates.labels[row]
            if labels is not None and candidates.soft:
                labels = labels.softmax(dim=-1)
            costs = self._descent.judged(tried, labels)
            costs = costs + self._unlikely(texts.flatten()[orders].view(-1, *texts.shape))
            embeddings[row] = tried[int(costs.argmin())]
        return replace(candidates, embeddings=embeddings)

    def improve(
        self, near: torch.Tensor, labels: torch.Tensor | None
    ) -> tuple[torch.Tensor, float]:
        """A finished text, other tokens and orders tried as long as the time lasts.

        Args:
            near: int64[b, w, k], tokens that may stand at each place, likeliest first.
            labels: float32[b, classes], or None.

        Returns:
            int64[b, w] and its cost.
        """
        texts = torch.where(self._frame < 0, near[..., 0], self._frame)
        cost = float(self._costs(texts[None], labels)[0])
        for _ in range(self._language.rounds):
            if self._descent.late:
                break
            tried = self._neighbours(texts, near)
            costs = self._costs(tried, labels)
            at = int(costs.argmin())
            if float(costs[at]) < cost:
                texts, cost = tried[at], float(costs[at])
        return texts, cost

    def _neighbours(self, texts: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
        """Half of them in other orders, half with one token replaced by one that is near.

        A token is also tried where another place has it near: orders are often still wrong.
        """
        half = max(1, self._language.moves // 2)
        orders = moved(self._places, self._frame.numel(), half, self._generator)
        ordered = texts.flatten()[orders]
        free = [place for text in self._places for place in text]
        replaced = texts.flatten().repeat(half, 1)
        listed = near.flatten(0, 1)
        for row in range(half):
            place = free[self._below(len(free))]
            source = place if row % 2 else free[self._below(len(free))]
            replaced[row, place] = listed[source, self._below(listed.shape[1])]
        return torch.cat([ordered, replaced]).view(-1, *texts.shape)

    def _below(self, bound: int) -> int:
        return int(torch.randint(bound, (1,), generator=self._generator))

    def _costs(self, texts: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        distances = self._descent.judged_texts(texts, labels)
        return distances + self._unlikely(texts)

    def _unlikely(self, texts: torch.Tensor) -> torch.Tensor:
        """What the prior thinks of texts int64[n, b, w], weighed: float32[n]."""
        if self._language.weight == 0.0:
            return torch.zeros(len(texts))
        rows: list[Sequence[int]] = [
            [token for token in text if token not in self._special]
            for candidate in texts.tolist()
            for text in candidate
        ]
        nll = self._language.prior.nll(rows).view(len(texts), -1).mean(dim=1)
        return self._language.weight * nll
