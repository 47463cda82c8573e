"""Safe extraction of chosen archive members into a folder that can be checked later."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from securefed.errors import FetchError

_MANIFEST = ".manifest.json"
_CHUNK = 1 << 20
_MAX_MEMBERS = 20_000


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_fault(folder: Path, archive_sha256: str) -> str | None:
    """Compare a folder with the manifest that :func:`unpack` left in it.

    Args:
        folder: need not exist.
        archive_sha256: the archive that it should have come from.

    Returns:
        None if every member is there with its size and SHA-256, and nothing else is; otherwise
        what is wrong, naming one file.
    """
    try:
        stored = json.loads((folder / _MANIFEST).read_bytes())
        origin, members = stored["archive_sha256"], dict(stored["members"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"{folder} has no readable manifest"
    if origin != archive_sha256:
        return f"{folder} was unpacked from another archive"
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode) or path == folder / _MANIFEST:
            continue
        expected = members.pop(path.relative_to(folder).as_posix(), None)
        # The size is compared first: a file cut short need not be read.
        if (
            not isinstance(expected, list)
            or not stat.S_ISREG(status.st_mode)
            or expected != [status.st_size, expected[-1]]
            or expected[-1] != file_sha256(path)
        ):
            return f"{path} is changed, or not part of it"
    return f"{folder / min(members)} is missing" if members else None


def unpack(
    archive: Path, into: Path, *, archive_sha256: str, root: str, members: str, max_bytes: int
) -> None:
    """Extract the wanted members of an archive, and write a manifest of their hashes.

    Args:
        archive: a wheel (zip, by its suffix ``.whl``) or a gzipped tar file.
        into: a folder that does not exist yet.
        archive_sha256: goes into the manifest.
        root: prefix of the wanted members' names, removed when they are extracted.
        members: pattern of the wanted members under ``root`` (``*`` also matches ``/``).
        max_bytes: the most that the extracted members may hold together.

    Raises:
        FetchError: the archive is damaged, holds none of the members, holds more bytes or members
            than allowed, or names a wanted member that is a link, is there twice or would lie
            outside ``into``.
    """
    written: dict[str, tuple[int, str]] = {}
    left = max_bytes
    into.mkdir()
    try:
        for name, content in _wanted(archive, root, members):
            parts = name.split("/")
            unsafe = {"", ".", ".."} & set(parts) or "\\" in name or ":" in name
            if content is None or unsafe or name in written or name == _MANIFEST:
                raise FetchError(f"{archive} holds the unsafe member {root + name!r}")
            target = into.joinpath(*parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            size, digest = _copy(content, target, limit=left)
            left -= size
            if left < 0 or len(written) == _MAX_MEMBERS:
                raise FetchError(
                    f"{archive} unpacks to more than {max_bytes} bytes or {_MAX_MEMBERS} members"
                )
            written[name] = (size, digest)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError) as bad:
        raise FetchError(f"{archive} is damaged: {bad}") from bad
    if not written:
        raise FetchError(f"{archive} holds no member {root}{members}")
    manifest = {"archive_sha256": archive_sha256, "members": written}
    (into / _MANIFEST).write_text(json.dumps(manifest, indent=0), encoding="utf-8")


def _copy(content: IO[bytes], target: Path, *, limit: int) -> tuple[int, str]:
    """Copy until the end, or until more than ``limit`` bytes have been read."""
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as file:
        while size <= limit and (chunk := content.read(_CHUNK)):
            size += len(chunk)
            digest.update(chunk)
            file.write(chunk)
    return size, digest.hexdigest()


def _wanted(archive: Path, root: str, members: str) -> Iterator[tuple[str, IO[bytes] | None]]:
    """Yield each wanted member's name under the root, and its content if it is a plain file."""

    def is_wanted(name: str) -> bool:
        return name.startswith(root) and fnmatch.fnmatchcase(name.removeprefix(root), members)

    if archive.name.endswith(".whl"):
        with zipfile.ZipFile(archive) as wheel:
            for info in wheel.infolist():
                if is_wanted(info.filename) and not info.is_dir():
                    is_link = stat.S_ISLNK(info.external_attr >> 16)
                    with wheel.open(info) as content:
                        yield info.filename.removeprefix(root), None if is_link else content
    else:
        with tarfile.open(archive, mode="r:gz") as tar:
            for member in tar:
                if is_wanted(member.name) and not member.isdir():
                    plain = tar.extractfile(member) if member.isreg() else None
                    yield member.name.removeprefix(root), plain
