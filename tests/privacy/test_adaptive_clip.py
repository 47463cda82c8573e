"""The clip follows a noised count; the count is paid for in the same epsilon as the update."""

import decimal
import math
from dataclasses import fields, replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from securefed import secure_round
from securefed.crypto.prg import SeededNoiseGeneratorForTests
from securefed.errors import ConfigError
from securefed.federation.update_codec import UpdateCodec
from securefed.privacy.accounting import guarantee
from securefed.privacy.adaptive_clip import AdaptiveClip
from securefed.privacy.clipping import L2Clip
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.policy import PrivacyPolicy

SEED = bytes(range(32))
RULE = AdaptiveClip(min_clip_norm=1e-3, max_clip_norm=1e3)
CLIENTS = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0, adaptive_clip=RULE)
EXAMPLES = replace(CLIENTS, unit="example", max_examples=40, sampling_probability=0.5)


def exact_square(vector: np.ndarray) -> Fraction:
    return sum((Fraction(float(x)) ** 2 for x in vector), Fraction(0))


def bound_of(policy: PrivacyPolicy) -> float:
    return L2Clip(policy.clip_norm, policy.count_weight).unit_bound


def codec_of(policy: PrivacyPolicy, dimension: int, size: int = 50) -> UpdateCodec:
    return UpdateCodec(policy, plan_round(policy, cohort_size=size, dimension=dimension), SEED)


# What one unit contributes


@settings(max_examples=200, deadline=None)
@given(
    vector=arrays(
        np.float64, st.integers(1, 8), elements=st.floats(allow_nan=False, allow_infinity=False)
    ),
    clip_norm=st.floats(1e-100, 1e100),
    weight=st.floats(1e-3, 2.0),
)
def test_no_units_vector_and_bit_together_leave_the_bound_that_noise_is_planned_for(
    vector, clip_norm, weight
):
    rule = AdaptiveClip(count_weight=weight, min_clip_norm=1e-100, max_clip_norm=1e100)
    policy = PrivacyPolicy(clip_norm=clip_norm, noise_multiplier=1.0, adaptive_clip=rule)
    found = L2Clip(clip_norm, policy.count_weight).unit(vector)
    assert exact_square(found) <= Fraction(bound_of(policy)) ** 2
    assert len(found) == len(vector) + 1


def test_a_bound_without_the_bit_would_be_left():
    """What the larger bound is for: a unit at the clip's edge is longer than the clip."""
    found = L2Clip(1.0, 0.2).unit(np.array([5.0, 0.0]))
    assert exact_square(found) > Fraction(1)
    assert exact_square(found) > Fraction(bound_of(CLIENTS)) ** 2 * Fraction(999_999, 1_000_000)


