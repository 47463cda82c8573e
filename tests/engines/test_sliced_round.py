import math

import numpy as np
import pytest
from scipy.stats import chi2

from securefed import (
    PairwiseAggregation,
    PlaintextAggregation,
    PrivacyPolicy,
    secure_round,
    secure_sliced_round,
)
from securefed.config import STAGES
from securefed.errors import ConfigError, OverflowBoundError, ThresholdNotMet

PLAIN = PrivacyPolicy(clip_norm=1.0, mechanism="none")
WIDTHS = (50, 30, 20)


def updates(counts=(4, 4, 4), widths=WIDTHS, seed=0):
    rng = np.random.default_rng(seed)
    ends = np.cumsum(widths)
    return {
        f"t{tier + 1}-{i}": rng.normal(0, 0.1 * (i + 1), ends[tier])
        for tier, count in enumerate(counts)
        for i in range(count)
    }


def clipped(vector):
    return vector * min(1.0, 1.0 / float(np.linalg.norm(vector)))


@pytest.mark.parametrize("aggregation", [PairwiseAggregation(), PlaintextAggregation()])
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "graph"])
def test_each_slice_is_the_mean_of_those_who_hold_it(aggregation, stage):
    given = updates()
    result = secure_sliced_round(
        given, widths=WIDTHS, privacy=PLAIN, aggregation=aggregation, drop={"t3-0": stage}
    )
    assert not result.dropped
    inside = STAGES.index(stage) > STAGES.index("masked_input")
    start = 0
    for number, width in enumerate(WIDTHS, start=1):
        held = [name for name in given if int(name[1]) >= number and (inside or name != "t3-0")]
        assert set(result.survivors[number]) == set(held)
        wanted = sum(clipped(given[name])[start : start + width] for name in held)
        np.testing.assert_allclose(result.sums[number], wanted, atol=1e-5)
        np.testing.assert_allclose(result.means[number], wanted / len(held), atol=1e-5)
        start += width
    assert [result.mean(tier).size for tier in (1, 2, 3)] == [50, 80, 100]
    np.testing.assert_array_equal(result.mean(3)[:80], result.mean(2))
    with pytest.raises(ConfigError, match="tier = 4"):
        result.mean(4)


def test_a_dropped_slice_does_not_move_and_the_others_go_on():
    drop = dict.fromkeys(["t3-0", "t3-1"], "masked_input")
    result = secure_sliced_round(updates(), widths=WIDTHS, privacy=PLAIN, drop=drop)
    assert set(result.dropped) == {3}
    assert "2 clients answered, at least 3 are needed" in result.dropped[3]
    assert not result.mean(3)[80:].any()
    assert result.mean(3)[:80].all()
    with pytest.raises(ThresholdNotMet, match="no slice is left"):
        secure_sliced_round(
            updates(), widths=WIDTHS, privacy=PLAIN, drop=dict.fromkeys(updates(), "share")
        )


def test_public_weights_divide_each_slice_by_those_of_its_own_survivors():
    weights = {name: 1.0 + index % 3 for index, name in enumerate(updates())}
    values = {name: vector / 100.0 for name, vector in updates().items()}  # nothing is clipped
    result = secure_sliced_round(
        {name: weights[name] * vector for name, vector in values.items()},
        widths=WIDTHS,
        privacy=PLAIN,
        weights=weights,
        drop={"t3-1": "masked_input"},
    )
    start = 0
    for number, width in enumerate(WIDTHS, start=1):
        held = result.survivors[number]
        wanted = np.average(
            [values[name][start : start + width] for name in held],
            axis=0,
            weights=[weights[name] for name in held],
        )
        np.testing.assert_allclose(result.means[number], wanted, atol=1e-6)
        start += width
    for wrong in ({"t1-0": 1.0}, weights | {"t1-0": 0.0}, weights | {"t1-0": math.nan}):
        with pytest.raises(ConfigError, match=r"^weights"):
            secure_sliced_round(values, widths=WIDTHS, privacy=PLAIN, weights=wrong)
    with pytest.raises(ConfigError, match="weights with unit = 'example'"):
        secure_sliced_round(
            {f"c{i}": np.zeros((1, 3)) for i in range(4)},
            widths=(3,),
            privacy=PrivacyPolicy(clip_norm=1.0, mechanism="none", unit="example"),
            weights={f"c{i}": 1.0 for i in range(4)},
        )


def test_with_one_slice_it_is_a_round():
    given = updates((6,), (50,))
    policy = PrivacyPolicy(clip_norm=1.0, noise_multiplier=0.8)
    sliced = secure_sliced_round(given, widths=(50,), privacy=policy)
    whole = secure_round(given, privacy=policy)
    for against, statement in whole.guarantees.items():
        assert sliced.guarantees[against].epsilon == pytest.approx(statement.epsilon, rel=1e-6)


