"""Gradient matching on tiny models of real architectures, through real unprotected rounds."""

import math
import time

import attacked
import numpy as np
import pytest
import torch

from securefed.attacks import views
from securefed.attacks.base import Limits
from securefed.attacks.inversion.exact import SpanInversion
from securefed.attacks.matching.attack import GradientMatching, cosine, dlg, lamp, tag
from securefed.attacks.matching.descent import Schedule
from securefed.attacks.matching.distances import CosineDistance, L2Distance, TagDistance
from securefed.attacks.matching.gradients import CandidateGradients
from securefed.attacks.matching.hybrid import HybridMatching
from securefed.attacks.matching.language import Language
from securefed.attacks.matching.moves import moved
from securefed.attacks.matching.priors import NGramPrior
from securefed.attacks.matching.target import observed_gradient
from securefed.attacks.scoring import UnigramPrior, score
from securefed.errors import ConfigError
from securefed.secagg.aggregations import PairwiseAggregation

TOKENS = 5
SPECIAL = {0, 1, 2, 3}
LIMITS = Limits(seconds=60.0, max_tokens=9)
QUICK = Schedule(steps=60, restarts=1, learning_rate=0.05)
BACKGROUND = [text for n in range(50, 70) for text in attacked.texts("bert", n)]
LANGUAGE = NGramPrior(BACKGROUND, SPECIAL, 400)
ATTACKS = {
    "dlg": dlg(schedule=QUICK),
    "cosine": cosine(schedule=QUICK),
    "tag": tag(schedule=QUICK),
    "lamp": lamp(LANGUAGE, schedule=QUICK),
}


def round_of(kind, own, *, aggregation=None, **options):
    """A round with the victim's texts in it: session, transcript, bench."""
    window = {} if kind == "bert" else {"window_tokens": len(own[0])}
    setup = attacked.setup(kind, batch=len(own), **(window | options))
    made = attacked.bench(kind, setup, aggregation=aggregation)
    session = made.session()
    _, transcript = made.run(session, attacked.updates(made, own, kind))
    return session, transcript, made.public(session)


def plain(kind, own, **options):
    session, transcript, public = round_of(kind, own, **options)
    return views.plain_update(session, transcript, attacked.VICTIM), public


def run(attack, view, public, limits=LIMITS):
    return attack.run(view, public, generator=torch.Generator().manual_seed(0), limits=limits)


def recall(guess, own):
    return score(guess, own, SPECIAL).token_recall


# -- gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_candidates_that_are_the_truth_have_the_observed_gradient(kind):
    own = attacked.texts(kind, 0, count=2, tokens=TOKENS)
    view, public = plain(kind, own)
    observed, _ = observed_gradient(view, public)
    made = CandidateGradients(public, tuple(observed.tensors))
    texts = torch.tensor(own)[None]
    if kind == "bert":
        targets = torch.tensor([0.0, 1.0]).expand(1, 2, 1, 2)
    else:
        targets = torch.nn.functional.one_hot(texts[..., 1:], 400).float()
    true = made.of(made.table[texts], targets)
    other = made.of(made.table[texts.flip(-1)], targets)
    for distance in (L2Distance(), CosineDistance(), TagDistance()):
        near, far = float(distance(true, observed)[0]), float(distance(other, observed)[0])
        assert near < 1e-2 * far, distance.name


@pytest.mark.parametrize("distance", [L2Distance(), CosineDistance(), TagDistance()])
def test_a_distance_has_a_slope_through_attention(distance):
    view, public = plain("bert", attacked.texts("bert", 0, tokens=TOKENS))
    observed, _ = observed_gradient(view, public)
    made = CandidateGradients(public, tuple(observed.tensors))
    start = torch.randn(1, 1, 7, 64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0.0, 1.0]).expand(1, 1, 1, 2)

    def at(embeddings):
        return distance(made.of(embeddings, labels), observed).sum()

    moving = start.clone().requires_grad_()
    (slope,) = torch.autograd.grad(at(moving), moving)
    step = 1e-2 * slope / slope.norm()
    measured = float(at(start + step) - at(start - step)) / 2e-2
    assert measured == pytest.approx(float(slope.norm()), rel=0.05)


