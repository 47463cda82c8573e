"""Rounds with cohorts of unlike size: one statement that is no smaller than their composition."""

import itertools
import math
from dataclasses import replace

import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution as pld

from securefed.config import share_of
from securefed.errors import ConfigError
from securefed.privacy.accounting import ADVERSARIES, guarantee
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.pld import effective_gaussian, gaussian_epsilon
from securefed.privacy.policy import PrivacyPolicy
from securefed.privacy.rdp import renyi_addition, skellam_curve
from securefed.privacy.unlike_rounds import (
    RoundKind,
    policy_of_members,
    unlike_epsilon,
    unlike_guarantee,
)

POLICY = PrivacyPolicy(
    clip_norm=1.0, noise_multiplier=4.0, unit="client", corrupt_fraction=0.1, dropout_fraction=0.25
)
SAMPLED = replace(POLICY, unit="example", sampling_probability=0.1, max_examples=8)
DELTA = 1e-5


def kind(members, *, policy=POLICY, cohort=120, bits=20, dimension=3000):
    own = policy_of_members(policy, members, cohort)
    plan = plan_round(own, cohort_size=members, dimension=dimension, bits=bits)
    return RoundKind(own, plan, members)


def figures(one, against="server"):
    """z_k and eta_k."""
    honest = {"server": one.bounds.honest_floor, "release": one.bounds.survivor_floor}[against]
    return effective_gaussian(one.plan, honest)


@pytest.mark.parametrize("against", ADVERSARIES)
@pytest.mark.parametrize(
    "policy",
    [
        POLICY,
        SAMPLED,
        replace(POLICY, noise="skellam"),
        replace(POLICY, mechanism="central"),
        replace(POLICY, mechanism="none", noise_multiplier=0.0),
        replace(SAMPLED, mechanism="local"),
    ],
    ids=["clients", "examples", "skellam", "central", "none", "local"],
)
def test_rounds_of_one_kind_have_the_statement_that_they_had(policy, against):
    one = kind(120, policy=policy)
    found = unlike_guarantee([one], against=against, rounds=7)
    usual = guarantee(policy, one.plan, cohort_size=120, against=against, rounds=7)
    assert found == replace(usual, assumptions=found.assumptions)
    assert set(usual.assumptions) < set(found.assumptions)


@pytest.mark.parametrize("against", ADVERSARIES)
@pytest.mark.parametrize("noise", ["discrete_gaussian", "skellam"])
def test_the_statement_is_no_smaller_than_that_of_any_kind(noise, against):
    policy = replace(POLICY, noise=noise)
    kinds = [kind(members, policy=policy) for members in (120, 60, 25)]
    together = unlike_guarantee(kinds, against=against, rounds=9)
    alone = [unlike_guarantee([one], against=against, rounds=9).epsilon for one in kinds]
    assert together.epsilon >= max(alone)
    assert len(set(alone)) >= 2  # or there is nothing to compare
    assert "rounds of 25 clients: distributed" in together.mechanism


@pytest.mark.parametrize("counts", [(4, 0), (0, 4), (2, 3), (5, 1)])
def test_clients_rounds_of_two_kinds_composed_exactly_cost_no_more(counts):
    """T Gaussian mechanisms without sampling are one: the squares of 1 / z_k add up."""
    kinds = [kind(120), kind(25)]
    zs = [figures(one)[0] for one in kinds]
    assert abs(zs[0] - zs[1]) > 1e-4
    exact = math.sqrt(sum(count / z**2 for count, z in zip(counts, zs, strict=True)))
    stated = unlike_epsilon(kinds, against="server", rounds=sum(counts), delta=DELTA)
    assert stated >= gaussian_epsilon(1.0 / exact, 1.0, 1, DELTA)


