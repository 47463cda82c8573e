"""Keys, encryption and decryption with TenSEAL: the only module that imports it.

TenSEAL wraps Microsoft SEAL.  What is used of it: making keys, encrypting under the public key and
decrypting.  Sums are formed in :mod:`securefed.secagg.ciphertexts`, parameters are proven in
:mod:`securefed.secagg.rlwe_parameters`.

Bytes from another party never reach SEAL's or TenSEAL's decoders.  Parameters are not read from
the peer at all; keys and ciphertexts come as coefficients, each checked against its prime, and are
put into an uncompressed SEAL object made here: level, form, size and scale are ours.  So a
ciphertext of three polynomials, of other parameters or in the wrong form cannot be expressed.
(TenSEAL 0.3.18 takes ciphertexts of three polynomials, and believes the sender how many values one
holds: it reads past the end of its buffer.  SEAL's own compressed form is 15 % larger, too.)

The *check slot* is the last slot of every ciphertext.  A client writes 1 + 2^20 (position of the
ciphertext) there; n summands must decrypt to n times that.  It shows another number of summands or
another order.  A wrong coefficient of a plaintext moves every slot, so it also shows an exhausted
noise budget or another key, but for a chance of about 1/t (errors that someone chose can cancel
there).  It does not show an overflow within a
slot, and it authenticates nothing: whoever has the public key can make ciphertexts that pass.

Randomness: keys and encryptions draw from SEAL's own generator (BLAKE2xb, seeded from the operating
system for each encryption); SEAL takes no generator of ours.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from securefed.crypto.prg import SecretHolder
from securefed.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from securefed.secagg.ciphertexts import decode_words, encode_words, encoded_size
from securefed.secagg.rlwe_parameters import (
    INDEX_STEP,
    BfvParameters,
    CkksParameters,
    RlweParameters,
)

_MAGIC = 0xA15E
_HEADER = struct.Struct("<HBBBBHQ")  # magic, header size, version, compression, reserved, size
_Parameters = BfvParameters | CkksParameters


def _tenseal() -> Any:
    try:
        import tenseal
    except ImportError:
        raise ConfigError(
            "aggregation.kind = 'bfv' or 'ckks' needs TenSEAL, which is not installed: in the "
            "clone of securefed, pip install -c constraints.txt -e '.[he]'"
        ) from None
    return tenseal


def _field(number: int, value: bytes) -> bytes:
    """One length-delimited protocol buffer field."""
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


class _Seal:
    """A TenSEAL context for some parameters, and SEAL objects in its version's format."""

    def __init__(self, parameters: _Parameters) -> None:
        tenseal = _tenseal()
        self.parameters = parameters
        bfv = isinstance(parameters, BfvParameters)
        # Making a context makes a key pair; only generate() uses it.
        self.context = tenseal.context(
            tenseal.SCHEME_TYPE.BFV if bfv else tenseal.SCHEME_TYPE.CKKS,
            poly_modulus_degree=parameters.degree,
            plain_modulus=parameters.plain_modulus if isinstance(parameters, BfvParameters) else 0,
            coeff_mod_bit_sizes=[*parameters.data_bits, parameters.special_bits],
            n_threads=1,
        )
        seal = self.context.seal_context().data
        for found, expected in (
            (seal.first_parms_id(), parameters.data_id),
            (seal.key_parms_id(), parameters.key_id),
        ):
            if struct.pack("<4Q", *found) != expected:
                raise ConfigError("this build of TenSEAL makes other moduli than were proven here")
        # The serialised parameters are field 1; the SEAL header in it starts with the version.
        self._empty = self.context.serialize(
            save_public_key=False,
            save_secret_key=False,
            save_galois_keys=False,
            save_relin_keys=False,
        )
        magic, _, major, minor, *_ = _HEADER.unpack_from(self._empty, 2)
        if magic != _MAGIC:
            raise ConfigError("this build of TenSEAL serialises in a format that is not known here")
        self._version = (major, minor)

    def _object(self, members: bytes) -> bytes:
        size = _HEADER.size + len(members)
        return _HEADER.pack(_MAGIC, _HEADER.size, *self._version, 0, 0, size) + members

    def _array(self, words: NDArray[np.uint64]) -> bytes:
        return self._object(struct.pack("<Q", words.size) + words.astype("<u8").tobytes())

    def _ciphertext(
        self, level: bytes, ntt: bool, scale: float, words: NDArray[np.uint64]
    ) -> bytes:
        polynomials, primes, degree = words.shape
        members = level + struct.pack("<BQQQdQ", ntt, polynomials, degree, primes, scale, 1)
        return self._object(members + self._array(words))

    def with_keys(self, key: NDArray[np.uint64], secret: NDArray[np.uint64] | None) -> Any:
        """A context with these keys: uint64[2, key primes, N] and uint64[key primes, N]."""
        level = self.parameters.key_id
        proto = self._empty + _field(2, _field(1, self._ciphertext(level, True, 1.0, key)))
        if secret is not None:
            members = level + struct.pack("<Qd", secret.size, 1.0) + self._array(secret)
            proto += _field(3, _field(1, self._object(members)))
        return _tenseal().context_from(proto, n_threads=1)

    def vector(self, words: NDArray[np.uint64], context: Any) -> Any:
        """A TenSEAL vector of one ciphertext, uint64[2, primes, N]."""
        tenseal, parameters = _tenseal(), self.parameters
        if isinstance(parameters, BfvParameters):
            blob = self._ciphertext(parameters.data_id, False, 1.0, words)
            sizes = _field(1, _varint(parameters.degree))
            return tenseal.bfv_vector_from(context, sizes + _field(2, blob))
        scale = 2.0**parameters.scale_bits
        blob = self._ciphertext(parameters.data_id, True, scale, words)
        sizes = _field(1, _varint(parameters.degree // 2))
        proto = sizes + _field(2, blob) + b"\x19" + struct.pack("<d", scale)
        return tenseal.ckks_vector_from(context, proto)


def _words(seal_object: Any, *shape: int) -> NDArray[np.uint64]:
    """The coefficients of a SEAL ciphertext or plaintext."""
    count = int(np.prod(shape))
    flat = np.fromiter(map(seal_object.__getitem__, range(count)), np.uint64, count)
    return flat.reshape(shape)


def _check_value(index: int) -> int:
    return 1 + INDEX_STEP * index


def public_key_size(parameters: RlweParameters) -> int:
    """Bytes of a public key."""
    return encoded_size(parameters.key_primes, parameters.degree, 2)


def _decoded_public_key(parameters: RlweParameters, key: bytes) -> NDArray[np.uint64]:
    return decode_words(key, parameters.key_primes, parameters.degree, 2, field="public key")


class _Encryptor:
    def __init__(self, parameters: _Parameters, public_key: bytes) -> None:
        key = _decoded_public_key(parameters, public_key)
        self._context = _Seal(parameters).with_keys(key, None)

    def _encoded(self, vector: Any, parameters: RlweParameters) -> bytes:
        (ciphertext,) = vector.ciphertext()
        shape = (ciphertext.size(), ciphertext.coeff_modulus_size(), parameters.degree)
        if shape != (2, len(parameters.primes), parameters.degree):
            raise LocalProtocolError(f"TenSEAL made a ciphertext of shape {shape}")
        return encode_words(_words(ciphertext, *shape), parameters.primes)


class BfvEncryptor(_Encryptor):
    """Encrypts slots under a public key.

    Run by: a client, which must have checked whose key it is: a key says nothing about its origin.

    Args:
        parameters: agreed by all parties.
        public_key: what :meth:`BfvSecretKey.public_key` gave.

    Raises:
        RemoteProtocolError: not a key of these parameters.
        ConfigError: TenSEAL is not installed, or makes other moduli.
    """

    def __init__(self, parameters: BfvParameters, public_key: bytes) -> None:
        super().__init__(parameters, public_key)
        self._parameters = parameters

    def encrypt(self, slots: NDArray[np.uint64]) -> Iterator[bytes]:
        """One ciphertext after another; at most one is in memory.

        Args:
            slots: uint64[m], each in 0..t-1, from ``SlotPacking.pack`` and masked or not.

        Yields:
            ``parameters.ciphertexts(m)`` times ``ciphertext_size(parameters)`` bytes.

        Raises:
            ConfigError: another dtype or shape, or a value that is not below t.
        """
        parameters, tenseal = self._parameters, _tenseal()
        t = parameters.plain_modulus
        if slots.dtype != np.uint64 or slots.ndim != 1 or (slots.size and int(slots.max()) >= t):
            raise ConfigError(f"slots must be uint64[m] with values below t = {t}")
        for index in range(parameters.ciphertexts(slots.size)):
            part = slots[index * parameters.slots : (index + 1) * parameters.slots]
            values = np.zeros(parameters.degree, dtype=np.int64)
            values[: part.size] = part
            values[-1] = _check_value(index)
            values[values > t // 2] -= t
            vector = tenseal.bfv_vector(self._context, values.tolist())
            yield self._encoded(vector, parameters)


class CkksEncryptor(_Encryptor):
    """Encrypts integers, one in each slot; otherwise as :class:`BfvEncryptor`."""

    def __init__(self, parameters: CkksParameters, public_key: bytes) -> None:
        super().__init__(parameters, public_key)
        self._parameters = parameters

    def encrypt(self, values: NDArray[np.int64]) -> Iterator[bytes]:
        """One ciphertext after another.

        Args:
            values: int64[d], |value| <= ``sum_bound``.

        Raises:
            ConfigError: another dtype, shape or a value out of range.
        """
        parameters, tenseal = self._parameters, _tenseal()
        bound = parameters.sum_bound
        if values.dtype != np.int64 or values.ndim != 1 or np.any(np.abs(values) > bound):
            raise ConfigError(f"values must be int64[d] within +-{bound}")
        for index in range(parameters.ciphertexts(values.size)):
            part = values[index * parameters.slots : (index + 1) * parameters.slots]
            padded = np.zeros(parameters.degree // 2)
            padded[: part.size] = part
            padded[-1] = 1 + index
            scale = 2.0**parameters.scale_bits
            vector = tenseal.ckks_vector(self._context, padded.tolist(), scale)
            yield self._encoded(vector, parameters)


class _SecretKey(SecretHolder):
    __slots__ = ("_context", "_seal")

    def __init__(self, seal: _Seal, context: Any) -> None:
        self._seal = seal
        self._context = context

    @classmethod
    def _generate(cls, parameters: _Parameters) -> Self:
        seal = _Seal(parameters)
        return cls(seal, seal.context)

    @classmethod
    def _from_bytes(cls, parameters: _Parameters, data: bytes) -> Self:
        size = public_key_size(parameters)
        key = _decoded_public_key(parameters, data[:size])
        primes = parameters.key_primes
        (secret,) = decode_words(data[size:], primes, parameters.degree, 1, field="secret key")
        seal = _Seal(parameters)
        return cls(seal, seal.with_keys(key, secret))

    def public_key(self) -> bytes:
        """The public key, for the encryptors."""
        parameters = self._seal.parameters
        shape = (2, len(parameters.key_primes), parameters.degree)
        words = _words(self._context.public_key().data.data(), *shape)
        return encode_words(words, parameters.key_primes)

    def secret_bytes(self) -> bytes:
        """Both halves, to be sealed to whoever may decrypt; never to be written or logged."""
        parameters = self._seal.parameters
        shape = (1, len(parameters.key_primes), parameters.degree)
        words = _words(self._context.secret_key().data.data(), *shape)
        return self.public_key() + encode_words(words, parameters.key_primes)

    def _opened(self, ciphertexts: Iterable[bytes], summands: int, count: int) -> Iterator[Any]:
        """The decrypted slots of each of ``count`` ciphertexts."""
        parameters = self._seal.parameters
        if not 1 <= summands <= parameters.clients:
            raise LocalProtocolError(
                f"summands = {summands}: must be 1..{parameters.clients}, for the noise bound"
            )
        opened = 0
        for data in ciphertexts:
            if opened == count:
                break
            field = f"ciphertext {opened}"
            words = decode_words(data, parameters.primes, parameters.degree, 2, field=field)
            yield self._seal.vector(words, self._context).decrypt()
            opened += 1
        else:
            if opened == count:
                return
        raise RemoteProtocolError(f"sum: not the {count} ciphertexts that were expected")


def _refused(index: int, summands: int) -> RemoteProtocolError:
    # What was found is not said: it may depend on a client's contribution.
    return RemoteProtocolError(
        f"ciphertext {index}: the check slot is not that of {summands} summands (another number or "
        "order of them, another key, or more noise than the parameters allow)"
    )


class BfvSecretKey(_SecretKey):
    """Decrypts sums of slots; made by :meth:`generate` or :meth:`from_bytes`.

    Run by: the key holder, who alone decides what may be decrypted: this object opens anything,
    a single client's ciphertexts (``summands=1``) too.  Neither scheme is secure against chosen
    ciphertexts: whoever may have many made-up sums decrypted, and learns no more than whether each
    was refused, can find the secret key.  So take a fresh key for every round, and open one sum
    with it.
    """

    __slots__ = ()

    @classmethod
    def generate(cls, parameters: BfvParameters) -> Self:
        """A fresh key pair.

        Raises:
            ConfigError: TenSEAL is not installed, or makes other moduli.
        """
        return cls._generate(parameters)

    @classmethod
    def from_bytes(cls, parameters: BfvParameters, data: bytes) -> Self:
        """The key that :meth:`secret_bytes` gave.

        Raises:
            RemoteProtocolError: not a key of these parameters.
        """
        return cls._from_bytes(parameters, data)

    def decrypt(
        self, ciphertexts: Iterable[bytes], *, slots: int, summands: int
    ) -> NDArray[np.uint64]:
        """The sum of slots modulo t.

        Args:
            ciphertexts: what ``CiphertextSum.ciphertexts`` gave.
            slots: m, data slots.
            summands: how many contributions are in it.

        Returns:
            uint64[m], each in 0..t-1.

        Raises:
            RemoteProtocolError: not ciphertexts of these parameters, or a check slot is wrong.
            LocalProtocolError: more summands than the parameters allow.
        """
        parameters = self._seal.parameters
        if not isinstance(parameters, BfvParameters):
            raise LocalProtocolError("a BFV key needs BFV parameters")
        t = parameters.plain_modulus
        count = parameters.ciphertexts(slots)
        out = np.empty(count * parameters.slots, dtype=np.uint64)
        for index, found in enumerate(self._opened(ciphertexts, summands, count)):
            values = np.array(found, dtype=np.int64)
            values[values < 0] += t
            if int(values[-1]) != summands * _check_value(index):
                raise _refused(index, summands)
            out[index * parameters.slots : (index + 1) * parameters.slots] = values[:-1]
        return out[:slots]


class CkksSecretKey(_SecretKey):
    """Decrypts sums of integers, and hands out nothing but integers that carry noise.

    A CKKS decryption shows the error of the encryption, which gives the secret key away to whoever
    also knows the plaintext (Li and Micciancio, "On the Security of Homomorphic Encryption on
    Approximate Numbers", eprint 2020/1533, Eurocrypt 2021).  Here the error is proven to vanish in
    the rounding (``CkksParameters``): what is handed out is the integer sum of the plaintexts, a
    function of what was encrypted and not of key or randomness.  It must carry privacy noise before
    it was encrypted, as for every scheme.
    """

    __slots__ = ()

    @classmethod
    def generate(cls, parameters: CkksParameters) -> Self:
        """A fresh key pair; see :meth:`BfvSecretKey.generate`."""
        return cls._generate(parameters)

    @classmethod
    def from_bytes(cls, parameters: CkksParameters, data: bytes) -> Self:
        """The key that :meth:`secret_bytes` gave; see :meth:`BfvSecretKey.from_bytes`."""
        return cls._from_bytes(parameters, data)

    def decrypt(
        self, ciphertexts: Iterable[bytes], *, length: int, summands: int, noise_std: float
    ) -> NDArray[np.int64]:
        """The integer sum.

        Args:
            ciphertexts: what ``CiphertextSum.ciphertexts`` gave.
            length: d, values.
            summands: how many contributions are in it.
            noise_std: std of the privacy noise in each contribution (``RoundPlan.local_std``).

        Returns:
            int64[d].

        Raises:
            ConfigError: contributions carry no noise: such a sum is not released from CKKS.
            RemoteProtocolError: not ciphertexts of these parameters, a check slot is wrong, or a
                value is 1/4 or more from an integer.
            LocalProtocolError: more summands than the parameters allow.
        """
        if not noise_std > 0.0:
            raise ConfigError(
                f"noise_std = {noise_std}: CKKS sums are released only with privacy noise in them; "
                "use BFV, or a mechanism with distributed or local noise"
            )
        parameters = self._seal.parameters
        if not isinstance(parameters, CkksParameters):
            raise LocalProtocolError("a CKKS key needs CKKS parameters")
        count = parameters.ciphertexts(length)
        out = np.empty(count * parameters.slots, dtype=np.int64)
        for index, found in enumerate(self._opened(ciphertexts, summands, count)):
            values = np.array(found, dtype=np.float64)
            nearest = np.rint(values)
            # Written so that NaN is refused too.
            if not np.all(np.abs(values - nearest) < 0.25) or nearest[-1] != summands * (1 + index):
                raise _refused(index, summands)
            out[index * parameters.slots : (index + 1) * parameters.slots] = nearest[:-1]
        return out[:length]
