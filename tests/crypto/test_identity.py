import copy
import hashlib
import os
import pickle
from typing import get_args

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

import securefed
from securefed.crypto.identity import (
    IDENTITY_PUBLIC_BYTES,
    MAX_IDENTITY_PUBLIC_BYTES,
    MAX_SIGNATURE_BYTES,
    SIGNATURE_BYTES,
    IdentityAlgorithm,
    IdentityKey,
    IdentityPublicKey,
)
from securefed.crypto.keys import labelled
from securefed.errors import ConfigError, LocalProtocolError, RemoteProtocolError

LABEL = b"securefed/1/test"
OTHER = b"securefed/1/other"
ALGORITHMS = get_args(IdentityAlgorithm)
SIZES = {
    "ed25519": (IDENTITY_PUBLIC_BYTES, SIGNATURE_BYTES),
    "ml-dsa-65": (MAX_IDENTITY_PUBLIC_BYTES, MAX_SIGNATURE_BYTES),
}
LIBRARY = {"ed25519": Ed25519PublicKey, "ml-dsa-65": MLDSA65PublicKey}


@pytest.fixture(scope="module", params=ALGORITHMS)
def identity(request):
    return IdentityKey.generate(algorithm=request.param)


@pytest.fixture(scope="module")
def mldsa():
    return IdentityKey.generate(algorithm="ml-dsa-65")


def from_seed(seed, algorithm):
    return IdentityKey.generate(lambda count: seed, algorithm=algorithm)


# Making keys


def test_the_algorithms_are_a_closed_list():
    assert ALGORITHMS == ("ed25519", "ml-dsa-65")
    assert IdentityKey.generate().algorithm == "ed25519"

    def never(count):
        pytest.fail("randomness was drawn before the name was checked")

    for name in ("ed448", "ML-DSA-65", "ml-dsa-44", "", None, ["ed25519"]):
        with pytest.raises(ConfigError, match=r"algorithm = .*'ed25519', 'ml-dsa-65'"):
            IdentityKey.generate(never, algorithm=name)


def test_sizes_are_those_of_the_standards(identity):
    # RFC 8032, section 5.1; FIPS 204, table 2.
    expected = {"ed25519": (32, 64), "ml-dsa-65": (1952, 3309)}[identity.algorithm]
    assert (len(identity.public.raw), identity.public.signature_bytes) == expected
    assert SIZES[identity.algorithm] == expected
    assert identity.public.algorithm == identity.algorithm


@pytest.mark.parametrize(
    ("algorithm", "seed", "sha256"),
    [
        # RFC 8032, section 7.1, test 1.
        (
            "ed25519",
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            hashlib.sha256(
                bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
            ).hexdigest(),
        ),
        # RFC 9881, appendix C.
        (
            "ml-dsa-65",
            "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
            "d666806e11cee19a7c989f7445f90dd419cf4d2d51db8c0fdb4c0f0a542238c9",
        ),
    ],
    ids=ALGORITHMS,
)
def test_an_identity_has_the_public_key_of_its_rfc(algorithm, seed, sha256):
    public = from_seed(bytes.fromhex(seed), algorithm).public
    assert hashlib.sha256(public.raw).hexdigest() == sha256


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_seed_gives_one_identity(algorithm):
    seed = os.urandom(32)
    assert from_seed(seed, algorithm).public == from_seed(seed, algorithm).public
    assert from_seed(seed, algorithm).public != from_seed(os.urandom(32), algorithm).public
    for size in (0, 31, 33, 64):
        with pytest.raises(LocalProtocolError, match=f"{size} bytes; 32 are needed"):
            from_seed(bytes(size), algorithm)


def test_the_public_names_are_these_classes():
    assert securefed.IdentityKey is IdentityKey
    assert securefed.IdentityPublicKey is IdentityPublicKey


# Signing


