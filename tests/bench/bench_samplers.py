"""Time of the samplers for 10^6 draws, and of building their tables, against OpenDP's.

Run by hand: ``python tests/bench/bench_samplers.py``; medians of five, the tables once.  Where
``opendp`` imports (``pip install opendp``; it is not a dependency), its exact discrete Gaussian
draws 10^5 values of the same std in the same run, and the ratio of the times per draw is printed.
OpenDP has no Skellam sampler: ours is compared with its discrete Gaussian.
"""

import statistics
import time

import numpy as np

from securefed.crypto.prg import NoiseGenerator
from securefed.privacy.samplers import DiscreteGaussian, poisson_sample, stochastic_round
from securefed.privacy.skellam import Skellam

COUNT = 1_000_000
PEER_COUNT = 100_000


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def median(call):
    return statistics.median(seconds(call) for _ in range(5))


def opendp_gaussian(std):
    """A call that draws ``PEER_COUNT`` values, or ``None`` without OpenDP."""
    try:
        import opendp.prelude as dp
    except ImportError:
        return None
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="i64")
    mechanism = dp.m.make_gaussian(*space, scale=std)
    zeros = [0] * PEER_COUNT
    return lambda: mechanism(zeros)


def main():
    generator = NoiseGenerator()
    print(f"uint64           {median(lambda: generator.uint64(COUNT)):7.4f} s")
    for std in (3.0, 30.0, 300.0, 3e3, 1e4, 6e4):
        peer = opendp_gaussian(std)
        theirs = seconds(peer) / PEER_COUNT if peer else None
        for name, make in (
            ("gaussian", lambda std=std: DiscreteGaussian(std)),
            ("skellam", lambda std=std: Skellam(std * std)),
        ):
            build = seconds(make)
            sampler = make()
            draw = median(lambda sampler=sampler: sampler.sample(COUNT, generator))
            line = f"{name:8} {std:7g} {draw:7.4f} s, table {build:7.4f} s"
            if theirs is not None:
                line += f", OpenDP {theirs * COUNT:6.2f} s: {theirs * COUNT / draw:4.0f} times"
            print(line)
    if opendp_gaussian(3.0) is None:
        print("opendp is not installed: no comparison")
    values = np.random.default_rng(0).normal(0, 300, COUNT)
    print(f"stochastic_round {median(lambda: stochastic_round(values, generator)):7.4f} s")
    print(f"poisson_sample   {median(lambda: poisson_sample(COUNT, 0.01, generator)):7.4f} s")


if __name__ == "__main__":
    main()
