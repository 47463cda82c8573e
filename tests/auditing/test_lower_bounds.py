import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from securefed.auditing.lower_bounds import (
    METHODS,
    epsilon_of_counts,
    epsilon_of_guesses,
    epsilon_of_mu,
    gaussian_mu,
    lower_bound,
    mu_of_counts,
)
from securefed.errors import ConfigError

VECTORS = Path(__file__).parents[1] / "vectors" / "auditing_lower_bounds.json"
CASES = json.loads(VECTORS.read_text(encoding="utf-8"))["cases"]
DELTA = 1e-5


@pytest.fixture(params=CASES, ids=lambda case: f"{case['caught']}-{case['false']}")
def case(request):
    return request.param


def counts(case):
    return case["caught"], case["inside"], case["false"], case["outside"]


def test_clopper_pearson_is_that_of_jax_privacy(case):
    found = epsilon_of_counts(*counts(case), delta=case["delta"], confidence=1 - case["failure"])
    assert float(found) == pytest.approx(case["clopper_pearson"], rel=0.01)


def test_delta_is_taken_from_what_is_caught():
    # Of a mechanism that shows everything with probability 0.5 and nothing else: (0, 0.5)-DP.
    found = [
        float(epsilon_of_counts(5000, 10000, 1, 10000, delta=delta, confidence=0.95))
        for delta in (1e-5, 0.25, 0.5)
    ]
    low, high = stats.beta.ppf(0.025, 5000, 5001), stats.beta.ppf(0.975, 2, 9999)
    assert found[:2] == pytest.approx([math.log((low - d) / high) for d in (1e-5, 0.25)])
    assert found[2] == 0.0


def test_one_run_is_that_of_jax_privacy(case):
    caught, inside, false, outside = counts(case)
    found = epsilon_of_guesses(
        caught, caught + false, inside + outside, case["delta"], 1 - case["failure"]
    )
    assert found == pytest.approx(case["one_run"], rel=0.01, abs=1e-6)


def test_mu_from_counts_gives_the_epsilon_of_jax_privacy(case):
    mu = float(mu_of_counts(*counts(case), confidence=1 - case["failure"]))
    assert epsilon_of_mu(mu, case["delta"]) == pytest.approx(case["gaussian_counts"], rel=0.01)


@pytest.mark.parametrize("mu", [0.3, 1.0, 4.0])
def test_epsilon_of_mu_solves_the_gaussian_trade_off(mu):
    epsilon = epsilon_of_mu(mu, DELTA)
    norm = stats.norm.cdf
    delta = norm(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm(-mu / 2 - epsilon / mu)
    assert delta == pytest.approx(DELTA, rel=1e-4)


@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_the_gaussian_bound_is_too_high_one_time_in_twenty_and_the_estimate_every_second(mu):
    rng = np.random.default_rng(3)
    samples = [
        gaussian_mu(rng.normal(7.0 + 3.0 * mu, 3.0, 40), rng.normal(7.0, 3.0, 60), 0.95)
        for _ in range(300)
    ]
    estimates, bounds = np.array(samples).T
    assert 0.02 < (bounds > mu).mean() < 0.08
    assert (estimates > mu).mean() > 0.4


def test_a_far_gap_gives_a_finite_bound_and_none_at_all_between_scores_an_infinite_one():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(2, 50))
    _, mu = gaussian_mu(1e7 + noise[0], noise[1], 0.95)
    assert 0.7e7 < mu < 1.1e7
    assert gaussian_mu(np.ones(5), np.zeros(5), 0.95)[1] == math.inf
    assert gaussian_mu(np.ones(5), np.ones(5), 0.95)[1] == 0.0


def randomised_response(epsilon, n, rng):
    """Scores 1 and 0 that tell in from out as well as epsilon allows, and no better."""
    share = 1.0 / (1.0 + math.exp(-epsilon))
    inside, outside = rng.random(n) < share, rng.random(n) < 1.0 - share
    return inside.astype(float), outside.astype(float)


