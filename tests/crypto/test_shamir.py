import itertools
import os
from collections import Counter
from fractions import Fraction

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.crypto.shamir import PRIME, SHARE_BYTES, Reconstructor, reconstruct, share
from securefed.errors import ConfigError, LocalProtocolError, RemoteProtocolError, ThresholdNotMet

secrets = st.binary(min_size=32, max_size=32)
point_sets = st.lists(st.integers(1, 2**32 - 1), min_size=2, max_size=12, unique=True)


def test_the_modulus_is_the_least_prime_above_2_256():
    assert sympy.nextprime(2**256) == PRIME


@given(secrets, point_sets, st.data())
@settings(max_examples=60)
def test_any_threshold_of_shares_gives_the_secret_back(secret, points, data):
    threshold = data.draw(st.integers(2, len(points)))
    shares = share(secret, threshold=threshold, points=points, random=os.urandom)
    assert sorted(shares) == sorted(points)
    assert {len(block) for block in shares.values()} == {SHARE_BYTES}
    count = data.draw(st.integers(threshold, len(points)))
    chosen = data.draw(st.permutations(points))[:count]
    subset = {point: shares[point] for point in chosen}
    assert reconstruct(subset, threshold=threshold) == secret
    assert Reconstructor(chosen, threshold).reconstruct(shares) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, b"\0" * 31 + b"\1"])
def test_extreme_secrets_survive(secret):
    shares = share(secret, threshold=3, points=[1, 2, 2**32 - 1], random=os.urandom)
    assert reconstruct(shares, threshold=3) == secret


@given(secrets, point_sets, st.data())
@settings(max_examples=60)
def test_shares_are_the_polynomial_of_the_drawn_coefficients(secret, points, data):
    threshold = data.draw(st.integers(2, len(points)))
    blocks = data.draw(
        st.lists(st.binary(min_size=32, max_size=32), min_size=threshold, max_size=threshold)
    )
    drawn = iter(blocks)
    found = share(
        secret, threshold=threshold, points=points, random=lambda count: b"\0" + next(drawn)
    )
    # The first block drawn is the highest coefficient.
    polynomial = [secret, *reversed(blocks[: threshold - 1])]
    for x, encoded in found.items():
        wanted = sum(int.from_bytes(c, "big") * x**i for i, c in enumerate(polynomial))
        assert int.from_bytes(encoded, "big") == wanted % PRIME


@given(st.lists(st.integers(1, 2**32 - 1), min_size=2, max_size=40, unique=True))
def test_the_weights_are_those_of_lagrange(points):
    whole = Reconstructor(points, len(points))
    for chosen, weight in zip(whole.points, whole._weights, strict=True):
        wanted = Fraction(1)
        for other in points:
            if other != chosen:
                wanted *= Fraction(other, other - chosen)
        assert weight * wanted.denominator % PRIME == wanted.numerator % PRIME


def test_every_subset_of_a_small_sharing_agrees():
    secret = os.urandom(32)
    shares = share(secret, threshold=3, points=range(1, 7), random=os.urandom)
    for size in (3, 4, 5, 6):
        for chosen in itertools.combinations(shares, size):
            assert reconstruct({x: shares[x] for x in chosen}, threshold=3) == secret


@given(secrets, secrets, point_sets)
@settings(max_examples=40)
def test_fewer_shares_fit_every_secret(secret, other, points):
    """For t - 1 shares and any other secret there is a polynomial through all of them."""
    threshold = len(points)
    shares = share(secret, threshold=threshold, points=points, random=os.urandom)
    seen = sorted(points)[:-1]
    values = {0: int.from_bytes(other, "big")}
    values |= {x: int.from_bytes(shares[x], "big") for x in seen}
    last = max(points)
    # Lagrange's formula at the last point, through the other secret and the seen shares.
    completed = 0
    for x, y in values.items():
        weight = Fraction(1)
        for z in values:
            if z != x:
                weight *= Fraction(last - z, x - z)
        completed += y * weight.numerator * pow(weight.denominator, -1, PRIME)
    forged = {x: shares[x] for x in seen} | {last: (completed % PRIME).to_bytes(33, "big")}
    assert reconstruct(forged, threshold=threshold) == other


def test_one_share_below_the_threshold_is_uniform():
    # The top three of 256 bits of a threshold-2 share, over fresh polynomials: chi-square with 7
    # degrees of freedom exceeds 40 with probability 1.2e-6.
    bins = Counter(
        share(bytes(32), threshold=2, points=[1, 2], random=os.urandom)[2][1] >> 5
        for _ in range(4000)
    )
    assert sum((bins[i] - 500) ** 2 / 500 for i in range(8)) < 40