def test_clipping_hides_the_length_and_says_so():
    own = attacked.texts("bert", 0, tokens=TOKENS)
    view, public = plain("bert", own)
    clipped, _ = observed_gradient(view, public)
    assert not clipped.scaled
    view, public = plain("bert", own, learning_rate=1e-2)
    whole, _ = observed_gradient(view, public)
    assert whole.scaled
    # Twice the gradient is as near as it where the length is hidden, and further where it is not.
    for observed, same in ((clipped, True), (whole, False)):
        once = {name: tensor[None] for name, tensor in observed.tensors.items()}
        twice = {name: 2.0 * tensor for name, tensor in once.items()}
        for distance in (L2Distance(), TagDistance()):
            assert (float(distance(twice, observed)[0]) < 1e-6) is same


def test_steps_of_sgd_are_taken_for_the_mean_of_their_gradients():
    own = attacked.texts("bert", 0, tokens=TOKENS)
    once, _ = observed_gradient(*plain("bert", own, learning_rate=1e-3))
    five, _ = observed_gradient(*plain("bert", own, learning_rate=1e-3, local_steps=5))
    for name, tensor in once.tensors.items():
        cosine_ = torch.nn.functional.cosine_similarity(
            tensor.flatten(), five.tensors[name].flatten(), dim=0
        )
        assert float(cosine_) > 0.98
    assert five.norm == pytest.approx(once.norm, rel=0.1)


# -- the attacks ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("dlg", marks=pytest.mark.slow),
        "cosine",
        pytest.param("tag", marks=pytest.mark.slow),
        pytest.param("lamp", marks=pytest.mark.slow),
    ],
)
def test_a_plain_update_gives_the_text_away_and_another_clients_does_not(name):
    own = attacked.texts("bert", 1, tokens=TOKENS)
    session, transcript, public = round_of("bert", own)
    right = views.plain_update(session, transcript, attacked.VICTIM)
    wrong = views.plain_update(session, transcript, "site-01")
    prior = recall(UnigramPrior(BACKGROUND, SPECIAL).guess(own, SPECIAL), own)
    found = recall(run(ATTACKS[name], right, public), own)
    least = 0.4 if name == "dlg" else 0.8  # squares are flat near 0: L2 is the slowest
    assert found >= prior + least
    short = Limits(seconds=0.5, max_tokens=9)
    assert recall(run(ATTACKS[name], wrong, public, short), own) <= prior + 1 / TOKENS


def test_a_masked_share_scores_no_better_than_the_prior():
    lifts = []
    for seed in range(2):
        own = attacked.texts("bert", seed, tokens=TOKENS)
        session, transcript, public = round_of("bert", own, aggregation=PairwiseAggregation())
        view = views.masked_share(session, transcript, attacked.VICTIM)
        guess = run(
            GradientMatching(
                CosineDistance(),
                name="lamp",
                schedule=Schedule(steps=10, restarts=1),
                language=Language(LANGUAGE, moves=8, sweeps=1),
                length=TOKENS + 2,
            ),
            view,
            public,
        )
        prior = UnigramPrior(BACKGROUND, SPECIAL).guess(own, SPECIAL)
        lifts.append(recall(guess, own) - recall(prior, own))
    assert np.mean(lifts) <= 1 / TOKENS


def test_full_gradients_without_the_head_give_text_and_label_away():
    own = attacked.texts("bert", 2, tokens=TOKENS)
    view, public = plain("bert", own, sharing="full", turn=1)
    observed, _ = observed_gradient(view, public)
    attack = cosine(schedule=Schedule(steps=40, restarts=2, learning_rate=0.05))
    generator = torch.Generator().manual_seed(0)
    found = attack.match(view, public, observed, generator=generator, limits=LIMITS)
    assert found.labels == (1,)
    assert found.texts.shape == (1, TOKENS + 2)  # the length is the rank of the update
    assert sum(a == b for a, b in zip(found.texts[0].tolist(), own[0], strict=True)) >= 6


def test_matching_finds_the_last_token_of_a_language_model_that_spans_do_not():
    own = attacked.texts("llama", 3)
    view, public = plain("llama", own, rank=24)
    spans = run(SpanInversion(), view, public)
    assert spans.texts == (own[0][:-1],)
    assert run(HybridMatching(SpanInversion()), view, public).texts == tuple(own)


