"""An eavesdropper that keeps envelopes until one of the two key exchanges is broken."""

import os

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    Suite,
)

from securefed.crypto.keys import HybridPrivateKey, labelled

INFO = labelled(b"securefed/1/test", b"recorded")
ROOT = os.urandom(32)


def suite(kem):
    return Suite(kem, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


@pytest.mark.parametrize("broken", ["x25519", "ml-kem", "both"])
def test_a_recorded_envelope_opens_only_to_who_has_broken_both_key_exchanges(oracle, broken):
    """Breaking an exchange gives its private key; of the other one there is only a guess."""
    seed = os.urandom(32)
    recorded = HybridPrivateKey.from_seed(seed).public.seal(ROOT, info=INFO)
    mlkem, x25519 = oracle.hybrid_keys(seed)
    if broken == "x25519":
        mlkem = MLKEM768PrivateKey.generate()
    elif broken == "ml-kem":
        x25519 = X25519PrivateKey.generate()
    key = MLKEM768X25519PrivateKey(mlkem, x25519)
    if broken == "both":
        assert suite(KEM.MLKEM768_X25519).decrypt(recorded, key, INFO) == ROOT
        return
    with pytest.raises(InvalidTag):
        suite(KEM.MLKEM768_X25519).decrypt(recorded, key, INFO)


def test_an_envelope_under_x25519_alone_opens_to_who_breaks_it_later():
    """The defence off: the same suite without ML-KEM."""
    key = X25519PrivateKey.generate()
    recorded = suite(KEM.X25519).encrypt(ROOT, key.public_key(), INFO)
    assert suite(KEM.X25519).decrypt(recorded, key, INFO) == ROOT
