"""Skellam noise and a trusted server's noise, as choices of a policy."""

import copy
import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chi2

from securefed import PairwiseAggregation, PlaintextAggregation, secure_round
from securefed.crypto.identity import IdentityKey
from securefed.crypto.prg import SeededNoiseGeneratorForTests
from securefed.encoding.fixed_point import from_ring, to_ring
from securefed.encoding.rotation import Rotation
from securefed.engines.in_process import carry
from securefed.errors import ConfigError, LocalProtocolError
from securefed.federation.client import ClientRound
from securefed.federation.floors import ClientFloors
from securefed.federation.server import ServerRound
from securefed.federation.session import RoundSession
from securefed.federation.update_codec import UpdateCodec
from securefed.privacy.accounting import guarantee
from securefed.privacy.calibration import calibrated_policy
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.pld import gaussian_epsilon
from securefed.privacy.policy import PrivacyPolicy
from securefed.privacy.rdp import skellam_epsilon
from securefed.privacy.samplers import DiscreteGaussian, stochastic_round
from securefed.privacy.skellam import Skellam

SEED = bytes(range(32))
SIZE = 20
CENTRAL = PrivacyPolicy(clip_norm=2.0, noise_multiplier=1.5, mechanism="central")
SKELLAM = PrivacyPolicy(clip_norm=2.0, noise_multiplier=1.5, noise="skellam")


def codec_of(policy: PrivacyPolicy, dimension: int = 3000) -> UpdateCodec:
    return UpdateCodec(policy, plan_round(policy, cohort_size=SIZE, dimension=dimension), SEED)


@pytest.mark.parametrize("mechanism", ["central", "local", "none"])
def test_skellam_noise_is_for_sums_of_clients_noise_only(mechanism):
    with pytest.raises(ConfigError, match=r"noise = 'skellam': must be 'discrete_gaussian'"):
        PrivacyPolicy(
            clip_norm=1.0,
            noise_multiplier=0.0 if mechanism == "none" else 1.0,
            mechanism=mechanism,
            unit="example" if mechanism == "local" else "client",
            noise="skellam",
        )
    with pytest.raises(ConfigError, match="noise = 'poisson'"):
        PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0, noise="poisson")


@pytest.mark.parametrize("noise", ["skellam", "discrete_gaussian"])
def test_a_client_adds_the_noise_that_was_chosen_bit_for_bit(noise):
    codec = codec_of(replace(SKELLAM, noise=noise))
    update = np.random.default_rng(0).normal(size=3000) / 100
    encoded = codec.encode_update(update, SeededNoiseGeneratorForTests(7))
    generator = SeededNoiseGeneratorForTests(7)
    rotated = Rotation(3000, SEED).forward(update.astype(np.float64))
    integers = stochastic_round(rotated / codec.plan.resolution, generator)
    std = codec.plan.local_std
    sampler = Skellam(std**2) if noise == "skellam" else DiscreteGaussian(std)
    integers += sampler.sample(codec.plan.padded, generator)
    assert np.array_equal(encoded, to_ring(integers) & np.uint32(2**codec.plan.bits - 1))


def test_both_kinds_of_noise_are_planned_alike():
    plans = [codec_of(replace(SKELLAM, noise=noise)).plan for noise in ("skellam",)]
    assert plans[0] == codec_of(replace(SKELLAM, noise="discrete_gaussian")).plan


def test_skellam_noise_is_accounted_for_by_renyi_divergence_and_says_so():
    plan = plan_round(SKELLAM, cohort_size=SIZE, dimension=3000)
    found = guarantee(SKELLAM, plan, cohort_size=SIZE, rounds=10)
    honest = 20 - 5 - 2
    wanted = skellam_epsilon(
        plan, honest=honest, sampling_probability=1.0, rounds=10, delta=SKELLAM.delta
    )
    assert found.epsilon == wanted
    gaussian = guarantee(
        replace(SKELLAM, noise="discrete_gaussian"), plan, cohort_size=SIZE, rounds=10
    )
    assert gaussian.epsilon < found.epsilon < 1.2 * gaussian.epsilon
    assert "distributed Skellam" in found.mechanism
    assert "Renyi" in found.accountant
    assert "Renyi" not in gaussian.accountant


