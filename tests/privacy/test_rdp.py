"""Renyi bounds against exact divergences, summed up over the integers at high precision."""

import functools
import itertools
import math
from dataclasses import replace
from functools import partial

import mpmath
import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mpf

from securefed.crypto.prg import SeededNoiseGeneratorForTests
from securefed.errors import ConfigError
from securefed.privacy.mechanisms import plan_round, rounded_sensitivity
from securefed.privacy.policy import PrivacyPolicy
from securefed.privacy.rdp import (
    INTEGER_ORDERS,
    REAL_ORDERS,
    RenyiCurve,
    amplified_divergence,
    discrete_gaussian_divergence,
    discrete_gaussian_rdp_epsilon,
    gaussian_divergence,
    gaussian_rdp_epsilon,
    rounded_l1_sensitivity,
    skellam_divergence,
    skellam_epsilon,
)
from securefed.privacy.samplers import stochastic_round

DELTA = 1e-5


@functools.cache
def skellam(variance, reach):
    """P(X = k), k = -reach..reach, from the Bessel function."""
    with mpmath.workdps(40):
        half = [mpmath.exp(-mpf(variance)) * mpmath.besseli(k, variance) for k in range(reach + 1)]
    return half[:0:-1] + half


def discrete_gaussian_sum(std, count, reach):
    """The distribution of a sum of discrete Gaussians, on -count * reach..count * reach."""
    half = [mpmath.exp(-(mpf(k) ** 2) / (2 * mpf(std) ** 2)) for k in range(reach + 1)]
    total = half[0] + 2 * mpmath.fsum(half[1:])
    one = [weight / total for weight in half[:0:-1] + half]
    whole = one
    for _ in range(count - 1):
        longer = [mpf(0)] * (len(whole) + len(one) - 1)
        for i, left in enumerate(whole):
            for j, right in enumerate(one):
                longer[i + j] += left * right
        whole = longer
    return whole


def divergence(pmf, shift, order, sampled=None):
    """D_order of the pmf moved by ``shift`` from itself; with sampling, the larger direction."""
    moved, base = [*pmf[shift:], *[mpf(0)] * shift], pmf
    pairs = [(a, b) for a, b in zip(moved, base, strict=True) if a > 0]
    if sampled is None:
        directions = [pairs]
    else:
        mixed = [((1 - sampled) * b + sampled * a, b) for a, b in pairs]
        directions = [mixed, [(b, a) for a, b in mixed]]
    sums = [mpmath.fsum(a**order * b ** (1 - order) for a, b in pairs) for pairs in directions]
    return float(max(mpmath.log(value) for value in sums) / (order - 1))


# Skellam


@pytest.mark.parametrize("variance", [0.25, 1, 5, 20, 100, 400])
def test_the_skellam_bound_holds_and_comes_close_as_the_noise_gets_finer(variance):
    with mpmath.workdps(40):
        pmf = skellam(variance, math.ceil(80 + 25 * math.sqrt(variance)))
        for shift, order in itertools.product((1, 2, 5), (2, 3, 8, 32)):
            exact = divergence(pmf, shift, order)
            stated = skellam_divergence(order, variance=variance, l1=shift, l2=shift)
            assert exact <= stated
            if 20 * order * shift <= variance:
                assert stated <= 1.03 * exact
            if 100 * order * shift <= variance:
                assert stated <= 1.01 * exact


def test_over_several_coordinates_the_skellam_bound_takes_both_norms():
    """A difference of (3, -1, 0, 2): divergences of independent coordinates add."""
    difference, variance = (3, 1, 0, 2), 60
    with mpmath.workdps(40):
        pmf = skellam(variance, 260)
        for order in (2, 5, 12):
            exact = sum(divergence(pmf, part, order) for part in difference)
            stated = skellam_divergence(
                order, variance=variance, l1=sum(difference), l2=math.sqrt(14)
            )
            assert exact <= stated <= 1.3 * exact


