"""Labels, key derivation, commitments and sealed envelopes.

A hybrid X25519 + ML-KEM-768 key opens what is sealed to it, and HKDF stretches 32-byte secrets.
Derivation, commitment and signature (:mod:`securefed.crypto.identity`) take a label that says what
for, so nothing made for one purpose is valid for another; each protocol names its own labels.
"""

from __future__ import annotations

from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey as HpkePrivateKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PublicKey as HpkePublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from securefed.crypto.prg import KEY_BYTES, RandomBytes, SecretHolder, draw
from securefed.errors import ConfigError, RemoteProtocolError

LABEL_PREFIX = b"securefed/1/"
"""Every label starts with this; the number changes when what a label means does."""

LABEL_HYBRID_KEY = b"securefed/1/keys/hybrid-key"

COMMITMENT_BYTES = 32

_MLKEM_PUBLIC_BYTES = 1184
_MLKEM_SEED_BYTES = 64
_X25519_BYTES = 32
HYBRID_PUBLIC_BYTES = _MLKEM_PUBLIC_BYTES + _X25519_BYTES
SEAL_OVERHEAD = 1120 + 16
"""Sealed minus plaintext length: ML-KEM (1088) and X25519 (32) ciphertexts, AES-GCM tag (16)."""

_MAX_DERIVED_BYTES = 255 * 32  # RFC 5869, section 2.3


def labelled(label: bytes, *parts: bytes) -> bytes:
    """An unambiguous encoding of a label and byte strings.

    Each of ``label`` and ``parts`` is preceded by its length in 8 bytes, big-endian, so no two
    different argument lists encode alike.

    Raises:
        ConfigError: ``label`` does not start with :data:`LABEL_PREFIX`.
    """
    if not label.startswith(LABEL_PREFIX):
        raise ConfigError(f"label = {label!r}; it must start with {LABEL_PREFIX!r}")
    return b"".join(len(part).to_bytes(8, "big") + part for part in (label, *parts))


def derive(secret: bytes, *, label: bytes, context: bytes, length: int = 32) -> bytes:
    """An independent-looking key from a uniform secret.

    HKDF-SHA256 without salt; ``info`` is :func:`labelled` of the label, the context and the
    length, so keys for different labels, contexts or lengths tell nothing of each other.

    Args:
        secret: at least 32 uniform bytes.
        label: what the key is for.
        context: whose key it is, in which session; any bytes.
        length: bytes wanted, 1..8160.

    Raises:
        ConfigError: an argument is outside that.

    Source: RFC 5869.
    """
    if len(secret) < KEY_BYTES:
        raise ConfigError(f"secret has {len(secret)} bytes; it must have at least {KEY_BYTES}")
    if not 1 <= length <= _MAX_DERIVED_BYTES:
        raise ConfigError(f"length = {length}; it must satisfy 1 <= length <= {_MAX_DERIVED_BYTES}")
    info = labelled(label, context, length.to_bytes(2, "big"))
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=info).derive(secret)


def commit(secret: bytes, *, label: bytes, context: bytes) -> bytes:
    """A 32-byte hash commitment to a uniform 32-byte secret.

    It is SHA-256 of :func:`labelled` of the label, the context and the secret.  There is no
    separate blinding value: it hides only because the secret itself is 32 uniform bytes.  Do not
    commit to anything that could be guessed.  To check one, make it again and compare.

    Args:
        secret: exactly 32 uniform bytes.
        label: what is committed to.
        context: whose, in which session; any bytes.

    Raises:
        ConfigError: ``secret`` or ``label`` is outside that.

    Guarantees:
        - Binding to label, context and secret, as SHA-256 is collision-resistant.
        - Hiding, in the random-oracle model, for a uniform secret.
    """
    if len(secret) != KEY_BYTES:
        raise ConfigError(f"secret has {len(secret)} bytes; it must have {KEY_BYTES}")
    digest = hashes.Hash(hashes.SHA256())
    digest.update(labelled(label, context, secret))
    return digest.finalize()


# HPKE base mode (RFC 9180) over X-Wing.  X-Wing's combiner is SHA3-256 of the ML-KEM secret, the
# X25519 secret, the X25519 ciphertext and public key, and a label; the ML-KEM secret is itself
# bound to the ML-KEM key and ciphertext by its re-encryption check.  So the envelope's key is bound
# to both public keys and both ciphertexts.  Source: Barbosa et al. 2024 (eprint 2024/039).
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
# The u coordinates of the points of small order on Curve25519 and its twist, with 0 and 1 also as p
# and p + 1.  Under such a key every exchange gives zero.  A test derives them.
_P25519 = 2**255 - 19
_U8 = 0x57119FD0DD4E22D8868E1C58C45C44045BEF839C55B1D0B1248C50A3BC959C5F
_SMALL_ORDER = frozenset({0, 1, _P25519 - 1, _P25519, _P25519 + 1, _U8, pow(_U8, -1, _P25519)})


