"""How long the texts are, where nobody says."""

from __future__ import annotations

from securefed.attacks.base import AdversaryView, Limits, PublicKnowledge
from securefed.attacks.inversion.algebra import entry_noise
from securefed.attacks.inversion.inputs import observed
from securefed.attacks.inversion.span import Spans

_TRIED = 6


def likely_lengths(
    view: AdversaryView, public: PublicKnowledge, limits: Limits, shortest: int
) -> tuple[int, ...]:
    """Lengths, special tokens included, of which one is that of every text.

    A language model's window is public.  With absolute positions the rank of block 0's update is
    the number of different inputs, which says the length of one text, and of several if they are
    equally long, unless the rank is as high as it can be.  Where nothing is known, lengths from the
    shortest to the longest allowed are tried, evenly spaced.

    Args:
        view: what the adversary sees.
        public: what everybody knows.
        limits: ``max_tokens`` bounds the length.
        shortest: the least length to consider, >= 1.
    """
    if public.window_tokens is not None:
        return (public.window_tokens,)
    blocks = observed(public, public.layout.unflatten(view.reading(public)))
    rank = 0
    if 0 in blocks:
        noise = entry_noise(view, public)
        moving = public.local_steps > 1 and any(each.factor == "A" for each in blocks[0])
        spans = Spans.of(blocks[0], noise, moving=moving)
        rank = spans.rank
        keys = all(each.key for each in blocks[0])
        if spans.whole is not None and spans.whole.saturated:
            rank = 0
        elif rank and keys:
            rank += 1  # the rows of keys are differences of inputs
    if rank:
        # Texts share their first token's input.
        length = 1 + -(-(rank - 1) // public.batch_size)
        if shortest <= length <= limits.max_tokens:
            return (length,)
    span = limits.max_tokens - shortest
    count = min(_TRIED, span + 1)
    return tuple(sorted({limits.max_tokens - span * i // max(1, count - 1) for i in range(count)}))
