"""The likeliest text under noise: what is left of the span test where nothing is exact.

Noise that is known (the plan's and the grid's) is the least that is assumed; what rounding to few
bits, dropout, pruning or an optimiser's own scaling add is estimated from what no input explains.
AdamW divides each value by about its own size: it leaves signs.  The sign of a sum of inputs goes
with the sum, coordinate by coordinate relative to that coordinate's usual size, so inputs are
divided by that.

Source: Bussgang 1952, for a sign as its argument, scaled, plus noise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch

from securefed.attacks.adaptive.background import Background
from securefed.attacks.adaptive.decoding import BEGINNINGS, Decoding, Weighed
from securefed.attacks.adaptive.evidence import Group
from securefed.attacks.adaptive.head import HeadEvidence
from securefed.attacks.base import AdversaryView, Guess, Limits, PublicKnowledge
from securefed.attacks.inversion.algebra import entry_noise
from securefed.attacks.inversion.answers import void
from securefed.attacks.inversion.inputs import InputReader, Observed, around, observed

SURE = 0.2
"""Posterior probability below which a place is left to the prior."""

_LENGTHS = 4
_PRUNED = 0.05  # share of values at zero from which on they were not sent
_AT_ZERO = 6.0  # standard deviations of the known noise


class SparseBayes:
    """Sparse Bayesian learning over the tokens' inputs at block 0.

    Args:
        background: what is known of texts; every token is as likely as any other without it.
        head: whether to use the output layer's update as well, where there is one.
        keep: keep the first inputs of the whole vocabulary from run to run, for attacks on one and
            the same base model.
    """

    def __init__(
        self, background: Background | None = None, *, head: bool = False, keep: bool = False
    ) -> None:
        self._background, self._head = background, head
        self.name = "sparse-bayes" + ("-head" if head else "")
        self._kept: dict[int, torch.Tensor] | None = {} if keep else None

    def run(
        self,
        view: AdversaryView,
        public: PublicKnowledge,
        *,
        generator: torch.Generator,
        limits: Limits,
    ) -> Guess:
        """See :class:`~securefed.attacks.base.Attack`; nothing is random."""
        deadline = time.monotonic() + limits.seconds
        blocks = observed(public, public.layout.unflatten(view.reading(public)))
        if 0 not in blocks:
            return void("no layer that reads the embeddings is in the update")
        modules = {n: each[0].module for n, each in blocks.items()}
        reader = InputReader(public.model, modules, self._kept)
        log_prior = self.log_prior(public, reader.vocabulary)
        groups = groups_of(blocks[0], reader, view, public, log_prior)
        if not groups:
            return void("no signal: the update of block 0 is zero, or mixes several lifts")
        if reader.absolute and public.batch_size == 1:
            output = HeadEvidence.of(view, public, log_prior) if self._head else None
            best = likeliest(groups, reader, public, limits, log_prior, deadline, output)
            return self.guess(best, public)
        head, tail = around(public) if reader.absolute else ([], [])
        decoding = Decoding(
            groups,
            lambda place, tokens: _inputs(reader, place, tokens),
            limits.max_tokens if reader.absolute else 1,
            head,
            log_prior,
            deadline=deadline,
            also=tail,
        )
        length = public.window_tokens or limits.max_tokens
        found = decoding.loose(public.batch_size * length)
        tokens = tuple(token for _, token in found)
        return Guess(loose=tokens, reason="likeliest tokens", figures={"found": len(tokens)})

    def log_prior(self, public: PublicKnowledge, vocabulary: int) -> torch.Tensor:
        """float32[vocabulary]; special tokens at minus infinity."""
        if self._background is not None:
            return self._background.log_prior.clone()
        prior = torch.full((vocabulary,), -math.log(vocabulary))
        prior[[t for t in public.special_tokens if t < vocabulary]] = -torch.inf
        return prior

    def guess(self, best: Weighed, public: PublicKnowledge) -> Guess:
        """The text; places that are not sure are filled with what the prior has most of."""
        special = public.special_tokens
        pairs = [(t, p) for t, p in zip(best.tokens, best.sure, strict=True) if t not in special]
        text = [token if sure >= SURE else -1 for token, sure in pairs]
        figures = {"log_evidence": best.log_evidence, "length": float(len(best.tokens))}
        return filled(text, self._background, "likeliest text", figures)


def filled(
    text: list[int], background: Background | None, reason: str, figures: Mapping[str, float]
) -> Guess:
    """A guess with, for every place left open, the next token of the background's ranking."""
    loose: list[int] = []
    if background is not None:
        left = [token for token in text if token >= 0]
        for token in background.ranking:
            if len(loose) == text.count(-1):
                break
            if token in left:
                left.remove(token)
            else:
                loose.append(token)
    return Guess((tuple(text),), tuple(loose), "guessed", reason, MappingProxyType(dict(figures)))


