"""Median times of packing, unpacking and rotating.

Run by hand: ``python tests/bench/bench_wire.py``.  Nothing here uses more than one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from securefed.encoding.rotation import Rotation
from securefed.encoding.wire import pack_ring, packed_size, unpack_ring


def median_ms(call: Callable[[], object], repeats: int) -> float:
    """The median wall time of ``repeats`` calls, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Print one line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="values in a vector")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    count, repeats = arguments.count, arguments.repeats

    generator = np.random.default_rng(0)
    vector = generator.integers(0, 2**32, count, dtype=np.uint32)
    print(f"{count} values, median of {repeats}")
    for bits in (20, 21, 23, 24, 27, 28, 31, 32):
        data = pack_ring(vector, bits)
        pack = median_ms(lambda bits=bits: pack_ring(vector, bits), repeats)
        unpack = median_ms(lambda data=data, bits=bits: unpack_ring(data, count, bits), repeats)
        size = packed_size(count, bits)
        print(f"{bits} bits: pack {pack:6.2f} ms, unpack {unpack:6.2f} ms, {size} bytes")

    for dimension in sorted({1_000, 23_040, count}):
        update = generator.normal(size=dimension)
        rotation = Rotation(dimension, bytes(32))
        rotated = rotation.forward(update)
        setup = median_ms(lambda d=dimension: Rotation(d, bytes(32)), repeats)
        forward = median_ms(lambda r=rotation, u=update: r.forward(u), repeats)
        inverse = median_ms(lambda r=rotation, u=rotated: r.inverse(u), repeats)
        print(
            f"rotation of {dimension} (block {rotation.block}, padded {rotation.padded}): "
            f"set-up {setup:.2f} ms, forward {forward:.2f} ms, inverse {inverse:.2f} ms"
        )


if __name__ == "__main__":
    main()
