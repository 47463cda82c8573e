import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, chisquare, norm

from securefed.crypto.prg import NoiseGenerator, SeededNoiseGeneratorForTests
from securefed.encoding.fixed_point import from_ring, to_ring
from securefed.encoding.rotation import Rotation
from securefed.errors import ConfigError
from securefed.federation.update_codec import UpdateCodec
from securefed.privacy.accounting import guarantee
from securefed.privacy.clipping import L2Clip
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.policy import PrivacyPolicy
from securefed.privacy.samplers import DiscreteGaussian, poisson_sample, stochastic_round

SEED = bytes(range(32))


def seeded(seed: int) -> SeededNoiseGeneratorForTests:
    return SeededNoiseGeneratorForTests(seed)


def codec_of(dimension: int, *, size: int = 4, bits="auto", **changes) -> UpdateCodec:
    base = {"clip_norm": 1.0, "noise_multiplier": 1.0}
    if changes.get("mechanism") == "none":
        base["noise_multiplier"] = 0.0
    policy = PrivacyPolicy(**(base | changes))
    plan = plan_round(policy, cohort_size=size, dimension=dimension, bits=bits)
    return UpdateCodec(policy, plan, SEED)


def clipped(vector: np.ndarray, bound: float) -> np.ndarray:
    exact = vector.astype(np.float64)
    return exact * min(1.0, bound / max(float(np.linalg.norm(exact)), 1e-300))


# Round trip


@settings(max_examples=60, deadline=None)
@given(
    dimension=st.integers(1, 600),
    clip_norm=st.sampled_from([1e-6, 0.1, 1.0, 1e4]),
    scale=st.sampled_from([0.0, 1e-9, 0.01, 1.0, 1e20]),
    bits=st.sampled_from(["auto", 20, 27, 32]),
    seed=st.integers(0, 2**32),
)
def test_without_noise_a_sum_comes_back_within_one_grid_step_a_value_and_client(
    dimension, clip_norm, scale, bits, seed
):
    codec = codec_of(dimension, mechanism="none", clip_norm=clip_norm, bits=bits)
    rng = np.random.default_rng(seed)
    updates = [(rng.normal(size=dimension) * scale).astype(np.float32) for _ in range(4)]
    total = np.zeros(codec.plan.padded, dtype=np.uint32)
    for i, update in enumerate(updates):
        encoded = codec.encode_update(update, seeded(seed + i))
        assert encoded.dtype == np.uint32
        assert encoded.shape == (codec.plan.padded,)
        assert int(encoded.max()) < 2**codec.plan.bits
        total += encoded
    wanted = sum(clipped(update, clip_norm) for update in updates)
    error = np.linalg.norm(codec.decode(total) - wanted)
    assert error <= 4 * codec.plan.quantisation_error + 1e-6 * clip_norm


def test_with_noise_a_sum_comes_back_with_noise_of_the_stated_size():
    codec = codec_of(8000, noise_multiplier=0.8, clip_norm=5.0)
    update = np.random.default_rng(0).normal(size=8000)
    decoded = codec.decode(codec.encode_update(update, seeded(1)))
    noise = decoded - clipped(update, 5.0)
    expected = codec.plan.local_std * codec.plan.resolution
    # The variance of 8000 draws is within 1 +- 0.1 but once in 10^9 times.
    assert np.var(noise) == pytest.approx(expected**2, rel=0.1)
    assert abs(noise.mean()) < 6 * expected / math.sqrt(8000)


def test_values_are_rounded_without_bias():
    """A value far below one grid step survives in the mean of many rounds."""
    codec = codec_of(1, mechanism="none", bits=20)
    value = 0.2 * codec.plan.resolution
    rounds = [
        codec.decode(codec.encode_update(np.array([value]), seeded(i)))[0] for i in range(900)
    ]
    mean = np.mean(rounds) / codec.plan.resolution
    assert 0 < abs(mean) < 1
    assert mean == pytest.approx(0.2, abs=6 * 0.4 / 30)


def test_an_outsized_update_counts_as_one_of_norm_c():
    codec = codec_of(300, mechanism="none")
    for scale in (1.0, 1e6, 1e30, 1e300):
        update = np.full(300, scale)
        decoded = codec.decode(codec.encode_update(update, seeded(3)))
        assert np.linalg.norm(decoded) == pytest.approx(1.0, abs=1e-5)
        np.testing.assert_allclose(decoded, 1 / math.sqrt(300), atol=1e-5)