def test_coefficients_at_or_above_the_prime_are_drawn_again():
    accepted = (5).to_bytes(33, "big")
    blocks = [PRIME.to_bytes(33, "big"), b"\x01" + b"\xff" * 32, b"\xfe" + accepted[1:]]
    supply = iter(blocks)
    shares = share(bytes(32), threshold=2, points=[1, 3], random=lambda count: next(supply))
    # The third block counts as 5: only 257 bits of a candidate are read.
    assert {x: int.from_bytes(block, "big") for x, block in shares.items()} == {1: 5, 3: 15}
    largest = iter([(PRIME - 1).to_bytes(33, "big")])
    shares = share(bytes(32), threshold=2, points=[1, 3], random=lambda count: next(largest))
    assert int.from_bytes(shares[1], "big") == PRIME - 1


def test_a_random_source_that_runs_short_is_refused():
    with pytest.raises(LocalProtocolError):
        share(bytes(32), threshold=2, points=[1, 2], random=lambda count: bytes(count - 1))


def test_a_wrong_share_does_not_give_the_secret():
    secret = os.urandom(32)
    shares = share(secret, threshold=3, points=[1, 2, 3], random=os.urandom)
    wrong = int.from_bytes(shares[2], "big") ^ 1
    shares[2] = (wrong % PRIME).to_bytes(33, "big")
    assert reconstruct(shares, threshold=3) != secret


def test_a_reconstructor_reads_only_the_smallest_points():
    secret = os.urandom(32)
    shares = share(secret, threshold=2, points=[9, 4, 7], random=os.urandom)
    reconstructor = Reconstructor([9, 4, 7], 2)
    assert reconstructor.points == (4, 7)
    shares[9] = b"not read"
    assert reconstructor.reconstruct(shares) == secret
    other = os.urandom(32)
    again = share(other, threshold=2, points=[4, 7, 9], random=os.urandom)
    assert reconstructor.reconstruct(again) == other


def test_a_missing_share_is_named():
    shares = share(os.urandom(32), threshold=2, points=[1, 2, 3], random=os.urandom)
    reconstructor = Reconstructor(shares, 2)
    del shares[1]
    with pytest.raises(ThresholdNotMet, match="first 1"):
        reconstructor.reconstruct(shares)


def test_too_few_points_are_refused():
    with pytest.raises(ThresholdNotMet, match="2 shares are at hand; 3 are needed"):
        Reconstructor([1, 2], 3)
    with pytest.raises(ThresholdNotMet):
        reconstruct({}, threshold=2)


@pytest.mark.parametrize("points", [[0, 1], [-1, 1], [1, 2**32], [3, 1, 3]])
def test_points_out_of_range_or_twice_are_refused(points):
    with pytest.raises(ConfigError, match="point"):
        share(bytes(32), threshold=2, points=points, random=os.urandom)
    with pytest.raises(ConfigError, match="point"):
        Reconstructor(points, 2)


@pytest.mark.parametrize("threshold", [-1, 0, 1])
def test_a_threshold_that_protects_nothing_is_refused(threshold):
    with pytest.raises(ConfigError, match="threshold"):
        share(bytes(32), threshold=threshold, points=[1, 2], random=os.urandom)
    with pytest.raises(ConfigError, match="threshold"):
        Reconstructor([1, 2], threshold)


def test_a_threshold_above_the_number_of_points_is_refused():
    with pytest.raises(ConfigError, match="threshold = 3"):
        share(bytes(32), threshold=3, points=[1, 2], random=os.urandom)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_secret_of_another_length_is_refused(size):
    with pytest.raises(ConfigError, match=f"secret has {size} bytes"):
        share(bytes(size), threshold=2, points=[1, 2], random=os.urandom)


def test_no_message_shows_a_share():
    shares = share(os.urandom(32), threshold=2, points=[1, 2], random=os.urandom)
    for wrong in (shares[1][:-1], b"\xff" + shares[1][1:]):
        with pytest.raises(RemoteProtocolError) as caught:
            reconstruct({1: wrong, 2: shares[2]}, threshold=2)
        assert wrong[1:9].hex() not in str(caught.value)
        assert str(int.from_bytes(wrong, "big")) not in str(caught.value)
