import itertools
import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from securefed.crypto.prg import SeededNoiseGeneratorForTests
from securefed.encoding.fixed_point import bits_needed, from_ring
from securefed.encoding.rotation import Rotation
from securefed.engines.settings import _room_for
from securefed.errors import ConfigError, OverflowBoundError
from securefed.federation.update_codec import UpdateCodec
from securefed.privacy import mechanisms
from securefed.privacy.clipping import L2Clip
from securefed.privacy.mechanisms import ROUNDING_FAILURE, plan_round, rounded_sensitivity
from securefed.privacy.policy import CohortBounds, PrivacyPolicy
from securefed.privacy.samplers import DiscreteGaussian, stochastic_round

SEED = bytes(range(32))


def policy(**changes) -> PrivacyPolicy:
    return PrivacyPolicy(**({"clip_norm": 1.0, "noise_multiplier": 1.0} | changes))


def seeded(seed: int) -> SeededNoiseGeneratorForTests:
    return SeededNoiseGeneratorForTests(seed)


# Sensitivity: the bound itself, against exact probabilities


def exact_failure(v: np.ndarray, bound: float) -> float:
    """P(|stochastic rounding of v| > bound), over all 2^p outcomes."""
    low, fraction = np.floor(v), v - np.floor(v)
    failure = 0.0
    for ups in itertools.product((0, 1), repeat=len(v)):
        up = np.array(ups)
        if np.sum((low + up) ** 2) > bound**2:
            failure += float(np.prod(np.where(up == 1, fraction, 1 - fraction)))
    return failure


def equal_failure(value: float, padded: int, square: float) -> float:
    """P(|D|^2 > square) where all p coordinates of v are ``value``: a binomial tail."""
    low, fraction = math.floor(value), value - math.floor(value)
    # |D|^2 = p low^2 + m (2 low + 1), with m ~ Bin(p, fraction) coordinates rounded up.
    most = math.floor((square - padded * low**2) / (2 * low + 1))
    return float(binom.sf(most, padded, fraction))


@settings(max_examples=150, deadline=None)
@given(
    v=st.lists(st.floats(-4, 4), min_size=1, max_size=7).map(np.array),
    beta=st.sampled_from([math.exp(-0.5), 0.1, 1e-2, 1e-4, ROUNDING_FAILURE]),
)
def test_no_small_vector_exceeds_the_bound_more_often_than_beta(v, beta):
    bound = rounded_sensitivity(float(np.linalg.norm(v)), len(v), beta)
    assert exact_failure(v, bound) <= beta * (1 + 1e-9)


@pytest.mark.parametrize("beta", [math.exp(-0.5), 1e-2, 1e-6, 2.0**-40, ROUNDING_FAILURE])
@pytest.mark.parametrize("padded", [1, 3, 64, 4096, 32_768, 1_003_520])
def test_no_even_vector_exceeds_the_bound_more_often_than_beta(padded, beta):
    """Equal coordinates: every fraction from far below 1/p up to 1/2, beside every whole part."""
    fractions = [0.5, 0.25, 0.1, 0.01, 1e-4, 1 / padded, 0.1 / padded, 0.9]
    for low, fraction in itertools.product((0, 1, 5, 1000), fractions):
        value = low + min(fraction, 0.999)
        bound = rounded_sensitivity(value * math.sqrt(padded), padded, beta)
        assert equal_failure(value, padded, bound**2) <= beta


def test_a_smaller_bound_would_be_exceeded():
    """K alone fails almost always, without a tail half the time, with half a tail too often."""
    value, padded, beta = 2.5, 4096, 1e-3
    norm = value * math.sqrt(padded)
    assert equal_failure(value, padded, norm**2) > 0.999
    assert equal_failure(value, padded, norm**2 + padded / 4) > 0.4
    tail = rounded_sensitivity(norm, padded, beta) ** 2 - norm**2 - padded / 4
    assert equal_failure(value, padded, norm**2 + padded / 4 + tail / 2) > 10 * beta
    assert equal_failure(value, padded, norm**2 + padded / 4 + tail) <= beta


def test_the_bound_is_far_below_the_one_without_probability():
    # 300^2 + 32768/4 + sqrt(160 ln 2) (300 + sqrt(32768)/2) = 319.85^2; 300 + sqrt(32768) = 481.0
    assert rounded_sensitivity(300.0, 32_768) == pytest.approx(319.85, abs=0.01)
    assert rounded_sensitivity(1e6, 1) == pytest.approx(1e6, rel=1e-4)


