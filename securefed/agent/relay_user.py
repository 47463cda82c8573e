"""The user that a SuperNode runs as, apart from the owner's.

A SuperNode runs whatever code the server sends.  As a user of its own it may connect to the agent's
socket, and the machine keeps it from everything else of the owner's.  What is looked at here are
owners, groups and mode bits; an access control list never opens more than the group's bits show.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from securefed.errors import ConfigError

_READ, _PASS = 4, 1
_ACCESS_LIST = "system.posix_acl_access"  # acl(5)


@dataclass(frozen=True)
class RelayUser:
    """A user of this machine.

    Attributes:
        name: as the machine knows it.
        uid: number of the user.
        gid: number of its primary group, which the socket and its folder are given to.
        groups: numbers of all groups that it is in.
    """

    name: str
    uid: int
    gid: int
    groups: frozenset[int]

    def may(self, status: os.stat_result, wanted: int) -> bool:
        """Whether mode bits give this user what is wanted: 4 to read, 1 to pass a folder."""
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid == self.uid:
            mode >>= 6
        elif status.st_gid in self.groups:
            mode >>= 3
        return mode & wanted == wanted


def relay_user(given: str) -> RelayUser:
    """The user that a name or a number stands for.

    Raises:
        ConfigError: there is none, or it is root or the user of this process, who could read all
            that the agent can.
    """
    try:
        found = pwd.getpwuid(int(given)) if given.isdecimal() else pwd.getpwnam(given)
    except (KeyError, OverflowError):
        raise ConfigError(
            f"--relay-user = {given!r}: no user of this machine has this name or number "
            "(useradd --system NAME)"
        ) from None
    if found.pw_uid in (0, os.getuid()):
        raise ConfigError(
            f"--relay-user = {given!r}: must be neither root nor this agent's own user "
            f"(number {os.getuid()}), who can read what the agent reads; give the SuperNode a user "
            "of its own"
        )
    groups = frozenset(os.getgrouplist(found.pw_name, found.pw_gid))
    return RelayUser(found.pw_name, found.pw_uid, found.pw_gid, groups)


def check_passable(folder: Path, user: RelayUser) -> None:
    """Refuse a folder that the user cannot come to, so that nobody could relay.

    Raises:
        ConfigError: names the first folder above it that is closed to the user.
    """
    for each in reversed(folder.resolve().parents):
        if not user.may(each.stat(), _PASS) and not _has_list(each):
            raise ConfigError(
                f"socket folder {folder}: user {user.name} cannot pass {each} (mode "
                f"{stat.S_IMODE(each.stat().st_mode):04o}); put the socket elsewhere, in "
                f"/var/lib/securefed say, or let it pass and no more (chmod o+x {each})"
            )


def check_unread(path: Path, user: RelayUser, what: str) -> None:
    """Refuse a secret that the user can read, or owns and so could make readable.

    Args:
        path: a file, or a folder whose files are looked at.
        user: who must not.
        what: it is, for messages.

    Raises:
        ConfigError: names the file.
    """
    if (found := first_readable(path, user)) is not None:
        raise ConfigError(
            f"{what} {found}: user {user.name} (--relay-user), which runs what the server sends, "
            "can read it; it must be this agent's user's alone (chown; chmod go-rwx)"
        )


def first_readable(path: Path, user: RelayUser) -> Path | None:
    """A file at a path, or below it, that the user can read or owns; None if there is none.

    Files that lie behind a folder which the user cannot pass do not count.
    """
    real = path.resolve()
    if not real.exists() or not all(_open(each, user, _PASS) for each in real.parents):
        return None
    return next(_readable(real, user), None)


def _readable(path: Path, user: RelayUser) -> Iterator[Path]:
    if path.is_dir():
        if _open(path, user, _PASS):  # a name can be guessed: listing it is not needed
            for each in sorted(path.iterdir()):
                yield from _readable(each, user)
    elif path.exists() and _open(path, user, _READ):
        yield path


def _open(path: Path, user: RelayUser, wanted: int) -> bool:
    """Whether the user may, or could give itself leave, or a list may say so."""
    status = path.stat()
    return user.uid == status.st_uid or user.may(status, wanted) or _has_list(path)


def _has_list(path: Path) -> bool:
    try:
        return _ACCESS_LIST in os.listxattr(path)
    except OSError:  # a file system without such lists
        return False
