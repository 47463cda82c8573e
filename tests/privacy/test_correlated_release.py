import copy
import itertools
import math
import pickle
from collections import deque
from dataclasses import replace

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from scipy import stats

from securefed.crypto.prg import NoiseGenerator, SeededNoiseGeneratorForTests
from securefed.encoding.fixed_point import from_ring, to_ring
from securefed.errors import ConfigError, LocalProtocolError
from securefed.privacy.correlated import COEFFICIENT_BITS, banded_square_root
from securefed.privacy.correlated_release import CorrelatedRelease, correlated_epsilon
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.policy import PrivacyPolicy

DELTA = 1e-5
PLAN = replace(
    plan_round(PrivacyPolicy(clip_norm=1.0, noise_multiplier=1.0), cohort_size=4, dimension=4096),
    local_std=0.0,
    server_std=8192.0,
    sensitivity=4096.0,
)


def state_of(strategy, *, std, length, bits=32, generator=None):
    plan = replace(PLAN, server_std=std, padded=length, bits=bits)
    return CorrelatedRelease(strategy, plan, generator=generator)


def dense(strategy, rounds):
    return sum(c * np.eye(rounds, k=-i) for i, c in enumerate(strategy.coefficients[:rounds]))


def released(strategy, sums, *, std, bits=32, seed=3):
    """What leaves the server, float64[rounds, length], for integer sums of that shape."""
    state = state_of(
        strategy,
        std=std,
        length=sums.shape[1],
        bits=bits,
        generator=SeededNoiseGeneratorForTests(seed),
    )
    return np.array([state.release(to_ring(row), round=t + 1) for t, row in enumerate(sums)])


@pytest.mark.parametrize(("bands", "separation"), [(1, 1), (2, 5), (7, 7)])
def test_without_noise_to_speak_of_every_sum_comes_back(bands, separation):
    sums = np.random.default_rng(0).integers(-(2**30), 2**30, size=(20, 50))
    found = released(banded_square_root(bands, separation), sums, std=1e-4)
    assert np.abs(found - sums).max() < 0.02


@pytest.mark.parametrize(("bands", "separation"), [(1, 1), (3, 5), (8, 8)])
def test_what_leaves_is_the_dense_mechanism_undone(bands, separation):
    """C x^ minus C x is the noise of y: whole multiples of 2^-f, and of the std asked for."""
    strategy = banded_square_root(bands, separation)
    sums = np.random.default_rng(0).integers(-(10**6), 10**6, size=(12, 3000))
    noise = dense(strategy, 12) @ (released(strategy, sums, std=100.0) - sums)
    units = noise * 2.0**COEFFICIENT_BITS
    assert np.abs(units - np.round(units)).max() < 1e-2
    assert stats.kstest(noise.ravel() / 100.0, "norm").pvalue > 1e-3


def test_the_noise_of_the_estimates_has_the_covariance_of_c_inverse():
    strategy, rounds, count = banded_square_root(4, 6), 9, 100_000
    found = released(strategy, np.zeros((rounds, count), dtype=np.int64), std=50.0) / 50.0
    inverse = np.linalg.inv(dense(strategy, rounds))
    expected = inverse @ inverse.T
    # An entry's standard error is at most sqrt(2) times its variances over the root of the count.
    assert np.abs(found @ found.T / count - expected).max() < 5 * math.sqrt(2 / count) * 2
    sums = np.tril(np.ones((rounds, rounds)))
    error = math.sqrt(((sums @ found) ** 2).mean())
    assert error == pytest.approx(strategy.prefix_error(rounds), rel=0.01)
    assert error < 0.8 * banded_square_root(1, 6).prefix_error(rounds)


def test_a_round_without_a_sum_keeps_its_place():
    """Or a unit's sums of rounds 1 and 4 would come into one release of a matrix of 3 bands."""
    strategy, good = banded_square_root(3, 3), to_ring(np.full(4, 1000, dtype=np.int64))
    state, twin = (
        state_of(strategy, std=1e-4, length=4, generator=SeededNoiseGeneratorForTests(2))
        for _ in range(2)
    )
    zeros = np.zeros(4, dtype=np.uint32)
    for t, total in ((1, good), (2, zeros), (3, zeros), (4, good)):
        expected = twin.release(total, round=t)
        if t in (1, 4):
            assert state.release(total, round=t).tolist() == expected.tolist()
    assert [len(state._sums), state._sums[0].tolist()] == [2, [1000] * 4]
    assert state._sums[1].tolist() == [0] * 4