def test_a_bit_says_whether_the_norm_was_within_the_clip():
    clip = L2Clip(2.0, 0.2)
    for vector, bit in (([0.1, 0.1], 0.5), ([1.999, 0.0], 0.5), ([2.1, 0.0], -0.5)):
        _, count = clip.split(clip.unit(np.array(vector)))
        assert count == pytest.approx(bit)
    total, count = clip.split(clip.clip_rows(np.array([[1.0, 0.0], [9.0, 0.0], [0.0, 8.0]])))
    np.testing.assert_allclose(total, [3.0, 2.0], rtol=1e-6)
    assert count == pytest.approx(-0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_unit_that_is_not_finite_or_is_zero_has_no_bit_either(value):
    clip = L2Clip(1.0, 0.2)
    assert not clip.clip_rows(np.full((3, 2), value)).any()
    codec = codec_of(replace(CLIENTS, noise_multiplier=0.0, mechanism="none"), 4)
    encoded = codec.encode_update(np.full(4, value), SeededNoiseGeneratorForTests(0))
    update, count = codec.decode_with_count(encoded)
    assert not update.any()
    assert count == 0.0


def test_without_adaptation_nothing_follows_a_vector():
    clip = L2Clip(1.0)
    vector = np.array([0.3, 0.4])
    np.testing.assert_array_equal(clip.unit(vector), clip.clip(vector))
    assert clip.split(vector) == (pytest.approx(vector), None)
    plan = plan_round(replace(CLIENTS, adaptive_clip=None), cohort_size=5, dimension=512)
    assert plan.summed == plan.padded == 512
    assert plan_round(CLIENTS, cohort_size=5, dimension=512).summed == 513


def test_one_example_moves_the_rounded_sum_by_at_most_the_sensitivity():
    """On common coins, through the codec's own rounding, noise left out."""
    policy = replace(EXAMPLES, mechanism="none", noise_multiplier=0.0, sampling_probability=1.0)
    codec = codec_of(policy, 30)
    # The coarse grid of a noised round: there rounding is a part of the sensitivity.
    codec.plan = plan_round(replace(policy, mechanism="distributed", noise_multiplier=1.0),
                            cohort_size=50, dimension=30)  # fmt: skip
    codec.plan = replace(codec.plan, local_std=0.0)
    rng, longest = np.random.default_rng(0), 0.0
    for trial in range(60):
        rows = rng.normal(size=(8, 30)) * rng.choice([0.01, 0.1, 10.0], (8, 1))
        without = np.where(np.arange(8)[:, None] == trial % 8, 0.0, rows)
        pair = [
            codec.encode_clipped_sum(
                L2Clip(1.0, 0.2).clip_rows(part), SeededNoiseGeneratorForTests(trial)
            )
            for part in (rows, without)
        ]
        moved = (pair[0] - pair[1]).astype(np.uint32)
        ring = np.uint32((1 << codec.plan.bits) - 1)
        signed = ((moved & ring).astype(np.int64) + (1 << codec.plan.bits - 1)) % (
            1 << codec.plan.bits
        ) - (1 << codec.plan.bits - 1)
        longest = max(longest, float(np.linalg.norm(signed)))
    assert longest <= codec.plan.sensitivity
    # A clipped example and its bit reach beyond what the clip alone would allow.
    assert longest > codec.plan.clip_units / math.sqrt(1.0 + 0.2**2 / 4.0)


# What it costs


@pytest.mark.parametrize("weight", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("noise", [0.5, 1.0, 8.0])
def test_the_budget_is_divided_as_the_paper_divides_it(noise, weight):
    rule = replace(RULE, count_weight=weight)
    sigma_b = rule.count_noise(noise)
    assert rule.update_noise(noise) == pytest.approx((noise**-2 - (2 * sigma_b) ** -2) ** -0.5)
    assert sigma_b == pytest.approx(rule.update_noise(noise) / weight)


@pytest.mark.parametrize("policy", [CLIENTS, EXAMPLES], ids=["client", "example"])
@pytest.mark.parametrize("mechanism", ["distributed", "central"])
def test_epsilon_is_the_same_with_and_without_adaptation_and_at_every_clip(policy, mechanism):
    policy = replace(policy, mechanism=mechanism, rounds=10)
    found = []
    for changed in (
        replace(policy, adaptive_clip=None),
        policy,
        policy.after(0.9),
        policy.after(0.1).after(0.1).after(0.2),
        replace(policy, clip_norm=1e3),
    ):
        # 600 and 601 values are padded alike.
        plan = plan_round(changed, cohort_size=50, dimension=600)
        statement = guarantee(changed, plan, cohort_size=50, against="release")
        found.append((plan.clip_units, plan.honest_std, plan.sensitivity, statement.epsilon))
        if changed.adaptive_clip is not None:
            assert plan.resolution == pytest.approx(
                changed.clip_norm * math.sqrt(1.01) / plan.clip_units
            )
    assert len(set(found)) == 1
    assert math.isfinite(found[0][-1])


def test_the_statement_says_how_the_bits_are_paid_for_and_is_the_same_in_every_round():
    plan = plan_round(CLIENTS, cohort_size=50, dimension=600)
    first, later = (guarantee(p, plan, cohort_size=50) for p in (CLIENTS, CLIENTS.after(0.9)))
    assert str(first) == str(later)
    for words in (
        "adaptive clipping between clip_norm 0.001 and 1000",
        "summed and noised with its vector and paid for in this epsilon",
        "z_Delta = 1.005, sigma_b = 5.025",
    ):
        assert words in first.mechanism
    fixed = guarantee(replace(CLIENTS, adaptive_clip=None), plan, cohort_size=50)
    assert "adaptive" not in fixed.mechanism


# What the count tells


def counts_of(policy: PrivacyPolicy, rows: np.ndarray, rounds: int, size: int) -> np.ndarray:
    """Noised counts of many rounds; ``honest_floor`` clients add noise, one holds all the rows."""
    codec, generator, found = codec_of(policy, rows.shape[1], size), None, []
    generator = SeededNoiseGeneratorForTests(3)
    plan = codec.plan
    clients = 1 if plan.local_std == 0 else round((plan.honest_std / plan.local_std) ** 2)
    for _ in range(rounds):
        if policy.unit == "client":
            parts = [codec.encode_update(row, generator) for row in rows]
            assert len(parts) == clients
        else:
            parts = [codec.encode_examples(rows, generator)]
            parts += [codec.encode_examples(rows[:0], generator) for _ in range(clients - 1)]
        total = sum(parts[1:], parts[0].copy())
        found.append(codec.decode_with_count(total)[1])
    return np.array(found)


def rows_of(within: int, beyond: int) -> np.ndarray:
    rows = np.random.default_rng(1).normal(size=(within + beyond, 3))
    norms = np.where(np.arange(len(rows)) < within, 0.5, 2.0)
    return rows * (norms / np.linalg.norm(rows, axis=1))[:, None]


@pytest.mark.slow
def test_a_fraction_of_clients_is_unbiased_and_as_noisy_as_stated():
    policy = replace(CLIENTS, corrupt_fraction=0.0, dropout_fraction=0.0)
    counts = counts_of(policy, rows_of(9, 3), rounds=2000, size=12)
    sigma_b = RULE.count_noise(1.0)
    # 9 of 12 within the clip: 9/2 - 3/2 = 3.  Six standard errors of the mean and of the std.
    assert counts.mean() == pytest.approx(3.0, abs=6 * sigma_b / math.sqrt(2000))
    assert counts.std() == pytest.approx(sigma_b, rel=6 / math.sqrt(2 * 2000))
    assert RULE.fraction(3.0, 12) == 0.75


def test_a_fraction_of_sampled_examples_is_unbiased_and_as_noisy_as_stated():
    policy = replace(EXAMPLES, corrupt_fraction=0.0, dropout_fraction=0.0)
    counts = counts_of(policy, rows_of(30, 10), rounds=2000, size=3)
    # q (30 - 10) / 2 = 5; each sampled bit adds q (1 - q) / 4 to the variance of the noise.
    std = math.sqrt(RULE.count_noise(1.0) ** 2 + 40 * 0.25 / 4)
    assert counts.mean() == pytest.approx(5.0, abs=6 * std / math.sqrt(2000))
    assert counts.std() == pytest.approx(std, rel=6 / math.sqrt(2 * 2000))
    assert RULE.fraction(5.0, 0.5 * 40) == 0.75


def test_the_update_is_not_touched_by_the_bits():
    policy = replace(CLIENTS, mechanism="none", noise_multiplier=0.0)
    rows = rows_of(3, 2)
    result = secure_round(dict(enumerate(rows)), privacy=policy)
    wanted = sum(L2Clip(1.0).clip(row) for row in rows)
    np.testing.assert_allclose(result.sum, wanted, atol=1e-5)
    assert result.unclipped_fraction == pytest.approx(0.6, abs=1e-4)
    fixed = secure_round(dict(enumerate(rows)), privacy=replace(policy, adaptive_clip=None))
    assert fixed.unclipped_fraction is None


def test_what_noise_carries_out_of_the_unit_interval_stays_there():
    """Cut to [0, 1], six clients would never say more than 0.75 on average, and 0.9 be missed."""
    noise = np.random.default_rng(0).normal(size=20_000) * RULE.count_noise(0.8)
    found = np.array([RULE.fraction(3.0 + n, 6) for n in noise])
    assert found.mean() == pytest.approx(1.0, abs=0.03)
    assert np.clip(found, 0.0, 1.0).mean() < 0.77
    assert found.min() == -1.0
    assert found.max() == 2.0


# The next clip


@pytest.mark.parametrize("unit", [pytest.param("client", marks=pytest.mark.slow), "example"])
@pytest.mark.parametrize("start", [0.05, 20.0], ids=["far below", "far above"])
@pytest.mark.parametrize("quantile", [0.5, 0.8])
def test_the_clip_finds_the_quantile_of_the_norms_from_below_and_from_above(unit, start, quantile):
    """100 units with lognormal norms around 1, real noise in the count, 140 rounds."""
    rule = replace(RULE, target_quantile=quantile)
    base = replace(CLIENTS, adaptive_clip=rule, corrupt_fraction=0.0, dropout_fraction=0.0)
    size = 100 if unit == "client" else 2
    if unit == "example":
        base = replace(base, unit="example", max_examples=100)
    rng, generator = np.random.default_rng(5), SeededNoiseGeneratorForTests(5)
    policy, clips = replace(base, clip_norm=start), []
    for _ in range(140):
        norms = np.exp(0.5 * rng.normal(size=100))
        rows = np.zeros((100, 2))
        rows[:, 0] = norms
        codec = codec_of(policy, 2, size)
        if unit == "client":
            total = sum(codec.encode_update(row, generator) for row in rows)
        else:
            total = codec.encode_examples(rows, generator)
            total = total + codec.encode_examples(rows[:0], generator)
        policy = policy.after(rule.fraction(codec.decode_with_count(total)[1], 100))
        clips.append(policy.clip_norm)
    wanted = math.exp(0.5 * {0.5: 0.0, 0.8: 0.8416}[quantile])
    assert np.mean(clips[-30:]) == pytest.approx(wanted, rel=0.12)
    assert max(clips[-30:]) / min(clips[-30:]) < 2.0


def test_the_next_clip_is_the_rule_to_six_digits_on_any_machine():
    for clip_norm, fraction, wanted in (
        (1.0, 1.0, 0.904837),  # exp(-0.1) = 0.904837418...
        (1.0, 0.0, 1.10517),
        (0.123456, 0.5, 0.123456),
        (3.0, 0.712345, 2.87526),
    ):
        assert RULE.next_clip_norm(clip_norm, fraction) == wanted
        assert wanted == pytest.approx(clip_norm * math.exp(-0.2 * (fraction - 0.5)), rel=5e-6)
    with decimal.localcontext(decimal.Context(prec=3, rounding=decimal.ROUND_UP)):
        assert RULE.next_clip_norm(3.0, 0.712345) == 2.87526
    assert float(repr(RULE.next_clip_norm(3.0, 0.712345))) == 2.87526


def test_the_clip_stays_between_its_bounds_and_one_round_moves_it_by_a_bounded_factor():
    rule = AdaptiveClip(min_clip_norm=0.5, max_clip_norm=2.0)
    assert rule.next_clip_norm(0.51, 2.0) == 0.5
    assert rule.next_clip_norm(1.95, -1.0) == 2.0
    wide = replace(rule, min_clip_norm=1e-9, max_clip_norm=1e9, learning_rate=1.0)
    for fraction in (-1.0, 2.0):
        assert abs(math.log(wide.next_clip_norm(1.0, fraction))) <= 2.0


@pytest.mark.parametrize("fraction", [-1.1, 2.1, math.nan, math.inf, None])
def test_a_fraction_that_no_sum_gives_is_refused(fraction):
    with pytest.raises(ConfigError, match="unclipped_fraction"):
        CLIENTS.after(fraction)


def test_only_an_adaptive_policy_takes_a_fraction():
    fixed = replace(CLIENTS, adaptive_clip=None)
    assert fixed.after(None) is fixed
    with pytest.raises(ConfigError, match=r"unclipped_fraction = 0\.5: must be None"):
        fixed.after(0.5)


WRONG = {
    "target_quantile": (0.0, 1.0, math.nan),
    "learning_rate": (0.0, 2.1, math.nan),
    "count_weight": (0.0, 2.1, math.nan),
    "min_clip_norm": (0.0, 1e101, math.nan),
    "max_clip_norm": (1e-4, math.inf, math.nan),
}


def test_every_field_of_the_rule_is_tried():
    assert set(WRONG) == {field.name for field in fields(AdaptiveClip)}


@pytest.mark.parametrize("field", WRONG)
def test_a_rule_out_of_range_is_refused_by_name(field):
    for value in WRONG[field]:
        with pytest.raises(ConfigError, match=rf"adaptive_clip\.{field} = "):
            replace(RULE, **{field: value})


def test_a_policy_refuses_a_rule_that_cannot_apply():
    with pytest.raises(ConfigError, match=r"clip_norm = 2000: must be in .* \[0\.001, 1000\]"):
        replace(CLIENTS, clip_norm=2000)
    with pytest.raises(ConfigError, match=r"adaptive_clip.*None with mechanism 'local'"):
        replace(CLIENTS, unit="example", mechanism="local")
    with pytest.raises(ConfigError, match=r"adaptive_clip.*correlated noise needs one clip"):
        replace(EXAMPLES, mechanism="central", sampling_probability=1.0, separation=4)
    assert CLIENTS.without_noise(3.0).adaptive_clip is None
