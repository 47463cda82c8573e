"""One attack tried a number of times: fresh texts, a real round, and a score against the prior."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from securefed.attacks.base import Attack, Limits
from securefed.attacks.inversion.capacity import Prediction, predict
from securefed.attacks.results import Trial
from securefed.attacks.scoring import UnigramPrior, score
from securefed.auditing.exposures import companions, expose
from securefed.auditing.rounds import Bench
from securefed.errors import ConfigError


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

    A trial's seconds are those of the processor, and the prior guesses as many tokens as the attack
    where that is more than the texts have.

    Returns:
        The trials, and what the capacity predictor expects of the exact family.

    Raises:
        ConfigError: there are too few texts, or no seed.
    """
    size = bench.setup.batch
    need = size * (1 + companions(exposure, bench.setup.clients))
    if len(texts) < need or not seeds:
        raise ConfigError(
            f"texts: {len(texts)}, seeds: {len(seeds)}; a round needs {need} texts, and a "
            "measurement a seed"
        )
    found: list[Trial] = []
    prediction = Prediction(0, 0, 0, "none", "none")
    for seed in seeds:
        chosen = np.random.default_rng([seed, 1]).permutation(len(texts))[:need]
        dealt = [texts[index] for index in chosen]
        own, others = dealt[:size], [dealt[i : i + size] for i in range(size, need, size)]
        session = bench.session()
        view = expose(bench, session, own, others, exposure)
        public = bench.public(session)
        if view.contributions > 1:
            public = replace(public, batch_size=size * view.contributions)
        inside = dealt[: size * view.contributions]
        prediction = predict(public, [len(text) for text in inside])
        started = time.process_time()
        guess = attack.run(
            view, public, generator=torch.Generator().manual_seed(seed), limits=limits
        )
        spent = time.process_time() - started
        special = public.special_tokens
        # A language model's last token is a target only; it is asked for all the same.
        for start in range(0, len(inside) if everyone else size, size):
            truth = dealt[start : start + size]
            found.append(
                Trial(
                    score(guess, truth, special),
                    score(prior.guess(truth, special, least=len(guess.tokens)), truth, special),
                    guess.verdict,
                    seed,
                    spent,
                )
            )
            done(found[-1])
    return found, prediction