def test_the_skellam_bound_tends_to_the_gaussians():
    """The exact divergence may lie below a Gaussian's of equal variance; the bound never does."""
    with mpmath.workdps(40):
        assert divergence(skellam(100, 330), 1, 2) < gaussian_divergence(2, 10.0)
    # By hand: 1 + min(9 / 4, 3 / 2) and 1 / 20 + min(9 / 1600, 3 / 40).
    assert skellam_divergence(2, variance=1.0, l1=1, l2=1) == pytest.approx(2.5)
    assert skellam_divergence(2, variance=20.0, l1=1, l2=1) == pytest.approx(0.055625)
    fine = skellam_divergence(2, variance=1e8, l1=1e6, l2=1e4)
    assert fine == pytest.approx(gaussian_divergence(2, 1.0), rel=1e-3)


@pytest.mark.parametrize("order", [1, 1.5, 2.5, 0])
def test_skellam_has_no_bound_at_other_orders(order):
    with pytest.raises(ConfigError, match="order ="):
        skellam_divergence(order, variance=1.0, l1=1.0, l2=1.0)


# The sum of discrete Gaussians


@pytest.mark.parametrize(("std", "count"), [(0.5, 2), (0.5, 4), (0.75, 3), (1.0, 4), (2.0, 3)])
def test_the_bound_of_a_sum_of_discrete_gaussians_holds_and_is_close_where_they_are_fine(
    std, count
):
    with mpmath.workdps(40):
        pmf = discrete_gaussian_sum(std, count, math.ceil(12 * std) + 40)
        for shift, order in itertools.product((1, 2, 4), (1.25, 2, 6, 10)):
            exact = divergence(pmf, shift, order)
            stated = discrete_gaussian_divergence(
                order, local_std=std, summands=count, l2=shift, padded=1
            )
            assert exact <= stated * (1 + 1e-12)
            if std >= 1:
                assert stated <= 1.02 * exact


def test_many_coordinates_charge_the_sums_shape_as_often():
    arguments = {"local_std": 1.0, "l2": 10.0}
    one = discrete_gaussian_divergence(2, summands=4, padded=1, **arguments)
    many = discrete_gaussian_divergence(2, summands=4, padded=10**6, **arguments)
    assert many > 1.05 * one
    alone = discrete_gaussian_divergence(2, summands=1, padded=10**6, **arguments)
    assert alone == pytest.approx(gaussian_divergence(2, 0.1))


def test_the_terms_beyond_a_thousand_summands_are_not_left_out():
    exact = 10 * sum(math.exp(-2 * math.pi**2 * 0.25 * k / (k + 1)) for k in range(1, 3000))
    scaled = 1.0 / (math.sqrt(3000) * 0.5)
    found = discrete_gaussian_divergence(2, local_std=0.5, summands=3000, l2=1.0, padded=1)
    root = min(math.sqrt(scaled**2 + exact / 2), scaled + exact)
    assert root**2 <= found <= 1.02 * root**2


# Poisson sampling


@pytest.mark.parametrize("q", [0.01, 0.1, 0.5, 0.95])
@pytest.mark.parametrize(("variance", "shift"), [(9, 3), (100, 5), (4, 1)])
def test_the_bound_of_a_sampled_mechanism_holds_in_both_directions(q, variance, shift):
    with mpmath.workdps(40):
        pmf = skellam(variance, math.ceil(90 + 25 * math.sqrt(variance)))
        for order in (2, 3, 8):
            exact_own = {value: divergence(pmf, shift, value) for value in range(2, order + 1)}
            exact = divergence(pmf, shift, order, sampled=mpf(q))
            stated = amplified_divergence(order, q, exact_own.__getitem__)
            # At order 2 the bound is the divergence itself; the last bit is the processor's.
            assert exact <= stated * (1 + 1e-14)
            assert stated <= exact_own[order]
            # Loose by the factor 3 of its higher terms, and exact to first order at a = 2.
            assert stated <= (1.2 if order == 2 else 3.0) * exact
            bound = partial(skellam_divergence, variance=variance, l1=shift, l2=shift)
            assert amplified_divergence(order, q, bound) >= stated


def test_a_sample_of_everyone_is_no_sample():
    own = partial(gaussian_divergence, noise_multiplier=2.0)
    assert amplified_divergence(7, 1.0, own) == own(7)
    with pytest.raises(ConfigError, match=r"order = 2\.5"):
        amplified_divergence(2.5, 0.1, own)


