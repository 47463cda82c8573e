"""Shares among which some are wrong, as a Reed-Solomon word with errors.

The m shares of one secret are a polynomial of degree below t evaluated at m points; up to
e = floor((m - t) / 2) wrong ones are found and corrected.  With G0 = prod (x - x_i) and G1 the
polynomial of degree below m through all shares, the extended Euclidean algorithm on (G0, G1) is
stopped at the first remainder R of degree below (m + t) / 2.  With R = U G0 + V G1, the shared
polynomial is R / V, if that divides.

Source: Gao 2002, "A New Algorithm for Decoding Reed-Solomon Codes", algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping

from securefed.crypto.shamir import PRIME, SECRET_BYTES, decode_share
from securefed.errors import RemoteProtocolError

Polynomial = list[int]
"""Coefficients modulo the field's prime, constant first, without zeros at the end."""


def correct(shares: Mapping[int, bytes], *, threshold: int) -> tuple[bytes, set[int]] | None:
    """The secret behind shares of which some may be wrong, and the points of the wrong ones.

    Args:
        shares: point to share; a share that is no field element counts as wrong.
        threshold: t, as it was when the secret was shared.

    Returns:
        None if no polynomial of degree below t is within e shares of them; the caller compares
        what is found with the owner's commitment in any case.
    """
    values: dict[int, int] = {}
    malformed: set[int] = set()
    for point, encoded in shares.items():
        try:
            values[point] = decode_share(point, encoded)
        except RemoteProtocolError:
            malformed.add(point)
    if len(values) < threshold:
        return None
    found = _decode(values, threshold)
    if found is None:
        return None
    secret = found[0] if found else 0
    if secret >= 1 << (8 * SECRET_BYTES):
        return None
    wrong = {point for point, value in values.items() if _evaluate(found, point) != value}
    return secret.to_bytes(SECRET_BYTES, "big"), wrong | malformed


def _decode(values: Mapping[int, int], threshold: int) -> Polynomial | None:
    master: Polynomial = [1]
    for point in values:
        master = _multiply(master, [-point % PRIME, 1])
    through: Polynomial = [0] * len(values)
    for point, value in values.items():
        basis = _divide(master, [-point % PRIME, 1])[0]
        scale = value * pow(_evaluate(basis, point), -1, PRIME) % PRIME
        through = [(a + scale * b) % PRIME for a, b in zip(through, basis, strict=True)]
    before, remainder = master, _trimmed(through)
    v_before: Polynomial = []
    v: Polynomial = [1]
    while 2 * (len(remainder) - 1) >= len(values) + threshold:
        quotient, rest = _divide(before, remainder)
        before, remainder = remainder, rest
        v_before, v = v, _subtract(v_before, _multiply(quotient, v))
    found, rest = _divide(remainder, v)
    return None if rest or len(found) > threshold else found


def _trimmed(polynomial: Polynomial) -> Polynomial:
    while polynomial and not polynomial[-1]:
        polynomial.pop()
    return polynomial


def _evaluate(polynomial: Polynomial, point: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * point + coefficient) % PRIME
    return value


def _multiply(one: Polynomial, other: Polynomial) -> Polynomial:
    if not one or not other:
        return []
    product = [0] * (len(one) + len(other) - 1)
    for i, a in enumerate(one):
        for j, b in enumerate(other):
            product[i + j] += a * b
    return _trimmed([value % PRIME for value in product])


def _subtract(one: Polynomial, other: Polynomial) -> Polynomial:
    length = max(len(one), len(other))
    padded = ([*p, *[0] * (length - len(p))] for p in (one, other))
    return _trimmed([(a - b) % PRIME for a, b in zip(*padded, strict=True)])


def _divide(numerator: Polynomial, denominator: Polynomial) -> tuple[Polynomial, Polynomial]:
    """Quotient and remainder; the denominator is not zero."""
    rest = list(numerator)
    shift = len(rest) - len(denominator)
    if shift < 0:
        return [], _trimmed(rest)
    inverse = pow(denominator[-1], -1, PRIME)
    quotient = [0] * (shift + 1)
    for place in range(shift, -1, -1):
        factor = rest[place + len(denominator) - 1] * inverse % PRIME
        quotient[place] = factor
        if factor:
            for offset, coefficient in enumerate(denominator):
                rest[place + offset] = (rest[place + offset] - factor * coefficient) % PRIME
    return _trimmed(quotient), _trimmed(rest)
