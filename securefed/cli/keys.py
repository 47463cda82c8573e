"""``securefed keys``: identity keys, and the signed roster that names them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from rich.table import Table

from securefed.cli.watching import console, say
from securefed.errors import ConfigError

if TYPE_CHECKING:
    from securefed.crypto.identity import IdentityKey, IdentityPublicKey
    from securefed.evidence.signed_roster import SignedRoster


keys = typer.Typer(no_args_is_help=True, help="Identity keys, and the roster that names them.")

Password = Annotated[
    Path | None,
    typer.Option(help="File whose first line encrypts the key, or opens it (mode 0600)."),
]


def read_password(path: Path | None) -> bytes | None:
    """The first line of a password file; None without one.

    Raises:
        ConfigError: the file cannot be read, is open to others, or begins with an empty line.
    """
    if path is None:
        return None
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            line = file.readline(4096).rstrip(b"\r\n")
    except OSError as error:
        raise ConfigError(f"password file {path}: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(
            f"password file {path}: mode {mode & 0o7777:04o}; group and others must have no access "
            "(chmod 600)"
        )
    if not line:
        raise ConfigError(f"password file {path}: its first line is empty")
    return line


@keys.command()
def new(
    path: Annotated[Path, typer.Argument(help="File to make, mode 0600; nothing is overwritten.")],
    algorithm: Annotated[
        str, typer.Option(help="'ed25519', or 'ml-dsa-65' where signatures are kept as evidence.")
    ] = "ed25519",
    password_file: Password = None,
) -> None:
    """Make an identity key and print its public half."""
    from securefed.crypto.identity import IdentityAlgorithm, IdentityKey

    if algorithm not in get_args(IdentityAlgorithm):
        raise ConfigError(
            f"--algorithm {algorithm!r}: must be one of {list(get_args(IdentityAlgorithm))}"
        )
    key = IdentityKey.generate(algorithm=cast("IdentityAlgorithm", algorithm))
    key.save(path, password=read_password(password_file))
    say(key.public.raw.hex())


@keys.command()
def show(
    path: Annotated[Path, typer.Argument(help="An identity key, or a signed roster.")],
    server: Annotated[
        str | None, typer.Option(help="The server's public key, to check a roster against.")
    ] = None,
    password_file: Password = None,
) -> None:
    """Print the public half of a key, or who is in a signed roster."""
    from securefed.crypto.identity import IdentityKey
    from securefed.evidence.signed_roster import read_signed_roster

    if server is None:
        say(IdentityKey.load(path, password=read_password(password_file)).public.raw.hex())
        return
    found = read_signed_roster(path, public_key(server, "--server"))
    table = Table(title=f"roster, serial {found.serial}", show_header=True)
    table.add_column("party")
    table.add_column("public key", overflow="fold")
    for party, key in found.roster.parties():
        table.add_row(party, key.raw.hex())
    console.print(table)


SignedRosterFile = Annotated[Path, typer.Argument(help="Signed roster, made or changed.")]
ServerKey = Annotated[Path, typer.Option(help="The server's identity key, which signs it.")]
Clients = Annotated[list[str], typer.Option(help="ID=PUBLICKEY of a client; may be repeated.")]


@keys.command()
def enrol(
    roster: SignedRosterFile, key: ServerKey, client: Clients, password_file: Password = None
) -> None:
    """Enrol clients in a signed roster, which is made if it is missing."""
    server, before = _opened(roster, key, password_file)
    now = dict(before.roster.clients) if before is not None else {}
    for name, found in _named(client):
        if now.get(name, found) != found:
            raise ConfigError(
                f"--client {name}: is enrolled with another key; see securefed keys rotate"
            )
        now[name] = found
    _save(roster, server, before, now)


@keys.command()
def rotate(
    roster: SignedRosterFile, key: ServerKey, client: Clients, password_file: Password = None
) -> None:
    """Give clients of a signed roster another key; the one before counts no longer."""
    server, before = _opened(roster, key, password_file)
    now = dict(before.roster.clients) if before is not None else {}
    for name, found in _named(client):
        if name not in now:
            raise ConfigError(f"--client {name}: is not enrolled; see securefed keys enrol")
        now[name] = found
    _save(roster, server, before, now)


@keys.command()
def revoke(
    roster: SignedRosterFile,
    client: Annotated[list[str], typer.Argument(help="IDs of the clients to take out.")],
    key: ServerKey,
    password_file: Password = None,
) -> None:
    """Take clients out of a signed roster: their keys count no longer."""
    server, before = _opened(roster, key, password_file)
    now = dict(before.roster.clients) if before is not None else {}
    for name in client:
        if now.pop(name, None) is None:
            raise ConfigError(f"{name}: is not enrolled")
    _save(roster, server, before, now)


def _opened(
    path: Path, key: Path, password_file: Path | None
) -> tuple[IdentityKey, SignedRoster | None]:
    """The server's key, and the roster as it signed it last; None if there is none yet."""
    from securefed.crypto.identity import IdentityKey
    from securefed.evidence.signed_roster import read_signed_roster

    server = IdentityKey.load(key, password=read_password(password_file))
    return server, read_signed_roster(path, server.public) if path.exists() else None


def _named(clients: list[str]) -> Iterator[tuple[str, IdentityPublicKey]]:
    for item in clients:
        name, _, text = item.partition("=")
        if not name or not text:
            raise ConfigError(f"--client {item!r}: must be ID=PUBLICKEY")
        yield name, public_key(text, f"--client {name}")


def _save(
    path: Path,
    server: IdentityKey,
    before: SignedRoster | None,
    clients: dict[str, IdentityPublicKey],
) -> None:
    """Sign and write a roster with the next serial."""
    from securefed.evidence.roster import Roster
    from securefed.evidence.signed_roster import SignedRoster

    serial = 1 if before is None else before.serial + 1
    now = SignedRoster(Roster(server.public, clients), serial)
    if before is not None and before.roster == now.roster:
        raise ConfigError(f"roster {path}: nothing to change")
    plain = now.save(path, server)
    say(f"roster {path}: serial {now.serial}, {len(clients)} clients")
    say(f"for securefed verify --roster: {plain}")


def public_key(text: str, what: str) -> IdentityPublicKey:
    """A public key in hexadecimal.

    Raises:
        ConfigError: it is none; the message begins with ``what``.
    """
    from securefed.crypto.identity import IdentityPublicKey
    from securefed.errors import RemoteProtocolError

    try:
        return IdentityPublicKey.from_bytes(bytes.fromhex(text))
    except (ValueError, RemoteProtocolError) as error:
        raise ConfigError(f"{what}: is no identity key ({error})") from None
