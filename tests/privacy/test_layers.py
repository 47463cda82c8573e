"""Layers of noise: exact telescoping, and what each adversary is told that is left."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from securefed.crypto.prg import NoiseGenerator, SeededNoiseGeneratorForTests, system_random
from securefed.errors import ConfigError, LocalProtocolError, OverflowBoundError
from securefed.privacy.accounting import guarantee
from securefed.privacy.layers import layer_noise, removable_stds
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.pld import distributed_epsilon
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.privacy.rdp import discrete_gaussian_rdp_epsilon

CASES = [
    (n, gamma, delta)
    for n in (4, 9, 20, 100, 199)
    for gamma, delta in ((0.0, 0.25), (0.1, 0.3), (0.2, 0.2), (0.33, 0.3))
]


def policy(**changes) -> PrivacyPolicy:
    base = {"clip_norm": 1.0, "noise_multiplier": 1.0, "remove_excess_noise": True, "rounds": 5}
    return PrivacyPolicy(**(base | changes))


def made(n, gamma, delta, **changes):
    chosen = policy(corrupt_fraction=gamma, dropout_fraction=delta, **changes)
    return chosen, plan_round(chosen, cohort_size=n, dimension=50), CohortBounds.of(chosen, n)


@pytest.mark.parametrize(("n", "gamma", "delta"), CASES)
def test_honest_survivors_retain_the_target_variance_whatever_the_dropout(n, gamma, delta):
    _, plan, bounds = made(n, gamma, delta)
    assert len(plan.removable_stds) == bounds.most_missing
    for missing in range(bounds.most_missing + 1):
        honest = n - missing - bounds.corrupt
        retained = honest * plan.retained_std(missing) ** 2
        assert retained == pytest.approx(plan.honest_std**2, rel=1e-12)
        # The same in fractions: it is the algebra, not the rounding, that makes it equal.
        exact = Fraction(1, n - bounds.corrupt)
        for k in range(1, missing + 1):
            m = n - k - bounds.corrupt
            exact += Fraction(1, m * (m + 1))
        assert honest * exact == 1
    assert plan.retained_std(bounds.most_missing) == pytest.approx(plan.local_std, rel=1e-12)
    assert list(plan.removable_stds) == sorted(plan.removable_stds)
    assert all(std >= 4 for std in plan.removable_stds)


@pytest.mark.parametrize(("n", "gamma", "delta"), CASES)
def test_the_noise_that_counts_is_the_least_over_all_dropouts(n, gamma, delta):
    _, plan, bounds = made(n, gamma, delta)
    sigma, c, most = plan.honest_std, bounds.corrupt, bounds.most_missing
    for known in {0, 1, c}:  # release, fellow client, server
        expected = min(
            sigma * math.sqrt((n - missing - known) / (n - missing - c))
            for missing in range(most + 1)
        )
        assert plan.noise_std(bounds.survivor_floor - known) == pytest.approx(expected, rel=1e-12)
    bare = replace(plan, removable_stds=())
    assert bare.noise_std(7) == bare.local_std * math.sqrt(7)


def test_removal_costs_nothing_against_the_server_and_is_not_hidden_from_the_others():
    with_, plan, _ = made(20, 0.1, 0.3)
    without = replace(with_, remove_excess_noise=False)
    bare = plan_round(without, cohort_size=20, dimension=50)
    # Scale and ring are the same; more draws may leave the ring.
    assert replace(plan, removable_stds=(), wrap_probability=bare.wrap_probability) == bare
    assert bare.wrap_probability < plan.wrap_probability < 2**-80
    told = {
        who: (
            guarantee(with_, plan, cohort_size=20, against=who),
            guarantee(without, bare, cohort_size=20, against=who),
        )
        for who in ("server", "release", "fellow_client")
    }
    ours, theirs = told["server"]
    assert ours.epsilon == pytest.approx(theirs.epsilon, rel=1e-9)
    assert "removed once the survivors are known" in ours.mechanism
    assert "removed" not in theirs.mechanism
    assert any("survivor list" in item for item in ours.assumptions)
    for who in ("release", "fellow_client"):
        ours, theirs = told[who]
        assert ours.epsilon > theirs.epsilon
    # Taking the sum of the fewest survivors for the worst case would promise the release too much.
    naive = distributed_epsilon(
        replace(plan, removable_stds=()), honest=14, sampling_probability=1.0, rounds=5, delta=1e-5
    )
    assert told["release"][0].epsilon > naive


def test_renyi_accounting_is_refused_for_layers():
    _, plan, _ = made(20, 0.1, 0.3)
    with pytest.raises(ConfigError, match="remove_excess_noise"):
        discrete_gaussian_rdp_epsilon(
            plan, honest=12, sampling_probability=1.0, rounds=1, delta=1e-5
        )


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"mechanism": "none", "noise_multiplier": 0.0}, "mechanism"),
        ({"mechanism": "central"}, "mechanism"),
        ({"mechanism": "local", "unit": "example"}, "mechanism"),
        ({"noise": "skellam"}, "noise"),
        ({"remove_excess_noise": 1}, "remove_excess_noise"),
    ],
)
def test_only_shares_of_discrete_gaussian_noise_have_layers(changes, field):
    with pytest.raises(ConfigError, match=f"^{field} = "):
        policy(**changes)


def test_a_layer_that_is_too_small_for_the_grid_is_refused():
    chosen = policy(noise_multiplier=1.05, corrupt_fraction=0.0, dropout_fraction=0.05)
    with pytest.raises(OverflowBoundError, match=r"smallest layer of noise 3\.\d+ grid steps"):
        plan_round(chosen, cohort_size=400, dimension=10, bits=20)
    plan_round(replace(chosen, remove_excess_noise=False), cohort_size=400, dimension=10, bits=20)


def test_a_layers_key_gives_its_noise_again_and_one_key_is_needed_for_each():
    keys = [bytes([k]) * 32 for k in range(3)]
    stds = removable_stds(500.0, CohortBounds(size=9, corrupt=1, survivor_floor=6))
    noise = layer_noise(stds, keys, 5000)
    np.testing.assert_array_equal(noise, layer_noise(stds, keys, 5000))
    parts = [layer_noise([std], [key], 5000) for std, key in zip(stds, keys, strict=True)]
    np.testing.assert_array_equal(noise, sum(parts))
    for std, part in zip(stds, parts, strict=True):
        assert np.var(part) == pytest.approx(std**2, rel=0.12)
    with pytest.raises(LocalProtocolError, match="2 keys for 3 layers"):
        layer_noise(stds, keys[:2], 10)


def test_a_generator_of_a_key_is_the_seeded_stream_and_as_secretive():
    key = (5).to_bytes(32, "big")
    found = NoiseGenerator.from_key(key).uint64(9)
    np.testing.assert_array_equal(found, SeededNoiseGeneratorForTests(5).uint64(9))
    assert (NoiseGenerator.from_key(system_random(32)).uint64(9) != found).all()
    with pytest.raises(ConfigError, match="31 bytes"):
        NoiseGenerator.from_key(key[1:])
