"""Long-term identities: keys that sign, and the files that hold them.

Two signature schemes, told apart by the length of the public key:

==============  ==========  ===========  ========================================
algorithm       public key  signature    holds against a large quantum computer
==============  ==========  ===========  ========================================
``ed25519``     32 bytes    64 bytes     no
``ml-dsa-65``   1952 bytes  3309 bytes   yes (NIST security category 3)
==============  ==========  ===========  ========================================

A round's signatures need to hold only while the round runs, so the small Ed25519 is the default:
whoever breaks it later can forge nothing in a round that is over.  ML-DSA-65 is for those whose
signatures must outlive a quantum computer, because they are kept as evidence.  It is used alone,
not together with Ed25519, so it rests on module lattices only.

Both sign :func:`securefed.crypto.keys.labelled` of a label and the message; the label says what
for, so that a signature made for one purpose is valid for no other.  Envelopes that others' tools
are to verify are signed in DSSE's own encoding (:func:`pre_authentication`), which is never one of
ours: it begins with ``DSSEv1``, and ``labelled`` with the seven zero bytes of a short length.

Source: RFC 8032 (Ed25519); FIPS 204 (ML-DSA, section 5, pure, with the empty context, hedged);
RFC 9881 (ML-DSA key files, seed form); DSSE protocol 1.0.0, "Signature Definition".
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from pathlib import Path
from typing import Literal, Self, get_args

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from securefed.crypto.keys import derive, labelled
from securefed.crypto.prg import KEY_BYTES, RandomBytes, SecretHolder, draw, system_random
from securefed.errors import ConfigError, RemoteProtocolError

IdentityAlgorithm = Literal["ed25519", "ml-dsa-65"]
"""The signature schemes that an identity may have."""

SIGNATURE_BYTES = 64
"""Length of an Ed25519 signature."""
IDENTITY_PUBLIC_BYTES = 32
"""Length of an Ed25519 public key."""

MAX_SIGNATURE_BYTES = 3309
"""Length of an ML-DSA-65 signature, the longest of any identity (FIPS 204, table 2)."""
MAX_IDENTITY_PUBLIC_BYTES = 1952
"""Length of an ML-DSA-65 public key, the longest of any identity (FIPS 204, table 2)."""

_MAX_KEY_FILE_BYTES = 1 << 16

# The y coordinates of the eight points of small order on Ed25519, with 0 and 1 also as p and p + 1.
# Under such a key one signature fits every message.  Cremers and Jackson 2019; a test derives them.
_P25519 = 2**255 - 19
_Y8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_SMALL_ORDER = frozenset({0, 1, _P25519 - 1, _P25519, _P25519 + 1, _Y8, _P25519 - _Y8})


def _why_shut(error: Exception, password: bytes | None) -> str:
    """Why a key file does not open, in our words: the library's speak of its own formats."""
    if isinstance(error, UnsupportedAlgorithm):
        return "holds a kind of key, or is encrypted in a way, that is not known here"
    if isinstance(error, TypeError):
        return (
            "is encrypted, and no password was given; give its password"
            if password is None
            else "is not encrypted, and a password was given; give none"
        )
    if password is not None:
        return "does not open: the password is wrong, or it is no private key in PEM"
    return "holds no private key in PEM; make one with `securefed keys new`"


def pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """DSSE's PAE: ``"DSSEv1" SP LEN(type) SP type SP LEN(body) SP body``, lengths in bytes."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


class IdentityPublicKey:
    """The public half of an identity; make it with :meth:`from_bytes`."""

    __slots__ = ("_key", "_raw")

    def __init__(self, key: Ed25519PublicKey | MLDSA65PublicKey) -> None:
        self._key = key
        self._raw = key.public_bytes_raw()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Decode 32 bytes as an Ed25519 key, or 1952 as an ML-DSA-65 key.

        Raises:
            RemoteProtocolError: another length, or an Ed25519 point of small order.
        """
        if len(raw) == MAX_IDENTITY_PUBLIC_BYTES:
            # Every string of this length encodes a key, and under none does one signature fit two
            # messages: the challenge is a hash over key and message (FIPS 204, algorithm 8).
            return cls(MLDSA65PublicKey.from_public_bytes(raw))
        if len(raw) != IDENTITY_PUBLIC_BYTES:
            raise RemoteProtocolError(
                f"identity key has {len(raw)} bytes; it must have {IDENTITY_PUBLIC_BYTES} "
                f"(ed25519) or {MAX_IDENTITY_PUBLIC_BYTES} (ml-dsa-65)"
            )
        if int.from_bytes(raw, "little") % 2**255 in _SMALL_ORDER:
            raise RemoteProtocolError("identity key is a point of small order")
        return cls(Ed25519PublicKey.from_public_bytes(raw))

    @property
    def algorithm(self) -> IdentityAlgorithm:
        """The signature scheme."""
        return "ed25519" if isinstance(self._key, Ed25519PublicKey) else "ml-dsa-65"

    @property
    def raw(self) -> bytes:
        """The encoding: 32 bytes for Ed25519, 1952 for ML-DSA-65."""
        return self._raw

    @property
    def signature_bytes(self) -> int:
        """Length of each of this identity's signatures: 64 or 3309."""
        return SIGNATURE_BYTES if self.algorithm == "ed25519" else MAX_SIGNATURE_BYTES

    def verify(self, signature: bytes, message: bytes, *, label: bytes) -> None:
        """Return if ``signature`` is this identity's on ``message`` under ``label``; else raise.

        Raises:
            RemoteProtocolError: it is not, or has not :attr:`signature_bytes` bytes.
            ConfigError: ``label`` does not start with
                :data:`LABEL_PREFIX`.
        """
        self._verify(signature, labelled(label, message), repr(label))

    def verify_enveloped(self, signature: bytes, payload_type: str, payload: bytes) -> None:
        """Return if ``signature`` is this identity's on an envelope's payload; else raise.

        Raises:
            RemoteProtocolError: it is not, or has not :attr:`signature_bytes` bytes.
        """
        self._verify(signature, pre_authentication(payload_type, payload), "DSSE")

    def _verify(self, signature: bytes, signed: bytes, what_for: str) -> None:
        if len(signature) != self.signature_bytes:
            raise RemoteProtocolError(
                f"signature has {len(signature)} bytes; it must have {self.signature_bytes} "
                f"({self.algorithm})"
            )
        try:
            self._key.verify(signature, signed)
        except InvalidSignature:
            raise RemoteProtocolError(
                f"signature of identity {self._shown()} under {what_for} does not verify"
            ) from None

    def _shown(self) -> str:
        """What tells this key from others in one line: the key, or its SHA-256 if it is long."""
        if self.algorithm == "ed25519":
            return self._raw.hex()
        return f"ml-dsa-65:sha256:{hashlib.sha256(self._raw).hexdigest()}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdentityPublicKey) and other._raw == self._raw

    def __hash__(self) -> int:
        return hash(self._raw)

    def __repr__(self) -> str:
        return f"IdentityPublicKey({self._shown()})"


