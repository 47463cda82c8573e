"""Key derivation, commitments, identities and sealed envelopes.

A long-term Ed25519 identity signs, a hybrid X25519 + ML-KEM-768 key opens what is sealed to it, and
HKDF stretches 32-byte secrets.  Derivation, commitment and signature take a label that says what
for, so nothing made for one purpose is valid for another; each protocol names its own labels.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey as HpkePrivateKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PublicKey as HpkePublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from securefed.crypto.prg import KEY_BYTES, RandomBytes, SecretHolder, draw, system_random
from securefed.errors import ConfigError, RemoteProtocolError

LABEL_PREFIX = b"securefed/1/"
"""Every label starts with this; the number changes when what a label means does."""

LABEL_HYBRID_KEY = b"securefed/1/keys/hybrid-key"

COMMITMENT_BYTES = 32
SIGNATURE_BYTES = 64
MAX_SIGNATURE_BYTES = 3309
IDENTITY_PUBLIC_BYTES = 32

_MLKEM_PUBLIC_BYTES = 1184
_MLKEM_SEED_BYTES = 64
_X25519_BYTES = 32
HYBRID_PUBLIC_BYTES = _MLKEM_PUBLIC_BYTES + _X25519_BYTES
SEAL_OVERHEAD = 1120 + 16
"""Sealed minus plaintext length: ML-KEM (1088) and X25519 (32) ciphertexts, AES-GCM tag (16)."""

_MAX_DERIVED_BYTES = 255 * 32  # RFC 5869, section 2.3
_MAX_KEY_FILE_BYTES = 1 << 16


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


# The y coordinates of the eight points of small order on Ed25519, with 0 and 1 also as p and p + 1.
# Under such a key one signature fits every message.  Cremers and Jackson 2019; a test derives them.
_P25519 = 2**255 - 19
_Y8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER = frozenset({0, 1, _P25519 - 1, _P25519, _P25519 + 1, _Y8, _P25519 - _Y8})


class IdentityPublicKey:
    """The public half of an identity; make it with :meth:`from_bytes`."""

    __slots__ = ("_key", "_raw")

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self._raw = key.public_bytes_raw()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Decode 32 bytes.

        Raises:
            RemoteProtocolError: wrong length, or a point of small order.
        """
        if len(raw) != IDENTITY_PUBLIC_BYTES:
            raise RemoteProtocolError(
                f"identity key has {len(raw)} bytes; it must have {IDENTITY_PUBLIC_BYTES}"
            )
        if int.from_bytes(raw, "little") % 2**255 in _SMALL_ORDER:
            raise RemoteProtocolError("identity key is a point of small order")
        return cls(Ed25519PublicKey.from_public_bytes(raw))

    @property
    def raw(self) -> bytes:
        """The 32-byte encoding."""
        return self._raw

    def verify(self, signature: bytes, message: bytes, *, label: bytes) -> None:
        """Return if ``signature`` is this identity's on ``message`` under ``label``; else raise.

        Raises:
            RemoteProtocolError: it is not, or has not 64 bytes.
            ConfigError: ``label`` does not start with :data:`LABEL_PREFIX`.
        """
        if len(signature) != SIGNATURE_BYTES:
            raise RemoteProtocolError(
                f"signature has {len(signature)} bytes; it must have {SIGNATURE_BYTES}"
            )
        try:
            self._key.verify(signature, labelled(label, message))
        except InvalidSignature:
            raise RemoteProtocolError(
                f"signature of identity {self._raw.hex()} under {label!r} does not verify"
            ) from None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdentityPublicKey) and other._raw == self._raw

    def __hash__(self) -> int:
        return hash(self._raw)

    def __repr__(self) -> str:
        return f"IdentityPublicKey({self._raw.hex()})"


class IdentityKey(SecretHolder):
    """A long-term Ed25519 signing key; make it with :meth:`generate` or :meth:`load`."""

    __slots__ = ("_key", "_public")

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._public = IdentityPublicKey(key.public_key())

    @classmethod
    def generate(cls, random: RandomBytes = system_random) -> Self:
        """A new identity from 32 bytes of ``random``."""
        return cls(Ed25519PrivateKey.from_private_bytes(draw(random, KEY_BYTES)))

    @property
    def public(self) -> IdentityPublicKey:
        """The public half."""
        return self._public

    def sign(self, message: bytes, *, label: bytes) -> bytes:
        """The 64-byte signature on :func:`labelled` of ``label`` and ``message``.

        Raises:
            ConfigError: ``label`` does not start with :data:`LABEL_PREFIX`.
        """
        return self._key.sign(labelled(label, message))

    def save(self, path: Path, *, password: bytes | None = None) -> None:
        """Write the key to a new file that only its owner can read (PKCS #8, PEM).

        Args:
            path: must not exist yet; nothing is overwritten.
            password: encrypts the file (PBES2, AES-256-CBC); make it long and random, since the
                library's PBKDF2 count of 2048 hardly slows guessing.

        Raises:
            ConfigError: the file exists or cannot be written, or the password is empty.
        """
        if password == b"":
            raise ConfigError(
                "password is empty; give at least one byte, or None for no encryption"
            )
        encryption = (
            serialization.NoEncryption()
            if password is None
            else serialization.BestAvailableEncryption(password)
        )
        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        )
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ConfigError(f"identity file {path} cannot be made: {error.strerror}") from None
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise ConfigError(f"identity file {path} cannot be written: {error.strerror}") from None

    @classmethod
    def load(cls, path: Path, *, password: bytes | None = None) -> Self:
        """Read a file that :meth:`save` wrote.

        Raises:
            ConfigError: the file is missing, readable by group or others, not an Ed25519 key in
                PEM, or the password is missing, wrong or not needed.
        """
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                pem = file.read(_MAX_KEY_FILE_BYTES)
        except OSError as error:
            raise ConfigError(f"identity file {path} cannot be read: {error.strerror}") from None
        if os.name == "posix" and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigError(
                f"identity file {path} has mode {stat.S_IMODE(status.st_mode):04o}; "
                "group and others must have no access (chmod 600)"
            )
        try:
            key = serialization.load_pem_private_key(pem, password)
        except (ValueError, TypeError) as error:
            # TypeError: a password is missing or not needed.  Neither message holds key material.
            raise ConfigError(f"identity file {path}: {error}") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"identity file {path} does not hold an Ed25519 key")
        return cls(key)

    def __repr__(self) -> str:
        return f"<IdentityKey public={self._public.raw.hex()}>"


# HPKE base mode (RFC 9180) over X-Wing.  X-Wing's combiner is SHA3-256 of the ML-KEM secret, the
# X25519 secret, the X25519 ciphertext and public key, and a label; the ML-KEM secret is itself
# bound to the ML-KEM key and ciphertext by its re-encryption check.  So the envelope's key is bound
# to both public keys and both ciphertexts.  Source: Barbosa et al. 2024 (eprint 2024/039).
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
# Multiplying a point by any clamped scalar shows whether it has small order.
_PROBE = X25519PrivateKey.from_private_bytes(bytes(_X25519_BYTES))


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
        x25519 = X25519PublicKey.from_public_bytes(raw[_MLKEM_PUBLIC_BYTES:])
        try:
            _PROBE.exchange(x25519)
        except ValueError:
            raise RemoteProtocolError("hybrid key: the X25519 part has small order") from None
        return cls(mlkem, x25519)

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
