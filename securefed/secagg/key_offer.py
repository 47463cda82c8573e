"""The public key of one encrypted round, and who vouches for it.

An encryption key says nothing of its origin.  So its holder, the decryptor or the client that makes
a key for the cohort, signs it with its identity key under the round's digest, and a client encrypts
under no other.  The *offer hash* names key and holder from then on.  It is part of the view that
every contribution and every survivor list is signed with: a server that shows two clients different
keys holds signatures that do not go together.

Where contributions are not masked, the holder also deals a *round secret* W of 32 bytes to every
client, sealed to the hybrid key that the client advertised and signed: the checks of the sum
(:mod:`securefed.secagg.sum_check`) follow from it, and where the cohort holds the key, what opens
the locked secret key.  The server has W only if a client gives it away.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from securefed.crypto.identity import MAX_SIGNATURE_BYTES, IdentityKey
from securefed.crypto.keys import SEAL_OVERHEAD, HybridPrivateKey, HybridPublicKey, derive
from securefed.encoding.wire import Reader, Writer
from securefed.errors import LocalProtocolError, RemoteProtocolError
from securefed.secagg.aggregator import RoundContext
from securefed.secagg.ciphertexts import encoded_size
from securefed.secagg.encryption import DECRYPTOR, RoundEncryption
from securefed.secagg.signed import Signed, party_name, sign, verify

OFFER = "offer"
"""The stage that an offer is signed for, whichever message it travels in."""
SIGN_WRAP = b"securefed/1/round/sign-round-secret"
_LOCK = b"securefed/1/round/lock-secret-key"
_WRAP_INFO = b"securefed/1/round/round-secret"

SECRET_BYTES = 32
WRAP_BYTES = SECRET_BYTES + SEAL_OVERHEAD
_TAG_BYTES = 16


def agreed(context: RoundContext) -> RoundEncryption:
    """What the round agrees about encryption.

    Raises:
        LocalProtocolError: nothing is encrypted in this round.
    """
    if context.encryption is None:
        raise LocalProtocolError("encryption: this round has none")
    return context.encryption


def _sizes(encryption: RoundEncryption) -> tuple[int, int]:
    """Bytes of a public key, and of a locked secret key (0 where nobody needs one)."""
    parameters = encryption.parameters
    public = encoded_size(parameters.key_primes, parameters.degree, 2)
    secret = encoded_size(parameters.key_primes, parameters.degree, 1) + _TAG_BYTES
    return public, secret if encryption.key_holder == "cohort" else 0


def offer_limit(context: RoundContext) -> int:
    """Most bytes of an encoded offer."""
    return sum(_sizes(agreed(context))) + MAX_SIGNATURE_BYTES + 64


@dataclass(frozen=True)
class Offer:
    """A public key, signed by its holder.

    Attributes:
        holder: number of the party that made it.
        public_key: what ``BfvEncryptor`` takes.
        locked_secret: the secret key, for whoever has W; empty with a decryptor.
        encoded: the signed message, to be passed on.
        hash: SHA-256 over holder and body; 32 bytes.
    """

    holder: int
    public_key: bytes
    locked_secret: bytes = field(repr=False)
    encoded: bytes = field(repr=False)
    hash: bytes

    @classmethod
    def make(
        cls,
        context: RoundContext,
        holder: int,
        identity: IdentityKey,
        public_key: bytes,
        locked_secret: bytes = b"",
    ) -> Offer:
        """Sign a key.

        Run by: the holder, once a round.
        """
        encoded = sign(context, holder, identity, OFFER, public_key, locked_secret)
        return cls.read(context, encoded)

    @classmethod
    def read(cls, context: RoundContext, encoded: bytes) -> Offer:
        """An offer that a party which may hold the key signed for this round.

        Run by: client, server.

        Raises:
            RemoteProtocolError: another length or holder, or it is not signed for this round.
        """
        encryption = agreed(context)
        public, locked = _sizes(encryption)
        signed = Signed.decode(encoded, limit=public + locked)
        if len(signed.body) != public + locked:
            raise RemoteProtocolError(
                f"offer of {len(signed.body)} bytes: must be {public + locked}"
            )
        if (party_name(context, signed.sender) == DECRYPTOR) != context.has_decryptor:
            raise RemoteProtocolError(
                f"offer of party number {signed.sender}: the key is held by the "
                f"{encryption.key_holder}"
            )
        verify(context, signed, OFFER)
        named = b"securefed/1/round/offer" + signed.sender.to_bytes(4, "big")
        return cls(
            signed.sender,
            signed.body[:public],
            signed.body[public:],
            encoded,
            hashlib.sha256(named + signed.body).digest(),
        )

    def view(self, inner: bytes = b"") -> bytes:
        """The attempt's view under this key; ``inner`` is that of the masking beneath it."""
        return hashlib.sha256(b"securefed/1/round/encrypted" + self.hash + inner).digest()