class IdentityKey(SecretHolder):
    """A long-term signing key; make it with :meth:`generate` or :meth:`load`."""

    __slots__ = ("_key", "_public")

    def __init__(self, key: Ed25519PrivateKey | MLDSA65PrivateKey) -> None:
        self._key = key
        self._public = IdentityPublicKey(key.public_key())

    @classmethod
    def generate(
        cls, random: RandomBytes = system_random, *, algorithm: IdentityAlgorithm = "ed25519"
    ) -> Self:
        """A new identity from 32 bytes of ``random``, which determine it.

        Args:
            random: a source of fresh secret bytes.
            algorithm: ``"ed25519"`` suffices while signatures need to hold only as long as a round
                runs; ``"ml-dsa-65"`` if they must outlive a quantum computer.

        Raises:
            ConfigError: ``algorithm`` is another.
        """
        if algorithm not in get_args(IdentityAlgorithm):
            raise ConfigError(
                f"algorithm = {algorithm!r}; it must be one of {get_args(IdentityAlgorithm)}"
            )
        seed = draw(random, KEY_BYTES)
        if algorithm == "ml-dsa-65":
            return cls(MLDSA65PrivateKey.from_seed_bytes(seed))
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def algorithm(self) -> IdentityAlgorithm:
        """The signature scheme."""
        return self._public.algorithm

    @property
    def public(self) -> IdentityPublicKey:
        """The public half."""
        return self._public

    def sign(self, message: bytes, *, label: bytes) -> bytes:
        """The signature on :func:`labelled` of ``label`` and ``message``.

        Returns:
            64 bytes (Ed25519; the same on every call) or 3309 (ML-DSA-65; different on every call,
            since the system's randomness is mixed in against fault attacks).

        Raises:
            ConfigError: ``label`` does not start with
                :data:`LABEL_PREFIX`.
        """
        return self._key.sign(labelled(label, message))

    def sign_enveloped(self, payload_type: str, payload: bytes) -> bytes:
        """The signature on :func:`pre_authentication` of an envelope's type and payload."""
        return self._key.sign(pre_authentication(payload_type, payload))

    def secret(self, *, label: bytes, context: bytes) -> bytes:
        """32 bytes that are always the same for a context, and look uniform to all other parties.

        Raises:
            ConfigError: as :func:`derive`.
        """
        return derive(self._key.private_bytes_raw(), label=label, context=context)

    def save(self, path: Path, *, password: bytes | None = None) -> None:
        """Write the key to a new file that only its owner can read (PKCS #8, PEM).

        An ML-DSA-65 key is written as its 32-byte seed, from which it is made again.

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
        """Read a file that :meth:`save` wrote; the file says which algorithm.

        Raises:
            ConfigError: the file is missing, readable by group or others, not an Ed25519 or
                ML-DSA-65 key in PEM (ML-DSA: in seed form, RFC 9881), or the password is missing,
                wrong or not needed.
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
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            # TypeError: a password is missing or not needed.  UnsupportedAlgorithm: a kind of key
            # or of encryption that the library does not know.  No message holds key material.
            raise ConfigError(f"identity file {path}: {_why_shut(error, password)}") from None
        if not isinstance(key, (Ed25519PrivateKey, MLDSA65PrivateKey)):
            raise ConfigError(
                f"identity file {path} holds a key of type {type(key).__name__}; "
                "it must hold an Ed25519 or ML-DSA-65 private key"
            )
        return cls(key)

    def __repr__(self) -> str:
        return f"<IdentityKey public={self._public._shown()}>"
