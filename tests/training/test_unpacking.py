"""Archives are unpacked safely, and a folder that was tampered with is noticed."""

from __future__ import annotations

import hashlib
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.errors import FetchError
from securefed.training.unpacking import file_sha256, folder_fault, unpack

PIN = "a" * 64


def make_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def make_wheel(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in members:
            wheel.writestr(name, content)
    return path


def extract(archive: Path, into: Path, *, max_bytes: int = 10_000, members: str = "*") -> None:
    unpack(archive, into, archive_sha256=PIN, root="package/", members=members, max_bytes=max_bytes)


MAKERS = pytest.mark.parametrize(
    ("make", "suffix"), [(make_tar, "tgz"), (make_wheel, "whl")], ids=["tar", "wheel"]
)
Make = Callable[[Path, list[tuple[str, bytes]]], Path]


@MAKERS
def test_only_the_wanted_members_are_extracted(tmp_path: Path, make: Make, suffix: str) -> None:
    archive = make(
        tmp_path / f"a.{suffix}",
        [
            ("package/a.txt", b"one"),
            ("package/deep/b.txt", b"two"),
            ("package/run.py", b"no"),
            ("other/c.txt", b"no"),
        ],
    )
    extract(archive, tmp_path / "out", members="*.txt")
    files = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
        for path in (tmp_path / "out").rglob("*.txt")
    }
    assert files == {"a.txt": b"one", "deep/b.txt": b"two"}
    assert not list((tmp_path / "out").rglob("*.py"))
    assert folder_fault(tmp_path / "out", PIN) is None


@MAKERS
@pytest.mark.parametrize(
    "name", ["../x.txt", "a/../../x.txt", "/x.txt", "a//x.txt", "./x.txt", "c:x.txt", "..\\x.txt"]
)
def test_a_member_outside_the_folder_is_refused(
    tmp_path: Path, make: Make, suffix: str, name: str
) -> None:
    archive = make(tmp_path / f"a.{suffix}", [("package/" + name, b"evil")])
    with pytest.raises(FetchError, match="unsafe member"):
        extract(archive, tmp_path / "out")
    assert not list(tmp_path.rglob("x.txt"))


@MAKERS
def test_a_member_may_not_stand_for_the_manifest(tmp_path: Path, make: Make, suffix: str) -> None:
    archive = make(tmp_path / f"a.{suffix}", [("package/.manifest.json", b"{}")])
    with pytest.raises(FetchError, match="unsafe member"):
        extract(archive, tmp_path / "out")


@MAKERS
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_comes_twice_is_refused(tmp_path: Path, make: Make, suffix: str) -> None:
    archive = make(tmp_path / f"a.{suffix}", [("package/a", b"1"), ("package/a", b"2")])
    with pytest.raises(FetchError, match="unsafe member"):
        extract(archive, tmp_path / "out")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_in_a_tar_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        info = tarfile.TarInfo("package/a.txt")
        info.type, info.linkname = kind, str(secret)
        tar.addfile(info)
    with pytest.raises(FetchError, match="unsafe member"):
        extract(tmp_path / "a.tgz", tmp_path / "out")
    assert not (tmp_path / "out" / "a.txt").exists()


def test_a_link_in_a_wheel_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("package/a.txt")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr(info, "/etc/hostname")
    with pytest.raises(FetchError, match="unsafe member"):
        extract(tmp_path / "a.whl", tmp_path / "out")


@MAKERS
def test_more_bytes_than_allowed_are_refused(tmp_path: Path, make: Make, suffix: str) -> None:
    members = [("package/a", bytes(600)), ("package/b", bytes(400))]
    archive = make(tmp_path / f"a.{suffix}", members)
    extract(archive, tmp_path / "fits", max_bytes=1000)
    with pytest.raises(FetchError, match="more than 999 bytes"):
        extract(archive, tmp_path / "out", max_bytes=999)


@MAKERS
def test_a_compression_bomb_is_not_written_out(tmp_path: Path, make: Make, suffix: str) -> None:
    archive = make(tmp_path / f"a.{suffix}", [("package/a", bytes(30 << 20))])
    with pytest.raises(FetchError, match="more than 1000 bytes"):
        extract(archive, tmp_path / "out", max_bytes=1000)
    assert (tmp_path / "out" / "a").stat().st_size <= 2 << 20


