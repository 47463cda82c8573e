"""LAMP's discrete steps: orders and tokens that suit gradient and language best.

Source: Balunovic et al. 2022, "LAMP: Extracting Text from Gradients with Language Model Priors"
(2202.08827), section 4.2, for choosing among moves by distance and prior; replacing single tokens
of the finished text is this module's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from securefed.attacks.matching.descent import Candidates, Descent
from securefed.attacks.matching.gradients import CandidateGradients
from securefed.attacks.matching.moves import moved
from securefed.attacks.matching.priors import LanguagePrior
from securefed.attacks.matching.projection import Projection
from securefed.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Language:
    """What is known of the language, and how much it counts.

    Args:
        prior: of texts.
        weight: of its nats a token, beside the distance, >= 0.
        period: steps between two discrete ones, >= 1.
        moves: tried at a time, >= 1.
        sweeps: over all places of the finished text, at most, >= 0.
        nearest: tokens that may stand at each place then, >= 1.

    Raises:
        ConfigError: an argument is outside that.
    """

    prior: LanguagePrior
    weight: float = 0.02
    period: int = 50
    moves: int = 32
    sweeps: int = 3
    nearest: int = 10

    def __post_init__(self) -> None:
        for name, least in (("period", 1), ("moves", 1), ("sweeps", 0), ("nearest", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)}; it must be >= {least}")
        if not (math.isfinite(self.weight) and self.weight >= 0.0):
            raise ConfigError(f"weight = {self.weight}; it must be finite and >= 0")


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
        free = [place for text in self._places for place in text]
        for _ in range(self._language.sweeps):
            before = cost
            for at in torch.randperm(len(free), generator=self._generator).tolist():
                if self._descent.late:
                    return texts, cost
                tried = self._neighbours(texts, near, free, free[at])
                costs = self._costs(tried, labels)
                best = int(costs.argmin())
                if float(costs[best]) < cost:
                    texts, cost = tried[best], float(costs[best])
            if cost == before:
                break
        return texts, cost

    def _neighbours(
        self, texts: torch.Tensor, near: torch.Tensor, free: Sequence[int], place: int
    ) -> torch.Tensor:
        """Texts with another token at one place, with two tokens exchanged, or moved at random."""
        flat, listed = texts.flatten(), near.flatten(0, 1)[place]
        others = [other for other in free if other != place]
        replaced, swapped = flat.repeat(len(listed), 1), flat.repeat(len(others), 1)
        replaced[:, place] = listed
        for row, other in enumerate(others):
            swapped[row, place], swapped[row, other] = flat[other], flat[place]
        orders = moved(self._places, len(flat), self._language.moves // 4, self._generator)
        return torch.cat([replaced, swapped, flat[orders]]).view(-1, *texts.shape)

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
