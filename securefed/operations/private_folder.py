"""Folders and files of a party that no other user of the machine reads or writes."""

from __future__ import annotations

import grp
import os
import pwd
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


def passable_folder(folder: Path, what: str, gid: int) -> None:
    """As ``private_folder``, but a group may pass it to files that it knows of (mode 0710).

    Args:
        folder: is made with its parents if it is missing.
        what: it is, for messages.
        gid: number of the group.

    Raises:
        ConfigError: it is another user's, others have access to it, or its group has more than
            that; or this user is not in the group, and so cannot give it a folder.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & _OTHERS & ~stat.S_IXGRP:
        raise ConfigError(
            f"{what} {folder}: mode {stat.S_IMODE(status.st_mode):04o} of user {status.st_uid}; it "
            "must be this user's, its group may pass it and no more (chmod 710)"
        )
    give_group(folder, what, gid)
    folder.chmod(0o710)


def give_group(path: Path, what: str, gid: int) -> None:
    """Give a file or folder of this user's to a group.

    Raises:
        ConfigError: this user is not in the group.
    """
    try:
        os.chown(path, -1, gid)
    except PermissionError:
        group, user = _name_of_group(gid), _name_of_user(os.getuid())
        raise ConfigError(
            f"{what} {path}: user {user} is not in group {group} (number {gid}) and cannot give it "
            f"to it; usermod -aG {group} {user}, log in again, and start again"
        ) from None


def read_private(path: Path, what: str, *, limit: int) -> bytes | None:
    """What is in a file of this user's alone, up to ``limit`` bytes; None where nothing is.

    Raises:
        ConfigError: others than its owner have access to it.
    """
    try:
        with path.open("rb") as stream:
            check_private(os.fstat(stream.fileno()), f"{what} {path}", "chmod 600")
            return stream.read(limit)
    except FileNotFoundError:
        return None


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


def check_unwritten_by_others(status: os.stat_result, what: str) -> None:
    """Refuse what another user owns, but for root, or what group or others can write.

    Raises:
        ConfigError: begins with ``what``.
    """
    if status.st_uid not in (os.getuid(), 0) or status.st_mode & _OTHERS_WRITE:
        raise ConfigError(
            f"{what}: mode {stat.S_IMODE(status.st_mode):04o} of user {status.st_uid}; nobody but "
            "this user and root may write it (chmod go-w)"
        )


def _name_of_group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _name_of_user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # as in many a container
        return str(uid)