def test_parties_with_another_rotation_do_not_read_each_other():
    codec = codec_of(512, mechanism="none")
    update = clipped(np.random.default_rng(8).normal(size=512), 1.0)
    encoded = codec.encode_update(update, seeded(0))
    other = UpdateCodec(codec.policy, codec.plan, bytes(32))
    np.testing.assert_allclose(codec.decode(encoded), update, atol=1e-5)
    assert np.linalg.norm(other.decode(encoded) - update) > 1.0


# Examples


def counted(codec: UpdateCodec, rows: np.ndarray, generator: NoiseGenerator) -> int:
    """How many rows of one value 1 were sampled, read off a sum without noise."""
    return round(float(codec.decode(codec.encode_examples(rows, generator))[0]))


def test_rows_are_sampled_by_the_secret_generator_and_by_nothing_else():
    codec = codec_of(
        1, mechanism="none", unit="example", max_examples=500, sampling_probability=0.3
    )
    rows = np.ones((500, 1))
    np.random.seed(0)  # a global seed must have no influence
    first = [counted(codec, rows, seeded(7)) for _ in range(3)]
    np.random.seed(1)
    assert [counted(codec, rows, seeded(7)) for _ in range(3)] == first == [first[0]] * 3
    assert len({counted(codec, rows, seeded(i)) for i in range(20)}) > 5
    assert len({counted(codec, rows, NoiseGenerator()) for _ in range(20)}) > 5


def test_the_number_of_sampled_rows_is_binomial():
    codec = codec_of(
        1, mechanism="none", unit="example", max_examples=40, sampling_probability=0.25
    )
    rows = np.ones((40, 1))
    generator = seeded(11)
    counts = np.array([counted(codec, rows, generator) for _ in range(1200)])
    edges = [6, 7, 8, 9, 10, 11, 12, 13]
    cells = np.digitize(counts, edges, right=True)
    expected = np.diff([0.0, *binom.cdf(edges, 40, 0.25), 1.0]) * 1200
    assert chisquare(np.bincount(cells, minlength=9), expected).pvalue > 1e-6


