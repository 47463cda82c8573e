import base64
import os
import stat
from typing import get_args

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA87PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from securefed.crypto.identity import IdentityAlgorithm, IdentityKey
from securefed.errors import ConfigError

LABEL = b"securefed/1/test"
posix = pytest.mark.skipif(os.name != "posix", reason="file modes are those of POSIX")
each_algorithm = pytest.mark.parametrize("algorithm", get_args(IdentityAlgorithm))


def write(path, content):
    path.write_bytes(content)
    path.chmod(0o600)


def der(tag, content):
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    return bytes([tag, 0x82]) + size.to_bytes(2, "big") + content


def pkcs8(last_arc, key):
    """A private key file (RFC 5958) for the algorithm 2.16.840.1.101.3.4.3.``last_arc``."""
    algorithm = der(0x30, der(0x06, bytes.fromhex("6086480165030403") + bytes([last_arc])))
    encoded = base64.encodebytes(der(0x30, der(0x02, b"\0") + algorithm + der(0x04, key)))
    return b"-----BEGIN PRIVATE KEY-----\n" + encoded + b"-----END PRIVATE KEY-----\n"


@each_algorithm
@pytest.mark.parametrize("password", [None, b"correct horse battery staple"])
def test_a_saved_identity_loads_and_signs_alike(tmp_path, algorithm, password):
    identity = IdentityKey.generate(algorithm=algorithm)
    path = tmp_path / "identity.pem"
    identity.save(path, password=password)
    loaded = IdentityKey.load(path, password=password)
    assert loaded.public == identity.public
    assert loaded.algorithm == algorithm
    identity.public.verify(loaded.sign(b"m", label=LABEL), b"m", label=LABEL)


