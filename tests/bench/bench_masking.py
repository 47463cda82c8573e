"""Time of add_keystream against its floor: the bare keystream plus the bare addition.

Run by hand: ``python tests/bench/bench_masking.py [elements]``.  The floor writes the keystream
into one cache-sized buffer and adds that buffer, over and over, with nothing else; both are
measured in turn in the same run, and medians are printed.
"""

import os
import statistics
import sys
import time

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from securefed.crypto.prg import add_keystream

CHUNK = 1 << 16
ROUNDS = 41


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(size):
    vector = np.zeros(size, dtype=np.uint32)
    key = os.urandom(32)
    zeros = memoryview(bytes(4 * CHUNK))
    words = np.empty(CHUNK, dtype=np.uint32)
    buffer = words.view(np.uint8).data
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    pieces = [vector[start : start + CHUNK] for start in range(0, size, CHUNK)]

    def bare_keystream():
        for piece in pieces:
            stream.update_into(zeros[: 4 * piece.size], buffer)

    def bare_addition():
        for piece in pieces:
            np.add(piece, words[: piece.size], out=piece)

    calls = {
        "keystream": bare_keystream,
        "addition": bare_addition,
        "add_keystream": lambda: add_keystream(vector, key),
    }
    times = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            times[name].append(seconds(call))
    median = {name: statistics.median(values) for name, values in times.items()}
    floor = median["keystream"] + median["addition"]
    for name, value in median.items():
        print(f"{name:14} {1e3 * value:8.3f} ms for {size} uint32")
    print(f"ratio          {median['add_keystream'] / floor:8.2f} of the floor")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
