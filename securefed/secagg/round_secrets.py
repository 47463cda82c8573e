"""How every key of a pairwise round follows from two fresh secrets of each client.

Client i draws two independent 32-byte secrets: its *root* and its *self-mask seed*.

    mask key pair of i        = KeyPair(KDF(root_i, MASK_KEY, round))
    edge secret of (i, j)     = KDF(root_i, EDGE, round, i, j, mask public key of j), i gives it
    keystream key of (i, j)   = KDF(edge secret, MASK, round, view, lower, higher)
    self keystream key of i   = KDF(seed_i, SELF_MASK, round, view, i)

One end of each edge gives the edge secret (``Graph.gives``) and sends it to the other, sealed to
its mask key.  ``round`` is the round context's digest.  ``view`` is a hash with fresh values of
this attempt in it: in a complete graph of who shared and of the keys and commitments that each of
them advertised; in a sparse one the seed of the ring, made of every client's nonce.  A party that
was told something else derives other keystreams, which do not cancel.  The fresh values also make
every signature on a survivor list good for one attempt only: a server that names an old session
again cannot use what was signed then.

If i drops out, its root is reconstructed.  It gives the edge secrets that i gave again, and the
mask private key, which opens those that it was given.  It does not give the self-mask seed, nor the
key pair of the share envelopes, which is drawn apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from securefed.crypto.keys import HybridPrivateKey, commit, derive

MASK_KEY = b"securefed/1/round/mask-key"
EDGE = b"securefed/1/round/edge-secret"
MASK = b"securefed/1/round/pairwise-keystream"
SELF_MASK = b"securefed/1/round/self-keystream"
ROOT_COMMITMENT = b"securefed/1/round/root-commitment"
SELF_COMMITMENT = b"securefed/1/round/self-mask-commitment"
EDGE_COMMITMENT = b"securefed/1/round/edge-commitment"
ENVELOPE_INFO = b"securefed/1/round/share-envelope"
EDGE_INFO = b"securefed/1/round/edge-wrap"
SIGN_STAGE = b"securefed/1/round/sign-stage/"
SIGN_BUNDLE = b"securefed/1/round/sign-bundle"
SIGN_SURVIVORS = b"securefed/1/round/sign-survivors"

SECRET_BYTES = 32


def _pair(digest: bytes, lower: int, higher: int) -> bytes:
    return digest + lower.to_bytes(4, "big") + higher.to_bytes(4, "big")


def sharers_hash(advert_hashes: Mapping[int, bytes]) -> bytes:
    """View of a complete graph: who shared, and SHA-256 of what each of them advertised."""
    parts = (index.to_bytes(4, "big") + advert_hashes[index] for index in sorted(advert_hashes))
    return hashlib.sha256(b"securefed/1/round/sharers" + b"".join(parts)).digest()


def mask_key_pair(root: bytes, digest: bytes, index: int) -> HybridPrivateKey:
    """The key pair under which lower-indexed clients send this client their edge secrets."""
    return HybridPrivateKey.from_seed(
        derive(root, label=MASK_KEY, context=digest + index.to_bytes(4, "big"))
    )


def edge_secret(root: bytes, digest: bytes, giver: int, taker: int, mask_key: bytes) -> bytes:
    """The secret of an edge, from its giver's root and its taker's mask key."""
    return derive(root, label=EDGE, context=_pair(digest, giver, taker) + mask_key)


def edge_commitment(secret: bytes, digest: bytes, giver: int, taker: int) -> bytes:
    """What the giver signs, so that the server can check a recovered root against it."""
    return commit(secret, label=EDGE_COMMITMENT, context=_pair(digest, giver, taker))


def root_commitment(root: bytes, digest: bytes, index: int) -> bytes:
    """Binding and hiding (the root is uniform): what a reconstructed root must match."""
    return commit(root, label=ROOT_COMMITMENT, context=digest + index.to_bytes(4, "big"))


def self_commitment(seed: bytes, digest: bytes, index: int) -> bytes:
    """The same for the self-mask seed."""
    return commit(seed, label=SELF_COMMITMENT, context=digest + index.to_bytes(4, "big"))


def pair_keystream_key(secret: bytes, digest: bytes, view: bytes, lower: int, higher: int) -> bytes:
    """Key of the keystream that the lower client adds and the higher one subtracts."""
    return derive(secret, label=MASK, context=_pair(digest, lower, higher) + view)


def self_keystream_key(seed: bytes, digest: bytes, view: bytes, index: int) -> bytes:
    """Key of the keystream that a client adds for itself."""
    return derive(seed, label=SELF_MASK, context=digest + index.to_bytes(4, "big") + view)


def edge_info(digest: bytes, giver: int, taker: int) -> bytes:
    """Binds a sealed edge secret to its round and direction."""
    return EDGE_INFO + _pair(digest, giver, taker)


def envelope_info(
    digest: bytes, sender: int, receiver: int, sender_key: bytes, receiver_key: bytes
) -> bytes:
    """Binds a share envelope to its round, direction and the hashes of both envelope keys."""
    return ENVELOPE_INFO + _pair(digest, sender, receiver) + sender_key + receiver_key


def key_hash(public_key: bytes) -> bytes:
    """SHA-256 of a public key: what is kept of it when it is not needed any more."""
    return hashlib.sha256(b"securefed/1/round/public-key" + public_key).digest()


def stage_label(stage: str) -> bytes:
    """Signature label of a client's message in ``stage``."""
    return SIGN_STAGE + stage.encode()


def survivors_statement(digest: bytes, view: bytes, survivors: list[int]) -> bytes:
    """What a client signs once per attempt: the round, the attempt's view, who survived."""
    listed = b"".join(index.to_bytes(4, "big") for index in survivors)
    return digest + view + hashlib.sha256(b"securefed/1/round/survivors" + listed).digest()