@pytest.mark.parametrize("message", [b"", b"m", os.urandom(100_000)], ids=["empty", "one", "large"])
def test_a_signature_verifies_and_covers_the_label(identity, message):
    signature = identity.sign(message, label=LABEL)
    assert len(signature) == identity.public.signature_bytes
    identity.public.verify(signature, message, label=LABEL)
    raw = LIBRARY[identity.algorithm].from_public_bytes(identity.public.raw)
    raw.verify(signature, labelled(LABEL, message))
    with pytest.raises(RemoteProtocolError, match="does not verify"):
        identity.public.verify(signature, message, label=OTHER)
    with pytest.raises(RemoteProtocolError, match="does not verify"):
        identity.public.verify(signature, message + b"!", label=LABEL)
    other = IdentityKey.generate(algorithm=identity.algorithm)
    with pytest.raises(RemoteProtocolError, match="does not verify"):
        other.public.verify(signature, message, label=LABEL)


@given(position=st.integers(0, 2**20), bit=st.integers(0, 7))
@settings(max_examples=60)
def test_a_signature_with_any_bit_changed_is_refused(identity, position, bit):
    signature = bytearray(identity.sign(b"message", label=LABEL))
    signature[position % len(signature)] ^= 1 << bit
    with pytest.raises(RemoteProtocolError, match="does not verify"):
        identity.public.verify(bytes(signature), b"message", label=LABEL)


def test_a_signature_of_another_length_is_refused_by_name(identity):
    signature = identity.sign(b"message", label=LABEL)
    size = len(signature)
    for wrong in (b"", signature[:-1], signature + b"\0", signature * 2):
        with pytest.raises(
            RemoteProtocolError,
            match=rf"signature has {len(wrong)} bytes; it must have {size} \({identity.algorithm}",
        ):
            identity.public.verify(wrong, b"message", label=LABEL)


def test_verify_answers_by_raising_only(identity):
    signature = identity.sign(b"message", label=LABEL)
    assert identity.public.verify(signature, b"message", label=LABEL) is None


@pytest.mark.parametrize("label", [b"", b"test", b"securefed/2/test", b"Securefed/1/test"])
def test_a_label_outside_the_namespace_is_refused(identity, label):
    with pytest.raises(ConfigError, match="label"):
        identity.sign(b"", label=label)
    with pytest.raises(ConfigError, match="label"):
        identity.public.verify(bytes(identity.public.signature_bytes), b"", label=label)


@given(
    seed=st.binary(min_size=32, max_size=32),
    message=st.binary(max_size=64),
    fill=st.integers(0, 255),
)
@settings(max_examples=40)
def test_a_signature_of_one_algorithm_never_verifies_under_the_others_key(seed, message, fill):
    """Not as it is, and not cut or filled up to the other's length; even for one seed."""
    small, large = (from_seed(seed, name) for name in ALGORITHMS)
    short, long = (key.sign(message, label=LABEL) for key in (small, large))
    padding = bytes([fill]) * (MAX_SIGNATURE_BYTES - SIGNATURE_BYTES)
    tries = [(large, sig) for sig in (short, short + padding, padding + short)]
    tries += [(small, sig) for sig in (long, long[:SIGNATURE_BYTES], long[-SIGNATURE_BYTES:])]
    for key, signature in tries:
        with pytest.raises(RemoteProtocolError):
            key.public.verify(signature, message, label=LABEL)


def test_ed25519_signatures_repeat_and_mldsa_signatures_do_not():
    for algorithm, distinct in (("ed25519", 1), ("ml-dsa-65", 4)):
        key = IdentityKey.generate(algorithm=algorithm)
        assert len({key.sign(b"m", label=LABEL) for _ in range(4)}) == distinct


def test_an_mldsa_signature_is_fips_204s_pure_one_with_the_empty_context(oracle, mldsa):
    """Checked from the hash of key and message, computed here, both ways round."""
    signed = labelled(LABEL, b"message")
    representative = oracle.mldsa_representative(mldsa.public.raw, signed)
    raw = MLDSA65PublicKey.from_public_bytes(mldsa.public.raw)
    raw.verify_mu(mldsa.sign(b"message", label=LABEL), representative)
    seed = os.urandom(32)
    private, public = MLDSA65PrivateKey.from_seed_bytes(seed), from_seed(seed, "ml-dsa-65").public
    representative = oracle.mldsa_representative(public.raw, signed)
    public.verify(private.sign_mu(representative), b"message", label=LABEL)
    for foreign in (private.sign(signed, b"context"), private.sign(b"message")):
        with pytest.raises(RemoteProtocolError, match="does not verify"):
            public.verify(foreign, b"message", label=LABEL)


