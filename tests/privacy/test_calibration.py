import math

import pytest
from scipy.optimize import brentq
from scipy.special import log_ndtr
from scipy.stats import norm

from securefed.errors import ConfigError
from securefed.privacy.accounting import guarantee
from securefed.privacy.calibration import (
    LARGEST_NOISE,
    SMALLEST_NOISE,
    calibrated_policy,
    gaussian_noise_multiplier,
    least_noise,
)
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.pld import gaussian_epsilon
from securefed.privacy.policy import PrivacyPolicy
from securefed.privacy.rdp import gaussian_rdp_epsilon

DELTA = 1e-5


def policy(**changes) -> PrivacyPolicy:
    base = {"clip_norm": 1.0, "noise_multiplier": 1.0, "delta": DELTA, "max_examples": 8}
    return PrivacyPolicy(**(base | changes))


# The search

SHAPES = {
    "inverse": lambda z: 10 / z,
    "gaussian": lambda z: 50 / z + 50 / z**2,
    "infinite below": lambda z: math.inf if z < 1.7 else 5 / z,
    "steps": lambda z: math.floor(100 / z) / 10,
    "explosive": lambda z: math.expm1(min(6 / z**3, 500.0)),
    "a power": lambda z: 7 * z**-1.5,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("target", [0.01, 0.3, 1.0, 3.0, 100.0])
@pytest.mark.parametrize("start", [0.05, 1.0, 600.0])
def test_the_noise_found_meets_the_target_and_a_little_less_does_not(shape, target, start):
    asked = []

    def epsilon_at(noise):
        asked.append(noise)
        return SHAPES[shape](noise)

    found = least_noise(epsilon_at, target, start=start)
    assert epsilon_at(found) <= target < epsilon_at(found / 1.001)
    assert found in asked[:-2]
    assert len(asked) < 50


def test_few_questions_are_asked_of_an_accountant_that_is_smooth():
    asked = []
    least_noise(lambda z: asked.append(z) or 50 / z + 50 / z**2, 7.0)
    assert len(asked) <= 12


def test_a_tolerance_trades_questions_for_noise():
    fine = least_noise(SHAPES["gaussian"], 2.0, tolerance=1e-6)
    coarse = least_noise(SHAPES["gaussian"], 2.0, tolerance=0.2)
    assert fine <= coarse <= 1.2 * fine


def test_an_accountant_that_is_not_monotone_cannot_make_the_answer_unsafe():
    def wavy(noise):
        return (10 / noise) * (1 + 0.2 * math.sin(40 * math.log(noise)))

    for target in (0.3, 1.0, 4.0):
        assert wavy(least_noise(wavy, target)) <= target


def test_a_target_that_the_least_noise_meets_ends_the_search():
    assert least_noise(lambda noise: 1e-9, 1.0) <= 2 * SMALLEST_NOISE


@pytest.mark.parametrize("floor", [0.5, math.inf])
def test_a_target_that_no_noise_reaches_is_refused_with_its_value(floor):
    with pytest.raises(ConfigError, match=r"epsilon = 0\.25: not reached"):
        least_noise(lambda noise: max(floor, 1 / noise), 0.25)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
def test_a_target_that_is_no_positive_number_is_refused(epsilon):
    with pytest.raises(ConfigError, match="epsilon ="):
        least_noise(SHAPES["inverse"], epsilon)
    with pytest.raises(ConfigError, match="epsilon ="):
        gaussian_noise_multiplier(epsilon, sampling_probability=1.0, rounds=1, delta=DELTA)
    with pytest.raises(ConfigError, match="epsilon ="):
        calibrated_policy(policy(), epsilon, cohort_size=10, dimension=10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tolerance": 0.0}, "tolerance ="),
        ({"tolerance": 1.0}, "tolerance ="),
        ({"start": 0.0}, "start ="),
        ({"start": 2 * LARGEST_NOISE}, "start ="),
        ({"start": math.nan}, "start ="),
    ],
)
def test_a_search_out_of_range_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        least_noise(SHAPES["inverse"], 1.0, **changes)


# The Gaussian


