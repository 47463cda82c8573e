"""Files of others are read up to a length, and no further; a pipe among them is not waited for."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from securefed.errors import ConfigError


def open_regular(path: Path) -> BufferedReader:
    """Open a file inside a folder of others, for reading.

    A pipe there would be waited for without end, and a device may never end.

    Args:
        path: the file; a link is followed.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    # O_NONBLOCK: a pipe that nobody writes opens at once, to be refused.  Windows has neither.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a file inside a folder of others.

    Args:
        path: the file.
        limit: bytes at most, >= 0.

    Raises:
        OSError: as :func:`open_regular`, or the file is longer than ``limit``.
    """
    with open_regular(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"longer than {limit} bytes, which is the most allowed")
    return data


def read_bounded(path: Path, limit: int, *, what: str = "", pipe: bool = False) -> bytes:
    """A file's bytes.

    Args:
        path: the file.
        limit: bytes at most, >= 0.
        what: what the file is, for messages.
        pipe: whether a pipe may stand there: where a user names the file, never inside a folder.

    Raises:
        ConfigError: it cannot be read, or is longer than ``limit``.
    """
    named = f"{what} {path}" if what else str(path)
    try:
        with path.open("rb") if pipe else open_regular(path) as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{named}: cannot be read ({error.strerror})") from None
    if len(data) > limit:
        raise ConfigError(f"{named}: longer than {limit} bytes, which is the most allowed")
    return data