# Public keys


def test_identity_public_keys_round_trip_and_compare(identity):
    public = identity.public
    again = IdentityPublicKey.from_bytes(public.raw)
    assert again == public
    assert again.algorithm == public.algorithm
    assert hash(again) == hash(public)
    assert public != public.raw
    for algorithm in ALGORITHMS:
        assert public != IdentityKey.generate(algorithm=algorithm).public
    signature = identity.sign(b"m", label=LABEL)
    again.verify(signature, b"m", label=LABEL)


def test_a_key_is_shown_in_one_line_that_tells_it_from_others(identity):
    public = identity.public
    shown = public.raw.hex()
    if identity.algorithm == "ml-dsa-65":
        shown = f"ml-dsa-65:sha256:{hashlib.sha256(public.raw).hexdigest()}"
    assert repr(public) == f"IdentityPublicKey({shown})"
    assert repr(identity) == f"<IdentityKey public={shown}>"
    with pytest.raises(RemoteProtocolError) as caught:
        public.verify(bytes(public.signature_bytes), b"m", label=LABEL)
    assert shown in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("size", [0, 31, 33, 64, 1312, 1951, 1953, 2592, 3904])
def test_an_identity_key_of_another_length_is_refused(size):
    with pytest.raises(
        RemoteProtocolError, match=rf"identity key has {size} bytes.*32 \(ed25.*1952 \(ml-dsa-65"
    ):
        IdentityPublicKey.from_bytes(b"\x05" * size)


@given(st.data())
@settings(max_examples=40)
def test_a_key_with_any_byte_changed_is_another_key(identity, data):
    raw = bytearray(identity.public.raw)
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    changed = IdentityPublicKey.from_bytes(bytes(raw))
    assert changed != identity.public
    with pytest.raises(RemoteProtocolError, match="does not verify"):
        changed.verify(identity.sign(b"m", label=LABEL), b"m", label=LABEL)


@pytest.mark.parametrize("filling", [0x00, 0xFF])
def test_a_degenerate_mldsa_key_accepts_no_signature_of_one_byte_repeated(filling):
    public = IdentityPublicKey.from_bytes(bytes([filling]) * MAX_IDENTITY_PUBLIC_BYTES)
    for byte in (0x00, 0x01, 0xFF):
        with pytest.raises(RemoteProtocolError, match="does not verify"):
            public.verify(bytes([byte]) * MAX_SIGNATURE_BYTES, b"m", label=LABEL)


def test_every_point_of_small_order_is_refused_as_an_identity():
    # Small order means that 8 P is neutral.  On -x^2 + y^2 = 1 + d x^2 y^2 those are the points
    # with y in {1, -1} (orders 1, 2), y = 0 (order 4) or d y^4 + 2 y^2 - 1 = 0 (order 8).
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p
    root = pow(d + 1, (p + 3) // 8, p)  # a square root of d + 1, or of -(d + 1)
    if root * root % p != (d + 1) % p:
        root = root * pow(2, (p - 1) // 4, p) % p
    assert root * root % p == (d + 1) % p
    ys = {0, 1, p - 1, p, p + 1}
    for sign in (1, -1):
        square = (-1 + sign * root) * pow(d, -1, p) % p
        y = pow(square, (p + 3) // 8, p)
        if y * y % p != square:
            y = y * pow(2, (p - 1) // 4, p) % p
        if y * y % p == square:
            assert (d * y**4 + 2 * y**2 - 1) % p == 0
            ys |= {y, p - y}
    assert len(ys) == 7
    for y in ys:
        for sign_bit in (0, 1 << 255):
            with pytest.raises(RemoteProtocolError, match="small order"):
                IdentityPublicKey.from_bytes((y | sign_bit).to_bytes(32, "little"))


# Secrets stay inside


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_private_key_is_neither_copied_nor_pickled_nor_shown(algorithm):
    seed = os.urandom(32)
    key = from_seed(seed, algorithm)
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="holds a secret"):
            duplicate(key)
    assert not hasattr(key, "__dict__")
    assert seed.hex()[:8] not in repr(key)