def test_choosing_a_threshold_costs_nothing_since_other_scores_count():
    positive = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        found = lower_bound(
            "clopper_pearson",
            rng.normal(size=100),
            rng.normal(size=100),
            delta=DELTA,
            confidence=0.6,
            seed=seed,
        )
        positive += found.epsilon > 0.0
    assert positive <= 12  # one or two; 45 where scores choose the threshold they are counted by


def test_far_and_near_gaps_are_bounded_alike():
    rng = np.random.default_rng(0)
    noise, outside = rng.normal(size=20), rng.normal(size=20)
    shares = []
    for gap in (2.5e3, 3.5e3):  # on either side of where the noncentral t is given up
        estimate, bound = gaussian_mu(noise + gap, outside, 0.95)
        shares.append(bound / estimate)
    assert shares[0] == pytest.approx(shares[1], rel=1e-3)
    assert shares[1] < 0.85  # 38 degrees of freedom: S may well be a fifth too small


def test_one_run_pays_for_each_share_of_guesses_that_it_looked_at():
    found = lower_bound(
        "one_run", np.ones(200), np.zeros(200), delta=DELTA, confidence=0.95, seed=0
    )
    once = [epsilon_of_guesses(400, 400, 400, DELTA, confidence) for confidence in (0.95, 0.99)]
    assert once[0] > found.epsilon == pytest.approx(once[1])


@pytest.mark.parametrize("method", ["clopper_pearson", "one_run"])
def test_methods_that_assume_nothing_hold_for_randomised_response(method):
    rng = np.random.default_rng(5)
    found = [
        lower_bound(
            method, *randomised_response(1.0, 200, rng), delta=DELTA, confidence=0.95, seed=seed
        ).epsilon
        for seed in range(60)
    ]
    assert sum(epsilon > 1.0 for epsilon in found) <= 6
    assert np.mean(found) > 0.3


@pytest.mark.parametrize("method", METHODS)
def test_scores_that_tell_nothing_bound_epsilon_by_nothing_much(method):
    rng = np.random.default_rng(1)
    found = lower_bound(
        method, rng.normal(size=300), rng.normal(size=300), delta=DELTA, confidence=0.999, seed=0
    )
    assert found.epsilon == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_every_method_tells_weak_noise_from_strong(method):
    rng = np.random.default_rng(2)
    weak, strong = (
        lower_bound(
            method,
            rng.normal(mu, 1.0, 400),
            rng.normal(size=400),
            delta=DELTA,
            confidence=0.95,
            seed=0,
        ).epsilon
        for mu in (4.0, 1.0)
    )
    assert weak > strong + 0.5


def test_a_test_that_says_out_serves_as_well():
    # Half of those inside score far above all others; with signs and kinds turned round, half of
    # those outside far below, which only a test that says "out" can use.
    rng = np.random.default_rng(4)
    inside = np.where(rng.random(400) < 0.5, 9.0, 0.0) + rng.normal(size=400)
    outside = rng.normal(size=400)
    for first, second in ((inside, outside), (-outside, -inside)):
        found = lower_bound("clopper_pearson", first, second, delta=DELTA, confidence=0.95, seed=0)
        assert found.epsilon > 2.5


def test_a_record_holds_what_json_can():
    found = lower_bound(
        "gaussian", np.ones(5), np.zeros(5), delta=DELTA, confidence=0.95, seed=0
    ).to_record()
    assert found["epsilon"] == "unbounded"
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"method": "guess"}, "method"),
        ({"inside": np.ones(3)}, "inside"),
        ({"outside": np.array([1.0, 2.0, 3.0, math.nan])}, "outside"),
        ({"delta": 0.0}, "delta"),
        ({"confidence": 0.5}, "confidence"),
    ],
)
def test_bad_arguments_are_named(change, named):
    arguments = {
        "method": "gaussian",
        "inside": np.ones(4),
        "outside": np.zeros(4),
        "delta": DELTA,
        "confidence": 0.95,
        "seed": 0,
    }
    with pytest.raises(ConfigError, match=named):
        lower_bound(**(arguments | change))
