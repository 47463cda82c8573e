"""Whether a sum of ciphertexts is the sum of what the listed clients sent.

A key holder is shown a sum of ciphertexts and a list of clients.  If it saw the summands it could
add them up itself, but it could also open them one by one.  So every client sends beside its
ciphertexts their image under a secret linear map, which adds up just as they do.

The map.  Write a contribution as c in Z_p^M for each data prime p, M coefficients in all.  From
the round secret W, which clients and key holder share and the server lacks, follow R rows k_1..k_R
of M coefficients, each uniform in 0..2^b - 1 with 2^b < p.  The *check* of c is

    l(c) = (sum_j k_rj c_j mod p)  for r = 1..R and each p.

Client i sends l(c_i) + pad_i, pad_i uniform modulo p, from W and i.  The server adds up what it
gets, and passes on the sum T alone.  The holder takes the pads of the listed clients from T, and
compares with l(S) for the sum S that it was given.

Guarantees:

- For a server that does not know W (that no client helps), the padded checks are uniform: they tell
  nothing of k.  If S differs from the sum of the listed clients' ciphertexts, in any coefficient,
  for any prime, the holder refuses but for a probability of 2^-(b R) <= 2^-100: T must then be off
  by l of the difference; with the other coefficients fixed, at most one of 2^b values of a
  coefficient's k makes a row fit, as its difference is invertible modulo p.  A holder takes one
  request a round.  Where several clients may be asked to open, each is one try: at most 2^-80 in
  all for up to 2^20 of them.
- The holder sees no function of one client's ciphertexts: T less the pads is l of the sum.  (Single
  checks would matter if the key was made so that ciphertexts hide little or nothing: a holder that
  guesses a contribution could then confirm it.)

A client that gives W to the server takes the first of these away, and so does a client that lies
about its own check to have another sum opened: against them contributions must be masked.  A client
that lies to no end makes the round fail, and cannot be named.

Source: after the linearly homomorphic authenticator of Agrawal and Boneh 2009, "Homomorphic MACs:
MAC-Based Integrity for Network Coding"; hashing by an inner product under a one-time pad is Carter
and Wegman 1981, "New Hash Functions and Their Use in Authentication and Set Equality".
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.keys import derive
from securefed.crypto.prg import SecretHolder, uniform_below
from securefed.errors import WireError
from securefed.secagg.ciphertexts import decode_words
from securefed.secagg.rlwe_parameters import RlweParameters

SOUNDNESS_BITS = 100

_MAP = b"securefed/1/round/sum-check-map"
_PAD = b"securefed/1/round/sum-check-pad"


class SumCheck(SecretHolder):
    """The linear map of one round and its pads.

    Run by: clients and the key holder.

    Args:
        parameters: of the ciphertexts.
        round_secret: W, 32 secret bytes, fresh for the round.
        view: what the round's contributions are bound to, 32 bytes.
    """

    def __init__(self, parameters: RlweParameters, round_secret: bytes, view: bytes) -> None:
        self._parameters = parameters
        self._secret = round_secret
        self._view = view
        self._bits = _coefficient_bits(parameters)
        self._moduli = np.array(parameters.primes, dtype=np.uint64)

    def of(self, ciphertexts: Iterable[bytes]) -> NDArray[np.uint64]:
        """The check of a contribution, or of a sum.

        Args:
            ciphertexts: in their order; taken one at a time.

        Returns:
            uint64[rows, primes], each value below its prime.

        Raises:
            WireError: one is malformed.
        """
        parameters = self._parameters
        shape = (rows(parameters), 2, len(parameters.primes), parameters.degree)
        moduli = self._moduli[:, None]
        total = np.zeros((shape[0], shape[2]), dtype=np.uint64)
        for index, data in enumerate(ciphertexts):
            words = decode_words(
                data, parameters.primes, parameters.degree, 2, field=f"ciphertext {index}"
            )
            key = derive(self._secret, label=_MAP, context=self._view + index.to_bytes(4, "big"))
            factors = uniform_below(key, 1 << self._bits, int(np.prod(shape))).reshape(shape)
            for row, factor in enumerate(factors):
                # Below 2^64 before the reduction, and below 2^60 after 2 N of them are added.
                product = factor * words % moduli
                total[row] = (total[row] + product.sum(axis=(0, 2))) % self._moduli
        return total

    def padded(self, check: NDArray[np.uint64], index: int) -> bytes:
        """What client ``index`` sends of its check; once a round."""
        total = (check + self._pads(index)) % self._moduli
        return total.astype("<u8").tobytes()

    def agrees(self, check: NDArray[np.uint64], padded_sum: bytes, summands: Iterable[int]) -> bool:
        """Whether the padded checks of these clients add up to ``check``.

        Args:
            check: of the sum.
            padded_sum: the sum of what they sent, as :func:`add_padded` gives it.
            summands: their indices.

        Raises:
            WireError: ``padded_sum`` has another length, or a value that is not below its prime.
        """
        expected = check
        for index in summands:
            expected = (expected + self._pads(index)) % self._moduli
        return bool(np.array_equal(read_padded(self._parameters, padded_sum), expected))

    def _pads(self, index: int) -> NDArray[np.uint64]:
        count = rows(self._parameters)
        context = self._view + index.to_bytes(4, "big")
        columns = [
            uniform_below(
                derive(self._secret, label=_PAD, context=context + bytes([place])), prime, count
            )
            for place, prime in enumerate(self._parameters.primes)
        ]
        return np.stack(columns, axis=1)


def _coefficient_bits(parameters: RlweParameters) -> int:
    """B: a coefficient times a value below a prime stays below 2^64, and 2^b below the prime."""
    longest = max(prime.bit_length() for prime in parameters.primes)
    shortest = min(prime.bit_length() for prime in parameters.primes)
    return min(64 - longest, shortest - 1)


def rows(parameters: RlweParameters) -> int:
    """R, the rows of the map."""
    return -(-SOUNDNESS_BITS // _coefficient_bits(parameters))


def check_bytes(parameters: RlweParameters) -> int:
    """Bytes of a padded check."""
    return 8 * rows(parameters) * len(parameters.primes)


def read_padded(parameters: RlweParameters, data: bytes) -> NDArray[np.uint64]:
    """A padded check, uint64[rows, primes].

    Raises:
        WireError: another length, or a value that is not below its prime.
    """
    size = check_bytes(parameters)
    if len(data) != size:
        raise WireError(f"check of the sum: {len(data)} bytes found, {size} expected")
    found = np.frombuffer(data, dtype="<u8").astype(np.uint64)
    found = found.reshape(rows(parameters), len(parameters.primes))
    if np.any(found >= np.array(parameters.primes, dtype=np.uint64)):
        raise WireError("check of the sum: a value is not below its prime")
    return found


def add_padded(parameters: RlweParameters, left: bytes, right: bytes) -> bytes:
    """The sum of two padded checks, or of sums of them.

    Run by: server.

    Raises:
        WireError: another length, or a value that is not below its prime.
    """
    total = read_padded(parameters, left) + read_padded(parameters, right)
    moduli = np.array(parameters.primes, dtype=np.uint64)
    return (total % moduli).astype("<u8").tobytes()
