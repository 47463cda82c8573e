"""Masked, encrypted and summed contributions: what the attack refuses, and says by force."""

from dataclasses import replace

import attacked
import numpy as np
import pytest
import torch

from securefed.attacks.base import Limits
from securefed.attacks.inversion.algebra import FOREIGN, excess
from securefed.attacks.inversion.exact import SpanInversion
from securefed.attacks.scoring import UnigramPrior, score
from securefed.auditing.exposures import ROUNDS, companions, expose
from securefed.auditing.trials import trials
from securefed.errors import ConfigError
from securefed.privacy.policy import PrivacyPolicy
from securefed.secagg.aggregations import HomomorphicAggregation, PairwiseAggregation

LIMITS = Limits(seconds=3.0, max_tokens=12)
PRIOR = UnigramPrior([t for n in range(50, 90) for t in attacked.texts("bert", n)], {0, 1, 2, 3})
NOISY = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0)


def seen(exposure, *, kind="bert", policy=None, **options):
    """A view of a round of real kind, what is public of it, and the victim's texts."""
    made = attacked.bench(
        kind,
        attacked.setup(kind, **options),
        aggregation=HomomorphicAggregation() if exposure == "encrypted" else PairwiseAggregation(),
        policy=policy,
    )
    own = attacked.texts(kind, 6)
    others = [attacked.texts(kind, 20 + n) for n in range(companions(exposure, len(made.names)))]
    session = made.session()
    return expose(made, session, own, others, exposure), made.public(session), own


def run(view, public, **options):
    generator = torch.Generator().manual_seed(0)
    return SpanInversion(**options).run(view, public, generator=generator, limits=LIMITS)


@pytest.mark.parametrize("policy", [None, NOISY], ids=["no noise", "noise"])
def test_no_sum_is_longer_than_clip_and_noise_allow_and_every_protected_share_is(policy):
    for exposure, foreign in {"sum": False, "masked": True, "encrypted": True}.items():
        view, public, _ = seen(exposure, policy=policy)
        length = excess(view.reading(public), view.contributions, public)
        assert (length > FOREIGN) == foreign, (exposure, length)
        if not foreign:
            assert length <= 1.0


@pytest.mark.parametrize("exposure", ["masked", "encrypted", "masked with all others"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_protected_share_is_refused_and_by_force_gives_no_more_than_the_prior(exposure, kind):
    view, public, own = seen(exposure, kind=kind)
    refused = run(view, public)
    assert refused.verdict == "void"
    assert "no contribution" in refused.reason
    assert refused.figures["excess"] > FOREIGN
    guess = run(view, public, forced=True)
    assert guess.verdict == "guessed"
    assert guess.tokens
    # 400 tokens are equally likely: three hits and more of eight have odds of 1 in 100 and less.
    assert score(guess, own, public.special_tokens).token_recall <= 3 / 8


def test_the_forced_attack_opens_a_sum_of_which_all_others_tell():
    view, public, own = seen("sum with all others")
    guess = run(view, public, forced=True)
    assert score(guess, own, public.special_tokens).exact_match == 1.0


@pytest.mark.parametrize("sharing", ["ffa", "rolora"])
def test_beyond_its_capacity_the_attack_is_void_and_by_force_guesses(sharing):
    turn = 1 if sharing == "ffa" else 2
    view, public, _ = seen("sum", sharing=sharing, turn=turn, rank=4)
    assert run(view, public, sparse=False).verdict == "void"
    guess = run(view, public, sparse=False, forced=True)
    assert guess.verdict == "guessed"
    assert guess.reason.startswith("forced to guess: saturated")
    assert guess.tokens


def test_a_zero_update_is_no_signal_by_force_either():
    view, public, _ = seen("sum with all others", warm=0.0)
    assert "no signal" in run(view, public, forced=True).reason


def test_a_text_that_comes_back_every_round_stands_out_of_the_sums():
    view, public, own = seen("rounds", rank=24)
    assert len(view.sums) == ROUNDS
    found = score(run(view, public), own, public.special_tokens)
    assert found.exact_match == 1.0
    assert found.token_precision >= 0.9
    several = replace(public, batch_size=3)
    once = score(run(view.sums[0], several), own, public.special_tokens)
    assert once.token_precision <= 0.5


def test_a_released_adapter_gives_away_the_texts_of_its_only_round():
    view, public, own = seen("released", rank=24, clients=2)
    assert view.contributions == 2
    guess = run(view, replace(public, batch_size=2))
    assert score(guess, own, public.special_tokens).token_recall == 1.0


def test_rounds_leave_the_model_as_it_was_and_need_texts_for_all_others():
    made = attacked.bench("bert", attacked.setup("bert"))
    before = made.update(attacked.texts("bert", 1))
    others = [attacked.texts("bert", 20 + n) for n in range(companions("rounds", 3))]
    assert len(others) == 2 * ROUNDS
    expose(made, made.session(), attacked.texts("bert", 1), others, "rounds")
    assert np.array_equal(made.update(attacked.texts("bert", 1)), before)
    with pytest.raises(ConfigError, match="needs those of 8"):
        expose(made, made.session(), attacked.texts("bert", 1), others[:2], "rounds")


def test_the_prior_names_as_many_tokens_as_it_is_asked_for():
    own = attacked.texts("bert", 3)
    small = PRIOR.guess(own, {0, 1, 2, 3})
    large = PRIOR.guess(own, {0, 1, 2, 3}, least=40)
    assert len(small.tokens) == 8
    assert len(large.tokens) == 40
    assert large.texts == small.texts
    recalls = [score(guess, own, {0, 1, 2, 3}).token_recall for guess in (small, large)]
    assert recalls[0] <= recalls[1]


def test_every_client_of_a_sum_is_a_trial():
    made = attacked.bench("bert", attacked.setup("bert", rank=24), aggregation=None)
    texts = [attacked.texts("bert", n)[0] for n in range(6)]
    found, _ = trials(
        SpanInversion(),
        made,
        texts,
        PRIOR,
        exposure="sum",
        seeds=(1, 2),
        limits=LIMITS,
        everyone=True,
    )
    assert len(found) == 6
    assert all(trial.score.token_recall == 1.0 for trial in found)
