"""``securefed keys``: identity keys, and the signed roster that names them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from rich.table import Table

from securefed.cli.watching import console, say
from securefed.errors import ConfigError

if TYPE_CHECKING:
    from securefed.crypto.identity import IdentityPublicKey


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


@keys.command()
def enrol(
    roster: Annotated[Path, typer.Argument(help="Signed roster, made or changed.")],
    key: Annotated[Path, typer.Option(help="The server's identity key, which signs it.")],
    client: Annotated[
        list[str] | None, typer.Option(help="ID=PUBLICKEY of a client; may be repeated.")
    ] = None,
    replace_key: Annotated[
        bool, typer.Option("--replace", help="Give clients that are enrolled a new key.")
    ] = False,
    remove: Annotated[
        list[str] | None, typer.Option(help="ID of a client to revoke; may be repeated.")
    ] = None,
    password_file: Password = None,
) -> None:
    """Enrol clients in a signed roster, give them new keys, or revoke them."""
    from securefed.crypto.identity import IdentityKey
    from securefed.evidence.roster import Roster
    from securefed.evidence.signed_roster import SignedRoster, read_signed_roster

    server = IdentityKey.load(key, password=read_password(password_file))
    before = read_signed_roster(roster, server.public) if roster.exists() else None
    clients = dict(before.roster.clients) if before is not None else {}
    for item in client or []:
        name, _, text = item.partition("=")
        if not name or not text:
            raise ConfigError(f"--client {item!r}: must be ID=PUBLICKEY")
        found = public_key(text, f"--client {name}")
        if clients.get(name, found) != found and not replace_key:
            raise ConfigError(f"--client {name}: is enrolled with another key; say --replace")
        clients[name] = found
    for name in remove or []:
        if name not in clients:
            raise ConfigError(f"--remove {name}: is not enrolled")
        del clients[name]
    now = SignedRoster(Roster(server.public, clients), 1)
    if before is not None:
        if before.roster == now.roster:
            raise ConfigError("nothing to change: give --client ID=PUBLICKEY or --remove ID")
        now = replace(now, serial=before.serial + 1)
    plain = now.save(roster, server)
    say(f"roster {roster}: serial {now.serial}, {len(clients)} clients")
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
