"""Parameters of the two encryption schemes: security, room for the noise, and how many may add.

Both schemes work in R_q = Z_q[X]/(X^N + 1) with ternary secrets.  q is the product of the *data*
primes.  SEAL, under TenSEAL, reserves one more prime P, the *special* one: keys live modulo q P,
ciphertexts modulo q.  N bounds log2(q P) for 128-bit security (``MAX_MODULUS_BITS``).

Noise of one fresh public-key encryption.  With the secret s, the key's error e, and u, e0, e1 drawn
for this encryption, SEAL encrypts zero modulo q P, then divides both halves by P and rounds.  What
decryption sees beside the message is

    v = (-e u + e0 + e1 s) / P + r0 + r1 s,

r0 and r1 the errors of rounding.  Coefficients of s and u are -1, 0 or 1; those of e, e0 and e1 are
at most 21 in absolute value (SEAL draws them from a centred binomial distribution over 42 bits, or
in another build from a Gaussian of std 3.2 cut at 19.2); those of r0 and r1 at most 1/2.  A
coefficient of a product in R is a signed sum of N products of coefficients.  So, **always**,

    |v| <= 21 (2 N + 1) / P + (N + 1) / 2.

BFV encodes m as round(q m / t), at most 1/2 from q m / t.  The sum of n ciphertexts is therefore
q M / t + V modulo q, M the sum of the messages modulo t, with

    |V| <= n (21 (2 N + 1) / P + (N + 2) / 2) =: noise_bound.

Rounding t/q times it to the nearest integer gives M if |V| < q / (2 t).  Required here is
``noise_bound <= q / (4 t)``: the bit to spare covers the approximate arithmetic by which SEAL
divides.  The bound has no tail: **a sum of at most n honest encryptions under an honest key
decrypts correctly with probability 1**, so there is no decryption failure that could leak
anything.  (The std of V is about sqrt(n N / 18), hundreds of times less; being that tight would
save half a byte a value and leave a probability.)

CKKS encodes a vector x as a polynomial with rounded coefficients, scale times x in each slot.  The
value of a slot is a sum of N coefficients times numbers of absolute value 1, so the error of a sum
in any slot is at most N noise_bound / scale, and rounding to integers is exact if that is below
1/2 (below 1/4 is required; float arithmetic takes the rest).

Source: Albrecht et al., "Homomorphic Encryption Security Standard", HomomorphicEncryption.org 2018,
table of uniform ternary secrets at 128 bits, classical (the same as SEAL's
``sec_level_type::tc128``, which takes more bits than it as insecure and refuses them); Fan and
Vercauteren, "Somewhat Practical Fully Homomorphic Encryption", eprint 2012/144; Bajard et al., "A
Full RNS Variant of FV like Somewhat Homomorphic Encryption Schemes", eprint 2016/510 (how SEAL
decrypts); Cheon et al., "Homomorphic Encryption for Arithmetic of Approximate Numbers", eprint
2016/421.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Self

from securefed.errors import ConfigError, OverflowBoundError

MAX_MODULUS_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
"""Most bits of q P at 128-bit security, by ring degree N."""

PLAIN_MODULUS = 2**60 - 2**14 + 1
"""The largest prime below 2^60 that is 1 modulo 8192: a BFV plaintext then has 4096 slots."""

INDEX_STEP = 1 << 20
"""Check slots hold 1 + INDEX_STEP * (position of the ciphertext); the low part counts summands."""

MAX_CLIENTS = INDEX_STEP - 1

_ERROR_BOUND = 21
_MAX_PRIME_BITS = 60
_SPECIAL_BITS = 21
# Both are whole numbers of half bytes.  The special prime needs no more than 21 bits: it is for
# multiplications, which are not done, and divides the first term of the bound.
_DATA_BITS = ((40, 40), (44, 44))
_BFV, _CKKS = 1, 2


def _is_prime(number: int) -> bool:
    """Miller-Rabin with the bases that decide every number below 2^64."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if number < 2 or any(number % base == 0 for base in bases):
        return number in bases
    odd = number - 1
    twos = (odd & -odd).bit_length() - 1
    odd >>= twos
    for base in bases:
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def _primes(degree: int, bits: tuple[int, ...]) -> tuple[int, ...]:
    """The primes that SEAL's ``CoeffModulus::Create`` makes of these sizes, in its order."""
    largest: dict[int, list[int]] = {}
    for size in set(bits):
        found = largest[size] = []
        value = ((1 << size) - 1) // (2 * degree) * (2 * degree) + 1
        while len(found) < bits.count(size):
            if value < 1 << (size - 1):
                raise ConfigError(f"no {bits.count(size)} primes of {size} bits for N = {degree}")
            if _is_prime(value):
                found.append(value)
            value -= 2 * degree
    return tuple(largest[size].pop() for size in bits)


