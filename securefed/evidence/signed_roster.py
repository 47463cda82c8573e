"""The roster of a deployment: signed by the server, pinned by every client.

The file is a DSSE envelope (:mod:`securefed.evidence.signing`) around::

    {"format": "securefed/roster/1", "serial": n, "server": hex, "clients": {id: hex}}

A client is told the server's key once, out of band, and puts it into its policy; from then on it
believes no roster that this key has not signed.  ``serial`` rises with every change, so that a
client that has seen one roster can refuse an older one, with a key in it that was revoked since.
Beside it the same roster lies unsigned, for ``securefed verify --roster``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from securefed.crypto.identity import IdentityKey, IdentityPublicKey
from securefed.errors import ConfigError, RemoteProtocolError
from securefed.evidence.reading import read_bounded
from securefed.evidence.roster import FORMAT, Roster
from securefed.evidence.signing import sign, verify
from securefed.operations.whole_files import write_whole

ROSTER_TYPE = "application/vnd.securefed.roster+json"
MOST_CHANGES = 2**31
_BYTES_LIMIT = 1 << 25


@dataclass(frozen=True)
class SignedRoster:
    """A roster, and how many changes made it.

    Attributes:
        roster: everybody's public key.
        serial: 1 for the first one, then one more with each change.
    """

    roster: Roster
    serial: int

    def to_text(self, server: IdentityKey) -> str:
        """The signed file's content.

        Raises:
            ConfigError: ``server`` is not the key that the roster names.
        """
        if server.public != self.roster.server:
            raise ConfigError(
                "roster: its server has another key than the one that is to sign it; a new server "
                "key begins a new roster, which every client pins anew"
            )
        document = {"format": FORMAT, "serial": self.serial} | self.roster.to_record()
        return json.dumps(sign(document, server, payload_type=ROSTER_TYPE), indent=1) + "\n"

    def save(self, path: Path, server: IdentityKey) -> Path:
        """Write the signed file, and the plain one beside it; each is there whole or not at all.

        Returns:
            The plain one's path.

        Raises:
            ConfigError: as of :meth:`to_text`, or a file cannot be written.
        """
        plain = path.with_name(f"{path.stem}.public.json")
        for place, text in ((path, self.to_text(server)), (plain, self.roster.to_text())):
            try:
                write_whole(place, text)
            except OSError as error:
                raise ConfigError(f"roster {place}: cannot be written ({error.strerror})") from None
        return plain


def read_signed_roster(
    path: Path, server: IdentityPublicKey, *, least_serial: int = 1
) -> SignedRoster:
    """The roster in a signed file.

    Args:
        path: the file.
        server: the key that must have signed it, as the reader was told out of band.
        least_serial: an older roster is refused.

    Raises:
        ConfigError: the file cannot be read, is no signed roster, was signed by another key, names
            another server, or is older than ``least_serial``.
    """
    data = read_bounded(path, _BYTES_LIMIT, what="roster")
    try:
        envelope = json.loads(data)
    except (ValueError, RecursionError):
        raise ConfigError(f"roster {path}: is not JSON") from None
    if not isinstance(envelope, dict):
        raise ConfigError(f"roster {path}: is no envelope")
    try:
        document = verify(envelope, [server], payload_type=ROSTER_TYPE)
    except RemoteProtocolError as error:
        raise ConfigError(f"roster {path}: {error}") from None
    kind, serial = document.pop("format", None), document.pop("serial", None)
    if kind != FORMAT:
        raise ConfigError(f"roster {path}: format = {kind!r}; it must be {FORMAT!r}")
    if type(serial) is not int or not 1 <= serial < MOST_CHANGES:
        raise ConfigError(f"roster {path}: serial = {serial!r}; it must be in 1..2^31 - 1")
    if serial < least_serial:
        raise ConfigError(
            f"roster {path}: serial = {serial}: an older roster than this party takes, which is "
            f"{least_serial} and later"
        )
    found = Roster.of_record(document)
    if found.server != server:
        raise ConfigError(f"roster {path}: names another server than the one that signed it")
    return SignedRoster(found, serial)
