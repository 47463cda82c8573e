"""Files of others are read up to a length, and no further."""

from __future__ import annotations

from pathlib import Path

from securefed.errors import ConfigError


def read_bounded(path: Path, limit: int, *, what: str = "") -> bytes:
    """A file's bytes.

    Args:
        path: the file.
        limit: bytes at most, >= 0.
        what: what the file is, for messages.

    Raises:
        ConfigError: it cannot be read, or is longer than ``limit``.
    """
    named = f"{what} {path}" if what else str(path)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{named}: cannot be read ({error.strerror})") from None
    if len(data) > limit:
        raise ConfigError(f"{named}: longer than {limit} bytes, which is the most allowed")
    return data