@dataclass(frozen=True, kw_only=True)
class RlweParameters:
    """Ring, moduli and number of summands; the base of both schemes.

    Args:
        clients: n, most ciphertexts in a sum, 1..2^20 - 1.
        degree: N, a key of ``MAX_MODULUS_BITS``.
        data_bits: bits of each prime of q.
        special_bits: bits of the special prime P.

    Raises:
        ConfigError: less than 128-bit security, or a value out of range.
        OverflowBoundError: a sum of n could decrypt wrongly; names the bound.
    """

    clients: int
    degree: int = 4096
    data_bits: tuple[int, ...] = _DATA_BITS[0]
    special_bits: int = _SPECIAL_BITS

    def __post_init__(self) -> None:
        if self.degree not in MAX_MODULUS_BITS:
            raise ConfigError(f"degree = {self.degree}: must be one of {list(MAX_MODULUS_BITS)}")
        if not 1 <= self.clients <= MAX_CLIENTS:
            raise ConfigError(f"clients = {self.clients}: must be 1..{MAX_CLIENTS}")
        sizes = (*self.data_bits, self.special_bits)
        least = (2 * self.degree).bit_length()
        if not self.data_bits or not all(least <= size <= _MAX_PRIME_BITS for size in sizes):
            raise ConfigError(
                f"data_bits = {self.data_bits}, special_bits = {self.special_bits}: at least one "
                f"data prime, and each of {least}..{_MAX_PRIME_BITS} bits"
            )
        allowed = MAX_MODULUS_BITS[self.degree]
        if self.key_modulus.bit_length() > allowed:
            raise ConfigError(
                f"data_bits and special_bits give a modulus of {self.key_modulus.bit_length()} "
                f"bits: at most {allowed} give 128-bit security with degree = {self.degree}"
            )

    @cached_property
    def key_primes(self) -> tuple[int, ...]:
        """The data primes and the special prime, in SEAL's order."""
        return _primes(self.degree, (*self.data_bits, self.special_bits))

    @property
    def primes(self) -> tuple[int, ...]:
        """The data primes."""
        return self.key_primes[:-1]

    @property
    def modulus(self) -> int:
        """Q, the product of the data primes."""
        return math.prod(self.primes)

    @property
    def key_modulus(self) -> int:
        """Q times the special prime: what security is measured on."""
        return math.prod(self.key_primes)

    @property
    def noise_bound(self) -> int:
        """Largest |coefficient| of a sum's noise (module docstring), rounded up."""
        degree, special = self.degree, self.key_primes[-1]
        one = Fraction(_ERROR_BOUND * (2 * degree + 1), special) + Fraction(degree + 2, 2)
        return math.ceil(self.clients * one)

    def _parms_id(self, scheme: int, primes: tuple[int, ...], plain: int) -> bytes:
        """SEAL's identifier of a level: BLAKE2b-256 of scheme, N, primes and plain modulus."""
        words = (scheme, self.degree, *primes, plain)
        return hashlib.blake2b(struct.pack(f"<{len(words)}Q", *words), digest_size=32).digest()


