import copy
import hashlib
import os
import pickle

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.crypto.keys import (
    COMMITMENT_BYTES,
    HYBRID_PUBLIC_BYTES,
    SEAL_OVERHEAD,
    HybridPrivateKey,
    HybridPublicKey,
    commit,
    derive,
    labelled,
)
from securefed.crypto.prg import system_random
from securefed.errors import ConfigError, LocalProtocolError, RemoteProtocolError

LABEL = b"securefed/1/test"
OTHER = b"securefed/1/other"
INFO = labelled(LABEL, b"session")


@pytest.fixture(scope="module")
def hybrid():
    return HybridPrivateKey.generate(system_random)


# Labels, derivation, commitment


@given(st.lists(st.binary(max_size=12), max_size=4), st.lists(st.binary(max_size=12), max_size=4))
def test_different_parts_never_encode_alike(left, right):
    assert (labelled(LABEL, *left) == labelled(LABEL, *right)) == (left == right)


def test_bytes_moved_between_label_and_context_change_everything():
    secret = os.urandom(32)
    pairs = [(LABEL, b"xyz"), (LABEL + b"x", b"yz"), (LABEL + b"xyz", b"")]
    assert len({derive(secret, label=a, context=b) for a, b in pairs}) == 3
    assert len({commit(secret, label=a, context=b) for a, b in pairs}) == 3


@pytest.mark.parametrize("label", [b"", b"test", b"securefed/2/test", b"Securefed/1/test"])
def test_a_label_outside_the_namespace_is_refused_everywhere(label):
    for call in (
        lambda: labelled(label),
        lambda: derive(bytes(32), label=label, context=b""),
        lambda: commit(bytes(32), label=label, context=b""),
    ):
        with pytest.raises(ConfigError, match="label"):
            call()


def test_the_hkdf_oracle_agrees_with_rfc_5869(oracle):
    # Test case 1 of appendix A.
    okm = oracle.hkdf(
        bytes.fromhex("000102030405060708090a0b0c"),
        b"\x0b" * 22,
        bytes.fromhex("f0f1f2f3f4f5f6f7f8f9"),
        42,
    )
    assert okm.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


@given(st.binary(min_size=32, max_size=80), st.binary(max_size=300), st.integers(1, 200))
@settings(max_examples=40)
def test_derive_is_hkdf_over_label_context_and_length(oracle, secret, context, length):
    expected = oracle.derived(secret, LABEL, context, length)
    assert derive(secret, label=LABEL, context=context, length=length) == expected


def test_keys_of_two_lengths_do_not_share_a_beginning():
    secret = os.urandom(32)
    short = derive(secret, label=LABEL, context=b"", length=32)
    assert derive(secret, label=LABEL, context=b"", length=64)[:32] != short


@pytest.mark.parametrize("length", [-1, 0, 8161])
def test_a_length_outside_hkdf_is_refused(length):
    with pytest.raises(ConfigError, match="length"):
        derive(bytes(32), label=LABEL, context=b"", length=length)
    assert len(derive(bytes(32), label=LABEL, context=b"", length=8160)) == 8160


@pytest.mark.parametrize("size", [0, 16, 31])
def test_a_secret_too_short_to_hide_is_refused(size):
    with pytest.raises(ConfigError, match=f"secret has {size} bytes"):
        derive(bytes(size), label=LABEL, context=b"")
    with pytest.raises(ConfigError, match=f"secret has {size} bytes"):
        commit(bytes(size), label=LABEL, context=b"")
    with pytest.raises(ConfigError, match="secret has 33 bytes"):
        commit(bytes(33), label=LABEL, context=b"")


def test_a_commitment_binds_secret_label_and_context():
    secret = os.urandom(32)
    first = commit(secret, label=LABEL, context=b"c")
    assert len(first) == COMMITMENT_BYTES
    assert commit(secret, label=LABEL, context=b"c") == first
    assert commit(os.urandom(32), label=LABEL, context=b"c") != first
    assert commit(secret, label=OTHER, context=b"c") != first
    assert commit(secret, label=LABEL, context=b"d") != first
    assert derive(secret, label=LABEL, context=b"c") != first


# Envelopes


