"""One attack tried a number of times: fresh texts, a real round, and a score against the prior."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from securefed.attacks.base import AdversaryView, Attack, Limits, PublicKnowledge
from securefed.attacks.inversion.capacity import Prediction, predict
from securefed.attacks.results import Trial
from securefed.attacks.scoring import UnigramPrior, score
from securefed.auditing.exposures import companions, expose
from securefed.auditing.rounds import Bench
from securefed.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Capture:
    """One round's view, and what an attack on it is scored against.

    Attributes:
        view: what the adversary sees.
        public: what everybody knows of the round.
        inside: by client inside the view, the victim first, token ids of its texts, special ones
            included; no attack gets them.
        prediction: of the exact family, on all that is inside the view.
        seed: which texts were dealt.
    """

    view: AdversaryView
    public: PublicKnowledge
    inside: tuple[tuple[tuple[int, ...], ...], ...] = field(repr=False)
    prediction: Prediction
    seed: int


def capture(bench: Bench, texts: Sequence[Sequence[int]], *, exposure: str, seed: int) -> Capture:
    """Run one round on texts that the seed chooses, and keep what the adversary sees of it.

    Args:
        bench: of the round; its setup says how many texts a client has.
        texts: token ids of public texts, special ones included; at least as many as a round needs.
        exposure: what the attacker sees (:data:`~securefed.auditing.exposures.EXPOSURES`).
        seed: chooses the texts.

    Raises:
        ConfigError: there are too few texts, or the exposure is none of this round.
    """
    size = bench.setup.batch
    need = size * (1 + companions(exposure, bench.setup.clients))
    if len(texts) < need:
        raise ConfigError(f"texts: {len(texts)}; a round needs {need}")
    chosen = np.random.default_rng([seed, 1]).permutation(len(texts))[:need]
    dealt = [tuple(texts[index]) for index in chosen]
    own, others = dealt[:size], [dealt[i : i + size] for i in range(size, need, size)]
    session = bench.session()
    view = expose(bench, session, own, others, exposure)
    public = bench.public(session)
    if view.contributions > 1:
        public = replace(public, batch_size=size * view.contributions)
    inside = dealt[: size * view.contributions]
    prediction = predict(public, [len(text) for text in inside])
    shared = tuple(tuple(inside[start : start + size]) for start in range(0, len(inside), size))
    return Capture(view, public, shared, prediction, seed)


def attempt(attack: Attack, captured: Capture, prior: UnigramPrior, *, limits: Limits) -> Trial:
    """Try an attack on a captured view, and score it against the victim's texts.

    The seed of the capture is that of the attack's random choices.  A trial's seconds are those of
    the processor, and the prior guesses as many tokens as the attack where that is more than the
    texts have.
    """
    return attempts(attack, captured, prior, limits=limits)[0]


def attempts(
    attack: Attack,
    captured: Capture,
    prior: UnigramPrior,
    *,
    limits: Limits,
    everyone: bool = False,
) -> list[Trial]:
    """As :func:`attempt`; with ``everyone`` a trial for each client that is inside the view."""
    started = time.process_time()
    guess = attack.run(
        captured.view,
        captured.public,
        generator=torch.Generator().manual_seed(captured.seed),
        limits=limits,
    )
    spent = time.process_time() - started
    special = captured.public.special_tokens
    # A language model's last token is a target only; it is asked for all the same.
    return [
        Trial(
            score(guess, truth, special),
            score(prior.guess(truth, special, least=len(guess.tokens)), truth, special),
            guess.verdict,
            captured.seed,
            spent,
        )
        for truth in (captured.inside if everyone else captured.inside[:1])
    ]


def trials(
    attack: Attack,
    bench: Bench,
    texts: Sequence[Sequence[int]],
    prior: UnigramPrior,
    *,
    exposure: str,
    seeds: Sequence[int],
    limits: Limits,
    everyone: bool = False,
    done: Callable[[Trial], None] = lambda trial: None,
) -> tuple[list[Trial], Prediction]:
    """Try an attack on one round a seed.

    Args:
        attack: that is tried.
        bench: of the rounds; its setup says how many texts a client has.
        texts: token ids of public texts, special ones included, of which each round deals some to
            its clients; at least as many as a round needs.
        prior: made of other texts.
        exposure: what the attacker sees (:data:`~securefed.auditing.exposures.EXPOSURES`).
        seeds: of the trials: each fixes which texts are dealt and the attack's random choices.
        limits: of one trial.
        everyone: score a guess against every client that is inside, a trial each: those of one
            round are not independent.
        done: told of each trial as it ends.

    Returns:
        The trials, and what the capacity predictor expects of the exact family.

    Raises:
        ConfigError: there are too few texts, or no seed.
    """
    if not seeds:
        raise ConfigError("seeds: none; a measurement needs a seed for each trial")
    found: list[Trial] = []
    prediction = Prediction(0, 0, 0, "none", "none")
    for seed in seeds:
        captured = capture(bench, texts, exposure=exposure, seed=seed)
        prediction = captured.prediction
        for trial in attempts(attack, captured, prior, limits=limits, everyone=everyone):
            found.append(trial)
            done(trial)
    return found, prediction
