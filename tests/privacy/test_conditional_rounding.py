"""Rounding again until the result is short enough: always short, close to unbiased, for clients."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.crypto.prg import SeededNoiseGeneratorForTests
from securefed.encoding.fixed_point import from_ring
from securefed.errors import ConfigError, OverflowBoundError
from securefed.federation.update_codec import UpdateCodec
from securefed.privacy import conditional_rounding
from securefed.privacy.conditional_rounding import (
    MOST_TRIALS,
    TRIAL_FAILURE,
    conditional_round,
)
from securefed.privacy.mechanisms import ROUNDING_FAILURE, plan_round, rounded_sensitivity
from securefed.privacy.policy import PrivacyPolicy
from securefed.privacy.samplers import stochastic_round

SEED = bytes(range(32))


def seeded(seed: int) -> SeededNoiseGeneratorForTests:
    return SeededNoiseGeneratorForTests(seed)


def bound_of(v: np.ndarray) -> float:
    return rounded_sensitivity(float(np.linalg.norm(v)) * (1 + 1e-12), len(v), TRIAL_FAILURE)


def outcomes(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every way to round v, and its probability."""
    low, fraction = np.floor(v), v - np.floor(v)
    ups = np.array(list(itertools.product((0, 1), repeat=len(v))))
    return low + ups, np.prod(np.where(ups == 1, fraction, 1 - fraction), axis=1)


vectors = st.lists(st.floats(-6, 6), min_size=1, max_size=8).map(np.array)


@settings(max_examples=150, deadline=None)
@given(v=vectors, seed=st.integers(0, 2**32))
def test_a_result_is_a_rounding_and_never_longer_than_allowed(v, seed):
    longest = bound_of(v)
    z = conditional_round(v, longest, seeded(seed))
    assert z.dtype == np.int64
    assert np.all((z == np.floor(v)) | (z == np.ceil(v)))
    assert float(np.sum(z.astype(float) ** 2)) <= longest**2 * (1 + 1e-12)


@settings(max_examples=150, deadline=None)
@given(v=vectors)
def test_a_trial_fails_with_probability_below_beta_c_and_the_bias_is_below_one_step(v):
    """Exact, over all outcomes: the redrawn rounding's mean, trial limit included."""
    rounded, probability = outcomes(v)
    short = np.sum(rounded**2, axis=1) <= bound_of(v) ** 2
    failure = float(probability[~short].sum())
    assert failure <= TRIAL_FAILURE
    kept = probability[short] @ rounded[short] / probability[short].sum()
    mean = (1 - failure**MOST_TRIALS) * kept + failure**MOST_TRIALS * np.trunc(v)
    stated = math.sqrt(failure) / (2 * (1 - failure)) + failure**MOST_TRIALS * math.sqrt(len(v))
    assert np.linalg.norm(mean - v) <= stated + 1e-12
    assert stated < 1.0


def test_the_bound_on_the_bias_is_below_one_step_up_to_any_size_in_use():
    worst = math.sqrt(TRIAL_FAILURE) / (2 * (1 - TRIAL_FAILURE))
    assert worst + (TRIAL_FAILURE**MOST_TRIALS + 2.0**-53) * math.sqrt(2.0**31) < 1.0


def test_the_mean_of_many_draws_is_the_conditional_mean():
    v = np.array([0.5, 1.5, -0.25, 0.1, 2.5, -1.5])
    longest = float(np.linalg.norm(v)) + 0.2  # so short that most trials fail
    rounded, probability = outcomes(v)
    short = np.sum(rounded**2, axis=1) <= longest**2
    assert 0.3 < probability[~short].sum() < 0.9
    kept = probability[short] @ rounded[short] / probability[short].sum()
    generator = seeded(5)
    mean = np.mean([conditional_round(v, longest, generator) for _ in range(4000)], axis=0)
    np.testing.assert_allclose(mean, kept, atol=6 * 0.5 / math.sqrt(4000))
    assert np.abs(kept - v).max() > 0.1  # a rejection that shows


def test_every_trial_takes_fresh_words_and_the_first_short_one_is_kept():
    v = np.full(400, 0.5)
    longest = math.sqrt(np.sum(v)) - 0.2  # about two in three trials are longer
    found = conditional_round(v, longest, seeded(3))
    generator, trials = seeded(3), 0
    for trials in itertools.count(1):  # noqa: B007
        rounded = stochastic_round(v, generator)
        if rounded @ rounded <= longest**2:
            break
    assert trials > 1
    np.testing.assert_array_equal(found, rounded)