# Sensitivity: the code that rounds, under common coins


@settings(max_examples=200, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(st.integers(-(2**40), 2**40), st.integers(-(2**24), 2**24)), min_size=1
    ),
    seed=st.integers(0, 2**32),
)
def test_at_common_coins_a_difference_is_a_rounding_of_the_difference(pairs, seed):
    """Whatever the others add: floor(y + v + u) - floor(y + u) is v rounded down or up."""
    unit = 2.0**-20  # sums of such multiples are exact in float64
    y = np.array([a for a, _ in pairs]) * unit
    v = np.array([b for _, b in pairs]) * unit
    moved = stochastic_round(y + v, seeded(seed)) - stochastic_round(y, seeded(seed))
    assert np.all((moved == np.floor(v)) | (moved == np.ceil(v)))


def adversarial_units(norm: float, padded: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Directions that an adversary would try, each of the given norm in grid units."""
    spike = np.zeros(padded)
    spike[rng.integers(padded)] = 1.0
    few = np.zeros(padded)
    few[rng.permutation(padded)[: max(1, padded // 50)]] = 1.0
    signs = rng.choice([-1.0, 1.0], padded)
    halves = signs * (rng.integers(0, 2, padded) + 0.5)
    tiny = np.full(padded, 1e-3)
    tiny[0] = 1.0
    gaussian = rng.normal(size=padded)
    return [x * (norm / np.linalg.norm(x)) for x in (spike, few, signs, halves, tiny, gaussian)]


@pytest.mark.parametrize(("norm", "padded"), [(1.5, 1), (3.0, 4), (20.0, 64), (300.0, 32_768)])
def test_a_search_finds_no_pair_of_neighbours_beyond_the_bound(norm, padded):
    rng = np.random.default_rng(padded)
    bound, beyond_norm, worst, trials = rounded_sensitivity(norm, padded), 0, 0.0, 0
    for seed in range(30 if padded > 1000 else 250):
        near = rng.integers(-(10**6), 10**6, padded) + 1e-9 * rng.normal(size=padded)
        others = [rng.normal(0, 1e3, padded), near, np.full(padded, 0.5), np.zeros(padded)]
        for v in adversarial_units(norm, padded, rng):
            y = others[seed % len(others)]
            moved = stochastic_round(y + v, seeded(seed)) - stochastic_round(y, seeded(seed))
            found = float(np.linalg.norm(moved))
            worst, trials = max(worst, found), trials + 1
            beyond_norm += found > norm * (1 + 1e-12)
    assert worst <= bound
    assert beyond_norm > trials / 10  # K + 0 would not do


def test_with_fresh_coins_the_bound_would_not_hold():
    """Why neighbours are compared at common coins: rounding the same sum twice moves it further."""
    y = np.full(8192, 0.5)
    v = np.zeros(8192)
    v[0] = 1.0
    moved = stochastic_round(y + v, seeded(1)) - stochastic_round(y, seeded(2))
    assert np.linalg.norm(moved) > rounded_sensitivity(1.0, 8192)


@pytest.mark.parametrize("dimension", [1, 2, 5, 700, 5000])
@pytest.mark.parametrize("unit", ["client", "example", "user"])
def test_one_unit_moves_the_encoded_integers_by_at_most_the_sensitivity(unit, dimension):
    """The whole path, floats included: clip, sum, rotate, scale, round, add noise, reduce."""
    rows = 40
    settings_ = policy(unit=unit, max_examples=rows, clip_norm=0.3, sampling_probability=0.9)
    # Few bits: a coarse grid, where rounding weighs most.
    plan = plan_round(settings_, cohort_size=4, dimension=dimension, bits=20)
    codec = UpdateCodec(settings_, plan, SEED)
    rotation = Rotation(dimension, SEED)
    rng = np.random.default_rng(dimension)
    norms = []
    for seed in range(24):
        directions = adversarial_units(plan.clip_units, plan.padded, rng)
        # Undo the rotation, so that what is rounded has the adversary's shape.
        target = rotation.inverse(directions[seed % 6]) * plan.resolution * (1e6 if seed % 2 else 1)
        if unit == "client":
            pair = [codec.encode_update(x, seeded(seed)) for x in (target, np.zeros(dimension))]
        else:
            data = rng.normal(size=(rows, dimension)) * 10.0 ** rng.integers(-4, 4, (rows, 1))
            data[seed] = target
            without = data.copy()
            without[seed] = 0.0
            pair = [codec.encode_examples(x, seeded(seed)) for x in (data, without)]
        moved = from_ring(pair[0] - pair[1], plan.bits)
        norms.append(float(np.linalg.norm(moved)))
    assert max(norms) <= plan.sensitivity
    # The search is a search: it comes close, and K alone is exceeded where there is room for it.
    assert max(norms) >= 0.97 * plan.clip_units
    if plan.padded >= 500:
        assert max(norms) > plan.clip_units


# The plan


@settings(max_examples=300, deadline=None)
@given(
    size=st.integers(2, 400),
    examples=st.integers(1, 2000),
    dimension=st.sampled_from([1, 7, 4096, 300_000, 10_000_000]),
    z=st.floats(0.05, 50),
    clip_norm=st.floats(1e-6, 1e6),
    unit=st.sampled_from(["client", "example", "user"]),
    mechanism=st.sampled_from(["distributed", "none"]),
    bits=st.sampled_from(["auto", 20, 24, 28, 31, 32]),
)
def test_any_accepted_plan_is_safe(size, examples, dimension, z, clip_norm, unit, mechanism, bits):
    settings_ = policy(
        unit=unit,
        mechanism=mechanism,
        noise_multiplier=z if mechanism == "distributed" else 0.0,
        clip_norm=clip_norm,
        max_examples=examples,
        corrupt_fraction=0.1,
        dropout_fraction=0.2,
    )
    try:
        plan = plan_round(settings_, cohort_size=size, dimension=dimension, bits=bits)
    except OverflowBoundError:
        return
    honest = CohortBounds.of(settings_, size).honest_floor
    rows = 1 if unit == "client" else examples
    assert plan.max_examples == rows
    # Every contribution on one coordinate, every rounding up, and the noise's tail.
    worst = size * (rows * plan.clip_units + 1) + 12 * plan.local_std * math.sqrt(size)
    assert worst <= plan.sum_bound * (1 + 1e-12)
    assert plan.sum_bound < 2 ** (plan.bits - 1)
    assert 20 <= plan.bits <= 32
    assert plan.bits == (bits_needed(plan.sum_bound) if bits == "auto" else bits)
    assert plan.clip_units * plan.resolution == pytest.approx(clip_norm, rel=1e-12)
    assert plan.clip_units >= 1
    assert plan.sensitivity >= plan.clip_units
    if mechanism == "none":
        assert plan.local_std == plan.honest_std == 0.0
        return
    assert 64 <= plan.local_std <= 2**15 * (1 + 1e-12)
    assert plan.honest_std * plan.resolution == pytest.approx(z * clip_norm, rel=1e-12)
    assert plan.honest_std == pytest.approx(plan.local_std * math.sqrt(honest), rel=1e-12)


@pytest.mark.parametrize("rows", [1, 3, 50])
@pytest.mark.parametrize("size", [2, 5, 9])
@pytest.mark.parametrize("bits", ["auto", 20, 25, 32])
def test_clients_that_all_push_one_coordinate_do_not_wrap_the_ring(size, rows, bits):
    """Without noise, a hand-set ring is filled to its last steps."""
    settings_ = policy(
        unit="example",
        mechanism="none",
        noise_multiplier=0.0,
        max_examples=rows,
        corrupt_fraction=0.0,
        dropout_fraction=0.0,
    )
    plan = plan_round(settings_, cohort_size=size, dimension=8, bits=bits)
    codec = UpdateCodec(settings_, plan, SEED)
    for sign in (1.0, -1.0):
        spike = np.zeros(8)
        spike[3] = 1e9 * sign
        pushed = np.tile(Rotation(8, SEED).inverse(spike), (rows, 1))
        total = np.zeros(plan.padded, dtype=np.uint32)
        for client in range(size):
            total += codec.encode_examples(pushed, seeded(client))
        integers = from_ring(total & np.uint32((1 << plan.bits) - 1), plan.bits)
        full = size * rows * plan.clip_units
        # Clipping aims 2^-25 inside the ball.
        assert abs(integers[3] - sign * full) <= size + full * 2.0**-24
        assert np.abs(np.delete(integers, 3)).max() <= size
        if bits not in ("auto", 32):
            assert abs(integers[3]) > 0.99 * 2 ** (bits - 1)


@pytest.mark.parametrize("bits", ["auto", 22, 32])
def test_noise_on_top_of_the_largest_sum_does_not_wrap_either(bits):
    settings_ = policy(unit="example", max_examples=4, noise_multiplier=2.0, clip_norm=3.0)
    plan = plan_round(settings_, cohort_size=6, dimension=512, bits=bits)
    codec = UpdateCodec(settings_, plan, SEED)
    spike = np.zeros(512)
    spike[100] = 1e9
    pushed = np.tile(Rotation(512, SEED).inverse(spike), (4, 1))
    total = np.zeros(plan.padded, dtype=np.uint32)
    for client in range(6):
        total += codec.encode_examples(pushed, seeded(client))
    integers = from_ring(total & np.uint32((1 << plan.bits) - 1), plan.bits)
    signal = np.zeros(512)
    signal[100] = 24 * plan.clip_units
    assert np.abs(integers - signal).max() <= 8 * plan.local_std * math.sqrt(6) + 6


def test_the_wrap_that_the_plan_prevents_is_real():
    """The same encoding in a ring of half the planned width gives another sum."""
    settings_ = policy(mechanism="none", noise_multiplier=0.0)
    plan = plan_round(settings_, cohort_size=4, dimension=8, bits=32)
    codec = UpdateCodec(settings_, plan, SEED)
    spike = np.zeros(8)
    spike[0] = 1.0
    total = sum(codec.encode_update(Rotation(8, SEED).inverse(spike), seeded(i)) for i in range(4))
    assert from_ring(total, plan.bits)[0] >= 3.9 * plan.clip_units
    assert from_ring(total, 25)[0] < plan.clip_units


@pytest.mark.parametrize(
    ("size", "examples", "bits"), [(20, 1_000_000, 24), (4, 10**9, "auto"), (1000, 1000, 20)]
)
def test_a_ring_without_room_is_refused_with_the_figures(size, examples, bits):
    settings_ = policy(unit="example", max_examples=examples)
    with pytest.raises(OverflowBoundError, match=f"{size} clients of up to {examples} units"):
        plan_round(settings_, cohort_size=size, dimension=100, bits=bits)


@pytest.mark.parametrize("bits", [0, 8, 19, 33, 64])
def test_a_width_that_the_ring_does_not_have_is_refused(bits):
    with pytest.raises(ConfigError, match=f"bits = {bits}"):
        plan_round(policy(), cohort_size=4, dimension=10, bits=bits)


@pytest.mark.parametrize("dimension", [0, -1])
def test_an_update_without_values_is_refused(dimension):
    with pytest.raises(OverflowBoundError, match=f"dimension = {dimension}"):
        plan_round(policy(), cohort_size=4, dimension=dimension)


def test_rounding_costs_little_of_the_sensitivity_at_real_sizes():
    """What a coarse grid would cost: the default scale keeps it below 1 %."""
    for size, dimension, z in ((4, 23_040, 0.6), (10, 10**6, 1.0), (100, 10**6, 1.0)):
        plan = plan_round(
            policy(noise_multiplier=z), cohort_size=size, dimension=dimension, bits="auto"
        )
        assert 1 < plan.sensitivity / plan.clip_units < 1.01


def test_the_stated_quantisation_error_is_one_step_a_coordinate():
    plan = plan_round(policy(), cohort_size=4, dimension=1000)
    assert plan.quantisation_error == pytest.approx(plan.resolution * math.sqrt(1024))


# Wrap-around


def test_the_wrap_probability_is_stated_in_closed_form_and_negligible():
    for size, dimension in ((2, 1), (10, 1000), (400, 10**6)):
        settings_ = policy(corrupt_fraction=0.0, dropout_fraction=0.0)
        plan = plan_round(settings_, cohort_size=size, dimension=dimension)
        assert plan.wrap_probability == plan.padded * (2.0**-102 + size * 2.0**-100)
        assert plan.wrap_probability < 2.0**-70
    quiet = policy(mechanism="none", noise_multiplier=0.0)
    assert plan_round(quiet, cohort_size=4, dimension=1000).wrap_probability == 0.0


def test_the_stated_tail_covers_both_kinds_of_noise_at_twelve_standard_deviations():
    """Chernoff's bounds at high precision, at the coarsest noise in use and at finer ones."""
    with mpmath.workdps(50):
        stated = mpmath.mpf(2) ** -102
        assert 2 * mpmath.exp(-72) < stated  # sub-Gaussian
        for std in (64, 1000, 2**15):
            m = 2 * mpmath.mpf(std) ** 2  # two clients at least
            t = mpmath.asinh(12 / mpmath.sqrt(m))
            exponent = 12 * mpmath.sqrt(m) * t - m * (mpmath.cosh(t) - 1)
            assert 2 * mpmath.exp(-exponent) < stated
        # The discrete Gaussian's own tail, summed up: below its bound.
        s = 64
        weights = [mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * s**2)) for k in range(20 * s)]
        total = weights[0] + 2 * mpmath.fsum(weights[1:])
        assert 2 * mpmath.fsum(weights[12 * s + 1 :]) / total < stated