@pytest.mark.parametrize("plaintext", [b"", b"p", os.urandom(200_000)], ids=["0", "1", "large"])
def test_an_envelope_opens_to_its_plaintext(hybrid, plaintext):
    sealed = hybrid.public.seal(plaintext, info=INFO)
    assert len(sealed) == len(plaintext) + SEAL_OVERHEAD
    assert hybrid.open(sealed, info=INFO) == plaintext
    assert hybrid.public.seal(plaintext, info=INFO) != sealed


def test_an_envelope_does_not_open_under_another_key_or_info(hybrid):
    sealed = hybrid.public.seal(b"secret", info=INFO)
    with pytest.raises(RemoteProtocolError, match="does not open"):
        HybridPrivateKey.generate(system_random).open(sealed, info=INFO)
    for info in (b"", INFO[:-1], INFO + b"\0", labelled(OTHER, b"session")):
        with pytest.raises(RemoteProtocolError, match="does not open"):
            hybrid.open(sealed, info=info)


@given(st.integers(0, 8 * (SEAL_OVERHEAD + 6) - 1))
@settings(max_examples=80)
def test_an_envelope_with_any_bit_changed_does_not_open(hybrid, bit):
    sealed = bytearray(hybrid.public.seal(b"secret", info=INFO))
    sealed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RemoteProtocolError):
        hybrid.open(bytes(sealed), info=INFO)


@pytest.mark.parametrize("size", [0, 1, 1088, 1120, SEAL_OVERHEAD - 1, SEAL_OVERHEAD + 5])
def test_a_truncated_envelope_does_not_open(hybrid, size):
    sealed = hybrid.public.seal(b"secret", info=INFO)
    with pytest.raises(RemoteProtocolError):
        hybrid.open(sealed[:size], info=INFO)


def test_one_seed_gives_one_key_pair(oracle):
    seed = os.urandom(32)
    first, second = HybridPrivateKey.from_seed(seed), HybridPrivateKey.from_seed(seed)
    assert first.public == second.public
    assert first.public.raw == oracle.hybrid_public(seed)
    assert second.open(first.public.seal(b"x", info=INFO), info=INFO) == b"x"
    assert HybridPrivateKey.generate(lambda count: seed).public == first.public
    assert HybridPrivateKey.from_seed(os.urandom(32)).public != first.public
    with pytest.raises(ConfigError, match="seed has 31 bytes"):
        HybridPrivateKey.from_seed(seed[:-1])
    with pytest.raises(LocalProtocolError):
        HybridPrivateKey.generate(lambda count: b"")


