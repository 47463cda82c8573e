import math

import numpy as np
import pytest
import tenseal
from sympy import isprime, prevprime

from securefed.errors import ConfigError, OverflowBoundError
from securefed.secagg.rlwe_parameters import (
    MAX_MODULUS_BITS,
    PLAIN_MODULUS,
    BfvParameters,
    CkksParameters,
)

UNSAFE = {"degree": 4096, "data_bits": (54,), "special_bits": 55, "plain_modulus": 35184371884033}


def test_the_plain_modulus_is_the_largest_that_batches_below_2_to_60():
    assert isprime(PLAIN_MODULUS)
    assert PLAIN_MODULUS % 8192 == 1
    larger = range(PLAIN_MODULUS + 8192, 2**60, 8192)
    assert not any(isprime(value) for value in larger)


@pytest.mark.parametrize("clients", [1, 2, 100, 127, 128, 1000, 32_700])
def test_vetted_parameters_are_secure_and_hold_the_noise(clients):
    """The argument of the module docstring, counted again with integers."""
    parameters = BfvParameters.of(clients)
    n, p = parameters.degree, parameters.key_primes[-1]
    assert all(isprime(prime) and prime % (2 * n) == 1 for prime in parameters.key_primes)
    assert len(set(parameters.key_primes)) == len(parameters.key_primes)
    assert math.prod(parameters.key_primes).bit_length() <= 109  # the standard's row for N = 4096
    worst = clients * (2 * 21 * (2 * n + 1) + p * (n + 2))  # times 2 p
    q, t = math.prod(parameters.primes), parameters.plain_modulus
    assert 2 * worst * t <= q * p
    assert parameters.noise_bound >= worst / (2 * p)


def test_small_cohorts_have_the_small_modulus():
    assert BfvParameters.of(127).modulus.bit_length() == 80
    assert BfvParameters.of(128).modulus.bit_length() == 88


def test_more_clients_than_the_noise_allows_are_refused_with_the_bound():
    with pytest.raises(
        OverflowBoundError, match=r"noise of up to 67209945; q / \(4 t\) = 67108862"
    ):
        BfvParameters.of(32_800)


@pytest.mark.parametrize("degree", [2048, 4096, 8192, 16384])
def test_the_table_is_the_one_that_the_library_enforces(degree):
    """SEAL takes as many bits as its own table of 128-bit security has, and not one more."""
    bits = MAX_MODULUS_BITS[degree]
    count = -(-bits // 50)
    sizes = [bits // count + (i < bits % count) for i in range(count)]

    def context(sizes):
        return tenseal.context(
            tenseal.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=sizes, n_threads=1
        )

    context(sizes)
    with pytest.raises(ValueError, match="not set correctly"):
        context([*sizes[:-1], sizes[-1] + 1])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data_bits": (46, 46), "special_bits": 30}, "122 bits: at most 109"),
        ({"degree": 2048}, "at most 54"),
        ({"degree": 4000}, "degree = 4000"),
        ({"clients": 0}, "clients = 0"),
        ({"clients": 2**20}, "clients = 1048576"),
        ({"data_bits": ()}, "data_bits"),
        ({"data_bits": (61,)}, "data_bits"),
        ({"special_bits": 12}, "special_bits"),
        ({"plain_modulus": PLAIN_MODULUS + 2}, "plain_modulus"),
        ({"plain_modulus": prevprime(2**40)}, "plain_modulus"),  # does not batch
        ({"plain_modulus": 2**60 + 2**14 + 1}, "plain_modulus"),
    ],
)
def test_insecure_or_impossible_parameters_are_refused_by_name(changes, named):
    with pytest.raises(ConfigError, match=named):
        BfvParameters(**{"clients": 10} | changes)


def test_an_unsafe_choice_gives_wrong_sums_in_the_library_and_is_refused_here():
    """100 public-key encryptions: the library adds and decrypts them wrongly without a word."""
    context = tenseal.context(
        tenseal.SCHEME_TYPE.BFV,
        UNSAFE["degree"],
        UNSAFE["plain_modulus"],
        coeff_mod_bit_sizes=[*UNSAFE["data_bits"], UNSAFE["special_bits"]],
        n_threads=1,
    )
    values = np.random.default_rng(5).integers(-(2**19), 2**19, (100, 4096))
    total = tenseal.bfv_vector(context, values[0].tolist())
    assert total.decrypt() == values[0].tolist()
    for row in values[1:]:
        total += tenseal.bfv_vector(context, row.tolist())
    assert total.decrypt() != values.sum(axis=0).tolist()
    with pytest.raises(OverflowBoundError, match=r"q / \(4 t\) = 128 is the most .* 54 bits"):
        BfvParameters(clients=100, **UNSAFE)


def test_the_librarys_default_moduli_are_refused_where_only_chance_carries_them():
    """SEAL's default for N = 4096 holds 72 bits: no more than likely to be right, not certain."""
    with pytest.raises(OverflowBoundError, match="72 bits"):
        BfvParameters(clients=100, data_bits=(36, 36), special_bits=37)


def test_check_slots_never_wrap_around():
    parameters = BfvParameters.of(32_700)
    assert parameters.ciphertexts(4095 * 1000) == 1000
    with pytest.raises(OverflowBoundError, match="check slot"):
        parameters.ciphertexts(4095 * 10**8)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sum_bound": 2**31}, "sum_bound"),
        ({"sum_bound": 0}, "sum_bound"),
        ({"scale_bits": 30}, "at most 1/4"),
        ({"scale_bits": 50}, "leave"),
        ({"clients": 40_000}, "at most 1/4"),
    ],
)
def test_ckks_parameters_whose_rounding_is_not_exact_are_refused(changes, named):
    good = {"clients": 100, "sum_bound": 2**31 - 1}
    CkksParameters(**good)
    with pytest.raises(OverflowBoundError, match=named):
        CkksParameters(**good | changes)
