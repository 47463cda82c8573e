"""What a cohort can choose from, and what is refused before anything is encrypted."""

import pytest

from securefed.errors import ConfigError, OverflowBoundError
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.secagg.aggregations import (
    HomomorphicAggregation,
    PairwiseAggregation,
    PlaintextAggregation,
    check_removal,
)
from securefed.secagg.encryption import RoundEncryption

NOISED = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0, corrupt_fraction=0.0)


def planned(policy, size=10, dimension=1000, **choice):
    aggregation = HomomorphicAggregation(**choice)
    bits = aggregation.ring_bits(policy, cohort_size=size, dimension=dimension)
    plan = plan_round(policy, cohort_size=size, dimension=dimension, bits=bits)
    return aggregation.encryption(plan, CohortBounds.of(policy, size)), plan


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"scheme": "paillier"}, "scheme = 'paillier'"),
        ({"key_holder": "server"}, "key_holder = 'server'"),
        ({"key_holder": "cohort", "masked": True}, "which may be run by a member"),
        ({"scheme": "ckks", "masked": True}, "masks are modulo t"),
        ({"bits": 19}, "bits = 19"),
        ({"degree": 10}, "nothing is masked"),
        ({"sigma": 20}, "sigma = 20"),
    ],
)
def test_what_there_is_not_is_refused(choice, said):
    with pytest.raises(ConfigError, match=said):
        HomomorphicAggregation(**choice)


def test_every_client_holding_the_key_needs_that_none_helps_the_server():
    aggregation = HomomorphicAggregation(key_holder="cohort")
    with pytest.raises(ConfigError, match="2 corrupt clients of 20"):
        aggregation.parameters(CohortBounds(size=20, corrupt=2, survivor_floor=15))
    aggregation.parameters(CohortBounds(size=20, corrupt=0, survivor_floor=15))
    HomomorphicAggregation().parameters(CohortBounds(size=20, corrupt=2, survivor_floor=15))


def test_a_sum_without_noise_is_not_shown_to_who_opens_it_before_a_trusted_server_noises_it():
    central = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0, mechanism="central")
    with pytest.raises(ConfigError, match="would see it before the server adds noise"):
        planned(central)
    masked, _ = planned(central, masked=True)
    assert masked.masked


def test_ckks_takes_contributions_with_noise_only():
    for policy in (
        PrivacyPolicy(clip_norm=1.0, mechanism="none"),
        PrivacyPolicy(clip_norm=1.0, mechanism="none").without_noise(1.0),
    ):
        with pytest.raises(ConfigError, match="2020/1533"):
            planned(policy, scheme="ckks")
    planned(NOISED, scheme="ckks")


def test_three_values_share_a_slot_where_that_costs_less_than_two_percent_of_sensitivity():
    encryption, plan = planned(NOISED, size=100, dimension=1_000_000)
    assert (plan.bits, encryption.packing.fields) == (20, 3)
    assert plan.sensitivity <= 1.02 * plan.clip_units
    assert encryption.input_bytes / plan.padded < 8
    # A thousand clients leave 20 bits too coarse for as many coordinates.
    encryption, plan = planned(NOISED, size=1000, dimension=1_000_000)
    assert plan.bits > 20
    assert encryption.packing.fields == 2
    # Many examples a client leave the noise few grid steps: its shape would then cost delta.
    crowded = PrivacyPolicy(
        clip_norm=1.0, noise_multiplier=0.6, unit="example", max_examples=100, corrupt_fraction=0.0
    )
    encryption, plan = planned(crowded, size=8, dimension=100)
    assert plan.honest_std >= 1024
    assert plan_round(crowded, cohort_size=8, dimension=100, bits=20).honest_std < 1024
    wide, _ = planned(NOISED, size=100, dimension=1_000_000, bits=24)
    assert wide.packing.fields == 2


def test_the_same_ring_and_noise_as_on_the_pairwise_path():
    encryption, plan = planned(NOISED)
    pairwise = plan_round(NOISED, cohort_size=10, dimension=1000, bits=plan.bits)
    assert plan == pairwise
    assert encryption.sum_bound == plan.sum_bound
    assert encryption.length == plan.padded


def test_what_does_not_fit_is_refused_with_the_bound():
    common = dict(
        key_holder="decryptor", masked=False, clients=100, length=10, bits=32, noise_std=100.0
    )
    with pytest.raises(OverflowBoundError, match="sum_bound = 2147483648"):
        RoundEncryption(scheme="ckks", sum_bound=1 << 31, value_bound=2**31 - 1, **common)
    with pytest.raises(OverflowBoundError, match="most that decrypts correctly for certain"):
        RoundEncryption(
            scheme="bfv", sum_bound=1 << 40, value_bound=2**31 - 1, **common | {"clients": 50_000}
        )
    with pytest.raises(OverflowBoundError, match="the check slot's sum would reach"):
        RoundEncryption(
            scheme="bfv",
            sum_bound=1 << 40,
            value_bound=2**31 - 1,
            **common | {"length": 1 << 40, "clients": 30_000},
        )


def test_noise_is_removed_in_masked_rounds_only():
    bounds = CohortBounds(size=10, corrupt=0, survivor_floor=8)
    for aggregation, said in (
        (HomomorphicAggregation(), "masked = False"),
        (PlaintextAggregation(), "plaintext"),
    ):
        with pytest.raises(ConfigError, match=said):
            check_removal(aggregation, bounds)
    check_removal(HomomorphicAggregation(masked=True), bounds)
    check_removal(PairwiseAggregation(), bounds)
