"""Noise of prefix sums at equal epsilon: correlated over rounds, independent, and sampled.

    python tests/bench/bench_correlated_noise.py

Each line is one run of T rounds in which a unit takes part every B rounds (T / B epochs), with one
trusted server, at delta = 1e-5.  Figures are RMS noise, over rounds and coordinates, of the sum of
all gradients so far, in units of clip_norm.  "Poisson" samples each unit with probability 1 / B in
secret and is credited for it; the other two need no secret.  Needs about two minutes on one core.
"""

from __future__ import annotations

import math
import time

import numpy as np

from securefed.encoding.fixed_point import to_ring
from securefed.privacy.calibration import gaussian_noise_multiplier
from securefed.privacy.correlated import banded_square_root, best_bands
from securefed.privacy.correlated_release import CorrelatedRelease
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.policy import PrivacyPolicy

DELTA = 1e-5
RUNS = [(100, 10), (100, 25), (100, 100), (1000, 50), (1000, 100), (1000, 1000)]


def figures(rounds: int, separation: int, epsilon: float) -> tuple[int, float, float, float]:
    """Bands, and the error with them, with one band, and with a credited sample."""
    # Gaussian mechanisms of squared sensitivities that add up to S^2 are one of sensitivity S.
    noise = gaussian_noise_multiplier(epsilon, sampling_probability=1, rounds=1, delta=DELTA)

    def error(bands: int) -> float:
        strategy = banded_square_root(bands, separation)
        return noise * strategy.sensitivity(rounds) * strategy.prefix_error(rounds)

    bands = best_bands(separation, rounds)
    sampled = gaussian_noise_multiplier(
        epsilon, sampling_probability=1 / separation, rounds=rounds, delta=DELTA
    )
    return bands, error(bands), error(1), sampled * math.sqrt((rounds + 1) / 2)


def main() -> None:
    print(f"{'T':>5} {'B':>5} {'epsilon':>8} {'bands':>6} {'correlated':>11} {'independent':>12} "
          f"{'Poisson':>9}")  # fmt: skip
    for rounds, separation in RUNS:
        for epsilon in (1.0, 8.0):
            bands, correlated, independent, sampled = figures(rounds, separation, epsilon)
            print(f"{rounds:5d} {separation:5d} {epsilon:8g} {bands:6d} {correlated:11.1f} "
                  f"{independent:12.1f} {sampled:9.1f}")  # fmt: skip
    for length in (32_768, 1_048_576):
        policy = PrivacyPolicy(
            clip_norm=1.0,
            noise_multiplier=2.0,
            mechanism="central",
            unit="example",
            separation=64,
            bands=64,
        )
        plan = plan_round(policy, cohort_size=10, dimension=length)
        state = CorrelatedRelease(banded_square_root(64, 64), plan)
        total = to_ring(np.zeros(length, dtype=np.int64))
        seconds = []
        for number in range(1, 68):
            started = time.perf_counter()
            state.release(total, round=number)
            seconds.append(time.perf_counter() - started)
        print(f"one release of {length} values, 64 bands: {1e3 * np.median(seconds[-4:]):.0f} ms")


if __name__ == "__main__":
    main()