def lock(secret: bytes, round_secret: bytes, digest: bytes) -> bytes:
    """Encrypt the cohort's secret key under W; AES-256-GCM, and each W locks one key."""
    key = derive(round_secret, label=_LOCK, context=digest)
    return AESGCM(key).encrypt(bytes(12), secret, digest)


def unlock(locked: bytes, round_secret: bytes, digest: bytes) -> bytes:
    """The inverse of :func:`lock`.

    Raises:
        RemoteProtocolError: it was locked under another W, or altered.
    """
    key = derive(round_secret, label=_LOCK, context=digest)
    try:
        return AESGCM(key).decrypt(bytes(12), locked, digest)
    except InvalidTag:
        raise RemoteProtocolError(
            "offer: the secret key does not open under the round's secret"
        ) from (None)


@dataclass(frozen=True)
class Wrap:
    """W, sealed to one client and signed by the holder of the key."""

    sealed: bytes = field(repr=False)
    signature: bytes

    @classmethod
    def make(
        cls,
        context: RoundContext,
        offer: Offer,
        identity: IdentityKey,
        receiver: int,
        key: HybridPublicKey,
        round_secret: bytes,
    ) -> Wrap:
        """Seal W to ``receiver``.

        Run by: the holder.
        """
        covered = _wrap_info(context, offer, receiver) + key.raw
        sealed = key.seal(round_secret, info=covered)
        return cls(sealed, identity.sign(covered + sealed, label=SIGN_WRAP))

    def open(
        self, context: RoundContext, offer: Offer, receiver: int, key: HybridPrivateKey
    ) -> bytes:
        """W.

        Run by: client ``receiver``.

        Raises:
            RemoteProtocolError: it is not signed by the offer's holder, or sealed to another key.
        """
        covered = _wrap_info(context, offer, receiver) + key.public.raw
        holder = context.roster[party_name(context, offer.holder)]
        holder.verify(self.signature, covered + self.sealed, label=SIGN_WRAP)
        secret = key.open(self.sealed, info=covered)
        if len(secret) != SECRET_BYTES:
            raise RemoteProtocolError(f"round secret of {len(secret)} bytes: must be 32")
        return secret

    def write(self, writer: Writer) -> None:
        """Append."""
        writer.fixed(self.sealed, WRAP_BYTES)
        writer.blob(self.signature, limit=MAX_SIGNATURE_BYTES)

    @classmethod
    def take(cls, reader: Reader) -> Wrap:
        """Read what :meth:`write` wrote."""
        sealed = reader.fixed(WRAP_BYTES, field="round secret")
        return cls(sealed, reader.blob(MAX_SIGNATURE_BYTES, field="signature"))


def _wrap_info(context: RoundContext, offer: Offer, receiver: int) -> bytes:
    return _WRAP_INFO + context.digest + offer.hash + receiver.to_bytes(4, "big")
