"""Mask removal on one core and with processes, in turn, and from which size on processes pay.

Run by hand: ``python tests/bench/bench_mask_removal.py [--values 1000000] [--workers 2]``.

Wall-clock medians of the same work done both ways, the order alternating.  The first call with
processes also starts the fork server, once; that is shown apart.
"""

import argparse
import os
import statistics
import time

import numpy as np

from securefed.engines.parallel import SERIAL_BELOW, ParallelMasks, usable_cores
from securefed.secagg.carriers import apply_masks

TURNS = 7


def seconds(remove, values, masks):
    vector = np.zeros(values, dtype=np.uint32)
    started = time.perf_counter()
    remove(vector, masks)
    return time.perf_counter() - started, vector


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--values", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=usable_cores())
    given = parser.parse_args()
    several = ParallelMasks(given.workers, serial_below=0)
    first, _ = seconds(several, 1, [(os.urandom(32), False)])
    print(f"first call, with the fork server's start: {first:.2f} s")
    print(f"{given.values} values, {given.workers} processes, {usable_cores()} usable cores")
    print("   masks  values x masks  one core  processes  ratio")
    count = 16
    while count * given.values <= 1 << 32:
        masks = [(os.urandom(32), bool(index % 2)) for index in range(count)]
        times = {apply_masks: [], several: []}
        for turn in range(TURNS):
            sums = []
            for remove in list(times)[:: 1 if turn % 2 else -1]:
                took, vector = seconds(remove, given.values, masks)
                times[remove].append(took)
                sums.append(vector)
            if not np.array_equal(*sums):
                raise SystemExit("the results differ")
        one, many = (statistics.median(found) for found in times.values())
        note = " (one core by default)" if count * given.values < SERIAL_BELOW else ""
        work = np.log2(count * given.values)
        print(f"{count:>8} {'2^':>11}{work:.1f} {one:>9.3f} {many:>10.3f} {one / many:>6.2f}{note}")
        count *= 2


if __name__ == "__main__":
    main()