def test_each_slices_noise_is_that_of_its_own_honest_survivors():
    widths = (6000, 6000)
    policy = PrivacyPolicy(clip_norm=2.0, noise_multiplier=0.7, corrupt_fraction=0.1)
    zeros = {f"s{i}": np.zeros(6000) for i in range(4)}
    zeros |= {f"l{i}": np.zeros(12_000) for i in range(6)}
    result = secure_sliced_round(zeros, widths=widths, privacy=policy)
    # 10 clients, 1 corrupt: 8 - 1 honest ones; 6 hold slice 2, 5 - 1 of them are.
    for number, (present, honest) in {1: (10, 7), 2: (6, 4)}.items():
        expected = (0.7 * 2.0) ** 2 * present / honest
        statistic = float(np.sum(result.sums[number] ** 2)) / expected
        low, high = chi2.ppf([1e-6, 1 - 1e-6], 6000)
        assert low < statistic < high


@pytest.mark.parametrize("unit", ["example", "user"])
def test_each_row_is_clipped_over_its_whole_length(unit):
    rng = np.random.default_rng(1)
    rows = {f"c{i}": rng.normal(0, 1.0, (5, 8 if i < 4 else 12)) for i in range(8)}
    policy = PrivacyPolicy(clip_norm=1.0, mechanism="none", unit=unit)
    result = secure_sliced_round(rows, widths=(8, 4), privacy=policy)
    wanted = np.zeros(12)
    for block in rows.values():
        for row in block:
            wanted[: row.size] += clipped(row)
    np.testing.assert_allclose(np.concatenate(list(result.sums.values())), wanted, atol=1e-4)
    np.testing.assert_allclose(result.means[1], wanted[:8] / 40, atol=1e-5)
    np.testing.assert_allclose(result.means[2], wanted[8:] / 20, atol=1e-5)


def test_what_a_client_sends_grows_with_its_own_slices_only():
    widths = (4096, 65_536)
    given = {f"s{i}": np.zeros(4096) for i in range(4)}
    given |= {f"l{i}": np.zeros(4096 + 65_536) for i in range(4)}
    result = secure_sliced_round(given, widths=widths, privacy=PLAIN)
    assert max(result.bytes_up[f"s{i}"] for i in range(4)) < 40_000
    assert min(result.bytes_up[f"l{i}"] for i in range(4)) > 65_536 * 2.5


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"t1-0": np.zeros(51)}, r"updates\['t1-0'\]: length 51, must be .*\[50, 80, 100\]"),
        ({"t1-0": np.full(50, np.nan)}, r"updates\['t1-0'\]: holds NaN"),
        ({"t1-0": np.zeros((2, 50))}, r"updates\['t1-0'\]"),
    ],
)
def test_updates_that_do_not_fit_are_refused_by_name(change, match):
    with pytest.raises(ConfigError, match=match):
        secure_sliced_round(updates() | change, widths=WIDTHS, privacy=PLAIN)


def test_too_few_clients_of_a_tier_and_unknown_drops_are_refused_before_anything_is_sent():
    with pytest.raises(ConfigError, match=r"^slice 3: 2 clients hold this slice"):
        secure_sliced_round(updates((4, 4, 2)), widths=WIDTHS, privacy=PLAIN)
    secure_sliced_round(updates((4, 0, 3)), widths=WIDTHS, privacy=PLAIN)
    with pytest.raises(ConfigError, match="not a client"):
        secure_sliced_round(updates(), widths=WIDTHS, privacy=PLAIN, drop={"nobody": "share"})
    with pytest.raises(ConfigError, match=r"max_examples = 1"):
        secure_sliced_round(
            {f"c{i}": np.zeros((2, 3)) for i in range(4)},
            widths=(3,),
            privacy=PrivacyPolicy(clip_norm=1.0, mechanism="none", unit="example", max_examples=1),
        )
    with pytest.raises(OverflowBoundError, match=r"^slice 1: "):
        secure_sliced_round(
            {f"c{i}": np.zeros((1, 3)) for i in range(20)},
            widths=(3,),
            privacy=PrivacyPolicy(
                clip_norm=1.0, noise_multiplier=1.0, unit="example", max_examples=1_000_000
            ),
            aggregation=PairwiseAggregation(bits=24),
        )


def test_the_statement_is_one_release_for_all_slices():
    policy = PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0, rounds=3)
    result = secure_sliced_round(updates(), widths=WIDTHS, privacy=policy)
    one = secure_round(updates((12,), (50,)), privacy=policy)
    assert result.guarantee.epsilon < 1.01 * one.guarantee.epsilon
    assert math.isfinite(result.guarantee.epsilon)
    assert result.guarantee.rounds == 3