def groups_of(
    matrices: list[Observed],
    reader: InputReader,
    view: AdversaryView,
    public: PublicKnowledge,
    log_prior: torch.Tensor,
) -> list[Group]:
    """The updates of block 0's matrices, with what is known of noise and of what was not sent."""
    noise = entry_noise(view, public)
    moving = public.local_steps > 1 and any(each.factor == "A" for each in matrices)
    scale = _usual_size(reader, log_prior) if public.optimizer == "adamw" else None
    sent = _sent(public)
    found = []
    for each in matrices:
        rows = each.rows
        if (each.lift is not None and moving) or float(rows.square().mean().sqrt()) < noise / 2:
            continue
        if not bool(rows.any()):
            continue
        unsent = None if sent is None else _unsent(sent, public, each)
        largest = math.inf
        if unsent is None:
            zero = rows.abs() < max(_AT_ZERO * noise, 1e-12)
            if public.transform is not None and float(zero.float().mean()) > _PRUNED:
                unsent, largest = zero, float(rows[~zero].abs().min()) if not zero.all() else 0.0
        found.append(
            Group(
                rows,
                lift=each.lift,
                noise=noise,
                scale=scale if each.lift is None else None,
                missing=unsent,
                largest=largest,
            )
        )
    return found


def _sent(public: PublicKnowledge) -> dict[str, torch.Tensor] | None:
    """Which coordinates are sent whatever they are, where that is not all of them."""
    if public.transform is None:
        return None
    ones = public.transform(np.ones(public.layout.size, dtype=np.float32))
    return None if bool((ones != 0.0).all()) else public.layout.unflatten(ones)


def _unsent(
    sent: dict[str, torch.Tensor], public: PublicKnowledge, each: Observed
) -> torch.Tensor | None:
    blocks = observed(public, sent)
    for other in blocks.get(0, []):
        if other.module == each.module and other.factor == each.factor:
            return other.rows == 0.0
    return None


def _usual_size(reader: InputReader, log_prior: torch.Tensor) -> torch.Tensor:
    """One over the usual size of each coordinate of an input: float32[d]."""
    inputs = reader.every(1)
    weights = log_prior.exp() / log_prior.exp().sum()
    return (weights @ inputs.square()).clamp(min=1e-12).rsqrt()


def likeliest(
    groups: list[Group],
    reader: InputReader,
    public: PublicKnowledge,
    limits: Limits,
    log_prior: torch.Tensor,
    deadline: float,
    output: HeadEvidence | None,
) -> Weighed:
    """The likeliest text, over the likeliest lengths."""
    share = 0.0 if output is None else 0.6 * limits.seconds  # what is kept for the output layer
    head, tail = around(public)
    decoding = Decoding(
        groups,
        lambda place, tokens: _inputs(reader, place, tokens),
        public.window_tokens or limits.max_tokens,
        head,
        log_prior,
        deadline=deadline,
        also=tail,
    )
    lengths = list(range(len(head) + len(tail) + 1, limits.max_tokens + 1))
    if public.window_tokens is not None:
        lengths = [min(public.window_tokens, limits.max_tokens)]
    # What was not looked at before the time was over is no place of the text.
    lengths = [n for n in lengths if n <= decoding.places] or [decoding.places]
    if tail and public.window_tokens is None:
        lengths.sort(key=lambda n: -decoding.standing(n - len(tail), tail[0]))
        lengths = lengths[:_LENGTHS]
    lengths = lengths if tail else lengths[-1:]
    ends = {length: dict(enumerate(tail, start=length - len(tail))) for length in lengths}
    found = [decoding.text(ends[lengths[0]], lengths[0], "spectrum")]
    for begin in BEGINNINGS:
        # The first beginning compares lengths; the other is for the best one.
        for length in lengths[1:] if begin == "spectrum" else [len(found[0].tokens)]:
            if time.monotonic() < deadline - share:
                found.append(decoding.text(ends[length], length, begin))
        found.sort(key=lambda each: -each.log_evidence)
    best = found[0]
    if output is not None:
        best = decoding.judged(best, ends[len(best.tokens)], output)
    return best


def _inputs(reader: InputReader, place: int, tokens: torch.Tensor | None) -> torch.Tensor:
    return reader.every(place) if tokens is None else reader.first(tokens, place)