def test_hybrid_is_void_where_its_seed_is():
    view, public = plain("bert", attacked.texts("bert", 0), sharing="ffa", turn=1, rank=8)
    guess = run(HybridMatching(SpanInversion()), view, public)
    assert guess.verdict == "void"
    assert "saturated" in guess.reason


# -- what it promises ----------------------------------------------------------------------


def test_a_zero_update_is_void():
    view, public = plain("bert", attacked.texts("bert", 0), warm=0.0, sharing="ffa", turn=1)
    zeros = np.zeros_like(view.values)
    empty = views.PlainUpdate(view.adversary, view.client, view.message, zeros)
    for attack in ATTACKS.values():
        guess = run(attack, empty, public)
        assert guess.verdict == "void"
        assert "no signal" in guess.reason


def test_a_factor_whose_update_is_zero_is_left_out_of_the_comparison():
    view, public = plain("bert", attacked.texts("bert", 0), warm=0.0)
    observed, _ = observed_gradient(view, public)
    assert observed.tensors
    assert all("classifier" in name for name in observed.tensors)


def test_adamw_is_void_and_says_why():
    own = attacked.texts("bert", 0)
    view, public = plain("bert", own, optimizer="adamw", learning_rate=1e-3)
    guess = run(cosine(schedule=QUICK), view, public)
    assert guess.verdict == "void"
    assert "AdamW" in guess.reason


def test_the_same_view_and_seed_give_the_same_guess():
    view, public = plain("bert", attacked.texts("bert", 1, tokens=TOKENS))
    attack = GradientMatching(
        CosineDistance(),
        name="lamp",
        schedule=Schedule(steps=12, restarts=2),
        language=Language(LANGUAGE, period=4, moves=8, sweeps=1),
    )
    assert run(attack, view, public) == run(attack, view, public)


def test_the_time_limit_ends_it_with_what_it_has():
    view, public = plain("bert", attacked.texts("bert", 1, tokens=TOKENS))
    started = time.monotonic()
    attack = lamp(LANGUAGE, schedule=Schedule(steps=100_000, restarts=4))
    guess = run(attack, view, public, Limits(seconds=0.5, max_tokens=9))
    assert time.monotonic() - started < 5.0
    assert guess.verdict == "guessed"
    assert len(guess.tokens) == TOKENS


def test_no_guess_holds_special_tokens():
    view, public = plain("bert", attacked.texts("bert", 1, tokens=TOKENS))
    guess = run(cosine(schedule=Schedule(steps=2, restarts=1)), view, public)
    assert not SPECIAL & set(guess.tokens)


# -- parts ---------------------------------------------------------------------------------


def test_moves_only_reorder_free_places():
    places = [[1, 2, 3, 4], [7, 8, 9]]
    orders = moved(places, 12, 200, torch.Generator().manual_seed(0))
    assert orders.shape == (200, 12)
    assert (orders.sort(dim=1).values == torch.arange(12)).all()
    assert (orders[:, [0, 5, 6, 10, 11]] == torch.tensor([0, 5, 6, 10, 11])).all()
    changed = (orders != torch.arange(12)).any(dim=1)
    assert changed.float().mean() > 0.5
    across = (orders[:, 1:5] > 6).any(dim=1)
    assert across.any()


def test_a_prior_of_ngrams_is_a_distribution_and_prefers_its_language():
    prior = NGramPrior([[4, 5, 6, 7], [4, 5, 6, 8]], (), 12)
    total = sum(math.exp(-float(prior.nll([[token]])[0])) for token in range(12))
    assert total == pytest.approx(1.0, abs=1e-5)
    likely, shuffled = prior.nll([[4, 5, 6], [6, 4, 5]])
    assert likely < shuffled


def test_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="steps = 0"):
        Schedule(steps=0)
    with pytest.raises(ConfigError, match="period = 0"):
        Language(LANGUAGE, period=0)
    with pytest.raises(ConfigError, match="length = 0"):
        cosine(length=0)
    with pytest.raises(ConfigError, match="background"):
        NGramPrior([[2, 3]], SPECIAL, 12)
