"""Is a masked input uniform, bit by bit, whatever the input?  Complete and sparse rounds.

Every test here draws fresh randomness and states how often it fails though nothing is wrong: with
probability below FALSE_ALARM, by a union bound over all bits, places and pairs that it looks at.
"""

import numpy as np
import pytest
from scipy.stats import binom
from secagg_probe import body_of
from secagg_rounds import Cohort, drive

from securefed.encoding.wire import unpack_ring

FALSE_ALARM = 1e-6
LENGTH = 60_000
COHORTS = {
    "complete": {"size": 4},
    "sparse": {"size": 10, "degree": 4},
    "complete, 20 bits": {"size": 4, "bits": 20},
    "sparse, 27 bits": {"size": 10, "degree": 4, "bits": 27},
}


def suspicious(vectors: list[np.ndarray], bits: int) -> list[tuple[int, int]]:
    """Vector and bit wherever ones are too many or too few for fair coins."""
    tests = len(vectors) * bits
    least, most = binom.ppf([FALSE_ALARM / (2 * tests), 1 - FALSE_ALARM / (2 * tests)], LENGTH, 0.5)
    return [
        (place, bit)
        for place, vector in enumerate(vectors)
        for bit in range(bits)
        if not least - 1 <= int((vector >> np.uint32(bit) & np.uint32(1)).sum()) <= most + 1
    ]


@pytest.fixture(scope="module", params=COHORTS.values(), ids=COHORTS.keys())
def rounds(request) -> tuple[Cohort, list[np.ndarray], list[np.ndarray]]:
    """Two rounds of one cohort in which every input is the same constant."""
    cohort = Cohort(length=LENGTH, **request.param)
    for name in cohort.names:
        cohort.inputs[name][:] = 12345
    runs = []
    for _ in range(2):
        sent = drive(cohort, until="masked_input").sent["masked_input"]
        bodies = [body_of(sent[name]) for name in cohort.names]
        runs.append([unpack_ring(body[32:], LENGTH, cohort.bits) for body in bodies])
    return cohort, *runs


def test_every_bit_of_every_masked_input_is_fair(rounds):
    cohort, first, second = rounds
    assert suspicious(first + second, cohort.bits) == []


def test_neighbouring_values_have_unrelated_masks(rounds):
    cohort, first, _ = rounds
    assert suspicious([vector ^ np.roll(vector, 1) for vector in first], cohort.bits) == []


def test_two_clients_and_two_rounds_have_unrelated_masks(rounds):
    """Also for clients with an edge, whose masks share a keystream with opposite signs."""
    cohort, first, second = rounds
    size = cohort.size
    pairs = [first[i] + first[j] for i in range(size) for j in range(i)]
    pairs += [first[i] - first[j] for i in range(size) for j in range(i)]
    pairs += [first[i] - second[i] for i in range(size)]
    assert suspicious(pairs, cohort.bits) == []


def test_a_bare_input_or_one_bit_without_a_mask_is_seen(rounds):
    cohort, first, _ = rounds
    bare = np.full(LENGTH, 12345, dtype=np.uint32)
    assert len(suspicious([bare], cohort.bits)) == cohort.bits
    for bit in (0, cohort.bits - 1):
        holed = first[0] & ~np.uint32(1 << bit)
        assert suspicious([holed], cohort.bits) == [(0, bit)]
    # A bias of two in a hundred in one bit is seen too.
    biased = first[0].copy()
    biased[: LENGTH // 25] |= np.uint32(1)
    assert suspicious([biased], cohort.bits) == [(0, 0)]