def test_with_central_noise_clients_add_none_and_the_server_all_of_it():
    codec = codec_of(CENTRAL)
    assert codec.plan.local_std == 0.0
    assert codec.plan.server_std == pytest.approx(1.5 * codec.plan.clip_units)
    update = np.random.default_rng(0).normal(size=3000) / 100
    generator = SeededNoiseGeneratorForTests(7)
    encoded = codec.encode_update(update, generator)
    rotated = Rotation(3000, SEED).forward(update.astype(np.float64)) / codec.plan.resolution
    assert np.abs(from_ring(encoded, codec.plan.bits) - rotated).max() < 1.0
    noised = codec.add_server_noise(encoded, generator)
    assert int(noised.max()) < 2**codec.plan.bits
    noise = codec.decode(noised) - codec.decode(encoded)
    # 3000 normal values of std z C = 3: their squares add up to a chi-square variable.
    low, high = chi2.ppf([1e-6, 1 - 1e-6], 3000)
    assert low < float(noise @ noise) / 3.0**2 < high


def test_other_mechanisms_add_nothing_at_the_server():
    codec = codec_of(SKELLAM)
    total = np.arange(codec.plan.padded, dtype=np.uint32)
    assert codec.add_server_noise(total, SeededNoiseGeneratorForTests(1)) is total


def central_session(names: tuple[str, ...], keys: dict[str, IdentityKey]) -> RoundSession:
    return RoundSession(
        session=bytes(16),
        round=1,
        cohort=names,
        roster={name: key.public for name, key in keys.items()},
        dimension=50,
        policy=CENTRAL,
        aggregation=PairwiseAggregation(),
        model=hashlib.sha256(b"nothing").digest(),
    )


def test_a_sum_is_noised_once_however_often_it_is_read():
    names = ("ann", "bob", "cyd", "dan")
    keys = {name: IdentityKey.generate() for name in names}
    session = central_session(names, keys)
    server = ServerRound(session)
    clients = {
        name: ClientRound(
            session, name, keys[name], lambda codec, g: codec.encode_update(np.zeros(50), g)
        )
        for name in names
    }
    carry(server, clients)
    first = server.sum
    assert np.linalg.norm(first) > 1.0  # noise of std 3 in each of 50 values
    # Two independent copies would average out to the sum itself.
    assert np.array_equal(server.sum, first)
    for attempt in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds a secret"):
            attempt(server)
    with pytest.raises(LocalProtocolError, match="mechanism = 'central'"):
        ClientFloors().check(session)
    ClientFloors(mechanisms=("central",)).check(session)


@pytest.mark.parametrize("aggregation", [PairwiseAggregation(), PlaintextAggregation()])
def test_central_noise_holds_against_the_release_and_not_against_the_server(aggregation):
    result = secure_round(
        {i: np.full(30, 0.1) for i in range(SIZE)}, privacy=CENTRAL, aggregation=aggregation
    )
    assert not result.guarantee.protected
    assert math.isinf(result.guarantees["server"].epsilon)
    for who in ("release", "fellow_client"):
        found = result.guarantees[who]
        ideal = gaussian_epsilon(1.5, 1.0, 1, CENTRAL.delta)
        assert ideal <= found.epsilon <= 1.02 * ideal
        assert "trusted with each sum before noise" in found.trust
        assert "central discrete Gaussian" in found.mechanism


def test_central_noise_does_not_shrink_when_clients_may_drop_or_collude():
    for change in ({}, {"dropout_fraction": 0.4, "corrupt_fraction": 0.3}):
        policy = replace(CENTRAL, **change)
        plan = plan_round(policy, cohort_size=SIZE, dimension=50)
        assert plan.honest_std == plan.server_std == pytest.approx(1.5 * plan.clip_units)


@pytest.mark.parametrize("policy", [CENTRAL, SKELLAM], ids=["central", "skellam"])
def test_noise_is_found_for_an_epsilon(policy):
    against = "release" if policy is CENTRAL else "server"
    wanted = replace(policy, rounds=20)
    found = calibrated_policy(wanted, 3.0, cohort_size=SIZE, dimension=50, against=against)
    plan = plan_round(found, cohort_size=SIZE, dimension=50)
    epsilon = guarantee(found, plan, cohort_size=SIZE, against=against).epsilon
    assert 0.98 * 3.0 < epsilon <= 3.0