def analytic_noise(epsilon: float, rounds: int) -> float:
    """Balle and Wang 2018 (1805.06530), theorem 8, solved for the noise."""

    def excess(z):
        mu = math.sqrt(rounds) / z
        tail = math.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))
        return norm.cdf(mu / 2 - epsilon / mu) - tail - DELTA

    return brentq(excess, 1e-2, 1e4, xtol=1e-12)


@pytest.mark.parametrize(
    ("epsilon", "rounds"), [pytest.param(10.0, 100, marks=pytest.mark.slow), (0.5, 1)]
)
def test_without_sampling_the_noise_is_the_analytic_gaussians_from_above(epsilon, rounds):
    found = gaussian_noise_multiplier(
        epsilon, sampling_probability=1.0, rounds=rounds, delta=DELTA, tolerance=0.01
    )
    exact = analytic_noise(epsilon, rounds)
    assert exact <= found <= 1.012 * exact


@pytest.mark.slow
def test_both_directions_agree_under_sampling_and_renyi_accounting_asks_for_more():
    run = {"sampling_probability": 0.01, "rounds": 100, "delta": DELTA}
    # numbers.md, "Accounting": q = 0.01, noise 1, 100 rounds give epsilon 0.718.
    found = gaussian_noise_multiplier(0.718, tolerance=0.01, **run)
    assert found == pytest.approx(1.0, rel=0.011)
    assert gaussian_epsilon(found, 0.01, 100, DELTA) <= 0.718
    assert gaussian_epsilon(found / 1.01, 0.01, 100, DELTA) > 0.718
    # numbers.md: a privacy loss distribution saves 6 to 16 % of the noise; here it is more.
    loose = least_noise(lambda z: gaussian_rdp_epsilon(z, 0.01, 100, DELTA), 0.718)
    assert 1.06 * found < loose < 1.4 * found


def test_no_round_at_all_has_no_noise_to_find():
    with pytest.raises(ConfigError, match="rounds = 0"):
        gaussian_noise_multiplier(1.0, sampling_probability=1.0, rounds=0, delta=DELTA)


# The whole policy


@pytest.mark.parametrize(
    ("changes", "against"),
    [
        ({"rounds": 20}, "server"),
        pytest.param(
            {"unit": "example", "sampling_probability": 0.1, "rounds": 3},
            "fellow_client",
            marks=pytest.mark.slow,
        ),
        ({"mechanism": "local", "unit": "example", "local_steps": 2, "rounds": 3}, "release"),
    ],
    ids=["client", "example", "local"],
)
def test_the_policy_found_states_at_most_the_target_and_less_noise_states_more(changes, against):
    target, cohort, dimension = 4.0, 10, 3000
    found = calibrated_policy(
        policy(**changes), target,
        cohort_size=cohort, dimension=dimension, against=against, tolerance=0.1,
    )  # fmt: skip

    def stated(noise):
        candidate = policy(**changes | {"noise_multiplier": noise})
        plan = plan_round(candidate, cohort_size=cohort, dimension=dimension)
        return guarantee(candidate, plan, cohort_size=cohort, against=against).epsilon

    assert stated(found.noise_multiplier) <= target < stated(found.noise_multiplier / 1.1)
    assert found == policy(**changes | {"noise_multiplier": found.noise_multiplier})


def test_out_of_reach_is_said_for_a_whole_policy_too():
    # Sums in the clear: nothing holds against the server, whatever the noise.
    with pytest.raises(ConfigError, match=r"epsilon = 1\.0: not reached"):
        calibrated_policy(policy(), 1.0, cohort_size=10, dimension=10, plaintext=True)
    # A delta below the probability that rounding exceeds the sensitivity.
    with pytest.raises(ConfigError, match="not reached"):
        calibrated_policy(policy(delta=1e-25), 5.0, cohort_size=10, dimension=10, tolerance=0.1)
    with pytest.raises(ConfigError, match="mechanism = 'none'"):
        calibrated_policy(
            policy(mechanism="none", noise_multiplier=0.0), 1.0, cohort_size=10, dimension=10
        )
