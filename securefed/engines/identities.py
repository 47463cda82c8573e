"""The identity keys of a simulated run's parties, in a folder beside the run folder.

``runs/NAME`` has ``runs/NAME.keys`` (mode 0700) with ``server.pem``, ``clients/ID.pem``,
``decryptor.pem`` where there is one (each mode 0600), and the public ``roster.json``, which
``securefed verify --roster`` takes.  They lie outside, so that a run folder that is handed on shows
what was signed and lets nobody sign more.  In a deployment each party keeps its own key; whoever
holds this folder is all parties at once, and could sign another run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from securefed.crypto.identity import IdentityKey
from securefed.errors import ConfigError
from securefed.evidence.roster import Roster

ROSTER_FILE = "roster.json"

_OWNERS_ALONE = 0o700


@dataclass(frozen=True)
class Identities:
    """Everybody's secret key.

    Attributes:
        server, decryptor: as named; ``decryptor`` is None where there is none.
        clients: by id.
    """

    server: IdentityKey
    clients: Mapping[str, IdentityKey]
    decryptor: IdentityKey | None = None

    @classmethod
    def make(cls, cohort: Iterable[str], *, decryptor: bool) -> Identities:
        """New keys from the system's generator: Ed25519."""
        return cls(
            server=IdentityKey.generate(),
            clients={name: IdentityKey.generate() for name in cohort},
            decryptor=IdentityKey.generate() if decryptor else None,
        )

    @property
    def roster(self) -> Roster:
        """The public halves."""
        return Roster(
            server=self.server.public,
            clients={name: key.public for name, key in self.clients.items()},
            decryptor=None if self.decryptor is None else self.decryptor.public,
        )

    def save(self, folder: Path) -> None:
        """Write all keys and the roster to a folder that is not there yet.

        Raises:
            ConfigError, OSError: it cannot be made or written.
        """
        (folder / "clients").mkdir(mode=_OWNERS_ALONE, parents=True)
        folder.chmod(_OWNERS_ALONE)
        for path, key in self._files(folder):
            key.save(path)
        (folder / ROSTER_FILE).write_text(self.roster.to_text(), encoding="utf-8")

    def _files(self, folder: Path) -> list[tuple[Path, IdentityKey]]:
        found = [(folder / "server.pem", self.server)]
        found += [(_of_client(folder, name), key) for name, key in self.clients.items()]
        if self.decryptor is not None:
            found.append((folder / "decryptor.pem", self.decryptor))
        return found

    @classmethod
    def load(cls, folder: Path, expected: Roster) -> Identities:
        """The keys of a run, by the roster that its ledger holds.

        Raises:
            ConfigError: the folder or a key is missing, open to others, or not the one that the
                roster names.
        """
        if not folder.is_dir():
            raise ConfigError(
                f"--resume: {folder} is missing: it holds the identity keys that the run was begun "
                "with, and without them nobody can go on signing its ledger; bring it back beside "
                "the run folder"
            )
        try:
            found = cls(
                server=IdentityKey.load(folder / "server.pem"),
                clients={n: IdentityKey.load(_of_client(folder, n)) for n in expected.clients},
                decryptor=(
                    None
                    if expected.decryptor is None
                    else IdentityKey.load(folder / "decryptor.pem")
                ),
            )
        except ConfigError as error:
            raise ConfigError(f"--resume: {error}") from None
        differing = expected.differing(found.roster)
        if differing:
            raise ConfigError(
                f"--resume: {folder} holds another key of {differing[0]} than the run's ledger "
                "names: it is another run's"
            )
        return found


def _of_client(folder: Path, name: str) -> Path:
    return folder / "clients" / f"{name}.pem"