def test_a_ring_with_room_for_two_standard_deviations_does_wrap(monkeypatch):
    """What the twelve are for: the same noise in a ring sized for two leaves it now and then."""
    settings_ = policy(noise_multiplier=1000.0, corrupt_fraction=0.0, dropout_fraction=0.0)
    counted = {}
    for tail in (2.0, 12.0):
        monkeypatch.setattr(mechanisms, "_NOISE_TAIL", tail)
        plan = plan_round(settings_, cohort_size=100, dimension=512, bits=20)
        codec = UpdateCodec(settings_, plan, SEED)
        ring = sum(codec.encode_update(np.zeros(512), seeded(i)) for i in range(100))
        opened = from_ring(ring & np.uint32((1 << plan.bits) - 1), plan.bits)
        noise, coins = DiscreteGaussian(plan.local_std), [seeded(i) for i in range(100)]
        for generator in coins:
            generator.uint64(512)  # what rounding took
        exact = sum(noise.sample(512, generator) for generator in coins)
        counted[tail] = int((opened != exact).sum())
    assert counted[12.0] == 0
    assert counted[2.0] > 5  # 18 are expected


# Slack for float arithmetic


def test_the_grain_of_the_coins_and_the_floats_are_in_the_sensitivity():
    """At K = sqrt(p) / 2 the grain is one unit in the last place of the bound, and more of K's."""
    settings_ = policy(mechanism="none", noise_multiplier=0.0, dropout_fraction=0.0)
    plan = plan_round(settings_, cohort_size=1000, dimension=10**6, bits=20)
    k, p = plan.clip_units, plan.padded
    with mpmath.workdps(50):
        moved = L2Clip(1.0).float_slack(1, 4096) * k + mpmath.mpf(2) ** -52 * mpmath.sqrt(p)

        def exactly(longest):
            tail = mpmath.sqrt(160 * mpmath.log(2)) * (longest + mpmath.sqrt(p) / 2)
            return mpmath.sqrt(longest**2 + mpmath.mpf(p) / 4 + tail)

        assert plan.sensitivity > exactly(k + moved)
    assert plan.sensitivity == (1 + 2.0**-50) * rounded_sensitivity(
        k * (1 + L2Clip(1.0).float_slack(1, 4096)) + 2.0**-52 * math.sqrt(p), p
    )
    assert plan.sensitivity != (1 + 2.0**-50) * rounded_sensitivity(k, p)


