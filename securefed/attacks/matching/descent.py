"""Embeddings, and labels where they are not known, moved until their gradient matches.

Several beginnings are moved at once.  After each of :data:`RUNGS` of all steps the better half goes
on, and in the end one is left.

Source: Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification" (1502.07943), for
successive halving.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from securefed.attacks.matching.distances import Distance
from securefed.attacks.matching.gradients import CandidateGradients
from securefed.attacks.matching.projection import Projection
from securefed.attacks.matching.target import ObservedGradient
from securefed.errors import ConfigError

RUNGS = (0.15, 0.4)
"""Shares of all steps after which half of the beginnings are given up."""

_WARM_UP = 10
_SPREAD = 0.1
_BETAS = (0.9, 0.99)  # distances fall by orders of magnitude in few steps
_AT_ONCE = 16
_LAST_STEPS = 8


@dataclass(frozen=True)
class Candidates:
    """R candidates of b texts each, all of one length w.

    Attributes:
        embeddings: float32[R, b, w, d].
        labels: float32[R, b, classes] for classification, else None: logits if ``soft``, else
            probabilities that are not moved.
        soft: whether labels are moved too.
        distances: float32[R], as of the last step.
        taken: steps taken.
    """

    embeddings: torch.Tensor
    labels: torch.Tensor | None
    soft: bool
    distances: torch.Tensor
    taken: int = 0

    def chosen(self, rows: torch.Tensor) -> Candidates:
        """Some of them."""
        labels = None if self.labels is None else self.labels[rows]
        return replace(
            self,
            embeddings=self.embeddings[rows],
            labels=labels,
            distances=self.distances[rows],
        )


@dataclass(frozen=True)
class Schedule:
    """How candidates are moved.

    Args:
        steps: of Adam, >= 1.
        restarts: beginnings, >= 1.
        learning_rate: at its highest, > 0: each value of an embedding moves by about so much in a
            step; it falls to 0 by half a cosine.
        norm_weight: of the regulariser (mean |x| - mean |e|)^2, x the embeddings and e the model's,
            >= 0.

    Raises:
        ConfigError: an argument is outside that.
    """

    steps: int = 200
    restarts: int = 2
    learning_rate: float = 0.03
    norm_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}; it must be >= 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0.0):
            raise ConfigError(f"learning_rate = {self.learning_rate}; it must be finite and > 0")
        if not (math.isfinite(self.norm_weight) and self.norm_weight >= 0.0):
            raise ConfigError(f"norm_weight = {self.norm_weight}; it must be finite and >= 0")


Visit = Callable[[Candidates], Candidates]


class Descent:
    """Moves candidates.

    Args:
        gradients: of candidates.
        observed: the gradient to match.
        distance: between them.
        projection: for the targets of language models.
        schedule: steps and rates.
        deadline: on ``time.monotonic``'s clock.

    Source: Zhu, Liu and Han 2019 (1906.08935), algorithm 1, with Adam in place of L-BFGS;
    Balunovic et al. 2022 (2202.08827), section 4.1, for the regulariser.
    """

    def __init__(
        self,
        gradients: CandidateGradients,
        observed: ObservedGradient,
        distance: Distance,
        projection: Projection,
        schedule: Schedule,
        deadline: float,
    ) -> None:
        self._gradients, self._observed, self._distance = gradients, observed, distance
        self._projection, self._schedule, self._deadline = projection, schedule, deadline
        table = gradients.table
        self._mean, self._std = table.mean(dim=0), float(table.std())
        self._size = float(table.norm(dim=1).mean())

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._deadline

    def begin(
        self,
        frame: torch.Tensor,
        labellings: Sequence[Sequence[int] | None],
        generator: torch.Generator,
    ) -> Candidates:
        """Candidates near the mean of all embeddings, where nothing is decided yet.

        Args:
            frame: int64[b, w]: tokens that are known, and -1 at all other places.
            labellings: of each beginning, the labels of its texts; None where they are to be found.
            generator: of the beginnings.
        """
        count, table = len(labellings), self._gradients.table
        shape = (count, *frame.shape, table.shape[1])
        embeddings = self._mean + _SPREAD * self._std * torch.randn(shape, generator=generator)
        known = frame >= 0
        embeddings[:, known] = table[frame[known]]
        labels, soft = None, False
        if not self._gradients.language:
            given = [each for each in labellings if each is not None]
            soft = len(given) < count
            size = (count, len(frame), self._gradients.classes)
            if soft:
                labels = torch.randn(size, generator=generator)
            else:
                labels = nn.functional.one_hot(torch.tensor(given), size[2]).float()
        return Candidates(embeddings, labels, soft, torch.full((count,), math.inf))

    def run(
        self,
        candidates: Candidates,
        until: int,
        fixed: torch.Tensor,
        visit: Visit | None,
        period: int,
    ) -> Candidates:
        """Take steps until so many have been taken or the time is over.

        Args:
            candidates: to begin with.
            until: number of the step to stop before.
            fixed: bool[b, w], places that are not moved.
            visit: called after every ``period`` steps, may change candidates.
            period: 0 for never.
        """
        while candidates.taken < until and not self.late:
            stop = until
            if period:
                stop = min(until, (candidates.taken // period + 1) * period)
            candidates = self._steps(candidates, stop, fixed)
            if visit is not None and candidates.taken % period == 0 and not self.late:
                candidates = visit(candidates)
        return candidates

    def _steps(self, candidates: Candidates, stop: int, fixed: torch.Tensor) -> Candidates:
        moving = [candidates.embeddings.detach().clone().requires_grad_()]
        if candidates.soft and candidates.labels is not None:
            moving.append(candidates.labels.detach().clone().requires_grad_())
        adam = torch.optim.Adam(moving, lr=self._schedule.learning_rate, betas=_BETAS)
        first, taken = candidates.taken, candidates.taken
        distances = candidates.distances
        while taken < stop and not self.late:
            for group in adam.param_groups:
                group["lr"] = self._rate(taken, taken - first)
            labels = moving[1] if candidates.soft else candidates.labels
            distances = self.distances(moving[0], labels, candidates.soft)
            excess = moving[0].norm(dim=-1).mean(dim=(1, 2)) - self._size
            total = distances.sum() + self._schedule.norm_weight * excess.square().sum()
            slopes = torch.autograd.grad(total, moving)
            slopes[0][:, fixed] = 0.0
            for tensor, slope in zip(moving, slopes, strict=True):
                tensor.grad = slope
            adam.step()
            taken += 1
        return replace(
            candidates,
            embeddings=moving[0].detach(),
            labels=moving[1].detach() if candidates.soft else candidates.labels,
            distances=distances.detach(),
            taken=taken,
        )

    def _rate(self, step: int, since: int) -> float:
        falling = 0.5 * (1.0 + math.cos(math.pi * step / self._schedule.steps))
        # Adam's first steps after a change are as long as any, in whatever direction.
        return self._schedule.learning_rate * falling * min(1.0, (since + 1) / _WARM_UP)

    def distances(
        self, embeddings: torch.Tensor, labels: torch.Tensor | None, soft: bool
    ) -> torch.Tensor:
        """float32[R], differentiable in embeddings and soft labels."""
        if labels is None:
            targets = self._projection.next_tokens(embeddings)
        else:
            targets = (labels.softmax(dim=-1) if soft else labels)[:, :, None]
        return self._distance(self._gradients.of(embeddings, targets), self._observed)

    def judged(self, embeddings: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Distances alone, float32[n], of many candidates with the same labels [b, classes]."""
        with torch.no_grad():
            found = []
            for part in torch.split(embeddings, _AT_ONCE):
                same = None if labels is None else labels.expand(len(part), *labels.shape)
                found.append(self.distances(part, same, False))
        return torch.cat(found)

    def judged_texts(self, texts: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """The same of token ids int64[n, b, w]."""
        if labels is not None:
            return self.judged(self._gradients.table[texts], labels)
        with torch.no_grad():
            found = []
            for part in torch.split(texts, _AT_ONCE):
                targets = nn.functional.one_hot(part[..., 1:], self._gradients.classes).float()
                made = self._gradients.of(self._gradients.table[part], targets)
                found.append(self._distance(made, self._observed))
        return torch.cat(found)

    def last_tokens(self, texts: torch.Tensor, count: int) -> torch.Tensor:
        """Tokens that may end texts of a language model.

        The last token is a target alone, and the gradient is linear in the distribution of a
        target: a few steps from the uniform one, each towards the token that lowers the distance
        most, look at the whole vocabulary at once.

        Args:
            texts: int64[b, w]; what stands in the last place does not count.
            count: tokens a text, >= 10.

        Returns:
            int64[b, count], the likeliest first; a token may occur twice.

        Source: Jaggi 2013, "Revisiting Frank-Wolfe", algorithm 1, for the steps.
        """
        classes = self._gradients.classes
        targets = nn.functional.one_hot(texts[:, 1:], classes).float()
        targets[:, -1] = 1.0 / classes
        embeddings, found = self._gradients.table[texts][None], list[torch.Tensor]()
        for step in range(_LAST_STEPS):
            moving = targets.clone().requires_grad_()
            made = self._gradients.of(embeddings, moving[None])
            (slope,) = torch.autograd.grad(self._distance(made, self._observed).sum(), moving)
            down = -slope[:, -1]
            toward = nn.functional.one_hot(down.argmax(dim=-1), classes).float()
            targets[:, -1] += (toward - targets[:, -1]) * 2.0 / (step + 3.0)
            found.insert(0, down.argmax(dim=-1, keepdim=True))
        found.insert(0, targets[:, -1].argmax(dim=-1, keepdim=True))
        rest = down.topk(count - len(found), dim=-1).indices
        return torch.cat([*found, rest], dim=-1)
