"""ROC curves, rates at low FPR and what DP allows, against naive ground truth."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from securefed.attacks.membership_results import (
    FALSE_POSITIVE_RATES,
    MembershipTrial,
    summarise_membership,
)
from securefed.attacks.results import clopper_pearson
from securefed.attacks.roc import (
    Roc,
    auc_interval,
    epsilon_lower_bound,
    for_group,
    gaussian_tpr,
    private_tpr,
    tpr_at,
)
from securefed.errors import ConfigError


def sample(seed, *, count=400, shift=1.0, ties=False):
    rng = np.random.default_rng(seed)
    member = np.arange(count) % 2 == 0
    scores = rng.standard_normal(count) + shift * member
    return (np.round(scores, 1) if ties else scores), member


def trial(scores, member, *, verdict="guessed", seed=0):
    return MembershipTrial(scores, member, verdict, seed, 0.5)


@pytest.mark.parametrize("ties", [False, True])
def test_the_auc_is_scikit_learns_and_the_chance_that_a_member_scores_above_another(ties):
    scores, member = sample(0, ties=ties)
    found = Roc.of(scores, member).auc
    pairs = scores[member][:, None] - scores[~member][None]
    assert found == pytest.approx(float(((pairs > 0) + 0.5 * (pairs == 0)).mean()))
    assert found == pytest.approx(roc_auc_score(member, scores))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("fpr", [0.01, 0.05, 0.3])
def test_the_threshold_keeps_false_positives_within_the_bound_and_none_lower_would(fpr, ties):
    scores, member = sample(1, ties=ties)
    found = tpr_at(Roc.of(scores, member), fpr)
    rates = [
        (scores[member] >= at).mean()
        for at in np.unique(scores)
        if (scores[~member] >= at).mean() <= fpr
    ]
    assert found.value == pytest.approx(max(rates, default=0.0))
    assert found.false_positives <= fpr * (~member).sum()
    assert found.interval[0] <= found.value <= found.interval[1]


def test_a_rate_that_so_few_records_cannot_show_says_so():
    curve = Roc.of(*sample(2))
    assert tpr_at(curve, 0.01).resolved
    assert not tpr_at(curve, 0.001).resolved
    assert tpr_at(curve, 0.001).false_positives == 0


def test_equal_scores_are_one_step_and_give_nothing_at_low_rates():
    member = np.arange(100) % 2 == 0
    curve = Roc.of(np.zeros(100), member)
    assert curve.auc == 0.5
    assert tpr_at(curve, 0.05).value == 0.0
    assert curve.points() == [(0.0, 0.0), (1.0, 1.0)]


def test_points_are_corners_of_the_curve_and_keep_low_rates():
    curve = Roc.of(*sample(3, count=4000))
    points = curve.points(50)
    assert len(points) <= 50
    assert points[-1] == (1.0, 1.0)
    assert set(points) <= set(zip(curve.fpr.tolist(), curve.tpr.tolist(), strict=True))
    assert [fpr for fpr, _ in points[:4]] == [0.0, 1 / 2000, 2 / 2000, 3 / 2000]


def test_the_interval_of_the_auc_covers_it_over_repetitions():
    truth = 0.7602  # Phi(1 / sqrt 2)
    hits = 0
    for seed in range(40):
        scores, member = sample(seed, count=200)
        low, high = auc_interval(scores, member, np.arange(200), seed=seed)
        hits += low <= truth <= high
    assert hits >= 33  # of 40 at 95 %: less than 1 in 1000 by chance


def test_trials_of_one_record_do_not_make_the_interval_shorter_as_if_they_were_new_records():
    scores, member = sample(4, count=60)
    once = auc_interval(scores, member, np.arange(60))
    again = auc_interval(np.tile(scores, 8), np.tile(member, 8), np.tile(np.arange(60), 8))
    assert again[1] - again[0] == pytest.approx(once[1] - once[0], rel=0.15)


def test_a_few_records_that_happen_to_lie_apart_do_not_count_as_certain():
    # One member above one other record: chance gives that every second time.
    assert auc_interval(np.array([1.0, 0.0]), np.array([True, False]), np.arange(2))[0] < 0.5
    above = 0
    for seed in range(60):
        scores = np.random.default_rng(seed).normal(size=4)
        member = np.random.default_rng([seed, 1]).permutation(4) < 2
        above += auc_interval(scores, member, np.arange(4), seed=seed)[0] > 0.5
    assert above <= 6  # of 60 without any signal, at 2.5 %; without width it was every fifth
    many = np.repeat([1.0, 0.0], 50)
    low, high = auc_interval(many, many > 0.5, np.arange(100))
    assert (low, high) == (pytest.approx(0.025 ** (1 / 50)), 1.0)
    low, high = auc_interval(-many, many > 0.5, np.arange(100))
    assert (low, high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 50)))


def test_what_dp_allows_is_the_less_of_both_bounds_and_at_least_chance():
    fpr = np.array([0.0, 0.001, 0.1, 0.5, 1.0])
    allowed = private_tpr(fpr, 1.0, 1e-3)
    direct, mirror = math.e * fpr + 1e-3, 1 - (1 - 1e-3 - fpr) / math.e
    assert np.allclose(allowed, np.clip(np.minimum(direct, mirror), 0, 1))
    assert (allowed >= fpr).all()
    assert np.allclose(private_tpr(fpr, 0.0, 0.0), fpr)
    assert (private_tpr(fpr[1:], math.inf, 0.0) == 1.0).all()
    assert np.allclose(gaussian_tpr(fpr[1:-1], 0.0), fpr[1:-1])
    assert (gaussian_tpr(fpr[1:-1], 1.0) > fpr[1:-1]).all()


def randomised_response(seed, epsilon, count=4000):
    rng = np.random.default_rng(seed)
    member = rng.permutation(np.arange(count) % 2 == 0)
    told = rng.random(count) < 1.0 / (1.0 + math.exp(-epsilon))
    return np.where(told, member, ~member).astype(float), member


def test_two_changes_are_promised_twice_the_epsilon():
    assert for_group(1.0, 1e-5, 1) == (1.0, 1e-5)
    assert for_group(1.0, 1e-5, 2) == (2.0, pytest.approx(1e-5 * (1 + math.e)))
    assert for_group(9.0, 1e-3, 3) == (27.0, 1.0)
    with pytest.raises(ConfigError):
        for_group(math.inf, 0.0, 2)


def test_the_lower_bound_stays_below_the_epsilon_of_randomised_response_and_comes_near():
    found = []
    for seed in range(40):
        scores, member = randomised_response(seed, 1.5)
        found.append(epsilon_lower_bound(scores, member, np.arange(len(scores)), delta=0.0))
    assert sum(value <= 1.5 for value in found) >= 34
    assert np.mean(found) > 1.2


def test_a_guess_at_random_shows_no_epsilon_and_one_that_knows_shows_much():
    rng = np.random.default_rng(0)
    member = np.arange(600) % 2 == 0
    records = np.random.default_rng(1).permutation(600)
    assert epsilon_lower_bound(rng.standard_normal(600), member, records, delta=1e-5) < 0.5
    assert epsilon_lower_bound(member.astype(float), member, records, delta=1e-5) > 3.0


def test_the_lower_bound_is_that_of_two_rates_at_half_of_the_error_each_on_half_of_the_records():
    member = np.tile([True, True, False, False], 50)
    found = epsilon_lower_bound(
        member.astype(np.float64), member, np.arange(200), delta=0.1, confidence=0.9
    )
    low, high = clopper_pearson(50, 50, 0.9)[0], clopper_pearson(0, 50, 0.9)[1]
    assert found == pytest.approx(np.log((low - 0.1) / high))


def test_choosing_a_threshold_costs_nothing_since_other_records_count():
    positive = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        member = rng.permutation(200) < 100
        found = epsilon_lower_bound(
            rng.normal(size=200), member, np.arange(200), delta=0.0, confidence=0.6
        )
        positive += found > 0.0
    assert positive <= 9  # of 60; about half where records choose the threshold that judges them


def test_a_result_says_whether_scores_exceed_a_promise():
    scores, member = randomised_response(0, 3.0)
    runs = [trial(scores, member)]
    kept = summarise_membership("a", "v", runs, epsilon=3.0, delta=1e-5, changes=1)
    broken = summarise_membership("a", "v", runs, epsilon=1.0, delta=1e-5, changes=1)
    twice = summarise_membership("a", "v", runs, epsilon=1.5, delta=1e-5)
    wide = summarise_membership("a", "v", runs, epsilon=1.0, delta=0.3, changes=1)
    assert wide.epsilon_lower < broken.epsilon_lower - 0.1  # the promise's delta is its own
    assert not kept.violates
    assert broken.violates
    assert not twice.violates  # where another record stands in its place
    assert twice.bound is not None
    assert kept.bound is not None
    assert np.allclose(twice.bound, kept.bound, atol=1e-4)
    assert broken.epsilon_lower > 1.0
    assert broken.bound is not None
    assert any(
        tpr > allowed for (_, tpr), (_, allowed) in zip(broken.roc, broken.bound, strict=True)
    )


def test_the_worst_record_is_found_and_its_interval_holds_for_all_records():
    rng = np.random.default_rng(0)
    trials = []
    for number in range(24):
        member = np.roll(np.arange(20) % 2 == 0, number)
        scores = rng.standard_normal(20)
        scores[7] = 9.0 if member[7] else -9.0
        trials.append(trial(scores, member, seed=number))
    found = summarise_membership("a", "v", trials)
    assert found.worst is not None
    assert (found.worst.inside, found.worst.outside) == (12, 12)
    assert found.worst.advantage == 1.0
    each = 1.0 - 0.05 / (2 * 20)  # two rates of each of the records that it is the worst of
    low, high = clopper_pearson(12, 12, each)[0], clopper_pearson(0, 12, each)[1]
    assert found.worst.interval[0] == pytest.approx(low - high)
    assert low > high
    assert abs(found.advantage) < 0.2
    for one in trials:
        one.scores[7] = rng.standard_normal()
    chance = summarise_membership("a", "v", trials)
    assert chance.worst is not None
    assert chance.worst.interval[0] < 0.0  # though the largest of twenty is well above 0
    assert chance.worst.advantage > 0.15


def test_one_run_has_no_worst_record_and_a_void_attack_is_void():
    scores, member = sample(5)
    one = summarise_membership("a", "v", [trial(scores, member)])
    assert one.worst is None
    assert one.above_chance
    void = summarise_membership("a", "v", [trial(np.zeros(400), member, verdict="void")])
    assert (void.verdict, void.void, void.auc) == ("void", 1, 0.5)
    assert not void.above_chance


def test_a_result_is_figures_alone():
    found = summarise_membership("a", "v", [trial(*sample(6))], epsilon=2.0, delta=1e-5)
    line = json.loads(json.dumps(found.as_json()))
    assert [rate["fpr"] for rate in line["rates"]] == list(FALSE_POSITIVE_RATES)
    assert len(line["roc"]) == len(line["bound"])


@pytest.mark.parametrize(
    ("scores", "member"),
    [
        (np.zeros(3), np.array([True, False])),
        (np.array([0.0, math.nan]), np.array([True, False])),
        (np.zeros(2), np.array([True, True])),
        (np.zeros(2), np.array([False, False])),
    ],
)
def test_what_is_no_comparison_is_refused(scores, member):
    with pytest.raises(ConfigError):
        Roc.of(scores, member)


def test_arguments_out_of_range_are_refused():
    good = trial(*sample(7))
    for options in (
        {"confidence": 1.0},
        {"epsilon": -1.0},
        {"epsilon": 1.0, "delta": 1.0},
        {"epsilon": 1.0, "changes": 0},
    ):
        with pytest.raises(ConfigError):
            summarise_membership("a", "v", [good], **options)
    with pytest.raises(ConfigError):
        summarise_membership("a", "v", [])
    with pytest.raises(ConfigError):
        summarise_membership("a", "v", [good, trial(*sample(8, count=10))])
    with pytest.raises(ConfigError):
        tpr_at(Roc.of(*sample(7)), 0.0)
