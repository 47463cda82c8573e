"""Ciphertexts as bytes of fixed size, and their sum: arithmetic modulo known primes, no keys.

A ciphertext is two polynomials with N coefficients modulo each prime of q: uint64[2, primes, N].
Adding ciphertexts is adding coefficients.  So whoever only adds needs neither a key nor an
encryption library, and bytes from outside never reach a native decoder: their length is fixed by
the parameters, and each coefficient is compared with its prime.  There is one encoding of each
ciphertext.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from securefed.errors import LocalProtocolError, WireError
from securefed.secagg.rlwe_parameters import RlweParameters


def _width(prime: int) -> int:
    """Bits of a coefficient on the wire: whole bytes, or above 32 bits whole half bytes."""
    step = 4 if prime.bit_length() > 32 else 8
    return -(-prime.bit_length() // step) * step


def encoded_size(primes: Sequence[int], degree: int, polynomials: int) -> int:
    """Bytes of ``polynomials`` polynomials of ``degree`` coefficients modulo each prime."""
    return polynomials * sum(degree * _width(prime) // 8 for prime in primes)


def encode_words(words: NDArray[np.uint64], primes: Sequence[int]) -> bytes:
    """Pack uint64[polynomials, primes, degree], little-endian, without gaps.

    Each coefficient takes the bits of its prime, rounded up to half a byte (to a byte up to 32).
    """
    parts = []
    for polynomial in words:
        for row, prime in zip(polynomial, primes, strict=True):
            width = _width(prime)
            if width % 8 == 0:
                raw = row.astype("<u8").view(np.uint8).reshape(-1, 8)[:, : width // 8]
            else:
                # Two coefficients fill width / 4 bytes, 8 of them from the low word.
                low, high = row[0::2].astype("<u8"), row[1::2].astype("<u8")
                first = low | (high << np.uint64(width))
                second = high >> np.uint64(64 - width)
                raw = np.empty((first.size, width // 4), dtype=np.uint8)
                raw[:, :8] = first.view(np.uint8).reshape(-1, 8)
                raw[:, 8:] = second.view(np.uint8).reshape(-1, 8)[:, : width // 4 - 8]
            parts.append(raw.tobytes())
    return b"".join(parts)


def decode_words(
    data: bytes, primes: Sequence[int], degree: int, polynomials: int, *, field: str
) -> NDArray[np.uint64]:
    """The inverse of :func:`encode_words`.

    Raises:
        WireError: another length, or a coefficient that is not below its prime.
    """
    size = encoded_size(primes, degree, polynomials)
    if len(data) != size:
        raise WireError(f"{field}: {len(data)} bytes found, {size} expected")
    words = np.zeros((polynomials, len(primes), degree), dtype="<u8")
    raw, position = np.frombuffer(data, dtype=np.uint8), 0
    for polynomial in words:
        for row, prime in zip(polynomial, primes, strict=True):
            width = _width(prime)
            part = raw[position : position + degree * width // 8]
            position += part.size
            if width % 8 == 0:
                row.view(np.uint8).reshape(-1, 8)[:, : width // 8] = part.reshape(degree, -1)
            else:
                pairs = part.reshape(degree // 2, -1)
                first = np.ascontiguousarray(pairs[:, :8]).view("<u8")[:, 0]
                rest = np.zeros((degree // 2, 8), dtype=np.uint8)
                rest[:, : width // 4 - 8] = pairs[:, 8:]
                second = rest.view("<u8")[:, 0]
                mask = np.uint64((1 << width) - 1)
                row[0::2] = first & mask
                row[1::2] = (first >> np.uint64(width)) | (second << np.uint64(64 - width))
            if int(row.max()) >= prime:
                raise WireError(f"{field}: a coefficient is not below its prime")
    return words.astype(np.uint64, copy=False)


def ciphertext_size(parameters: RlweParameters) -> int:
    """Bytes of one ciphertext."""
    return encoded_size(parameters.primes, parameters.degree, 2)


class CiphertextSum:
    """The running sum of what clients send; holds that and nothing else.

    Run by: the server.  It has no key, and takes ciphertexts for what they are: whether a client
    encrypted what it should cannot be seen.

    Args:
        parameters: of either scheme.
        count: ciphertexts of one client.

    Guarantees:
        - Memory: ``count`` ciphertexts (16 N primes bytes each) and one that is being added.
        - A contribution is added whole or not at all.
        - Never more than ``parameters.clients`` summands, which is what the noise bound allows.
    """

    def __init__(self, parameters: RlweParameters, count: int) -> None:
        self._parameters = parameters
        primes = parameters.primes
        self._moduli = np.array(primes, dtype=np.uint64)[:, None]
        self._sum = np.zeros((count, 2, len(primes), parameters.degree), dtype=np.uint64)
        self._summands = 0

    @property
    def summands(self) -> int:
        """How many contributions have been added."""
        return self._summands

    def _decoded(self, index: int, data: bytes) -> NDArray[np.uint64]:
        parameters = self._parameters
        return decode_words(
            data, parameters.primes, parameters.degree, 2, field=f"ciphertext {index}"
        )

    def add(self, ciphertexts: Sequence[bytes]) -> None:
        """Add one contribution.

        Raises:
            WireError: another number of ciphertexts, or one is malformed; nothing was added.
            LocalProtocolError: as many as the parameters allow have been added already.
        """
        if self._summands >= self._parameters.clients:
            raise LocalProtocolError(
                f"{self._summands} contributions are in the sum: the parameters hold for no more"
            )
        if len(ciphertexts) != len(self._sum):
            raise WireError(
                f"contribution: {len(ciphertexts)} ciphertexts found, {len(self._sum)} expected"
            )
        for index, data in enumerate(ciphertexts):
            try:
                words = self._decoded(index, data)
            except WireError:
                for earlier in range(index):
                    self._accumulate(
                        earlier, self._moduli - self._decoded(earlier, ciphertexts[earlier])
                    )
                raise
            self._accumulate(index, words)
        self._summands += 1

    def _accumulate(self, index: int, words: NDArray[np.uint64]) -> None:
        # Primes have at most 60 bits; see slots.add_slots for the reduction.
        total = np.add(self._sum[index], words, out=words)
        np.minimum(total, total - self._moduli, out=self._sum[index])

    def ciphertexts(self) -> Iterator[bytes]:
        """The sum, one ciphertext after another."""
        for words in self._sum:
            yield encode_words(words, self._parameters.primes)
