"""Each addition to delta is charged, by every accountant and in every reading.

A run is so long that one addition alone uses half of delta up.  With that addition taken away (the
plan's rounding failure set to 0, one coordinate instead of many) the same run has an epsilon: so
each of them is really there, and none hides another.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from securefed.privacy.accounting import ADVERSARIES, guarantee
from securefed.privacy.mechanisms import ROUNDING_FAILURE, plan_round
from securefed.privacy.pld import distributed_epsilon, gaussian_epsilon
from securefed.privacy.policy import PrivacyPolicy
from securefed.privacy.rdp import discrete_gaussian_rdp_epsilon, skellam_epsilon
from securefed.privacy.samplers import STATISTICAL_DISTANCE

HONEST = 10
MANY = 2**20
DELTA = 2.0**-40
ACCOUNTANTS = [distributed_epsilon, discrete_gaussian_rdp_epsilon, skellam_epsilon]


def plan_of(*, padded, rounding_failure):
    """Noise so fine that its shape adds nothing, and epsilon near 1 over ``rounds`` rounds."""
    plan = plan_round(
        PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0), cohort_size=13, dimension=1
    )
    return replace(
        plan,
        padded=padded,
        rounding_failure=rounding_failure,
        local_std=1e9,
        sensitivity=1.0,
    )


def epsilon(accountant, plan, rounds):
    # Noise over sensitivity such that the run costs the same whatever its length.
    plan = replace(plan, sensitivity=plan.local_std * math.sqrt(HONEST / rounds) / 10.0)
    return accountant(plan, honest=HONEST, sampling_probability=1.0, rounds=rounds, delta=DELTA)


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_the_failure_of_the_rounding_bound_is_charged(accountant):
    rounds = int(DELTA / ROUNDING_FAILURE)  # (1 + e^epsilon) T beta > delta
    charged = plan_of(padded=1, rounding_failure=ROUNDING_FAILURE)
    assert epsilon(accountant, charged, rounds) == math.inf
    assert 0.1 < epsilon(accountant, replace(charged, rounding_failure=0.0), rounds) < 2.0
    # A thousandth of that run has room for it.
    assert 0.1 < epsilon(accountant, charged, rounds // 1000) < 2.0


@pytest.mark.parametrize("accountant", ACCOUNTANTS)
def test_the_samplers_own_distance_is_charged_for_every_honest_draw(accountant):
    rounds = int(DELTA / (HONEST * MANY * STATISTICAL_DISTANCE))
    charged = plan_of(padded=MANY, rounding_failure=0.0)
    assert epsilon(accountant, charged, rounds) == math.inf
    assert 0.1 < epsilon(accountant, replace(charged, padded=1), rounds) < 2.0
    # A tenth of the run still fails where one client's draws, or one coordinate's, would not.
    assert epsilon(accountant, charged, rounds // 3) == math.inf
    assert 0.1 < epsilon(accountant, charged, rounds // 1000) < 2.0


@pytest.mark.parametrize(
    ("noise", "mechanism"),
    [
        ("discrete_gaussian", "distributed"),
        ("discrete_gaussian", "central"),
        ("skellam", "distributed"),
    ],
)
def test_every_reading_is_charged(noise, mechanism):
    """Not only the server's: a plan with a large failure has no epsilon against anybody."""
    policy = PrivacyPolicy(clip_norm=1.0, noise_multiplier=4.0, mechanism=mechanism, noise=noise)
    plan = plan_round(policy, cohort_size=10, dimension=100)
    for against in ADVERSARIES:
        if mechanism == "central" and against == "server":
            continue  # nothing holds against it
        fair = guarantee(policy, plan, cohort_size=10, against=against)
        assert fair.epsilon < 2.0
        failing = replace(plan, rounding_failure=1e-5)
        assert guarantee(policy, failing, cohort_size=10, against=against).epsilon == math.inf


def test_the_additions_are_those_of_the_hybrid_argument_to_the_last_digit():
    """(1 + e^epsilon) T (eta + beta) <= delta (1 - share): one round less is allowed, one more not.

    The edge of a share, with the addition known in closed form.
    """
    failure = 1e-12
    plan = plan_of(padded=1, rounding_failure=failure)
    plan = replace(plan, sensitivity=1e-3 * plan.local_std)  # z = 1000 sqrt(10): epsilon is 0
    run = {"honest": HONEST, "sampling_probability": 1.0, "rounds": 1}
    assert gaussian_epsilon(1000.0 * math.sqrt(HONEST), 1.0, 1, 1e-3) == 0.0
    # At epsilon = 0 half of delta is left while 2 beta <= delta / 2.
    assert distributed_epsilon(plan, delta=4.0 * failure * 0.999, **run) == math.inf
    assert distributed_epsilon(plan, delta=4.0 * failure * 1.001, **run) < 0.1


def test_a_smaller_probability_of_being_sampled_costs_no_more_in_either_direction():
    """The Poisson sampler keeps with floor(q 2^53) / 2^53 <= q; accounting uses q.

    The hockey-stick divergences of (1 - q) N(0) + q N(1) and N(0), both ways round:
    they grow with q, since with t = q' / q the mixture at q' is (1 - t) N(0) + t (mixture at q) and
    the divergence is jointly convex.
    """

    x = np.linspace(-9.0, 10.0, 200_001)
    none, one = (norm.pdf(x, m) for m in (0.0, 1.0))

    def divergences(q, epsilon):
        mixture = (1 - q) * none + q * one
        return [
            float(np.maximum(left - math.exp(epsilon) * right, 0).sum())
            for left, right in ((mixture, none), (none, mixture))
        ]

    for epsilon in (0.0, 0.1, 0.3):
        found = [divergences(q, epsilon) for q in (0.1, 0.2, 0.4, 0.8)]
        for direction in (0, 1):
            values = [pair[direction] for pair in found]
            assert values == sorted(values)
    # The grain itself: what the sampler really does is below what is stated.
    q = 0.1
    exact = math.floor(q * 2.0**53) / 2.0**53
    assert exact <= q
    # One grain of q moves epsilon by less than what is rounded in computing it.
    stated = gaussian_epsilon(1.0, q, 100, 1e-5)
    assert gaussian_epsilon(1.0, exact, 100, 1e-5) <= stated * (1 + 1e-9)
    by_q = [gaussian_epsilon(1.0, q, 100, 1e-5) for q in (0.0999, 0.1, 0.1001)]
    assert by_q == sorted(by_q)
