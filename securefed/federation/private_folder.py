"""Folders and files of a party that no other user of the machine reads or writes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from securefed.errors import ConfigError

_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def private_folder(folder: Path, what: str) -> None:
    """Make a folder for its owner alone, or check that it is one.

    Args:
        folder: is made with its parents if it is missing.
        what: it is, for messages.

    Raises:
        ConfigError: it is another user's, or group or others have access to it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_private(folder.stat(), f"{what} {folder}", "chmod 700")


def check_private(status: os.stat_result, what: str, remedy: str) -> None:
    """Refuse what is another user's, or open to group or others.

    Raises:
        ConfigError: begins with ``what``.
    """
    if status.st_uid != os.getuid() or status.st_mode & _OTHERS:
        raise ConfigError(
            f"{what}: mode {stat.S_IMODE(status.st_mode):04o} of user "
            f"{status.st_uid}; it must be this user's, closed to group and others ({remedy})"
        )


def check_unwritten_by_others(status: os.stat_result, what: str, remedy: str) -> None:
    """Refuse what another user owns, but for root, or what group or others can write.

    Raises:
        ConfigError: begins with ``what``.
    """
    if status.st_uid not in (os.getuid(), 0) or status.st_mode & _OTHERS_WRITE:
        raise ConfigError(
            f"{what}: mode {stat.S_IMODE(status.st_mode):04o} of user {status.st_uid}; nobody but "
            f"this user and root may write it ({remedy})"
        )
