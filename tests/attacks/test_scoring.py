"""Scores, the prior and intervals, by worked examples."""

from fractions import Fraction

import numpy as np
import pytest

from securefed.attacks.base import Guess
from securefed.attacks.results import Trial, bootstrap, clopper_pearson, summarise
from securefed.attacks.scoring import UnigramPrior, score
from securefed.errors import ConfigError

SPECIAL = (0, 1)


def test_recall_counts_repeats_and_a_set_does_not():
    found = score(Guess(texts=((5, 6, 9),)), [(0, 5, 5, 6, 7, 1)], SPECIAL)
    assert (found.token_recall, found.token_precision) == (2 / 4, 2 / 3)
    assert (found.set_recall, found.set_precision) == (2 / 3, 2 / 3)
    assert found.exact_match == 0.0


def test_special_tokens_earn_nothing():
    found = score(Guess(texts=((0, 1, 0),), loose=(1,)), [(0, 5, 1)], SPECIAL)
    assert found.token_recall == found.rouge_1 == found.token_precision == 0.0


def test_rouge_is_the_f1_of_the_best_pairing():
    guess = Guess(texts=((9, 8), (4, 6, 5)))
    found = score(guess, [(4, 5, 6), (8, 9)], SPECIAL)
    assert found.rouge_1 == 1.0
    assert found.rouge_2 == 0.0
    # Of (4, 5, 6) and (4, 6, 5) the longest common subsequence has two tokens, of the others one.
    assert found.rouge_l == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.exact_match == 0.0


def test_an_exact_guess_scores_one_throughout_and_counts_once():
    texts = [(4, 5, 6), (4, 5, 6), (7, 8)]
    full = score(Guess(texts=tuple(texts)), texts, SPECIAL)
    assert set(vars(full).values()) == {1.0}
    once = score(Guess(texts=((4, 5, 6), (7, 8))), texts, SPECIAL)
    assert once.exact_match == pytest.approx(2 / 3)


def test_loose_tokens_and_gaps_count_for_recall_only():
    found = score(Guess(texts=((4, -1),), loose=(5,)), [(4, 5)], SPECIAL)
    assert found.token_recall == 1.0
    assert found.token_precision == 1.0
    assert found.exact_match == 0.0


def test_a_void_guess_scores_nothing_and_may_hold_no_token():
    assert score(Guess(verdict="void"), [(4,)], SPECIAL).token_recall == 0.0
    with pytest.raises(ConfigError, match="guesses no token"):
        Guess(texts=((4,),), verdict="void")


@pytest.mark.parametrize("truth", [[], [(0, 1)]])
def test_a_truth_without_tokens_is_refused(truth):
    with pytest.raises(ConfigError, match="truth"):
        score(Guess(), truth, SPECIAL)


def test_the_prior_guesses_what_is_frequent_as_often_as_it_is_repeated():
    background = [(4, 4, 5), (4, 4, 6), (4, 7, 8), (9, 5)]
    prior = UnigramPrior(background, SPECIAL)
    guess = prior.guess([(0, 9, 9, 9, 1), (9,)], SPECIAL)
    # (4 once) in three texts, (4 twice) and (5 once) in two each.
    assert guess.texts == ((4, 4, 5), (4,))
    with pytest.raises(ConfigError, match="background"):
        UnigramPrior([(0, 1)], SPECIAL)


def test_no_other_guess_of_as_many_tokens_overlaps_more_with_the_background():
    rng = np.random.default_rng(3)
    texts = [tuple(rng.zipf(1.5, size=6) % 9 + 2) for _ in range(30)]
    prior = UnigramPrior(texts, SPECIAL)
    best = np.mean([score(prior.guess([t], SPECIAL), [t], SPECIAL).token_recall for t in texts])
    for _ in range(50):
        other = Guess(texts=(tuple(rng.integers(2, 11, size=6)),))
        assert np.mean([score(other, [t], SPECIAL).token_recall for t in texts]) <= best


def _trials(values, priors, verdict="guessed"):
    def scored(value):
        hits = round(value * 4)
        return score(Guess(texts=((2,) * hits,)), [(2, 2, 2, 2)], SPECIAL)

    return [
        Trial(scored(value), scored(prior), verdict, seed, 0.5)
        for seed, (value, prior) in enumerate(zip(values, priors, strict=True))
    ]


def test_a_summary_pairs_the_attack_with_the_prior():
    result = summarise("some", "token_recall", _trials([1.0, 0.5, 0.75, 1.0], [0.25, 0, 0.25, 0.5]))
    assert result.value == pytest.approx(0.8125)
    assert result.prior == pytest.approx(0.25)
    assert result.lift == pytest.approx(0.5625)
    assert result.method == "bootstrap"
    assert result.interval[0] <= result.value <= result.interval[1]
    assert result.lift_interval[0] >= 0.5  # every trial's lift is 0.5 or 0.75
    assert result.shows_lift
    assert (result.n, result.seeds, result.seconds, result.void) == (4, (0, 1, 2, 3), 0.5, 0)
    assert result.as_json()["metric"] == "token_recall"


def test_all_hits_have_an_exact_interval_and_not_a_bootstrap_of_no_width():
    result = summarise("some", "exact_match", _trials([1.0] * 20, [0.0] * 20))
    assert result.method == "exact"
    assert result.interval[1] == 1.0
    # The exact lower end for n hits of n is (alpha/2)^(1/n).
    assert result.interval[0] == pytest.approx(0.025 ** (1 / 20))
    assert result.lift_interval == result.interval


def test_void_trials_make_a_result_void_only_if_all_are():
    void = _trials([0.0, 0.0], [0.25, 0.25], verdict="void")
    alone = summarise("some", "token_recall", void)
    assert alone.verdict == "void"
    assert (alone.value, alone.lift, alone.lift_interval) == (0.0, 0.0, (0.0, 0.0))
    assert not alone.shows_lift
    mixed = [*void, *_trials([1.0], [0.0])]
    result = summarise("some", "token_recall", mixed)
    assert (result.verdict, result.void) == ("guessed", 2)
    assert result.lift == pytest.approx(1 / 3)


def test_clopper_pearson_covers_as_promised():
    # The probability, over a binomial, that the interval holds the true proportion.
    from scipy.stats import binom

    for share in (0.05, 0.3, 0.5):
        covered = sum(
            binom.pmf(hits, 15, share)
            for hits in range(16)
            if clopper_pearson(hits, 15, 0.95)[0] <= share <= clopper_pearson(hits, 15, 0.95)[1]
        )
        assert covered >= 0.95


def test_the_bootstrap_is_the_same_for_the_same_seed():
    values = np.random.default_rng(0).random(12)
    assert bootstrap(values, 0.9, 1) == bootstrap(values, 0.9, 1)
    low, high = bootstrap(values, 0.9, 1)
    assert low < values.mean() < high
    assert Fraction(0) < Fraction(high - low)


@pytest.mark.parametrize(
    ("trials", "metric", "confidence", "match"),
    [
        ([], "token_recall", 0.95, "trials"),
        (_trials([1.0], [0.0]), "luck", 0.95, "metric"),
        (_trials([1.0], [0.0]), "token_recall", 1.0, "confidence"),
    ],
)
def test_what_cannot_be_summarised_is_refused(trials, metric, confidence, match):
    with pytest.raises(ConfigError, match=match):
        summarise("some", metric, trials, confidence=confidence)
