"""The roster of a run: whose signatures count, by name.

The file (``NAME.keys/roster.json`` beside a simulation's run folder; ``securefed verify --roster``
takes it)::

    {"format": "securefed/roster/1", "server": hex, "clients": {id: hex}, "decryptor": hex}

with ``decryptor`` only where there is one; the first record of a ledger holds the same without
``format``.  Keys inside a ledger anchor nothing: whoever rewrites it writes keys of its own.  A
reader who had the file from the parties themselves knows whose signatures it sees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securefed.crypto.identity import IdentityPublicKey
from securefed.errors import ConfigError, RemoteProtocolError
from securefed.evidence.reading import read_bounded
from securefed.evidence.strict_json import loads_once

FORMAT = "securefed/roster/1"
SERVER = "server"
DECRYPTOR = "decryptor"

_BYTES_LIMIT = 1 << 24


@dataclass(frozen=True)
class Roster:
    """Everybody's public identity key.

    Attributes:
        server: of the server.
        clients: of each client, by id.
        decryptor: of the decryptor; None where there is none.

    Raises:
        ConfigError: two parties have one key, a client has no name, or there is no client.
    """

    server: IdentityPublicKey
    clients: Mapping[str, IdentityPublicKey]
    decryptor: IdentityPublicKey | None = None

    def __post_init__(self) -> None:
        if not self.clients:
            raise ConfigError("roster: clients is empty; it must name at least one")
        if "" in self.clients:
            raise ConfigError("roster: a client's id is empty; it must have a character")
        owners: dict[IdentityPublicKey, str] = {}
        for party, key in self.parties():
            if key in owners:
                raise ConfigError(f"roster: {party} has the key of {owners[key]}; each has its own")
            owners[key] = party

    def parties(self) -> list[tuple[str, IdentityPublicKey]]:
        """Each party in words (``client 'a'``), and its key."""
        found = [(SERVER, self.server)]
        found += [(f"client {name!r}", key) for name, key in sorted(self.clients.items())]
        return found + ([(DECRYPTOR, self.decryptor)] if self.decryptor is not None else [])

    def to_record(self) -> dict[str, Any]:
        """JSON values, as the first record of a ledger holds them."""
        record: dict[str, Any] = {
            "server": self.server.raw.hex(),
            "clients": {name: key.raw.hex() for name, key in sorted(self.clients.items())},
        }
        if self.decryptor is not None:
            record["decryptor"] = self.decryptor.raw.hex()
        return record

    @classmethod
    def of_record(cls, record: object) -> Roster:
        """The inverse of :meth:`to_record`.

        Raises:
            ConfigError: it is not that; the message names the party whose key is none.
        """
        if not isinstance(record, Mapping) or not {"server", "clients"} <= record.keys() <= {
            "server",
            "clients",
            "decryptor",
        }:
            raise ConfigError("roster: must hold server and clients, and decryptor if any")
        clients = record["clients"]
        if not isinstance(clients, Mapping):
            raise ConfigError("roster: clients must hold a key by id")
        return cls(
            server=_key(record["server"], SERVER),
            clients={str(name): _key(key, f"clients.{name}") for name, key in clients.items()},
            decryptor=_key(record["decryptor"], DECRYPTOR) if "decryptor" in record else None,
        )

    def to_text(self) -> str:
        """The content of its file."""
        return json.dumps({"format": FORMAT} | self.to_record(), indent=1, sort_keys=True) + "\n"

    def differing(self, other: Roster) -> list[str]:
        """The parties, in words, that have not the same key in both."""
        one, two = dict(self.parties()), dict(other.parties())
        return [party for party in {**one, **two} if one.get(party) != two.get(party)]


def read_roster(path: Path) -> Roster:
    """The roster in a file.

    Raises:
        ConfigError: the file cannot be read, or is no roster.
    """
    data = read_bounded(path, _BYTES_LIMIT, what="roster", pipe=True)
    try:
        fields = loads_once(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"roster {path}: is not JSON ({error})") from None
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise ConfigError(f"roster {path}: format must be {FORMAT!r}")
    try:
        return Roster.of_record(fields)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _key(text: object, field: str) -> IdentityPublicKey:
    try:
        return IdentityPublicKey.from_bytes(bytes.fromhex(str(text)))
    except (ValueError, RemoteProtocolError) as error:
        raise ConfigError(f"roster: {field} is no identity key ({error})") from None