def test_each_row_is_clipped_before_the_sum():
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(6, 200)).astype(np.float32) * np.geomspace(0.001, 1e6, 6)[:, None]
    codec = codec_of(200, mechanism="none", unit="example", max_examples=6, clip_norm=0.5)
    wanted = sum(clipped(row, 0.5) for row in rows)
    streamed = L2Clip(0.5).clip_rows(rows[:3]) + L2Clip(0.5).clip_rows(rows[3:])
    for encoded in (
        codec.encode_examples(rows, seeded(0)),
        codec.encode_clipped_sum(streamed, seeded(0)),
    ):
        np.testing.assert_allclose(codec.decode(encoded), wanted, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_counts_as_zeros(value):
    codec = codec_of(20, mechanism="none", unit="example", max_examples=3)
    rows = np.full((3, 20), 0.01)
    rows[1, 4] = value
    decoded = codec.decode(codec.encode_examples(rows, seeded(0)))
    np.testing.assert_allclose(decoded, 0.02, atol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_or_a_clipped_sum_that_is_not_finite_counts_as_zeros_and_its_owner_is_told(value):
    """A refusal would show, outside the noise, that this client's training failed."""
    vector = np.full(8, 0.123456789)
    vector[3] = value
    by_client = codec_of(8)
    by_example = codec_of(8, unit="example", max_examples=3)
    for codec, encode in (
        (by_client, by_client.encode_update),
        (by_example, by_example.encode_clipped_sum),
    ):
        told: list[str] = []
        found = encode(vector, seeded(5), on_zeroed=told.append)
        np.testing.assert_array_equal(found, encode(np.zeros(8), seeded(5)))
        assert len(told) == 1
        assert "not finite" in told[0]
        assert "0.123456789" not in told[0]
        np.testing.assert_array_equal(encode(vector, seeded(5)), found)
        noise = from_ring(found, codec.plan.bits)
        assert noise.any()


def test_an_owner_is_told_how_many_sampled_rows_counted_as_zeros_and_nothing_where_none_did():
    codec = codec_of(4, unit="example", max_examples=5)
    rows = np.full((5, 4), 0.1)
    told: list[str] = []
    codec.encode_examples(rows, seeded(0), on_zeroed=told.append)
    codec.encode_clipped_sum(rows.sum(axis=0), seeded(0), on_zeroed=told.append)
    codec_of(4).encode_update(rows[0], seeded(0), on_zeroed=told.append)
    assert told == []
    rows[[1, 3]] = np.nan
    codec.encode_examples(rows, seeded(0), on_zeroed=told.append)
    assert told == ["2 sampled examples are not finite: they count as zeros"]
    users = codec_of(4, unit="user", max_examples=5)
    users.encode_examples(rows, seeded(0), on_zeroed=told.append)
    users.encode_clipped_sum(rows.sum(axis=0), seeded(0), on_zeroed=told.append)
    assert told[1] == "2 sampled users are not finite: they count as zeros"
    assert told[2].endswith("clip each user")


def noise_is_the_discrete_gaussian(integers: np.ndarray, std: float) -> bool:
    """Sixty cells of equal probability; at std > 100 the integers fill them to within 10^-3."""
    inner = norm.ppf(np.arange(1, 60) / 60) * std
    observed = np.bincount(np.digitize(integers, inner), minlength=60)
    # Cells hold whole integers: their exact share, not 1/60.
    bounds = np.concatenate([[-np.inf], np.ceil(inner) - 0.5, [np.inf]])
    expected = np.diff(norm.cdf(bounds / std)) * integers.size
    return bool(chisquare(observed, expected).pvalue > 1e-6)


@pytest.mark.parametrize("rows", [0, 5])
def test_an_empty_sample_still_carries_all_of_its_noise(rows):
    codec = codec_of(60_000, unit="example", max_examples=5, sampling_probability=1e-15)
    encoded = codec.encode_examples(np.ones((rows, 60_000), dtype=np.float32), seeded(5))
    integers = from_ring(encoded, codec.plan.bits)
    assert noise_is_the_discrete_gaussian(integers, codec.plan.local_std)
    assert not noise_is_the_discrete_gaussian(integers, 1.05 * codec.plan.local_std)
    assert not noise_is_the_discrete_gaussian(integers // 2, codec.plan.local_std)


def test_noise_is_fresh_for_every_encoding():
    codec = codec_of(2000)
    generator = seeded(0)
    update = np.zeros(2000)
    first, second = (
        from_ring(codec.encode_update(update, generator), codec.plan.bits) for _ in range(2)
    )
    correlation = np.corrcoef(first, second)[0, 1]
    assert abs(correlation) < 6 / math.sqrt(2000)
    assert noise_is_the_discrete_gaussian(first - second, codec.plan.local_std * math.sqrt(2))


# Refusals


def test_more_rows_than_agreed_are_refused():
    codec = codec_of(3, unit="example", max_examples=4)
    codec.encode_examples(np.zeros((4, 3)), seeded(0))
    with pytest.raises(ConfigError, match="5 examples: at most max_examples = 4"):
        codec.encode_examples(np.zeros((5, 3)), seeded(0))


@pytest.mark.parametrize("shape", [(7,), (9,), (1, 8), (8, 1), ()])
def test_an_update_of_another_shape_is_refused(shape):
    with pytest.raises(ConfigError, match="shape"):
        codec_of(8).encode_update(np.zeros(shape), seeded(0))
    with pytest.raises(ConfigError, match="shape"):
        codec_of(8, unit="example").encode_clipped_sum(np.zeros(shape), seeded(0))


@pytest.mark.parametrize("shape", [(8,), (2, 7), (2, 9), (1, 2, 8)])
def test_rows_of_another_shape_are_refused(shape):
    with pytest.raises(ConfigError, match="shape"):
        codec_of(8, unit="example", max_examples=9).encode_examples(np.zeros(shape), seeded(0))


@pytest.mark.parametrize("length", [7, 9])
def test_a_sum_of_another_length_is_refused(length):
    with pytest.raises(ConfigError):
        codec_of(8).decode(np.zeros(length, dtype=np.uint32))


def test_a_unit_is_encoded_only_in_the_way_that_protects_it():
    """A whole update clipped as one bounds no example; a sum of clipped rows bounds no client."""
    by_client = codec_of(8)
    for unit in ("example", "user"):
        with pytest.raises(ConfigError, match=f"unit = '{unit}': .* protects unit = 'client'"):
            codec_of(8, unit=unit).encode_update(np.zeros(8), seeded(0))
    with pytest.raises(ConfigError, match="unit = 'client'"):
        by_client.encode_examples(np.zeros((1, 8)), seeded(0))
    with pytest.raises(ConfigError, match="unit = 'client'"):
        by_client.encode_clipped_sum(np.zeros(8), seeded(0))


# The stated epsilon against an attack on the real integers

ROUNDS = 60_000
CONFIDENCE = 0.999


def many_rounds(
    codec: UpdateCodec, update: np.ndarray, generator: NoiseGenerator, repeats: int
) -> np.ndarray:
    """int64[repeats, p]: ``encode_update`` of one update, many times at once.

    The same functions in the same order; one repetition is the codec's own encoding bit for bit
    (a test holds it to that).  With q < 1 the update is the one example of a client's, sampled.
    """
    plan, policy = codec.plan, codec.policy
    kept = np.zeros(repeats)
    kept[poisson_sample(repeats, policy.sampling_probability, generator)] = 1.0
    scaled = Rotation(plan.dimension, SEED).forward(L2Clip(policy.clip_norm).clip(update))
    integers = stochastic_round(np.outer(kept, scaled / plan.resolution).ravel(), generator)
    integers += DiscreteGaussian(plan.local_std).sample(integers.size, generator)
    ring = to_ring(integers) & np.uint32((1 << plan.bits) - 1)
    return from_ring(ring, plan.bits).reshape(repeats, plan.padded)


@pytest.mark.parametrize("q", [1.0, 0.3])
def test_many_rounds_at_once_are_the_codecs_own_rounds(q):
    codec = codec_of(3, unit="example", sampling_probability=q)
    update = np.array([3.0, -1.0, 0.2])
    for seed in range(30):
        own = from_ring(codec.encode_examples(update[None], seeded(seed)), codec.plan.bits)
        np.testing.assert_array_equal(many_rounds(codec, update, seeded(seed), 1)[0], own)


def lower_bound(inside: np.ndarray, outside: np.ndarray, delta: float) -> float:
    """Epsilon that the best threshold proves, with confidence CONFIDENCE.

    Thresholds are chosen on one half of the scores and judged on the other, so that the
    Clopper-Pearson intervals hold; each of the two proportions may fail half the time.
    """
    half = len(inside) // 2

    def proven(yes: int, no: int, n: int) -> float:
        risk = (1 - CONFIDENCE) / 2
        found = beta.ppf(risk, yes, n - yes + 1) if yes else 0.0
        false = beta.ppf(1 - risk, no + 1, n - no) if no < n else 1.0
        return math.log((found - delta) / false) if found > delta else 0.0

    best, choice = 0.0, (1.0, math.inf)
    for sign in (1.0, -1.0):
        # One world or the other may be the one that is recognised.
        a, b = (inside, outside) if sign > 0 else (-outside, -inside)
        for threshold in np.quantile(b[:half], 1 - np.geomspace(1 / half, 0.5, 40)):
            trial = proven(
                int((a[:half] > threshold).sum()), int((b[:half] > threshold).sum()), half
            )
            if trial > best:
                best, choice = trial, (sign, float(threshold))
    sign, threshold = choice
    a, b = (inside, outside) if sign > 0 else (-outside, -inside)
    n = len(a) - half
    return max(0.0, proven(int((a[half:] > threshold).sum()), int((b[half:] > threshold).sum()), n))


def attacked(codec: UpdateCodec, honest: int, generator: NoiseGenerator) -> float:
    """The server's attack on one round: is the target's update in the sum or not?

    The server knows every other update, and the corrupt clients left their noise out.
    """
    target = np.array([3.0, 4.0]) * codec.policy.clip_norm
    rotated = Rotation(2, SEED).forward(L2Clip(codec.policy.clip_norm).clip(target))
    others = sum(many_rounds(codec, np.zeros(2), generator, 2 * ROUNDS) for _ in range(honest - 1))
    inside = many_rounds(codec, target, generator, ROUNDS) + others[:ROUNDS]
    outside = many_rounds(codec, np.zeros(2), generator, ROUNDS) + others[ROUNDS:]
    return lower_bound(inside @ rotated, outside @ rotated, codec.policy.delta)


@pytest.mark.parametrize(
    ("q", "z", "delta"), [(1.0, 2.0, 1e-2), (1.0, 1.0, 1e-3), (0.3, 1.0, 1e-3)]
)
def test_an_attack_on_the_sum_stays_below_the_stated_epsilon_until_noise_is_halved(q, z, delta):
    codec = codec_of(
        2,
        unit="example",
        noise_multiplier=z,
        sampling_probability=q,
        delta=delta,
        dropout_fraction=0.0,
    )
    stated = guarantee(codec.policy, codec.plan, cohort_size=4).epsilon
    generator = seeded(int(100 * q + z))
    found = attacked(codec, 4, generator)
    assert 0.3 * stated < found <= stated
    halved = replace(codec.plan, local_std=codec.plan.local_std / 2)
    broken = UpdateCodec(codec.policy, halved, SEED)
    assert attacked(broken, 4, generator) > stated
