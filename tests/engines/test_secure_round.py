import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2, chisquare

import securefed
from securefed import (
    HomomorphicAggregation,
    PairwiseAggregation,
    PlaintextAggregation,
    PrivacyPolicy,
    secure_round,
)
from securefed.config import STAGES
from securefed.encoding.fixed_point import to_ring
from securefed.encoding.wire import unpack_ring
from securefed.errors import ConfigError, OverflowBoundError, ThresholdNotMet
from securefed.secagg.signed import Signed

PLAIN = PrivacyPolicy(clip_norm=1.0, mechanism="none")


def updates(n: int = 6, d: int = 300, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"c{i}": rng.normal(0, 0.02 * (i + 1), d).astype(np.float32) for i in range(n)}


def clipped(vector: np.ndarray, norm: float) -> np.ndarray:
    exact = vector.astype(np.float64)
    return exact * min(1.0, norm / np.linalg.norm(exact))


def test_without_noise_the_sum_is_the_clipped_sum_within_the_quantisation_bound():
    given = updates()
    result = secure_round(given, privacy=PLAIN, aggregation=PairwiseAggregation())
    wanted = sum(clipped(v, 1.0) for v in given.values())
    bound = len(given) * result.resolution * math.sqrt(result.session.plan.padded)
    assert np.linalg.norm(result.sum - wanted) <= bound
    np.testing.assert_allclose(result.mean, result.sum / 6)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("aggregation", [PairwiseAggregation(), PlaintextAggregation()])
def test_a_dropout_at_any_stage_leaves_the_sum_of_the_survivors(stage, aggregation):
    given = updates()
    result = secure_round(given, privacy=PLAIN, aggregation=aggregation, drop={"c2": stage})
    inside = STAGES.index(stage) > STAGES.index("masked_input")
    assert ("c2" in result.survivors) == inside
    wanted = sum(clipped(given[name], 1.0) for name in result.survivors)
    np.testing.assert_allclose(result.sum, wanted, atol=1e-5)
    silent = {s for s, received in result.transcript.items() if "c2" not in received}
    assert silent == {s for s in result.transcript if STAGES.index(s) >= STAGES.index(stage)}


def test_the_noise_has_the_stated_size_for_the_honest_survivors():
    policy = PrivacyPolicy(clip_norm=2.0, noise_multiplier=0.7, corrupt_fraction=0.1)
    zeros = {f"c{i}": np.zeros(20_000, dtype=np.float32) for i in range(10)}
    result = secure_round(zeros, privacy=policy)
    honest = result.session.plan.honest_std * result.resolution
    assert honest == pytest.approx(0.7 * 2.0, rel=1e-9)
    # 10 clients noise, 7 honest ones are counted on: 8 survivors at least, 1 of them corrupt.
    expected = (honest * math.sqrt(10 / 7)) ** 2
    statistic = float(np.sum(result.sum**2)) / expected
    low, high = chi2.ppf([1e-6, 1 - 1e-6], 20_000)
    assert low < statistic < high


@pytest.mark.parametrize("unit", ["example", "user"])
def test_each_row_an_example_s_or_a_user_s_is_clipped_by_itself(unit):
    rng = np.random.default_rng(1)
    rows = {f"c{i}": rng.normal(0, 1.0, (5, 50)).astype(np.float32) for i in range(4)}
    policy = PrivacyPolicy(clip_norm=0.5, mechanism="none", unit=unit)
    result = secure_round(rows, privacy=policy)
    wanted = sum(clipped(row, 0.5) for block in rows.values() for row in block)
    np.testing.assert_allclose(result.sum, wanted, atol=1e-4)
    np.testing.assert_allclose(result.mean, wanted / 20, atol=1e-5)


def test_examples_are_sampled_in_secret_and_the_mean_divides_by_the_expected_batch():
    rows = {f"c{i}": np.ones((400, 1), dtype=np.float32) for i in range(4)}
    policy = PrivacyPolicy(
        clip_norm=1.0, mechanism="none", unit="example", sampling_probability=0.25
    )
    sums = [secure_round(rows, privacy=policy).sum[0] for _ in range(3)]
    assert len({round(float(s)) for s in sums}) > 1
    for total in sums:
        assert abs(total - 400) < 6 * math.sqrt(1600 * 0.25 * 0.75)
    result = secure_round(rows, privacy=policy)
    np.testing.assert_allclose(result.mean, result.sum / 400)


def test_a_single_masked_input_says_nothing_and_a_plaintext_one_says_all():
    """The same reading of the transcript: uniform bytes when masked, the update when not."""
    given = {f"c{i}": np.full(40_000, 0.5, dtype=np.float32) for i in range(4)}
    masked = secure_round(given, privacy=PLAIN)
    bits = masked.session.plan.bits
    body = Signed.decode(masked.transcript["masked_input"]["c1"], limit=10**7).body
    values = unpack_ring(body[32:], masked.session.plan.padded, bits)
    counts = np.bincount(values >> np.uint32(bits - 8), minlength=256)
    assert chisquare(counts).pvalue > 1e-6

    plain = secure_round(given, privacy=PLAIN, aggregation=PlaintextAggregation())
    message = plain.transcript["masked_input"]["c1"]
    size = plain.session.plan.padded * bits // 8
    bare = unpack_ring(message[-size:], plain.session.plan.padded, bits)
    seen = plain.session.codec.decode(bare)
    np.testing.assert_allclose(seen, clipped(given["c1"], 1.0), atol=1e-6)


