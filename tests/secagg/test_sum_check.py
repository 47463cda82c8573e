"""The linear check of a sum of ciphertexts."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.errors import WireError
from securefed.secagg.ciphertexts import CiphertextSum, encode_words
from securefed.secagg.rlwe_parameters import BfvParameters, CkksParameters
from securefed.secagg.sum_check import (
    SOUNDNESS_BITS,
    SumCheck,
    add_padded,
    check_bytes,
    read_padded,
    rows,
)

SMALL = BfvParameters.of(100)
WIDE = BfvParameters.of(1000)
CKKS = CkksParameters(clients=100, sum_bound=1 << 20)


def random_ciphertexts(parameters, count, rng):
    return [
        encode_words(
            np.stack(
                [
                    rng.integers(0, prime, (2, parameters.degree), dtype=np.uint64)
                    for prime in parameters.primes
                ],
                axis=1,
            ),
            parameters.primes,
        )
        for _ in range(count)
    ]


def in_plain_integers(check, parameters, ciphertexts):
    """l(c) from its definition, with Python's integers."""
    from securefed.crypto.keys import derive
    from securefed.crypto.prg import uniform_below
    from securefed.secagg.ciphertexts import decode_words
    from securefed.secagg.sum_check import _MAP

    count = rows(parameters)
    shape = (count, 2, len(parameters.primes), parameters.degree)
    total = [[0] * len(parameters.primes) for _ in range(count)]
    for index, data in enumerate(ciphertexts):
        words = decode_words(data, parameters.primes, parameters.degree, 2, field="c")
        key = derive(check._secret, label=_MAP, context=check._view + index.to_bytes(4, "big"))
        factors = uniform_below(key, 1 << check._bits, int(np.prod(shape))).reshape(shape)
        for row in range(count):
            for place, prime in enumerate(parameters.primes):
                products = factors[row, :, place].astype(object) * words[:, place].astype(object)
                total[row][place] = (total[row][place] + int(products.sum())) % prime
    return np.array(total, dtype=np.uint64)


@pytest.mark.parametrize("parameters", [SMALL, WIDE, CKKS], ids=["80 bits", "88 bits", "ckks"])
def test_the_map_is_its_definition_and_has_as_many_rows_as_it_must(parameters):
    check = SumCheck(parameters, os.urandom(32), bytes(32))
    ciphertexts = random_ciphertexts(parameters, 2, np.random.default_rng(0))
    # The largest coefficients that there are must not overflow either.
    largest = np.array(parameters.primes, dtype=np.uint64)[:, None] - np.uint64(1)
    full = np.broadcast_to(largest, (2, len(parameters.primes), parameters.degree))
    ciphertexts.append(encode_words(np.ascontiguousarray(full), parameters.primes))
    found = check.of(ciphertexts)
    assert np.array_equal(found, in_plain_integers(check, parameters, ciphertexts))
    assert rows(parameters) * check._bits >= SOUNDNESS_BITS
    assert all(1 << check._bits < prime for prime in parameters.primes)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32), summands=st.integers(1, 5))
def test_checks_add_up_as_ciphertexts_do(seed, summands):
    rng, secret, view = np.random.default_rng(seed), os.urandom(32), os.urandom(32)
    check, total = SumCheck(SMALL, secret, view), CiphertextSum(SMALL, 2)
    padded = bytes(check_bytes(SMALL))
    for index in range(summands):
        ciphertexts = random_ciphertexts(SMALL, 2, rng)
        total.add(ciphertexts)
        padded = add_padded(SMALL, padded, check.padded(check.of(ciphertexts), index))
    found = check.of(total.ciphertexts())
    assert check.agrees(found, padded, range(summands))
    assert not check.agrees(found, padded, range(summands - 1))
    assert not check.agrees(found, padded, range(1, summands + 1))
    # Ciphertexts in another order are another sum.
    swapped = list(total.ciphertexts())[::-1]
    assert not check.agrees(check.of(swapped), padded, range(summands))
    for place in range(0, len(padded), 8):
        off = int.from_bytes(padded[place : place + 8], "little") + 1
        off %= SMALL.primes[place // 8 % 2]
        wrong = padded[:place] + off.to_bytes(8, "little") + padded[place + 8 :]
        assert not check.agrees(found, wrong, range(summands))


def test_a_change_of_one_coefficient_is_seen_wherever_it_is():
    rng, check = np.random.default_rng(3), SumCheck(SMALL, os.urandom(32), bytes(32))
    ciphertexts = random_ciphertexts(SMALL, 2, rng)
    before = check.of(ciphertexts)
    each = len(ciphertexts[0])
    for place in rng.integers(0, each, 25):
        data = bytearray(ciphertexts[1])
        data[place] ^= 1
        try:
            after = check.of([ciphertexts[0], bytes(data)])
        except WireError:
            continue  # beyond its prime
        # A coefficient lies in one prime's row, and moves every row of that prime's checks.
        assert (after != before).all(axis=0).sum() == 1


def test_what_is_sent_is_uniform_and_fresh_for_each_client_and_view():
    """The check of zeros is zero, so what is sent of it is the pad."""
    secret = os.urandom(32)
    zero = np.zeros((rows(SMALL), 2), dtype=np.uint64)
    pads = set()
    for view in (bytes(32), b"\1" * 32):
        check = SumCheck(SMALL, secret, view)
        pads |= {check.padded(zero, index) for index in range(200)}
    assert len(pads) == 400
    values = np.concatenate([read_padded(SMALL, pad).ravel() for pad in pads]) / 2.0**40
    # 3,200 values uniform on [0, 1): their mean is within 5 standard errors of a half.
    assert abs(values.mean() - 0.5) < 5 * np.sqrt(1 / 12 / values.size)


def test_a_check_of_another_length_or_beyond_its_prime_is_refused():
    size = check_bytes(SMALL)
    for bad in (b"", bytes(size - 1), bytes(size + 8), b"\xff" * size):
        with pytest.raises(WireError, match="check of the sum"):
            read_padded(SMALL, bad)