@pytest.mark.parametrize("clip_units", [1.0, 3.7, 300.0, 4096.3, 2.0**24])
@pytest.mark.parametrize("padded", [1, 512, 5120, 1_003_520])
def test_float64_evaluates_the_bound_to_within_what_it_is_enlarged_by(clip_units, padded):
    with mpmath.workdps(50):
        for beta in (ROUNDING_FAILURE, math.exp(-0.5)):
            tail = mpmath.sqrt(2 * mpmath.log(1 / mpmath.mpf(beta)))
            square = mpmath.mpf(clip_units) ** 2 + mpmath.mpf(padded) / 4
            square += tail * (mpmath.mpf(clip_units) + mpmath.sqrt(padded) / 2)
            found = rounded_sensitivity(clip_units, padded, beta)
            assert abs(found / mpmath.sqrt(square) - 1) < mpmath.mpf(2) ** -51


@pytest.mark.parametrize(("examples", "q"), [(100, 0.16), (100, 0.01), (5000, 0.002), (40, 0.9)])
def test_slack_is_for_more_rows_than_a_poisson_sample_has_but_once_in_2_to_the_128(examples, q):
    room = _room_for(examples, q)
    assert binom.logsf(2 * room + 1, examples, q) <= -128 * math.log(2)
    settings_ = policy(unit="example", max_examples=room, sampling_probability=q)
    plan = plan_round(settings_, cohort_size=4, dimension=100)
    slack = L2Clip(1.0).float_slack(2 * room + 1, 4096)
    assert plan.sensitivity >= rounded_sensitivity(plan.clip_units * (1 + slack), plan.padded)