@pytest.mark.parametrize(("z", "q"), [(1.0, 0.1), (0.7, 0.01)])
def test_the_exact_divergence_of_the_sampled_gaussian_lies_below_the_general_bound(z, q):
    own = partial(gaussian_divergence, noise_multiplier=z)
    with mpmath.workdps(30):
        for order in (2, 4, 6):

            def ratio(x, order=order):
                mixed = (1 - q) + q * mpmath.exp((2 * x - 1) / (2 * mpf(z) ** 2))
                return mpmath.npdf(x, 0, z) * mixed**order

            moment = mpmath.quad(ratio, [-30, -5, 0, 1, 5, 10, 30])
            exact = float(mpmath.log(moment) / (order - 1))
            stated = amplified_divergence(order, q, own)
            assert exact <= stated <= 3 * exact
            curve = RenyiCurve(np.array([float(order)]), np.array([exact]))
            event = dp_event.PoissonSampledDpEvent(q, dp_event.GaussianDpEvent(z))
            theirs = RdpAccountant([order]).compose(event, 10).get_epsilon(DELTA)
            assert curve.composed(10).epsilon(DELTA) == pytest.approx(theirs, rel=1e-9)


# L1 after rounding


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=60))
def test_every_integer_vector_obeys_the_l1_bound(values):
    difference = np.array(values)
    l2 = float(np.linalg.norm(difference))
    assert np.abs(difference).sum() <= rounded_l1_sensitivity(l2, len(values)) * (1 + 1e-12)


@pytest.mark.parametrize("difference", [[3, 3, 3, 3], [1, 0, -1, 0, 0, 1], [1], [7] * 5], ids=str)
def test_the_l1_bound_is_met(difference):
    l2 = math.sqrt(sum(part**2 for part in difference))
    found = rounded_l1_sensitivity(l2, len(difference))
    assert found == pytest.approx(sum(abs(part) for part in difference))


@given(st.integers(0, 2**32), st.floats(0.1, 30), st.sampled_from([1, 16, 256]))
@settings(max_examples=40, deadline=None)
def test_rounded_neighbours_under_common_coins_obey_both_norms(seed, length, padded):
    random = np.random.default_rng(seed)
    unit = random.standard_normal(padded) ** 3
    unit *= length / np.linalg.norm(unit)
    other = random.uniform(-100, 100, padded)
    first = stochastic_round(other + unit, SeededNoiseGeneratorForTests(seed))
    second = stochastic_round(other, SeededNoiseGeneratorForTests(seed))
    difference = first - second
    l2 = rounded_sensitivity(length, padded)
    assert np.linalg.norm(difference) <= l2
    assert np.abs(difference).sum() <= rounded_l1_sensitivity(l2, padded)


# Composition and conversion


def test_orders_are_sorted_and_without_repetition():
    for orders in (INTEGER_ORDERS, REAL_ORDERS):
        assert list(orders) == sorted(set(orders))
        assert orders[0] > 1
    assert all(order == int(order) for order in INTEGER_ORDERS)
    assert set(INTEGER_ORDERS) <= set(REAL_ORDERS)


def test_the_conversion_is_proposition_12_minimised_over_orders():
    curve = RenyiCurve.of(REAL_ORDERS, partial(gaussian_divergence, noise_multiplier=3.0))
    for delta in (1e-3, DELTA, 1e-9):
        with mpmath.workdps(30):
            each = [
                mpf(order) / 18 + mpmath.log(1 - 1 / mpf(order))
                - mpmath.log(order * mpf(delta)) / (order - 1)
                for order in REAL_ORDERS
            ]  # fmt: skip
        assert curve.epsilon(delta) == pytest.approx(float(min(each)), rel=1e-9)