def test_noise_is_fresh_in_every_round_and_differs_between_servers():
    strategy, sums = banded_square_root(2, 2), np.zeros((2, 40), dtype=np.int64)
    states = [state_of(strategy, std=99.0, length=40) for _ in range(2)]
    found = np.array(
        [state.release(to_ring(sums[t]), round=t + 1) for state in states for t in range(2)]
    )
    assert len(np.unique(found.round(6), axis=0)) == 4


def test_a_client_at_the_edge_of_the_ring_cannot_make_a_small_change_a_large_one():
    """The release itself, not only the fold: centred sums would differ by 2^24 here."""
    strategy, bits = banded_square_root(2, 2), 24
    edge = np.array([[2 ** (bits - 1) - 3], [0]], dtype=np.int64)
    moved = edge + np.array([[7], [0]])
    naive = [from_ring(to_ring(x[0]) & np.uint32(2**bits - 1), bits)[0] for x in (edge, moved)]
    assert abs(naive[1] - naive[0]) > 2**23
    one, other = (
        dense(strategy, 2) @ released(strategy, x, std=1e-4, bits=bits) for x in (edge, moved)
    )
    assert np.linalg.norm(one - other) <= 7 * strategy.sensitivity(2) + 0.01


# What it costs


def gaussian_delta(mu, epsilon):
    """The hockey-stick divergence of N(mu, 1) from N(0, 1), in closed form."""
    return stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * stats.norm.cdf(
        -mu / 2 - epsilon / mu
    )


@pytest.mark.parametrize(
    ("bands", "separation", "rounds"), [(1, 10, 100), (10, 10, 100), (16, 25, 90), (64, 100, 1000)]
)
def test_epsilon_is_that_of_one_gaussian(bands, separation, rounds):
    strategy = banded_square_root(bands, separation)
    epsilon = correlated_epsilon(PLAN, strategy, rounds=rounds, delta=DELTA)
    mu = strategy.sensitivity(rounds) * PLAN.sensitivity / PLAN.server_std
    assert gaussian_delta(mu, epsilon) <= DELTA
    assert gaussian_delta(mu, 0.995 * epsilon) > DELTA


def test_one_band_is_the_composition_of_a_units_participations():
    accountant = PLDAccountant()
    accountant.compose(dp_accounting.GaussianDpEvent(PLAN.server_std / PLAN.sensitivity), count=10)
    epsilon = correlated_epsilon(PLAN, banded_square_root(1, 10), rounds=100, delta=DELTA)
    assert epsilon == pytest.approx(accountant.get_epsilon(DELTA), rel=0.005)


def test_epsilon_never_falls_with_rounds_and_begins_at_nothing():
    strategy = banded_square_root(4, 6)
    found = [correlated_epsilon(PLAN, strategy, rounds=t, delta=DELTA) for t in range(25)]
    assert found[0] == 0.0
    assert all(a <= b for a, b in itertools.pairwise(found))
    # Rows after the last of a participation cost nothing; a new participation does.
    assert found[4] == pytest.approx(found[6], rel=1e-9)
    assert found[7] > 1.05 * found[6]


def test_a_large_epsilon_or_many_rounds_leave_no_room_and_say_so():
    starved = replace(PLAN, server_std=40.0)
    strategy = banded_square_root(4, 6)
    assert correlated_epsilon(starved, strategy, rounds=50, delta=DELTA) == math.inf


# A distinguisher that sees whole runs

RUNS = 100_000
CONFIDENCE = 0.999