def sampled_pld(z, q):
    return pld.from_gaussian_mechanism(
        standard_deviation=z,
        value_discretization_interval=1e-3,
        pessimistic_estimate=False,
        sampling_prob=q,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


def test_sampled_rounds_of_two_kinds_composed_exactly_cost_no_more():
    """Kinds as far apart as against the release: others' noise beyond the floor counts there."""
    kinds = [kind(120, policy=SAMPLED), kind(25, policy=SAMPLED)]
    (big, _), (small, _) = (figures(one, "release") for one in kinds)
    assert small > 1.05 * big
    exact = sampled_pld(big, 0.1).self_compose(3).compose(sampled_pld(small, 0.1).self_compose(5))
    stated = unlike_epsilon(kinds, against="release", rounds=8, delta=DELTA)
    assert stated >= exact.get_epsilon_for_delta(DELTA)
    # Counted as if all were of the kinder kind, it would be less than what was spent.
    assert sampled_pld(small, 0.1).self_compose(8).get_epsilon_for_delta(DELTA) < (
        exact.get_epsilon_for_delta(DELTA)
    )


@pytest.mark.parametrize("counts", [(4, 0), (0, 4), (2, 3)])
def test_skellam_rounds_of_two_kinds_composed_exactly_cost_no_more(counts):
    policy = replace(POLICY, noise="skellam")
    kinds = [kind(120, policy=policy), kind(25, policy=policy)]
    curves = [skellam_curve(one.plan, one.bounds.honest_floor, 1.0) for one in kinds]
    exact = curves[0].composed(counts[0]) + curves[1].composed(counts[1])
    stated = unlike_epsilon(kinds, against="server", rounds=sum(counts), delta=DELTA)
    assert stated >= exact.epsilon(DELTA)
    assert renyi_addition(kinds[0].plan, kinds[0].bounds.honest_floor) > 0.0


def test_the_worst_noise_and_the_worst_addition_may_be_of_different_kinds():
    """Then the larger of the kinds' own epsilons would be no bound."""
    quiet, coarse = kind(120), kind(25)
    quiet = replace(quiet, plan=replace(quiet.plan, rounding_failure=0.0))
    loud = replace(coarse.plan, sensitivity=coarse.plan.sensitivity / 1.5, rounding_failure=1e-10)
    coarse = replace(coarse, plan=loud)
    assert figures(quiet)[0] < figures(coarse)[0]
    assert figures(quiet)[1] < figures(coarse)[1]
    together = unlike_epsilon([quiet, coarse], against="server", rounds=8, delta=DELTA)
    alone = [
        unlike_epsilon([one], against="server", rounds=8, delta=DELTA) for one in (quiet, coarse)
    ]
    assert together > max(alone)


def test_under_skellam_noise_too_the_worst_addition_is_counted_with_the_worst_curve():
    policy = replace(POLICY, noise="skellam")
    quiet, coarse = kind(120, policy=policy), kind(25, policy=policy)
    quiet = replace(quiet, plan=replace(quiet.plan, rounding_failure=0.0))
    loud = replace(coarse.plan, sensitivity=coarse.plan.sensitivity / 3.0, rounding_failure=1e-8)
    coarse = replace(coarse, plan=loud)
    together = unlike_epsilon([quiet, coarse], against="server", rounds=8, delta=DELTA)
    alone = [
        unlike_epsilon([one], against="server", rounds=8, delta=DELTA) for one in (quiet, coarse)
    ]
    assert alone[0] > alone[1]
    assert together > alone[0]


def test_as_many_clients_are_corrupt_in_a_small_round_as_in_all_of_the_cohort():
    for cohort, fraction in itertools.product((6, 30, 41), (0.0, 0.05, 0.1, 1 / 3)):
        policy = replace(POLICY, corrupt_fraction=fraction)
        corrupt = share_of(fraction, cohort)
        assert policy_of_members(policy, cohort, cohort) is policy
        for members in range(corrupt + 1, cohort):
            own = policy_of_members(policy, members, cohort)
            assert share_of(own.corrupt_fraction, members) == corrupt
            assert replace(own, corrupt_fraction=fraction) == policy
    with pytest.raises(ConfigError, match="13 may be corrupt"):
        policy_of_members(replace(POLICY, corrupt_fraction=1 / 3), 13, 41)


def test_noise_that_is_correlated_over_rounds_is_refused():
    policy = PrivacyPolicy(
        clip_norm=1.0, noise_multiplier=1.0, unit="example", mechanism="central", separation=4
    )
    one = RoundKind(policy, plan_round(policy, cohort_size=6, dimension=10), 6)
    with pytest.raises(ConfigError, match="separation = 4"):
        unlike_guarantee([one], against="release", rounds=1)
