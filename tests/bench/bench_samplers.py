"""Time of the samplers for 10^6 draws, and of building the discrete Gaussian's table.

Run by hand: ``python tests/bench/bench_samplers.py``; medians of five, the table once.
"""

import statistics
import time

import numpy as np

from securefed.crypto.prg import NoiseGenerator
from securefed.privacy.samplers import DiscreteGaussian, poisson_sample, stochastic_round

COUNT = 1_000_000


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median(call):
    return statistics.median(seconds(call) for _ in range(5))


def main():
    generator = NoiseGenerator()
    print(f"uint64           {median(lambda: generator.uint64(COUNT)):7.4f} s")
    for std in (3.0, 30.0, 300.0, 3e3, 1e4, 6e4):
        build = seconds(lambda std=std: DiscreteGaussian(std))
        gaussian = DiscreteGaussian(std)
        draw = median(lambda gaussian=gaussian: gaussian.sample(COUNT, generator))
        print(f"gaussian {std:7g} {draw:7.4f} s, table {build:7.4f} s")
    values = np.random.default_rng(0).normal(0, 300, COUNT)
    print(f"stochastic_round {median(lambda: stochastic_round(values, generator)):7.4f} s")
    print(f"poisson_sample   {median(lambda: poisson_sample(COUNT, 0.01, generator)):7.4f} s")


if __name__ == "__main__":
    main()
