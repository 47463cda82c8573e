"""Twenty clients, a million values each, three of them silent from three different stages on."""

import numpy as np
import pytest

from securefed import PairwiseAggregation, PrivacyPolicy, secure_round

CLIENTS, VALUES, CLIP = 20, 1_000_000, 1.0
DROP = {"c03": "advertise", "c08": "masked_input", "c17": "unmask"}


@pytest.fixture(scope="module")
def updates() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(20)
    return {
        f"c{i:02}": rng.normal(scale=0.0002 * (i + 1), size=VALUES).astype(np.float32)
        for i in range(CLIENTS)
    }


def error_of_the_sum(result, updates) -> np.ndarray:
    wanted = np.zeros(VALUES)
    for name in result.survivors:
        update = updates[name].astype(np.float64)
        wanted += update * min(1.0, CLIP / np.linalg.norm(update))
    return result.sum - wanted


def test_without_noise_the_sum_is_the_clipped_plain_sum_to_within_rounding(updates):
    result = secure_round(
        updates,
        privacy=PrivacyPolicy(clip_norm=CLIP, mechanism="none"),
        aggregation=PairwiseAggregation(),
        drop=DROP,
    )
    assert set(updates) - set(result.survivors) == {"c03", "c08"}
    bound = len(result.survivors) * result.session.plan.quantisation_error
    assert np.linalg.norm(error_of_the_sum(result, updates)) <= bound
    assert bound < 0.002 * CLIP


@pytest.mark.slow
def test_with_noise_the_error_is_the_noise_that_was_stated(updates):
    result = secure_round(
        updates,
        privacy=PrivacyPolicy(clip_norm=CLIP, noise_multiplier=1.0),
        aggregation=PairwiseAggregation(),
        drop=DROP,
    )
    plan = result.session.plan
    per_client = plan.local_std**2 + 0.25  # rounding adds at most a quarter
    std = plan.resolution * np.sqrt(len(result.survivors) * per_client)
    error = error_of_the_sum(result, updates)
    # The standard error of a standard deviation over 10^6 values is 0.07 %, of a mean std / 1000.
    assert np.std(error) == pytest.approx(std, rel=0.005)
    assert abs(np.mean(error)) < 5 * std / 1000
    # Honest survivors' noise is at least noise_multiplier * clip_norm.
    assert plan.honest_std * plan.resolution == pytest.approx(1.0 * CLIP)