def lower_bound(strategy, rounds, delta, epsilon, *, std, generator):
    """Below the true epsilon with confidence 99.9 %, by counting one event fixed beforehand.

    Each coordinate is one run of a mechanism of dimension 1: a unit adds the whole sensitivity to
    every sum that it is in.  The adversary knows all else, the std too, and asks whether the
    likelihood ratio of the releases exceeds e^epsilon.
    """
    change = np.zeros(rounds)
    change[:: strategy.separation] = PLAN.sensitivity
    matrix = dense(strategy, rounds)
    direction = matrix @ change
    length = np.linalg.norm(direction)
    mu = length / std
    threshold = (epsilon / mu + mu / 2) * std
    counts = []
    for present in (0, 1):
        state = state_of(strategy, std=std, length=RUNS, generator=generator)
        score = np.zeros(RUNS)
        ring = to_ring(np.rint(present * change).astype(np.int64))
        estimates = [
            state.release(np.full(RUNS, ring[t], dtype=np.uint32), round=t + 1)
            for t in range(rounds)
        ]
        for t in range(rounds):
            row = sum(matrix[t, s] * estimates[s] for s in range(t + 1) if matrix[t, s])
            score += direction[t] / length * row
        counts.append(int((score > threshold).sum()))
    fail = (1.0 - CONFIDENCE) / 2
    often = stats.beta.ppf(1 - fail, counts[0] + 1, RUNS - counts[0])
    rarely = stats.beta.ppf(fail, counts[1], RUNS - counts[1] + 1) if counts[1] else 0.0
    return math.log((rarely - delta) / often) if rarely > delta else 0.0


def test_no_epsilon_is_beaten_and_half_the_noise_is_found_out():
    strategy, rounds, delta = banded_square_root(3, 4), 9, 0.05
    stated = correlated_epsilon(PLAN, strategy, rounds=rounds, delta=delta)
    arguments = (strategy, rounds, delta, stated)
    generator = NoiseGenerator()
    fair = lower_bound(*arguments, std=PLAN.server_std, generator=generator)
    caught = lower_bound(*arguments, std=PLAN.server_std / 2, generator=generator)
    # The first line fails once in a thousand runs of a sound mechanism at most.
    assert fair <= stated
    assert fair >= 0.75 * stated
    assert caught > stated


def test_counting_one_participation_too_few_is_found_out():
    """Of three participations, at the noise that would do for two."""
    strategy, rounds, delta = banded_square_root(3, 4), 9, 0.05
    short = correlated_epsilon(PLAN, strategy, rounds=7, delta=delta)
    found = lower_bound(
        strategy, rounds, delta, short, std=PLAN.server_std, generator=NoiseGenerator()
    )
    assert found > short


# Refusals


def test_the_state_is_neither_copied_nor_pickled_nor_shown():
    state = state_of(banded_square_root(2, 2), std=99.0, length=3)
    state.release(np.zeros(3, dtype=np.uint32), round=1)
    for action in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="holds a secret"):
            action(state)
    assert repr(state) == "<CorrelatedRelease>"


@pytest.mark.parametrize("total", [np.zeros(4, dtype=np.uint32), np.zeros(3, dtype=np.int64)])
def test_another_sum_is_refused_and_leaves_no_trace(total):
    arguments = {"std": 9.0, "length": 3}
    strategy = banded_square_root(2, 2)
    state, twin = (
        state_of(strategy, **arguments, generator=SeededNoiseGeneratorForTests(1)) for _ in range(2)
    )
    with pytest.raises(ConfigError, match=r"sum of shape|int64 given"):
        state.release(total, round=1)
    good = np.arange(3, dtype=np.uint32)
    for t in (1, 2, 3):
        assert state.release(good, round=t).tolist() == twin.release(good, round=t).tolist()
    with pytest.raises(ConfigError, match="round = 3: must be > 3"):
        state.release(good, round=3)
    assert state.release(good, round=4).tolist() == twin.release(good, round=4).tolist()


class FailsOnce(SeededNoiseGeneratorForTests):
    """A generator that is interrupted in its third draw."""

    draws = 0

    def uint64(self, count):
        self.draws += 1
        if self.draws == 3:
            raise KeyboardInterrupt
        return super().uint64(count)


def test_after_an_interrupted_release_there_is_no_other():
    """Without its place in what is remembered, two uses of an example would come to overlap."""
    generator = FailsOnce(1)
    state = state_of(banded_square_root(4, 4), std=99.0, length=3, generator=generator)
    zeros = np.zeros(3, dtype=np.uint32)
    with pytest.raises(KeyboardInterrupt):
        deque(state.release(zeros, round=t) for t in range(1, 5))
    with pytest.raises(LocalProtocolError, match="an earlier one was interrupted"):
        state.release(zeros, round=9)


@pytest.mark.parametrize(("name", "value"), [("rounds", -1), ("delta", 0.0), ("delta", 1.0)])
def test_other_arguments_are_refused(name, value):
    arguments = {"rounds": 3, "delta": DELTA} | {name: value}
    with pytest.raises(ConfigError, match=f"{name} = "):
        correlated_epsilon(PLAN, banded_square_root(2, 2), **arguments)
