"""An adversary that sees 10^5 sums never beats the stated epsilon; with half the noise it does.

It knows everything but the generators: the clip, the rotation, the plan, both data sets.  The event
is fixed before any draw (where the likelihood ratio of the ideal Gaussian exceeds e^epsilon), so
nothing is selected on the draws and the interval is exact.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from securefed.crypto.prg import NoiseGenerator, SeededNoiseGeneratorForTests
from securefed.encoding.fixed_point import from_ring, to_ring
from securefed.encoding.rotation import Rotation
from securefed.federation.update_codec import UpdateCodec
from securefed.privacy.accounting import guarantee
from securefed.privacy.clipping import L2Clip
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.pld import gaussian_epsilon
from securefed.privacy.policy import PrivacyPolicy
from securefed.privacy.rdp import skellam_epsilon
from securefed.privacy.samplers import DiscreteGaussian, poisson_sample, stochastic_round
from securefed.privacy.skellam import Skellam

ROUNDS = 100_000
CONFIDENCE = 0.999
CLIENTS = 3
DIMENSION = 2
SEED = bytes(range(32))
TARGET = np.array([3.0, -1.0])  # clipped to norm 1


def policy_of(unit, z, q, delta):
    return PrivacyPolicy(
        clip_norm=1.0,
        noise_multiplier=z,
        delta=delta,
        unit=unit,
        sampling_probability=q,
        corrupt_fraction=0.0,
        dropout_fraction=0.0,
        max_examples=1,
    )


def sums(policy, plan, present, generator, *, noise="gaussian"):
    """The opened sums of as many rounds as ``present`` has rows, decoded; one client has data.

    What UpdateCodec does for one round, over all rounds at once, by the same parts of the package.

    Args:
        present: int or bool[rounds], how many of the target's clipped vectors are in that round's
            sum.
        noise: "gaussian" for the discrete Gaussian, or "skellam" of the same variance.
    """
    sampler = (
        DiscreteGaussian(plan.local_std) if noise == "gaussian" else Skellam(plan.local_std**2)
    )
    rotation = Rotation(plan.dimension, SEED)
    image = rotation.forward(L2Clip(policy.clip_norm).clip(TARGET)) / plan.resolution
    total = np.zeros((len(present), plan.padded), dtype=np.uint32)
    for client in range(CLIENTS):
        holds = present.astype(float) if client == 0 else np.zeros(len(present))
        integers = stochastic_round(holds[:, None] * image, generator)
        integers += sampler.sample(integers.size, generator).reshape(integers.shape)
        total += to_ring(integers) & np.uint32((1 << plan.bits) - 1)
    return from_ring(total, plan.bits)


def lower_bound(policy, plan, delta, *, noise, generator, drawn_with=None, records=1):
    """A bound below the true epsilon with confidence 99.9 %, by counting one event.

    Args:
        drawn_with: the plan that the clients really use, if it is not the stated one.
        records: how many the target has, if each is drawn and clipped by itself.
    """
    used = drawn_with or plan
    absent = np.zeros(ROUNDS, dtype=np.int64)
    kept = poisson_sample(ROUNDS * records, policy.sampling_probability, generator)
    present = np.bincount(kept // records, minlength=ROUNDS)
    rotation = Rotation(plan.dimension, SEED)
    image = rotation.forward(L2Clip(1.0).clip(TARGET)) / plan.resolution
    std = used.local_std * math.sqrt(CLIENTS)
    length = float(np.linalg.norm(image))
    mu, q = length / std, policy.sampling_probability
    # (1 - q) + q exp(mu x - mu^2 / 2) > e^epsilon, for x the sum along the target over the std.
    ideal = gaussian_epsilon(policy.noise_multiplier, q, 1, delta)
    threshold = (math.log((math.expm1(ideal) + q) / q) + mu**2 / 2) / mu
    events = [
        int((sums(policy, used, world, generator, noise=noise) @ image > threshold * std * length)
            .sum())
        for world in (absent, present)
    ]  # fmt: skip
    # Two one-sided bounds of Clopper and Pearson, each failing half as often.
    fail = (1.0 - CONFIDENCE) / 2
    often = stats.beta.ppf(1 - fail, events[0] + 1, ROUNDS - events[0])
    rarely = stats.beta.ppf(fail, events[1], ROUNDS - events[1] + 1) if events[1] else 0.0
    return math.log((rarely - delta) / often) if rarely > delta else 0.0


CASES = [
    ("client", 1.0, 1.0, 0.05, "gaussian", 0.85),
    ("example", 0.7, 0.4, 0.05, "gaussian", 0.7),
    ("client", 1.0, 1.0, 0.05, "skellam", 0.6),
]


@pytest.mark.parametrize(("unit", "z", "q", "delta", "noise", "power"), CASES)
def test_no_epsilon_is_beaten_and_half_the_noise_is_found_out(unit, z, q, delta, noise, power):
    policy = policy_of(unit, z, q, delta)
    plan = plan_round(policy, cohort_size=CLIENTS, dimension=DIMENSION)
    if noise == "gaussian":
        stated = guarantee(policy, plan, cohort_size=CLIENTS).epsilon
    else:
        stated = skellam_epsilon(
            plan, honest=CLIENTS, sampling_probability=q, rounds=1, delta=delta
        )
    halved = replace(plan, local_std=plan.local_std / 2)
    generator = NoiseGenerator()
    arguments = {"noise": noise, "generator": generator}
    fair = lower_bound(policy, plan, delta, **arguments)
    caught = lower_bound(policy, plan, delta, drawn_with=halved, **arguments)
    # A sound mechanism fails the first line once in a thousand runs at most; the test's power is
    # in the other two: a bound close to the truth, and noise that is short found out.
    assert fair <= stated
    assert fair >= power * stated
    assert caught > stated


def test_a_user_s_records_are_found_out_where_each_is_clipped_by_itself_and_not_as_one():
    """The user has five records that say the same; their mean, clipped, is the one vector."""
    policy = replace(policy_of("user", 1.0, 0.4, 0.05), max_examples=5)
    plan = plan_round(policy, cohort_size=CLIENTS, dimension=DIMENSION)
    stated = guarantee(policy, plan, cohort_size=CLIENTS).epsilon
    arguments = {"noise": "gaussian", "generator": NoiseGenerator()}
    as_one = lower_bound(policy, plan, 0.05, **arguments)
    assert 0.7 * stated <= as_one <= stated
    assert lower_bound(policy, plan, 0.05, records=5, **arguments) > stated


@pytest.mark.parametrize("target", [True, False])
def test_one_of_the_rounds_above_is_what_the_codec_sends(target):
    """Word for word, from the same generator: client by client and then decoded."""
    policy = policy_of("client", 1.0, 1.0, 0.05)
    plan = plan_round(policy, cohort_size=CLIENTS, dimension=DIMENSION)
    codec = UpdateCodec(policy, plan, SEED)
    generator = SeededNoiseGeneratorForTests(5)
    total = np.zeros(plan.padded, dtype=np.uint32)
    for client in range(CLIENTS):
        update = TARGET if client == 0 and target else np.zeros(DIMENSION)
        total += codec.encode_update(update, generator)
    found = sums(policy, plan, np.array([target]), SeededNoiseGeneratorForTests(5))
    assert found.tolist() == [from_ring(total, plan.bits).tolist()]
    decoded = codec.decode(total)
    image = Rotation(plan.dimension, SEED).inverse(found[0] * plan.resolution)
    assert decoded.tolist() == image.tolist()