@MAKERS
def test_an_archive_without_the_members_is_refused(tmp_path: Path, make: Make, suffix: str) -> None:
    archive = make(tmp_path / f"a.{suffix}", [("package/a.txt", b"x")])
    with pytest.raises(FetchError, match="holds no member"):
        extract(archive, tmp_path / "out", members="*.gguf")


@MAKERS
@pytest.mark.parametrize("cut", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_called_damaged(
    tmp_path: Path, make: Make, suffix: str, cut: float
) -> None:
    # Bytes that do not compress, so that the cut falls within the member.
    content = hashlib.shake_256(b"incompressible").digest(100_000)
    archive = make(tmp_path / f"a.{suffix}", [("package/a", content)])
    whole = archive.read_bytes()
    archive.write_bytes(whole[: int(len(whole) * cut)])
    with pytest.raises(FetchError, match="damaged"):
        extract(archive, tmp_path / "out", max_bytes=1 << 20)


def _flip(folder: Path) -> None:
    content = bytearray((folder / "a.txt").read_bytes())
    content[0] ^= 1
    (folder / "a.txt").write_bytes(content)


def _to_link(folder: Path) -> None:
    (folder / "a.txt").rename(folder.parent / "elsewhere.txt")
    (folder / "a.txt").symlink_to(folder.parent / "elsewhere.txt")


TAMPERINGS: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (_flip, "a.txt is changed"),
    "cut short": (lambda folder: (folder / "a.txt").write_bytes(b"o"), "a.txt is changed"),
    "gone": (lambda folder: (folder / "a.txt").unlink(), "a.txt is missing"),
    "one more": (lambda folder: (folder / "b.txt").write_bytes(b"x"), "b.txt is changed, or not"),
    "a link": (_to_link, "a.txt is changed"),
    "no manifest": (lambda folder: (folder / ".manifest.json").unlink(), "no readable manifest"),
    "half a manifest": (
        lambda folder: (folder / ".manifest.json").write_text('{"archive_sha256": "'),
        "no readable manifest",
    ),
    "an odd manifest": (
        lambda folder: (folder / ".manifest.json").write_text("[1]"),
        "no readable manifest",
    ),
    "odd members": (
        lambda folder: (folder / ".manifest.json").write_text(
            f'{{"archive_sha256": "{PIN}", "members": {{"a.txt": 5}}}}'
        ),
        "a.txt is changed",
    ),
}


@pytest.mark.parametrize("how", TAMPERINGS)
def test_an_altered_folder_is_noticed(tmp_path: Path, how: str) -> None:
    extract(make_tar(tmp_path / "a.tgz", [("package/a.txt", b"one")]), tmp_path / "out")
    assert folder_fault(tmp_path / "out", PIN) is None
    tamper, says = TAMPERINGS[how]
    tamper(tmp_path / "out")
    fault = folder_fault(tmp_path / "out", PIN)
    assert fault is not None
    assert says in fault


def test_a_folder_of_another_archive_is_noticed(tmp_path: Path) -> None:
    extract(make_tar(tmp_path / "a.tgz", [("package/a.txt", b"one")]), tmp_path / "out")
    fault = folder_fault(tmp_path / "out", "b" * 64)
    assert fault is not None
    assert "another archive" in fault


def test_a_folder_that_is_not_there_is_not_whole(tmp_path: Path) -> None:
    assert folder_fault(tmp_path / "nothing", PIN) is not None


def test_the_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == (  # FIPS 180-2, appendix B.1
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@settings(max_examples=25, deadline=None)
@given(
    contents=st.dictionaries(
        st.text("abcdef", min_size=1, max_size=6), st.binary(max_size=200), min_size=1, max_size=5
    ),
    wheel=st.booleans(),
)
def test_what_is_unpacked_is_what_was_packed(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, bytes], wheel: bool
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    members = [(f"package/{name}", content) for name, content in contents.items()]
    if wheel:
        archive = make_wheel(folder / "a.whl", members)
    else:
        archive = make_tar(folder / "a.tgz", members)
    extract(archive, folder / "out")
    found = {
        path.name: path.read_bytes()
        for path in (folder / "out").iterdir()
        if path.name != ".manifest.json"
    }
    assert found == contents
    assert folder_fault(folder / "out", PIN) is None