def test_when_all_trials_fail_values_are_rounded_towards_zero(monkeypatch):
    drawn = []

    def counted(values, generator):
        drawn.append(generator)
        return stochastic_round(values, generator)

    monkeypatch.setattr(conditional_rounding, "stochastic_round", counted)
    v = np.full(4096, 0.5)
    v[0] = -7.75
    longest = float(np.linalg.norm(v))  # 2048 ups are expected, 1084 are allowed
    found = conditional_round(v, longest, seeded(1))
    np.testing.assert_array_equal(found, np.trunc(v))
    assert len(drawn) == MOST_TRIALS
    assert math.exp(-0.5) ** MOST_TRIALS < 2.0**-46


def test_the_length_is_compared_in_integers():
    """A square that float64 cannot tell from its neighbour: 2^27 squared, and one more."""
    v = np.array([2.0**27, 1.0])
    exactly = math.sqrt(2.0**54 + 1)  # is 2^27 in float64
    assert exactly == 2.0**27
    with pytest.raises(ConfigError, match="longer than"):
        conditional_round(v, exactly, seeded(0))
    longest = float(np.nextafter(2.0**27, math.inf))
    assert conditional_round(v, longest, seeded(0)).tolist() == [2**27, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf, 2.0**31, -(2.0**51), 1e300])
def test_a_value_whose_square_does_not_fit_is_refused(value):
    with pytest.raises(OverflowBoundError, match=r"2\^31"):
        conditional_round(np.array([0.0, value]), 1e10, seeded(0))


@pytest.mark.parametrize("values", [np.zeros(3, dtype=np.float32), np.zeros((2, 2))])
def test_another_type_or_shape_is_refused(values):
    with pytest.raises(ConfigError, match="float64"):
        conditional_round(values, 1.0, seeded(0))


def test_zeros_stay_zeros_and_no_values_none():
    assert not conditional_round(np.zeros(50), 0.0, seeded(0)).any()
    assert conditional_round(np.empty(0), 0.0, seeded(0)).shape == (0,)


# In the plan and in the codec


def codec_of(rounding: str, dimension: int, size: int) -> UpdateCodec:
    """A ring of 20 bits that many clients share: a coarse grid, where rounding weighs most."""
    policy = PrivacyPolicy(clip_norm=1.0, mechanism="none", rounding=rounding)
    plan = plan_round(policy, cohort_size=size, dimension=dimension, bits=20)
    return UpdateCodec(policy, plan, SEED)


def lengths(codec: UpdateCodec, update: np.ndarray, count: int) -> np.ndarray:
    return np.array(
        [
            np.linalg.norm(from_ring(codec.encode_update(update, seeded(i)), codec.plan.bits))
            for i in range(count)
        ]
    )


def test_the_codec_enforces_the_plans_sensitivity_and_without_it_the_bound_breaks():
    """The same plan with a codec that does not round again: some updates are longer."""
    redrawn = codec_of("conditional", 20, 30_000)
    usual = codec_of("unconditional", 20, 30_000)
    # Long enough to be clipped, so that the norm is K = 17.5 grid steps.
    update = np.random.default_rng(2).normal(size=20) * 100
    count, most = 400, redrawn.plan.sensitivity
    assert lengths(redrawn, update, count).max() <= most
    assert lengths(usual, update, count).max() > most


def test_the_plan_charges_no_failure_and_bounds_more_tightly():
    for size, dimension in ((10, 1000), (100, 10**6)):
        for mechanism, noise in (("distributed", "skellam"), ("central", "discrete_gaussian")):
            policy = PrivacyPolicy(
                clip_norm=1.0, noise_multiplier=1.0, mechanism=mechanism, noise=noise
            )
            usual, redrawn = (
                plan_round(
                    PrivacyPolicy(**(vars(policy) | {"rounding": how})),
                    cohort_size=size,
                    dimension=dimension,
                )
                for how in ("unconditional", "conditional")
            )
            assert (usual.rounding_failure, redrawn.rounding_failure) == (ROUNDING_FAILURE, 0.0)
            assert usual.clip_units == redrawn.clip_units
            assert redrawn.clip_units < redrawn.sensitivity < usual.sensitivity


@pytest.mark.parametrize(
    ("clip_units", "padded", "usual", "redrawn"),
    [
        (4096.0, 4096, 1.00135, 1.00015),
        (4096.0, 24_576, 1.00149, 1.00031),
        (16_000.0, 10**6, 1.00083, 1.00052),
        (300.0, 32_768, 1.06617, 1.0466),
    ],
)
def test_what_conditional_rounding_gains(clip_units, padded, usual, redrawn):
    """Sensitivity over K, at the default scale and on a coarse grid."""
    found = [rounded_sensitivity(clip_units, padded, b) for b in (ROUNDING_FAILURE, TRIAL_FAILURE)]
    assert [round(f / clip_units, 5) for f in found] == pytest.approx([usual, redrawn], abs=2e-5)
