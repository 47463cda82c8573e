"""Runs that have ended, and the adapter that each left to this client, on its owner's disk.

Where a client keeps a factor of its own, or trains an adapter of its own beside the shared one, the
server hands out the shared adapter once the run is over.  It is written down at once and answered.
The client's own adapter is made of it later, while the agent answers nobody: how long that takes
depends on what the client finds in its data.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from securefed.encoding.wire import Reader, Writer
from securefed.errors import LedgerTampered, LocalProtocolError, WireError
from securefed.federation.frames import MAX_FRAME
from securefed.operations.private_folder import private_folder, read_private
from securefed.operations.whole_files import sync, write_whole

_ENDED = 113
_DIGEST_BYTES = 32
_LARGEST_FILE = 2 * MAX_FRAME + 4096
_SUFFIX = ".ended"


@dataclass(frozen=True)
class Ended:
    """A run as it ended.

    Attributes:
        ledger: hash of the first record of its ledger, hexadecimal.
        config: SHA-256 of its run file, hexadecimal.
        adapter: the shared one.
        kept: what this client kept of its last sum.
    """

    ledger: str
    config: str
    adapter: bytes = field(repr=False)
    kept: bytes = field(repr=False)


class EndedRuns:
    """Ended runs of one client, in a folder that no other process writes.

    An adapter lies in ``LEDGER/``, LEDGER being the first half of the hash that names the run.

    Args:
        folder: is made, for its owner alone.

    Guarantees:
        - One shared adapter is taken of a run: a server cannot have a client train on others.
        - A folder ``LEDGER`` is there whole or not at all.
    """

    def __init__(self, folder: Path) -> None:
        private_folder(folder, "ended runs")
        self._folder = folder

    def note(self, ended: Ended) -> None:
        """Write down how a run ended, or find it written.

        Raises:
            LocalProtocolError: it ended with another adapter before.
            LedgerTampered, ConfigError: the file is not what is written here.
            OSError: it cannot be made durable.
        """
        path = self._folder / f"{ended.ledger[:32]}{_SUFFIX}"
        before = self._read(path)
        if before is not None:
            if before != ended:
                raise LocalProtocolError(
                    f"ending: of run {ended.ledger} this client has taken another one before"
                )
            return
        writer = Writer()
        writer.header(_ENDED)
        for name, digest in (("ledger", ended.ledger), ("config", ended.config)):
            writer.fixed(bytes.fromhex(digest), _DIGEST_BYTES, field=name)
        writer.blob(ended.adapter, MAX_FRAME, field="adapter")
        writer.blob(ended.kept, MAX_FRAME, field="kept")
        write_whole(path, writer.done(), private=True)

    def due(self, config: str) -> Iterator[Ended]:
        """Runs of one run file whose own adapter is still to be made.

        Raises:
            LedgerTampered, ConfigError: a file is not what is written here.
        """
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            ended = None if path.with_suffix("").exists() else self._read(path)
            if ended is not None and ended.config == config:
                yield ended

    def make(self, ended: Ended, write: Callable[[Path], None]) -> Path:
        """Have an adapter written, and put it in its place.

        Args:
            ended: the run.
            write: writes it into a folder that is there.

        Returns:
            Its folder.
        """
        place = self._folder / ended.ledger[:32]
        partial = place.with_name(f".{place.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(mode=0o700)
        write(partial)
        for path in sorted(partial.rglob("*"), reverse=True):
            sync(path)
        sync(partial)
        partial.rename(place)
        sync(self._folder)
        return place

    @staticmethod
    def _read(path: Path) -> Ended | None:
        content = read_private(path, "ended run", limit=_LARGEST_FILE)
        if content is None:
            return None
        try:
            reader = Reader(content)
            reader.header(_ENDED)
            ledger = reader.fixed(_DIGEST_BYTES, field="ledger").hex()
            config = reader.fixed(_DIGEST_BYTES, field="config").hex()
            adapter = reader.blob(MAX_FRAME, field="adapter")
            found = Ended(ledger, config, adapter, reader.blob(MAX_FRAME, field="kept"))
            reader.finish()
        except WireError as error:
            raise LedgerTampered(f"{path}: is no ended run ({error})") from None
        return found
