import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.crypto.prg import system_random
from securefed.crypto.shamir import PRIME, SHARE_BYTES, share
from securefed.crypto.shamir_decoding import correct


def dealt(secret: bytes, holders: int, threshold: int) -> dict[int, bytes]:
    points = range(1, holders + 1)
    return share(secret, threshold=threshold, points=points, random=system_random)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), threshold=st.integers(2, 9), spare=st.integers(0, 9))
def test_half_of_the_spare_shares_may_be_wrong(data, threshold, spare):
    secret = data.draw(st.binary(min_size=32, max_size=32))
    shares = dealt(secret, threshold + spare, threshold)
    points = st.sampled_from(sorted(shares))
    wrong = data.draw(st.sets(points, max_size=spare // 2))
    for point in wrong:
        other = (int.from_bytes(shares[point], "big") + data.draw(st.integers(1, 9))) % PRIME
        shares[point] = other.to_bytes(SHARE_BYTES, "big")
    assert correct(shares, threshold=threshold) == (secret, wrong)


@pytest.mark.parametrize("bad", [b"", b"\xff" * SHARE_BYTES], ids=["empty", "no field element"])
def test_a_share_that_does_not_decode_counts_as_wrong(bad):
    secret = os.urandom(32)
    assert correct(dealt(secret, 7, 4) | {2: bad}, threshold=4) == (secret, {2})


def test_more_wrong_shares_than_that_are_not_taken_for_the_secret():
    secret = os.urandom(32)
    lies = dealt(os.urandom(32), 9, 5)
    shares = dealt(secret, 9, 5) | {point: lies[point] for point in (1, 2, 3)}
    found = correct(shares, threshold=5)
    assert found is None or found[0] != secret


def test_too_few_shares_give_nothing():
    assert correct(dealt(os.urandom(32), 3, 3) | {1: b""}, threshold=3) is None


def test_secrets_with_leading_zeros_come_back():
    for secret in (bytes(32), bytes(31) + b"\1"):
        assert correct(dealt(secret, 5, 3), threshold=3) == (secret, set())
