import base64
import os
import stat

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from securefed.crypto.keys import IdentityKey
from securefed.errors import ConfigError

LABEL = b"securefed/1/test"
posix = pytest.mark.skipif(os.name != "posix", reason="file modes are those of POSIX")


@pytest.mark.parametrize("password", [None, b"correct horse battery staple"])
def test_a_saved_identity_loads_and_signs_alike(tmp_path, password):
    identity = IdentityKey.generate()
    path = tmp_path / "identity.pem"
    identity.save(path, password=password)
    loaded = IdentityKey.load(path, password=password)
    assert loaded.public == identity.public
    identity.public.verify(loaded.sign(b"m", label=LABEL), b"m", label=LABEL)


@posix
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_saved_identity_is_its_owners_alone_under_any_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        IdentityKey.generate().save(tmp_path / "identity.pem")
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


def test_a_wrong_missing_or_needless_password_is_refused(tmp_path):
    locked, plain = tmp_path / "locked.pem", tmp_path / "plain.pem"
    IdentityKey.generate().save(locked, password=b"right")
    IdentityKey.generate().save(plain)
    for path, password in ((locked, b"wrong"), (locked, None), (plain, b"right")):
        with pytest.raises(ConfigError, match="assword"):
            IdentityKey.load(path, password=password)
    with pytest.raises(ConfigError, match="password is empty"):
        IdentityKey.generate().save(tmp_path / "new.pem", password=b"")
    assert not (tmp_path / "new.pem").exists()


def test_an_encrypted_file_does_not_hold_the_key(tmp_path):
    seed = os.urandom(32)
    identity = IdentityKey.generate(lambda count: seed)
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
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"identity\.pem"):
        IdentityKey.load(path)


def test_a_truncated_or_corrupted_file_is_refused(tmp_path):
    path = tmp_path / "identity.pem"
    IdentityKey.generate().save(path)
    pem = path.read_bytes()
    for broken in (pem[: len(pem) // 2], pem.replace(b"MC4CAQ", b"MC4CAR")):
        path.write_bytes(broken)
        with pytest.raises(ConfigError, match=r"identity\.pem"):
            IdentityKey.load(path)


def test_a_key_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "identity.pem"
    path.write_bytes(
        X25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="Ed25519"):
        IdentityKey.load(path)