@dataclass(frozen=True, kw_only=True)
class BfvParameters(RlweParameters):
    """BFV: exact sums modulo a prime t in each of N slots.

    Args:
        plain_modulus: t, a prime below 2^60 that is 1 modulo 2 N.

    Guarantees:
        - 128-bit security by the table of the module docstring.
        - A sum of at most ``clients`` honest encryptions decrypts to the sum modulo t, always.
    """

    plain_modulus: int = PLAIN_MODULUS

    def __post_init__(self) -> None:
        super().__post_init__()
        t = self.plain_modulus
        if not t < 1 << 60 or t % (2 * self.degree) != 1 or not _is_prime(t):
            raise ConfigError(
                f"plain_modulus = {t}: must be a prime below 2^60 that is 1 modulo "
                f"2 * degree = {2 * self.degree}"
            )
        room = self.modulus // (4 * t)
        if self.noise_bound > room:
            raise OverflowBoundError(
                f"{self.clients} summands carry noise of up to {self.noise_bound}; q / (4 t) = "
                f"{room} is the most that decrypts correctly for certain, with q of "
                f"{self.modulus.bit_length()} bits (data_bits = {self.data_bits}) and t of "
                f"{t.bit_length()} (the library would return a wrong sum without an error)"
            )

    @classmethod
    def of(cls, clients: int) -> Self:
        """The smallest vetted parameters: q of 80 bits up to 127 clients, of 88 up to about 32,700.

        Raises:
            OverflowBoundError: more clients than any of them can add; names the bound.
        """
        for data_bits in _DATA_BITS[:-1]:
            try:
                return cls(clients=clients, data_bits=data_bits)
            except OverflowBoundError:
                continue
        return cls(clients=clients, data_bits=_DATA_BITS[-1])

    @property
    def slots(self) -> int:
        """Slots of one ciphertext that carry data; the last of its N is the check slot."""
        return self.degree - 1

    def ciphertexts(self, slots: int) -> int:
        """How many ciphertexts ``slots`` data slots take.

        Raises:
            OverflowBoundError: so many that the check slot would wrap around t.
        """
        count = -(-slots // self.slots)
        if self.clients * (1 + INDEX_STEP * count) >= self.plain_modulus:
            raise OverflowBoundError(
                f"{count} ciphertexts of {self.clients} clients: the check slot's sum would reach "
                f"{self.clients * (1 + INDEX_STEP * count)}; it must stay below t = "
                f"{self.plain_modulus}"
            )
        return count

    @property
    def data_id(self) -> bytes:
        """SEAL's identifier of ciphertexts under these parameters."""
        return self._parms_id(_BFV, self.primes, self.plain_modulus)

    @property
    def key_id(self) -> bytes:
        """SEAL's identifier of keys under these parameters."""
        return self._parms_id(_BFV, self.key_primes, self.plain_modulus)


@dataclass(frozen=True, kw_only=True)
class CkksParameters(RlweParameters):
    """CKKS: sums of integers, one in each of N/2 slots, rounded back to integers.

    Args:
        sum_bound: largest |coordinate| of a sum, 1..2^31 - 1.
        scale_bits: log2 of the scale.

    Guarantees:
        - 128-bit security by the table of the module docstring.
        - A slot of a sum of at most ``clients`` honest encryptions is less than 1/4 from the
          integer sum, but for the float64 arithmetic of encoding (below 2^-5 as measured at 2^31).
    """

    sum_bound: int
    scale_bits: int = 40

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.sum_bound < 1 << 31:
            raise OverflowBoundError(f"sum_bound = {self.sum_bound}: must be 1..2^31 - 1")
        if not 1 <= self.scale_bits <= _MAX_PRIME_BITS:
            raise ConfigError(f"scale_bits = {self.scale_bits}: must be 1..{_MAX_PRIME_BITS}")
        if 4 * self.degree * self.noise_bound > 1 << self.scale_bits:
            raise OverflowBoundError(
                f"{self.clients} summands carry an error of up to {self.degree} * "
                f"{self.noise_bound} / 2^{self.scale_bits} a slot: it must be at most 1/4"
            )
        self._check_room(self.sum_bound, "sum_bound")

    def _check_room(self, value: int, name: str) -> None:
        room = (self.modulus // 4 - self.noise_bound) >> self.scale_bits
        if value > room:
            raise OverflowBoundError(
                f"{name}: a slot may reach {value}; q / 4 and a scale of 2^{self.scale_bits} "
                f"leave {room}"
            )

    @property
    def slots(self) -> int:
        """Values of one ciphertext; the last of its N/2 slots is the check slot."""
        return self.degree // 2 - 1

    def ciphertexts(self, slots: int) -> int:
        """How many ciphertexts ``slots`` values take.

        Raises:
            OverflowBoundError: so many that a check slot would leave the exact range.
        """
        count = -(-slots // self.slots)
        largest = self.clients * (1 + count)
        if largest >= 1 << 31:
            raise OverflowBoundError(
                f"{count} ciphertexts of {self.clients} clients: a check slot may reach {largest}; "
                "it must stay below 2^31"
            )
        self._check_room(largest, "check slot")
        return count

    @property
    def data_id(self) -> bytes:
        """SEAL's identifier of ciphertexts under these parameters."""
        return self._parms_id(_CKKS, self.primes, 0)

    @property
    def key_id(self) -> bytes:
        """SEAL's identifier of keys under these parameters."""
        return self._parms_id(_CKKS, self.key_primes, 0)
