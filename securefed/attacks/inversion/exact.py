"""The exact family: which texts can have made this update, by spans alone.

    row spaces of blocks 0 and 1  ->  span test of every token at every place
        -> where there are more tokens than dimensions: sparse decoding
        -> texts, by the input of block 1

Nothing is optimised and no prior of language is used.  Over several rounds the spans of all rounds
that say anything must agree.  A reading that is too long to be a contribution, as that of a masked
or encrypted share is, is not searched, unless the attack is forced: it then guesses what fits best.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from securefed.attacks.base import AdversaryView, Guess, Limits, PublicKnowledge
from securefed.attacks.inversion.algebra import FOREIGN, RowSpace, entry_noise, excess
from securefed.attacks.inversion.answers import figures_of, guessed, void
from securefed.attacks.inversion.assembly import Assembler, longest
from securefed.attacks.inversion.inputs import InputReader, around, observed
from securefed.attacks.inversion.nearest import Nearest
from securefed.attacks.inversion.pursuit import Decoded, Pursuit, fits
from securefed.attacks.inversion.span import Spans
from securefed.attacks.views import ReleasedAdapter, SumsOverRounds

EXPLAINED = 0.05
"""Sine up to which accepted inputs count as explaining a direction of the span."""

_TOP = 80
_COMPLETED = 3
_COLUMN = 28  # candidates of a place that texts are made of
_GAP = 3  # so many shorter lengths in a row explain nothing: none will


class SpanInversion:
    """Span test, sparse decoding and assembly.

    Args:
        sparse: whether to decode texts of more tokens than the update has dimensions; without it
            the attack is the span test alone, and void where that is at its capacity.
        forced: guess what fits best where the attack would be void, unless an update is zero or
            AdamW's; so that its failure shows something.
        keep: keep the first inputs of the whole vocabulary from run to run, for attacks on one and
            the same base model, here or in a dict that is given: 4 bytes times vocabulary, width
            and places.
    """

    def __init__(
        self,
        *,
        sparse: bool = True,
        forced: bool = False,
        keep: bool | dict[int, torch.Tensor] = False,
    ) -> None:
        self._sparse, self._forced = sparse, forced
        self._kept = keep if isinstance(keep, dict) else {} if keep else None
        self.name = ("span-inversion" if sparse else "span-test") + ("-forced" if forced else "")

    def run(
        self,
        view: AdversaryView,
        public: PublicKnowledge,
        *,
        generator: torch.Generator,
        limits: Limits,
    ) -> Guess:
        """See :class:`~securefed.attacks.base.Attack`."""
        deadline = time.monotonic() + limits.seconds
        if public.optimizer == "adamw":
            return void("AdamW divides every value by its own size: its steps leave the span")
        seen = view.sums if isinstance(view, SumsOverRounds) else (view,)
        readings = [each.reading(public) for each in seen]
        rounds = [observed(public, public.layout.unflatten(reading)) for reading in readings]
        if 0 not in rounds[0]:
            return void("no layer that reads the embeddings is in the update")
        if not isinstance(view, ReleasedAdapter):  # which may have moved for many rounds
            far = max(
                excess(r, v.contributions, public) for r, v in zip(readings, seen, strict=True)
            )
            if far > FOREIGN and not self._forced:
                how = "no contribution: longer than clip and noise allow, as masks make it"
                return void(how, {"excess": far})
        moving = public.local_steps > 1 and any(each.factor == "A" for each in rounds[0][0])
        noise = entry_noise(view, public)
        spans = {
            n: Spans.meet([Spans.of(each[n], noise, moving=moving) for each in rounds])
            for n in {0, 1} & rounds[0].keys()
        }
        modules = {n: rounds[0][n][0].module for n in spans}
        reader = InputReader(public.model, modules, self._kept)
        nearest = Nearest([each for blocks in rounds for each in blocks[0]], noise)
        given = reader, spans, public, limits, deadline, generator
        session = _Session(*given, self._sparse, noise, nearest if self._forced else None)
        if spans[0].void:
            figures = figures_of(spans[0], noise)
            if spans[0].silent and not any(spans[0].ranks):
                return void("no signal: the update is zero, as that of A is while B = 0", figures)
            how = "saturated: every input lies in a span that is the whole space"
            return session.unable(how, figures)
        return session.decoder() if not reader.absolute else session.encoder()


class _Session:
    """One run of the attack."""

    def __init__(
        self,
        reader: InputReader,
        spans: Mapping[int, Spans],
        public: PublicKnowledge,
        limits: Limits,
        deadline: float,
        generator: torch.Generator,
        sparse: bool,
        noise: float,
        nearest: Nearest | None,
    ) -> None:
        self._reader, self._spans, self._public = reader, spans, public
        self._limits, self._deadline, self._generator = limits, deadline, generator
        self._sparse, self._noise, self._nearest = sparse, noise, nearest
        self._head, self._tail = around(public)
        self._barred = sorted(public.special_tokens)

    def unable(self, reason: str, figures: Mapping[str, float]) -> Guess:
        """Void; or, if forced, the tokens that fit best."""
        if self._nearest is None:
            return void(reason, figures)
        texts, loose = self._nearest.guess(self._reader, self._public, self._limits)
        return guessed(texts, f"forced to guess: {reason}", figures, loose)

    # -- encoders and all others with absolute positions -------------------------------------

    def encoder(self) -> Guess:
        """Places are told apart at block 0."""
        first = self._spans[0]
        known = {place: token for place, token in enumerate(self._head)}
        if known:
            inputs = torch.cat([self._reader.first([t], p) for p, t in known.items()])
            first = first.with_known(inputs)
            if first.void:
                return self.unable(
                    "saturated: with what is known of every text the whole space is spanned", {}
                )
        accepted = self._scan(first, known)
        figures = figures_of(self._spans[0], self._noise)
        left = self._left(first, accepted)
        figures["unexplained"] = left
        figures["accepted"] = float(sum(map(len, accepted)))
        if left <= EXPLAINED:
            texts = self._texts(accepted)
            if texts:
                loose = self._loose(texts, accepted)
                return guessed(self._stripped(texts), "span test", figures, loose)
        saturated = first.whole is not None and first.whole.saturated
        if self._sparse and first.whole is not None and self._public.batch_size == 1:
            decoded, length = self._decoded(known)
            if decoded is not None:
                figures |= {"left": decoded.left, "length": float(length)}
                text = tuple(decoded.tokens[place] for place in range(length))
                how = "sparse decoding" + ("" if decoded.solved else ", not exact")
                return guessed(self._stripped([text]), how, figures)
        forced = self._nearest is not None
        found = any(accepted[len(self._head) :])
        if saturated and left > EXPLAINED and (forced or not found):
            return self.unable("saturated: more different inputs than dimensions", figures)
        texts = self._texts(accepted)
        loose = self._loose(texts, accepted)
        if not texts and not loose and forced:
            return self.unable("no token lies in the span", figures)
        how = "span test, not all explained"
        return guessed(self._stripped(texts), how, figures, loose)

    def _loose(self, texts: list[tuple[int, ...]], accepted: list[list[int]]) -> tuple[int, ...]:
        """Accepted tokens that stand in no text, where texts are missing."""
        if len(texts) >= self._public.batch_size:
            return ()
        placed = {(place, token) for text in texts for place, token in enumerate(text)}
        return tuple(
            token
            for place, tokens in enumerate(accepted)
            for token in tokens
            if token not in self._barred and (place, token) not in placed
        )

    def _scan(self, spans: Spans, known: Mapping[int, int]) -> list[list[int]]:
        """By place, tokens in the span, best first; none where the time is over."""
        accepted: list[list[int]] = []
        for place in range(self._limits.max_tokens):
            if place in known:
                accepted.append([known[place]])
                continue
            if time.monotonic() >= self._deadline:
                accepted.append([])
                continue
            inputs = self._reader.every(place)
            near = spans.accept(inputs)
            order = spans.misfit(inputs[near].double()).argsort()
            accepted.append(near[order].tolist())
        return accepted

    def _likely(self, space: RowSpace, known: Mapping[int, int]) -> torch.Tensor:
        """float32[places, vocabulary]: how well tokens fit, 0 unless among a place's best."""
        fit = fits(space, [self._reader.first([t], p)[0] for p, t in known.items()])
        likely = torch.zeros(self._limits.max_tokens, self._reader.vocabulary)
        for place in range(len(self._head), self._limits.max_tokens):
            if time.monotonic() >= self._deadline:
                break
            scores = fit(self._reader.every(place))
            scores[self._barred] = 0.0
            top = scores.topk(min(_TOP, len(scores)))
            likely[place, top.indices] = top.values
        return likely

    def _left(self, spans: Spans, accepted: list[list[int]]) -> float:
        """What accepted inputs leave unexplained; 1 where nothing was accepted."""
        inputs = [self._reader.first(t, p) for p, t in enumerate(accepted) if t]
        return spans.unexplained(torch.cat(inputs)) if inputs else 1.0

    def _lengths(self, accepted: list[list[int]]) -> list[int]:
        """Lengths of texts whose end was accepted, or any that its places allow."""
        if not self._tail:
            return [len([tokens for tokens in accepted if tokens])]
        end = self._tail[0]
        return [
            place + 1
            for place, tokens in enumerate(accepted)
            if end in tokens and all(accepted[: place + 1])
        ]

    def _texts(self, accepted: list[list[int]]) -> list[tuple[int, ...]]:
        wanted, found = self._public.batch_size, list[tuple[int, ...]]()
        block = self._spans.get(1)
        for length in self._lengths(accepted):
            columns = []
            for place, tokens in enumerate(accepted[:length]):
                inner = [token for token in tokens if token not in self._barred]
                edge = place < len(self._head) or place >= length - len(self._tail)
                columns.append(tokens[:1] if place < len(self._head) else inner)
                if edge and place >= len(self._head):
                    columns[-1] = [self._tail[place - length + len(self._tail)]]
            if not all(columns):
                continue
            if all(len(column) == 1 for column in columns) or block is None or block.void:
                found.append(tuple(column[0] for column in columns))
                continue
            assembler = Assembler(
                self._reader, block, deadline=self._deadline, generator=self._generator
            )
            whole = assembler.whole([c[:_COLUMN] for c in columns], wanted - len(found))
            # Where no text fits, the tokens that fit best one by one are the better guess.
            found += whole or [tuple(column[0] for column in columns)]
            if len(found) >= wanted:
                break
        return found[:wanted]

    def _decoded(self, known: Mapping[int, int]) -> tuple[Decoded | None, int]:
        """Sparse decoding for the likeliest lengths."""
        space = self._spans[0].whole
        if space is None or space.rank == 0:
            return None, 0
        lengths = self._likely_lengths(space.rank, known)
        likely = self._likely(space, known) if lengths else torch.empty(0)
        tried: list[tuple[Decoded, int, Pursuit]] = []
        for length in lengths:
            pursuit = self._pursuit(space, likely, known, length)
            tried.append((pursuit.run(), length, pursuit))
            if tried[-1][0].solved or time.monotonic() >= self._deadline:
                break
        if tried and tried[-1][0].solved:
            return self._shortest(space, likely, known, tried[-1][:2])
        tried.sort(key=lambda each: each[0].left)
        for decoded, length, pursuit in tried[:_COMPLETED]:
            decoded = pursuit.completed(decoded)
            if decoded.left <= tried[0][0].left:
                tried[0] = decoded, length, pursuit
            if decoded.solved:
                return self._shortest(space, likely, known, (decoded, length))
        return (tried[0][0], tried[0][1]) if tried else (None, 0)

    def _shortest(
        self,
        space: RowSpace,
        likely: torch.Tensor,
        known: Mapping[int, int],
        found: tuple[Decoded, int],
    ) -> tuple[Decoded, int]:
        """The shortest text that explains all: any longer one with it inside does so too."""
        best = found
        for length in range(found[1] - 1, self._shortest_length(space.rank) - 1, -1):
            if time.monotonic() >= self._deadline or best[1] - length > _GAP:
                break
            begin = {place: best[0].tokens[place] for place in range(length)}
            pursuit = self._pursuit(space, likely, known, length, also=list(begin.values()))
            decoded = pursuit.run(begin=begin)
            if decoded.solved:
                best = decoded, length
        return best

    def _shortest_length(self, rank: int) -> int:
        return max(rank, len(self._head) + len(self._tail) + 1)

    def _pursuit(
        self,
        space: RowSpace,
        likely: torch.Tensor,
        known: Mapping[int, int],
        length: int,
        also: Sequence[int] = (),
    ) -> Pursuit:
        tail = dict(enumerate(self._tail, start=length - len(self._tail)))
        scores = likely[len(self._head) : length - len(self._tail)].amax(dim=0)
        return Pursuit(
            space,
            self._inputs,
            range(length),
            {**known, **tail},
            torch.cat([scores.topk(min(_TOP, len(scores))).indices, torch.tensor(also).long()]),
            deadline=self._deadline,
            generator=self._generator,
            barred=self._barred,
        )

    def _likely_lengths(self, rank: int, known: Mapping[int, int]) -> list[int]:
        """Lengths by how well the end of a text fits there, best first."""
        space = self._spans[0].whole
        lengths = list(range(self._shortest_length(rank), self._limits.max_tokens + 1))
        if not self._tail or space is None:
            return lengths
        given = [self._reader.first([token], place)[0] for place, token in known.items()]
        fit = fits(space, given)
        scores = {
            length: float(fit(self._reader.first(self._tail[:1], length - len(self._tail)))[0])
            for length in lengths
        }
        return sorted(lengths, key=lambda length: -scores[length])

    def _inputs(self, place: int, tokens: torch.Tensor | None) -> torch.Tensor:
        if tokens is None:
            return self._reader.every(place)
        return self._reader.first(tokens, place)

    def _stripped(self, texts: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        return [tuple(t for t in text if t not in self._public.special_tokens) for text in texts]

    # -- decoders without absolute positions -------------------------------------------------

    def decoder(self) -> Guess:
        """At block 0 a token looks the same at every place; block 1 tells what came before."""
        first, figures = self._spans[0], figures_of(self._spans[0], self._noise)
        inputs = self._reader.every(0)
        near, opening = first.accept(inputs), first.opening()
        tokens = [int(t) for t in near if int(t) not in self._public.special_tokens]
        begin = [] if opening.void or not first.lifted else opening.accept(inputs).tolist()
        figures["accepted"] = float(len(tokens))
        figures["unexplained"] = first.unexplained(inputs[near]) if len(near) else 1.0
        whole = first.whole
        if self._sparse and figures["unexplained"] > EXPLAINED and whole is not None:
            decoded = self._unordered(whole, inputs)
            if decoded is not None:
                figures["left"] = decoded.left
                return guessed([], "sparse decoding", figures, tuple(decoded.tokens.values()))
        if not tokens:
            if whole is None or whole.saturated or self._nearest is not None:
                return self.unable("saturated: more different inputs than dimensions", figures)
            return Guess(reason="span test: no token lies in the span", figures=figures)
        block = self._spans.get(1)
        texts: list[tuple[int, ...]] = []
        if block is not None and not block.void:
            # The last token of a language model's window is a target only.
            unseen = self._public.task == "causal-lm" and self._public.window_tokens is not None
            window = (self._public.window_tokens or self._limits.max_tokens) - unseen
            assembler = Assembler(
                self._reader, block, deadline=self._deadline, generator=self._generator
            )
            found = assembler.prefixes(tokens, window, begin)
            texts = longest(found, self._public.batch_size)
        placed = {token for text in texts for token in text}
        loose = tuple(token for token in {*tokens, *begin} if token not in placed)
        return guessed(texts, "span test, block 1", figures, loose)

    def _unordered(self, space: RowSpace, inputs: torch.Tensor) -> Decoded | None:
        """The smallest set of different tokens that explains the span; None if none does."""
        scores = fits(space, [])(inputs)
        scores[self._barred] = 0.0
        shortlist = scores.topk(min(_TOP, len(scores))).indices
        for count in range(space.rank + 1, min(self._limits.max_tokens, 3 * space.rank) + 1):
            if time.monotonic() >= self._deadline:
                break
            pursuit = Pursuit(
                space,
                lambda _, tokens: inputs if tokens is None else inputs[tokens],
                range(count),
                {},
                shortlist,
                deadline=self._deadline,
                generator=self._generator,
                barred=self._barred,
            )
            decoded = pursuit.run()
            if decoded.solved:
                return decoded
        return None