class HybridPublicKey:
    """Where envelopes are sealed to; make it with :meth:`from_bytes`."""

    __slots__ = ("_key", "_raw")

    def __init__(self, mlkem: MLKEM768PublicKey, x25519: X25519PublicKey) -> None:
        self._key = HpkePublicKey(mlkem, x25519)
        self._raw = mlkem.public_bytes_raw() + x25519.public_bytes_raw()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Decode 1216 bytes: the ML-KEM-768 key (1184), then the X25519 key (32).

        Raises:
            RemoteProtocolError: wrong length, an ML-KEM coefficient that is not reduced (FIPS 203,
                section 7.2), or an X25519 point of small order.
        """
        if len(raw) != HYBRID_PUBLIC_BYTES:
            raise RemoteProtocolError(
                f"hybrid key has {len(raw)} bytes; it must have {HYBRID_PUBLIC_BYTES}"
            )
        try:
            mlkem = MLKEM768PublicKey.from_public_bytes(raw[:_MLKEM_PUBLIC_BYTES])
        except ValueError:
            raise RemoteProtocolError("hybrid key: the ML-KEM-768 part is not valid") from None
        if int.from_bytes(raw[_MLKEM_PUBLIC_BYTES:], "little") % 2**255 in _SMALL_ORDER:
            raise RemoteProtocolError("hybrid key: the X25519 part has small order")
        return cls(mlkem, X25519PublicKey.from_public_bytes(raw[_MLKEM_PUBLIC_BYTES:]))

    @property
    def raw(self) -> bytes:
        """The 1216-byte encoding."""
        return self._raw

    def seal(self, plaintext: bytes, *, info: bytes) -> bytes:
        """Encrypt to this key; opens only under the same ``info``.

        Args:
            plaintext: any bytes.
            info: what the envelope is for, best made by :func:`labelled`.

        Returns:
            ``len(plaintext) + SEAL_OVERHEAD`` bytes, different on every call.

        Guarantees:
            - Secret while X25519 or ML-KEM-768 holds, and not altered unnoticed.
            - Says nothing about who sealed it: the sender must sign.
        """
        return _SUITE.encrypt(plaintext, self._key, info)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HybridPublicKey) and other._raw == self._raw

    def __hash__(self) -> int:
        return hash(self._raw)

    def __repr__(self) -> str:
        return f"HybridPublicKey({self._raw[:8].hex()}...)"


class HybridPrivateKey(SecretHolder):
    """Opens envelopes; make it with :meth:`generate` or :meth:`from_seed`."""

    __slots__ = ("_key", "_public")

    def __init__(self, mlkem: MLKEM768PrivateKey, x25519: X25519PrivateKey) -> None:
        self._key = HpkePrivateKey(mlkem, x25519)
        self._public = HybridPublicKey(mlkem.public_key(), x25519.public_key())

    @classmethod
    def generate(cls, random: RandomBytes) -> Self:
        """A new key from 32 bytes of ``random``."""
        return cls.from_seed(draw(random, KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """The key that a 32-byte secret determines.

        96 bytes derived under :data:`LABEL_HYBRID_KEY` are the ML-KEM seed d || z (64) and the
        X25519 private key (32).

        Raises:
            ConfigError: ``seed`` has not 32 bytes.
        """
        if len(seed) != KEY_BYTES:
            raise ConfigError(f"seed has {len(seed)} bytes; it must have {KEY_BYTES}")
        material = derive(
            seed, label=LABEL_HYBRID_KEY, context=b"", length=_MLKEM_SEED_BYTES + _X25519_BYTES
        )
        return cls(
            MLKEM768PrivateKey.from_seed_bytes(material[:_MLKEM_SEED_BYTES]),
            X25519PrivateKey.from_private_bytes(material[_MLKEM_SEED_BYTES:]),
        )

    @property
    def public(self) -> HybridPublicKey:
        """The public half."""
        return self._public

    def open(self, sealed: bytes, *, info: bytes) -> bytes:
        """The plaintext of an envelope sealed to this key under ``info``.

        Raises:
            RemoteProtocolError: it was sealed to another key, under other ``info``, or altered.
        """
        if len(sealed) < SEAL_OVERHEAD:
            raise RemoteProtocolError(
                f"sealed has {len(sealed)} bytes; it must have at least {SEAL_OVERHEAD}"
            )
        try:
            return _SUITE.decrypt(sealed, self._key, info)
        except InvalidTag:
            raise RemoteProtocolError(
                f"sealed ({len(sealed)} bytes) does not open under this key and info"
            ) from None