def test_the_guarantee_is_a_whole_statement():
    policy = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0, delta=1e-5)
    result = secure_round(updates(), privacy=policy)
    statement = result.guarantee
    assert 4.37 < statement.epsilon < 4.45  # the Gaussian mechanism at z = 1 has 4.377
    for word in ("client", "zero-out", "1e-05", "survivors", "Trust"):
        assert word in str(statement)
    assert set(result.guarantees) == {"server", "release", "fellow_client"}
    assert result.guarantees["release"].epsilon <= statement.epsilon


def test_without_noise_or_masks_the_guarantee_says_unprotected():
    given = updates()
    assert "NO differential privacy" in str(secure_round(given, privacy=PLAIN).guarantee)
    noised = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0)
    bare = secure_round(given, privacy=noised, aggregation=PlaintextAggregation())
    assert bare.guarantee.epsilon == math.inf
    assert math.isfinite(bare.guarantees["release"].epsilon)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_is_refused_by_name(value):
    given = updates()
    given["c3"][7] = value
    with pytest.raises(ConfigError, match=r"updates\['c3'\].*NaN or infinity"):
        secure_round(given, privacy=PLAIN)


def test_wrong_shapes_ids_and_stages_are_refused():
    given = updates()
    with pytest.raises(ConfigError, match="lengths"):
        secure_round(given | {"c0": np.zeros(7)}, privacy=PLAIN)
    with pytest.raises(ConfigError, match=r"updates\['c0'\]"):
        secure_round(given | {"c0": np.zeros((2, 300))}, privacy=PLAIN)
    with pytest.raises(ConfigError, match="not a client"):
        secure_round(given, privacy=PLAIN, drop={"nobody": "share"})
    with pytest.raises(ConfigError, match="must be one of"):
        secure_round(given, privacy=PLAIN, drop={"c0": "lunch"})
    with pytest.raises(ConfigError, match="at least 2"):
        secure_round({"c0": np.zeros(3)}, privacy=PLAIN)
    with pytest.raises(ConfigError, match="no client"):
        secure_round({}, privacy=PLAIN)


def test_too_few_survivors_open_nothing():
    drop = dict.fromkeys(["c0", "c1", "c2"], "masked_input")
    with pytest.raises(ThresholdNotMet, match="at least 5 are needed"):
        secure_round(updates(), privacy=PLAIN, drop=drop)


def test_a_noise_multiplier_of_zero_is_refused_with_a_mechanism():
    with pytest.raises(ConfigError, match=r"noise_multiplier = 0\.0"):
        PrivacyPolicy(clip_norm=1.0, noise_multiplier=0.0, mechanism="distributed")


def test_noise_of_the_clients_training_is_not_credited_here():
    policy = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0, mechanism="local", unit="example")
    with pytest.raises(ConfigError, match="does not see"):
        secure_round({f"c{i}": np.zeros((1, 3)) for i in range(4)}, privacy=policy)


def test_a_ring_that_is_too_small_is_refused_before_anything_is_sent():
    policy = PrivacyPolicy(
        clip_norm=1.0, noise_multiplier=1.0, unit="example", max_examples=1_000_000
    )
    rows = {f"c{i}": np.zeros((1, 3)) for i in range(20)}
    with pytest.raises(OverflowBoundError, match="20 clients of up to 1000000 units"):
        secure_round(rows, privacy=policy, aggregation=PairwiseAggregation(bits=24))


def test_more_examples_than_agreed_are_refused():
    policy = PrivacyPolicy(clip_norm=1.0, mechanism="none", unit="example", max_examples=3)
    rows = {f"c{i}": np.zeros((2 + i, 3)) for i in range(4)}
    with pytest.raises(ConfigError, match="max_examples = 3"):
        secure_round(rows, privacy=policy)


def test_integer_ids_and_torch_tensors_are_taken():
    given = {i: torch.full((10,), 0.1) for i in range(4)}
    result = secure_round(given, privacy=PLAIN, drop={3: "share"})
    assert result.survivors == (0, 1, 2)
    assert result.bytes_up[0] > result.bytes_up[3] > 0
    np.testing.assert_allclose(result.sum, 0.3, atol=1e-5)


def test_public_names_are_all_there():
    for name in securefed.__all__:
        assert getattr(securefed, name) is not None
    with pytest.raises(AttributeError):
        _ = securefed.nonsense


def test_the_codec_reduces_to_the_rings_real_width():
    given = updates(n=4)
    result = secure_round(given, privacy=PLAIN, aggregation=PlaintextAggregation(bits=20))
    wanted = sum(clipped(v, 1.0) for v in given.values())
    np.testing.assert_allclose(result.sum, wanted, atol=8 * result.resolution * 20)
    assert to_ring(np.array([-1], dtype=np.int64))[0] == 2**32 - 1


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("stage", ["advertise", "unmask"])
def test_a_silent_decryptor_ends_an_encrypted_round(masked, stage):
    updates = {f"c{i}": np.full(8, 0.1) for i in range(4)}
    with pytest.raises(ThresholdNotMet, match="decryptor"):
        secure_round(
            updates,
            privacy=PrivacyPolicy(clip_norm=1.0, mechanism="none"),
            aggregation=HomomorphicAggregation(masked=masked),
            drop={"decryptor": stage},
        )
