"""Signed documents in a folder, and whose signatures they are."""

import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from securefed.crypto.identity import IdentityKey
from securefed.errors import ConfigError, RemoteProtocolError
from securefed.evidence.anchoring import (
    FILE_LIMIT,
    known_signers,
    read_public_key,
    read_signed,
    signer_record,
)
from securefed.evidence.signing import sign

KIND = "application/vnd.securefed.some+json"


@pytest.fixture
def key():
    return IdentityKey.generate()


def write(folder, key, name="a.json", kind=KIND, beside=True):
    envelope = sign({"a": 1}, key, payload_type=kind)
    (folder / name).write_text(json.dumps(envelope))
    if beside:
        (folder / "signer.json").write_text(signer_record(key.public))
    return envelope


def read(folder, *trusted):
    return list(read_signed(folder, trusted, payload_type=KIND))


def test_a_key_that_lies_beside_shows_integrity_and_one_of_the_readers_anchors(tmp_path, key):
    write(tmp_path, key)
    (found,) = read(tmp_path)
    assert (found.name, found.document, found.anchored) == ("a.json", {"a": 1}, False)
    (found,) = read(tmp_path, key.public)
    assert found.anchored
    (found,) = read(tmp_path, IdentityKey.generate().public)
    assert not found.anchored


def test_a_document_that_no_known_key_has_signed_is_refused_by_name(tmp_path, key):
    write(tmp_path, key, beside=False)
    with pytest.raises(RemoteProtocolError, match=r"a\.json: no key is known"):
        read(tmp_path)
    with pytest.raises(RemoteProtocolError, match=r"a\.json: envelope: no trusted key"):
        read(tmp_path, IdentityKey.generate().public)
    (tmp_path / "signer.json").write_text(signer_record(IdentityKey.generate().public))
    with pytest.raises(RemoteProtocolError, match=r"a\.json: envelope: no trusted key"):
        read(tmp_path)


@pytest.mark.parametrize("field", ["payload", "signatures"])
def test_an_edited_document_is_refused_by_name(tmp_path, key, field):
    envelope = write(tmp_path, key)
    changed = {"payload": "eyJhIjoyfQ==", "signatures": [{"keyid": "", "sig": "AAAA"}]}[field]
    (tmp_path / "a.json").write_text(json.dumps(envelope | {field: changed}))
    for trusted in ((), (key.public,)):
        with pytest.raises(RemoteProtocolError, match=r"a\.json: "):
            read(tmp_path, *trusted)


def test_other_types_and_other_files_are_passed_over(tmp_path, key):
    write(tmp_path, key, "b.json", kind="application/other")
    (tmp_path / "summary.json").write_text('{"cells": []}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    assert read(tmp_path) == []
    assert read(tmp_path / "nowhere") == []


def test_several_signers_lie_beside_each_other(tmp_path, key):
    other = IdentityKey.generate(algorithm="ml-dsa-65")
    write(tmp_path, key)
    write(tmp_path, other, "b.json", beside=False)
    (tmp_path / "signer-other.json").write_text(signer_record(other.public))
    assert known_signers(tmp_path) == [other.public, key.public]
    assert [found.name for found in read(tmp_path)] == ["a.json", "b.json"]


def test_a_public_key_is_read_from_pem_hexadecimal_and_a_signers_file(tmp_path):
    private = Ed25519PrivateKey.generate()
    key = IdentityKey(private).public
    path = tmp_path / "key"
    pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for content in (pem, key.raw.hex().encode() + b"\n", signer_record(key).encode()):
        path.write_bytes(content)
        assert read_public_key(path) == key


@pytest.mark.parametrize(
    "content", [b"", b"zz", b"00" * 31, b"{", b"{}", b"-----BEGIN PUBLIC KEY-----\n", b"\xff"]
)
def test_what_is_no_public_key_is_refused_without_showing_it(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="holds no public key"):
        read_public_key(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_public_key(tmp_path / "none")


def test_a_private_key_is_not_taken_for_a_public_one(tmp_path, key):
    key.save(tmp_path / "key.pem")
    with pytest.raises(ConfigError, match="holds no public key") as refused:
        read_public_key(tmp_path / "key.pem")
    assert "PRIVATE" not in str(refused.value)


def test_a_file_that_is_too_long_is_refused(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(FILE_LIMIT + 1)
    with pytest.raises(ConfigError, match=r"a\.json: longer than"):
        read(tmp_path)
