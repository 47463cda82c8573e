import os

from securefed.crypto.prg import system_random
from securefed.crypto.shamir import share
from securefed.secagg.recovery import Holders


def test_wrong_shares_beyond_what_trying_reaches_are_corrected():
    """Four of forty: leaving out one after another would take more than 90,000 tries."""
    secret, other = os.urandom(32), os.urandom(32)
    points = range(1, 41)
    dealt, lies = (
        share(value, threshold=21, points=points, random=system_random) for value in (secret, other)
    )
    wrong = {10, 15, 18, 19}
    shares = {point - 1: (lies if point - 1 in wrong else dealt)[point] for point in points}
    holders = Holders(21)
    assert holders.secret(shares, lambda found: found, secret, 7, "c007") == secret
    assert holders.wrong == [(holder, 7) for holder in sorted(wrong)]