def test_every_x25519_point_of_small_order_is_refused(hybrid):
    # On v^2 = u^3 + A u^2 + u and its twist, doubling takes u to (u^2 - 1)^2 / 4u(u^2 + A u + 1),
    # whose last factor has no root.  So order 2 is u = 0, order 4 is u = 1 and u = -1, and order 8
    # is where doubling gives one of these.  With s = u + 1 / u and that one called end, it is
    # s^2 - 4 = 4 end (s + A).
    p, a = 2**255 - 19, 486662

    def root_of(square):
        root = pow(square, (p + 3) // 8, p)
        if root * root % p != square % p:
            root = root * pow(2, (p - 1) // 4, p) % p
        return root if root * root % p == square % p else None

    assert root_of(a * a - 4) is None
    us = {0, 1, p - 1, p, p + 1}
    for end in (1, -1):
        half = root_of(8 + 4 * end * a)
        for s in () if half is None else (2 * end + half, 2 * end - half):
            root = root_of(s * s - 4)
            if root is not None:
                us |= {(s + sign * root) * pow(2, -1, p) % p for sign in (1, -1)}
    assert len(us) == 7
    other = X25519PrivateKey.generate()
    for u in us:
        for top_bit in (0, 1 << 255):
            raw = (u | top_bit).to_bytes(32, "little")
            with pytest.raises(ValueError, match="shared key"):
                other.exchange(X25519PublicKey.from_public_bytes(raw))
            with pytest.raises(RemoteProtocolError, match="small order"):
                HybridPublicKey.from_bytes(hybrid.public.raw[:1184] + raw)
            beside = ((u + 7) % p).to_bytes(32, "little")
            HybridPublicKey.from_bytes(hybrid.public.raw[:1184] + beside)


def test_hybrid_public_keys_round_trip_and_compare(hybrid):
    raw = hybrid.public.raw
    assert len(raw) == HYBRID_PUBLIC_BYTES
    again = HybridPublicKey.from_bytes(raw)
    assert again == hybrid.public
    assert again.raw == raw
    assert hash(again) == hash(hybrid.public)
    assert again != raw
    assert hybrid.open(again.seal(b"x", info=INFO), info=INFO) == b"x"


def combined(mlkem_secret, x25519_secret, x25519_ciphertext, x25519_public):
    """X-Wing's combiner (draft-connolly-cfrg-xwing-kem, section 5.3)."""
    label = bytes.fromhex("5c2e2f2f5e5c")
    parts = (mlkem_secret, x25519_secret, x25519_ciphertext, x25519_public, label)
    return hashlib.sha3_256(b"".join(parts)).digest()


def test_the_combiner_oracle_agrees_with_the_x_wing_draft():
    # Appendix C, vector 1.  The ML-KEM secret is computed as FIPS 203's K = G(m || H(ek)).
    seed = bytes.fromhex("7f9c2ba4e88f827d616045507605853ed73b8093f6efbc88eb1a6eacfa66ef26")
    random = bytes.fromhex(
        "3cb1eea988004b93103cfb0aeefd2a686e01fa4a58e8a3639ca8a1e3f9ae57e2"
        "35b8cc873c23dc62b8d260169afa2f75ab916a58d974918835d25e6a435085b2"
    )
    material = hashlib.shake_256(seed).digest(96)
    mlkem = MLKEM768PrivateKey.from_seed_bytes(material[:64]).public_key().public_bytes_raw()
    x25519 = X25519PrivateKey.from_private_bytes(material[64:]).public_key()
    assert mlkem.hex().startswith(
        "e2236b35a8c24b39b10aa1323a96a919a2ced88400633a7b07131713fc14b2b5"
    )
    mlkem_secret = hashlib.sha3_512(random[:32] + hashlib.sha3_256(mlkem).digest()).digest()[:32]
    ephemeral = X25519PrivateKey.from_private_bytes(random[32:])
    secret = combined(
        mlkem_secret,
        ephemeral.exchange(x25519),
        ephemeral.public_key().public_bytes_raw(),
        x25519.public_bytes_raw(),
    )
    assert secret.hex() == "d2df0522128f09dd8e2c92b1e905c793d8f57a54c3da25861f10bf4ca613e384"


def test_an_envelope_is_rfc_9180_base_mode_over_x_wing(oracle):
    """Opens a sealed envelope by the specifications, so keys and ciphertexts are bound as said."""
    seed = os.urandom(32)
    mlkem, x25519 = oracle.hybrid_keys(seed)
    sealed = HybridPrivateKey.from_seed(seed).public.seal(b"plaintext", info=INFO)
    ephemeral = X25519PublicKey.from_public_bytes(sealed[1088:1120])
    shared = combined(
        mlkem.decapsulate(sealed[:1088]),
        x25519.exchange(ephemeral),
        sealed[1088:1120],
        x25519.public_key().public_bytes_raw(),
    )
    # Suite identifiers: KEM 0x647a (X-Wing), KDF 1 (HKDF-SHA256), AEAD 2 (AES-256-GCM).
    suite = b"HPKE" + bytes.fromhex("647a00010002")

    def extract(salt, label, secret):
        return oracle.hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + secret, "sha256")

    def expand(secret, label, context, length):
        info = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context
        return oracle.hkdf_expand(secret, info, length)

    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", INFO)
    secret = extract(shared, b"secret", b"")
    key, nonce = expand(secret, b"key", context, 32), expand(secret, b"base_nonce", context, 12)
    assert AESGCM(key).decrypt(nonce, sealed[1120:], b"") == b"plaintext"


# Secrets stay inside


def test_a_private_key_is_neither_copied_nor_pickled_nor_shown():
    seed = os.urandom(32)
    key = HybridPrivateKey.from_seed(seed)
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="holds a secret"):
            duplicate(key)
    assert not hasattr(key, "__dict__")
    assert seed.hex()[:8] not in repr(key)