def test_curves_add_as_rounds_do_and_refuse_other_orders():
    curve = RenyiCurve.of((2, 4, 8), partial(gaussian_divergence, noise_multiplier=2.0))
    assert (curve + curve).divergences.tolist() == curve.composed(2).divergences.tolist()
    assert curve.composed(0).epsilon(DELTA) == 0.0
    with pytest.raises(ConfigError, match="same orders"):
        curve + RenyiCurve.of((2, 4), lambda order: 1.0)
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigError, match="delta ="):
            curve.epsilon(delta)


# The distributed mechanisms


def plan_of(sensitivity, local_std, padded=1):
    settings = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0)
    plan = plan_round(settings, cohort_size=4, dimension=1)
    lengths = {"clip_units": 0.8 * sensitivity, "sensitivity": float(sensitivity)}
    return replace(plan, padded=padded, local_std=local_std, **lengths)


@pytest.mark.parametrize(
    ("local_std", "honest", "shift", "q", "rounds"),
    [(5.0, 4, 10, 1.0, 1), (8.0, 4, 8, 0.2, 2), (3.0, 9, 3, 1.0, 3), (4.0, 4, 8, 0.2, 1)],
)
def test_the_stated_skellam_epsilon_covers_the_integers_that_are_sent(
    local_std, honest, shift, q, rounds
):
    """An oracle without any Renyi divergence: the hockey-stick divergence, value by value."""
    variance, delta = honest * local_std**2, 1e-3
    stated = skellam_epsilon(
        plan_of(shift, local_std),
        honest=honest, sampling_probability=q, rounds=rounds, delta=delta,
    )  # fmt: skip
    with mpmath.workdps(30):
        reach = math.ceil(8 * math.sqrt(variance))
        pmf = np.array([float(p) for p in skellam(variance, reach)])
    absent = np.pad(pmf, shift)
    present = (1 - q) * absent + q * np.roll(absent, shift)
    left, right = np.ones(1), np.ones(1)
    for _ in range(rounds):
        left, right = np.outer(left, present).ravel(), np.outer(right, absent).ravel()

    def delta_at(epsilon):
        growth = math.exp(epsilon)
        return max(
            np.maximum(left - growth * right, 0).sum(), np.maximum(right - growth * left, 0).sum()
        )

    assert delta_at(stated) <= delta
    # Renyi accounting gives away a constant factor of delta, not an order of magnitude of epsilon.
    assert delta_at((0.5 if q == 1.0 else 0.3) * stated) > delta


def test_fine_skellam_noise_costs_what_the_discrete_gaussian_costs():
    settings = PrivacyPolicy(clip_norm=1.0, noise_multiplier=5.0)
    plan = plan_round(settings, cohort_size=100, dimension=65_536)
    run = {"honest": 65, "sampling_probability": 1.0, "rounds": 100, "delta": DELTA}
    ours, theirs = skellam_epsilon(plan, **run), discrete_gaussian_rdp_epsilon(plan, **run)
    assert theirs <= ours <= 1.01 * theirs


def test_what_rounding_and_samplers_add_to_delta_is_charged():
    run = {"honest": 3, "sampling_probability": 1.0}
    fine = plan_of(100.0, 1000.0, padded=2**20)
    for accountant in (skellam_epsilon, discrete_gaussian_rdp_epsilon):
        usual = accountant(fine, rounds=1, delta=DELTA, **run)
        curve_alone = gaussian_rdp_epsilon(1000 * math.sqrt(3) / 100, 1.0, 1, DELTA)
        assert curve_alone < usual <= 1.02 * curve_alone
        # A delta as small as the failure of the rounding bound leaves nothing.
        assert accountant(fine, rounds=1, delta=2.0**-81, **run) == math.inf
        assert accountant(fine, rounds=10**9, delta=DELTA, **run) == math.inf


@pytest.mark.parametrize("accountant", [skellam_epsilon, discrete_gaussian_rdp_epsilon])
def test_no_noise_and_no_honest_client_are_refused(accountant):
    run = {"sampling_probability": 1.0, "rounds": 1, "delta": DELTA}
    with pytest.raises(ConfigError, match=r"local_std = 0\.0"):
        accountant(plan_of(1.0, 0.0), honest=3, **run)
    with pytest.raises(ConfigError, match="honest = 0"):
        accountant(plan_of(1.0, 3.0), honest=0, **run)