@posix
@each_algorithm
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_saved_identity_is_its_owners_alone_under_any_umask(tmp_path, algorithm, umask):
    before = os.umask(umask)
    try:
        IdentityKey.generate(algorithm=algorithm).save(tmp_path / "identity.pem")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "identity.pem").stat().st_mode) == 0o600


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o602, 0o660, 0o644])
def test_an_identity_open_to_others_is_refused(tmp_path, mode):
    path = tmp_path / "identity.pem"
    IdentityKey.generate().save(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode {mode:04o}.*chmod 600"):
        IdentityKey.load(path)
    path.chmod(0o400)
    IdentityKey.load(path)


def test_an_existing_file_or_link_is_never_overwritten(tmp_path):
    path = tmp_path / "identity.pem"
    path.write_text("precious")
    with pytest.raises(ConfigError, match=r"identity\.pem"):
        IdentityKey.generate().save(path)
    assert path.read_text() == "precious"
    link = tmp_path / "link.pem"
    link.symlink_to(tmp_path / "elsewhere.pem")
    with pytest.raises(ConfigError, match=r"link\.pem"):
        IdentityKey.generate().save(link)
    assert not (tmp_path / "elsewhere.pem").exists()


def test_a_folder_that_is_missing_is_an_error_of_ours(tmp_path):
    with pytest.raises(ConfigError, match="cannot be made"):
        IdentityKey.generate().save(tmp_path / "none" / "identity.pem")
    with pytest.raises(ConfigError, match="cannot be read"):
        IdentityKey.load(tmp_path / "none" / "identity.pem")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_write_that_fails_leaves_no_file(tmp_path, monkeypatch):
    path = tmp_path / "identity.pem"
    open_file = os.open

    def open_on_a_full_disk(name, flags, mode=0o777):
        os.close(open_file(name, flags, mode))
        return open_file("/dev/full", os.O_WRONLY)

    monkeypatch.setattr(os, "open", open_on_a_full_disk)
    with pytest.raises(ConfigError, match="No space left"):
        IdentityKey.generate().save(path)
    assert not path.exists()


@each_algorithm
def test_a_wrong_missing_or_needless_password_is_refused(tmp_path, algorithm):
    locked, plain = tmp_path / "locked.pem", tmp_path / "plain.pem"
    IdentityKey.generate(algorithm=algorithm).save(locked, password=b"right")
    IdentityKey.generate(algorithm=algorithm).save(plain)
    for path, password in ((locked, b"wrong"), (locked, None), (plain, b"right")):
        with pytest.raises(ConfigError, match="assword"):
            IdentityKey.load(path, password=password)
    with pytest.raises(ConfigError, match="password is empty"):
        IdentityKey.generate(algorithm=algorithm).save(tmp_path / "new.pem", password=b"")
    assert not (tmp_path / "new.pem").exists()


@each_algorithm
def test_an_encrypted_file_does_not_hold_the_key(tmp_path, algorithm):
    seed = os.urandom(32)
    identity = IdentityKey.generate(lambda count: seed, algorithm=algorithm)
    identity.save(tmp_path / "plain.pem")
    identity.save(tmp_path / "locked.pem", password=b"right")

    def body(name):
        lines = (tmp_path / name).read_bytes().splitlines()
        return base64.b64decode(b"".join(lines[1:-1]))

    assert seed in body("plain.pem")
    assert seed not in body("locked.pem")


@pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_a_file_that_is_no_key_is_refused(tmp_path, content):
    path = tmp_path / "identity.pem"
    write(path, content)
    with pytest.raises(ConfigError, match=r"identity\.pem"):
        IdentityKey.load(path)


@pytest.mark.parametrize(
    ("algorithm", "head"), [("ed25519", b"MC4CAQ"), ("ml-dsa-65", b"MDQCAQ")], ids=["ed", "mldsa"]
)
def test_a_truncated_or_corrupted_file_is_refused(tmp_path, algorithm, head):
    path = tmp_path / "identity.pem"
    IdentityKey.generate(algorithm=algorithm).save(path)
    pem = path.read_bytes()
    assert head in pem
    for broken in (pem[: len(pem) // 2], pem.replace(head, head[:-1] + b"R")):
        path.write_bytes(broken)
        with pytest.raises(ConfigError, match=r"identity\.pem"):
            IdentityKey.load(path)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (X25519PrivateKey.generate, "X25519PrivateKey"),
        (lambda: generate_private_key(SECP256R1()), "ECPrivateKey"),
        (MLDSA44PrivateKey.generate, "MLDSA44PrivateKey"),
        (MLDSA87PrivateKey.generate, "MLDSA87PrivateKey"),
    ],
    ids=["x25519", "p256", "mldsa44", "mldsa87"],
)
@pytest.mark.parametrize("password", [None, b"right"])
def test_a_key_of_another_kind_is_refused_by_name(tmp_path, make, kind, password):
    path = tmp_path / "identity.pem"
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    pem = make().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    write(path, pem)
    with pytest.raises(ConfigError, match=f"{kind}; it must hold an Ed25519 or ML-DSA-65"):
        IdentityKey.load(path, password=password)


@each_algorithm
def test_a_file_with_the_public_key_only_is_refused(tmp_path, algorithm):
    path = tmp_path / "identity.pem"
    public = IdentityKey.generate(algorithm=algorithm)._key.public_key()
    write(
        path,
        public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    )
    with pytest.raises(ConfigError, match=r"identity\.pem"):
        IdentityKey.load(path)


def test_an_mldsa_file_is_rfc_9881s_seed_form(tmp_path):
    path = tmp_path / "identity.pem"
    seed = bytes(range(32))
    # Appendix C; 18 is the last arc of id-ml-dsa-65, and [0] IMPLICIT marks a seed.
    example = (
        b"-----BEGIN PRIVATE KEY-----\n"
        b"MDQCAQAwCwYJYIZIAWUDBAMSBCKAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZ\n"
        b"GhscHR4f\n"
        b"-----END PRIVATE KEY-----\n"
    )
    identity = IdentityKey.generate(lambda count: seed, algorithm="ml-dsa-65")
    identity.save(path)
    assert path.read_bytes() == example
    # Checks the helper too, by which the files of the next tests are made.
    assert b"".join(pkcs8(18, der(0x80, seed)).split()) == b"".join(example.split())
    assert IdentityKey.load(path).public == identity.public


@pytest.mark.parametrize(
    "key",
    [
        der(0x04, bytes(4032)),
        der(0x30, der(0x04, bytes(32)) + der(0x04, bytes(4032))),
        der(0x80, bytes(31)),
        der(0x80, bytes(33)),
        der(0x80, bytes(32)) + b"\0",
        bytes(32),
    ],
    ids=["expanded", "both", "31", "33", "trailing", "bare"],
)
def test_an_mldsa_file_in_another_form_is_refused(tmp_path, key):
    path = tmp_path / "identity.pem"
    write(path, pkcs8(18, key))
    with pytest.raises(ConfigError, match=r"identity\.pem"):
        IdentityKey.load(path)


def test_a_key_of_a_kind_that_the_library_does_not_know_is_refused(tmp_path):
    path = tmp_path / "identity.pem"
    write(path, pkcs8(20, bytes(64)))  # SLH-DSA-SHA2-128s
    with pytest.raises(ConfigError, match=r"identity\.pem: holds a kind of key, or is encrypted"):
        IdentityKey.load(path)
