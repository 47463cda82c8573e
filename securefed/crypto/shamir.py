"""Shamir secret sharing of 32-byte secrets over a prime field.

The field is GF(p) with p = 2^256 + 297, the least prime above 2^256, so every 32-byte string is a
field element as it stands.  A polynomial of degree t - 1 with the secret as its value at 0 is
evaluated at each holder's point; any t values give it back by Lagrange interpolation, and t - 1
values are independent of the secret.

Sharing detects no wrong share: whoever reconstructs must compare the result with a commitment
(:func:`securefed.crypto.keys.commit`).  Python integers are not constant-time.

Source: Shamir 1979, "How to share a secret"; its use for mask seeds, Bonawitz et al. 2017.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from securefed.crypto.prg import RandomBytes, draw
from securefed.errors import ConfigError, RemoteProtocolError, ThresholdNotMet

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
"""A share is one field element, big-endian; values >= p are refused."""
MIN_THRESHOLD = 2
"""With threshold 1 every share would be the secret itself."""
POINT_LIMIT = 2**32
"""Points are 1 <= x < 2^32: the secret lies at 0, and products with a point stay short."""

_CANDIDATE_MASK = 2**257 - 1
# Horner steps between two reductions: a product with a point adds only 32 bits, and reducing costs
# more than multiplying a number of 16 words.
_STEPS = 8


def _checked_points(points: Iterable[int]) -> list[int]:
    """The points in ascending order, distinct and in range."""
    ordered = sorted(points)
    for point in ordered:
        if not 1 <= point < POINT_LIMIT:
            raise ConfigError(f"points holds {point}; a point x must satisfy 1 <= x < 2^32")
    for left, right in itertools.pairwise(ordered):
        if left == right:
            raise ConfigError(f"points holds {left} twice; points must be distinct")
    return ordered


def _checked_threshold(threshold: int) -> int:
    if threshold < MIN_THRESHOLD:
        raise ConfigError(f"threshold = {threshold}; it must be >= {MIN_THRESHOLD}")
    return threshold


def _uniform_element(random: RandomBytes) -> int:
    """A uniform field element: 257 random bits, drawn again while they are >= p."""
    while True:
        candidate = int.from_bytes(draw(random, SHARE_BYTES), "big") & _CANDIDATE_MASK
        if candidate < PRIME:
            return candidate


def share(
    secret: bytes, *, threshold: int, points: Sequence[int], random: RandomBytes
) -> dict[int, bytes]:
    """Split ``secret`` so that any ``threshold`` shares give it back and fewer tell nothing.

    Args:
        secret: 32 bytes.
        threshold: t, 2 <= t <= len(points).
        points: one per holder, distinct, 1 <= x < 2^32.
        random: source of the t - 1 coefficients, two calls of 33 bytes for each on average.

    Returns:
        Point to share of 33 bytes, one for every point.

    Raises:
        ConfigError: an argument is outside that.

    Guarantees:
        - Coefficients are uniform on the field (rejection sampling, no modular bias), so t - 1
          shares are jointly uniform whatever the secret is.
    """
    if len(secret) != SECRET_BYTES:
        raise ConfigError(f"secret has {len(secret)} bytes; it must have {SECRET_BYTES}")
    ordered = _checked_points(points)
    if _checked_threshold(threshold) > len(ordered):
        raise ConfigError(f"threshold = {threshold} exceeds the number of points, {len(ordered)}")
    constant = int.from_bytes(secret, "big")
    higher = [_uniform_element(random) for _ in range(threshold - 1)]
    coefficients = [0] * (-threshold % _STEPS) + [*higher, constant]
    groups = list(zip(*(iter(coefficients),) * _STEPS, strict=True))
    shares = {}
    for x in ordered:
        value = 0
        for a, b, c, d, e, f, g, h in groups:
            value = (value * x + a) * x + b
            value = (value * x + c) * x + d
            value = (value * x + e) * x + f
            value = ((value * x + g) * x + h) % PRIME
        shares[x] = value.to_bytes(SHARE_BYTES, "big")
    return shares


def decode_share(point: int, encoded: bytes) -> int:
    """The field element in a share, refusing any but its one canonical encoding."""
    if len(encoded) != SHARE_BYTES:
        raise RemoteProtocolError(
            f"share at point {point} has {len(encoded)} bytes; it must have {SHARE_BYTES}"
        )
    value = int.from_bytes(encoded, "big")
    if value >= PRIME:
        raise RemoteProtocolError(f"share at point {point} is not below the field's prime")
    return value


class Reconstructor:
    """Reconstruction from one set of holders, with the Lagrange weights computed once.

    Uses the ``threshold`` smallest points.  The weight of point x_i for the value at 0 is
    lambda_i = prod_{j != i} x_j / (x_j - x_i) mod p.

    Args:
        points: the holders whose shares are at hand, distinct, 1 <= x < 2^32.
        threshold: t, as it was when the secret was shared, >= 2.

    Raises:
        ConfigError: a point or the threshold is out of range.
        ThresholdNotMet: fewer than ``threshold`` points.
    """

    def __init__(self, points: Iterable[int], threshold: int) -> None:
        ordered = _checked_points(points)
        if len(ordered) < _checked_threshold(threshold):
            raise ThresholdNotMet(f"{len(ordered)} shares are at hand; {threshold} are needed")
        self._points = tuple(ordered[:threshold])
        self._weights = tuple(_weights_at_zero(self._points))

    @property
    def points(self) -> tuple[int, ...]:
        """The points whose shares :meth:`reconstruct` reads, ascending."""
        return self._points

    def reconstruct(self, shares: Mapping[int, bytes]) -> bytes:
        """The 32-byte secret behind ``shares``.

        Args:
            shares: point to 33-byte share; must hold every one of :attr:`points`, others are not
                read.

        Raises:
            ThresholdNotMet: a share is missing.
            RemoteProtocolError: a share is malformed, or the value at 0 is not a 32-byte secret,
                so at least one share is wrong.  Most wrong shares give a wrong secret instead:
                compare it with its commitment.
        """
        missing = [point for point in self._points if point not in shares]
        if missing:
            raise ThresholdNotMet(f"no share at {len(missing)} of the points, first {missing[0]}")
        value = 0
        for point, weight in zip(self._points, self._weights, strict=True):
            value += weight * decode_share(point, shares[point])
        value %= PRIME
        if value >= 1 << (8 * SECRET_BYTES):
            raise RemoteProtocolError(
                f"the shares do not reconstruct to {SECRET_BYTES} bytes: at least one is wrong"
            )
        return value.to_bytes(SECRET_BYTES, "big")


def _weights_at_zero(points: Sequence[int]) -> list[int]:
    """The Lagrange weights at 0, with one inversion in all.

    With D_i = x_i prod_{j != i} (x_j - x_i), the inverse of D_i is prod_{j < i} D_j times the
    inverse of prod_{j <= i} D_j (Montgomery's trick).
    """
    denominators = [
        point * math.prod([other - point for other in points if other != point]) % PRIME
        for point in points
    ]
    before = list(itertools.accumulate(denominators, lambda a, b: a * b % PRIME, initial=1))
    inverse = pow(before.pop(), -1, PRIME) * math.prod(points) % PRIME
    weights = []
    for denominator, product in zip(reversed(denominators), reversed(before), strict=True):
        weights.append(inverse * product % PRIME)
        inverse = inverse * denominator % PRIME
    return weights[::-1]


def reconstruct(shares: Mapping[int, bytes], *, threshold: int) -> bytes:
    """The 32-byte secret behind ``shares``, by the ``threshold`` smallest points among them.

    For many secrets shared among the same holders make one :class:`Reconstructor`.

    Raises:
        ConfigError: a point or the threshold is out of range.
        ThresholdNotMet: fewer than ``threshold`` shares.
        RemoteProtocolError: as :meth:`Reconstructor.reconstruct`.
    """
    return Reconstructor(shares, threshold).reconstruct(shares)
