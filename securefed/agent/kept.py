"""What a client keeps from round to round of a run and never sends, on its owner's disk.

A personal factor of the adapter, a control, what sparsification cut off: made from this client's
data, and opaque here.  One file a run holds two states: the one after the last sum that this client
knows itself to be in, and the one that it made in an attempt whose end it has not heard of.  The
next invitation says in which sum it was last; by that the open one counts, or is dropped::

    invitation of round n   says: last in the sum of session s     -> the state made in s is loaded
    masked input of round n is charged, then the new state written -> it leaves
    ...                     the round fails, or is summed without this client, or with it
    next invitation         says: last in the sum of session t     -> t is one of the two, or no

An invitation writes nothing.  A state that was made and never charged is never written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from securefed.encoding.wire import Reader, Writer
from securefed.errors import LedgerTampered, LocalProtocolError, WireError
from securefed.federation.frames import MAX_FRAME
from securefed.operations.private_folder import private_folder, read_private
from securefed.operations.whole_files import write_whole
from securefed.secagg.aggregator import SESSION_BYTES

_KEPT = 112
_DIGEST_BYTES = 32
_MAX_ID = 255
_LARGEST_FILE = 2 * MAX_FRAME + 4096


@dataclass(frozen=True)
class Kept:
    """What a client holds after the sum of one session.

    Attributes:
        round: of that sum; 0 before the first.
        session: hexadecimal; None before the first.
        state: as the client's site wrote it; empty before the first.
    """

    round: int = 0
    session: str | None = None
    state: bytes = field(default=b"", repr=False)


class KeptStates:
    """One client's kept states, a file a run, in a folder that no other process writes.

    Args:
        folder: is made, for its owner alone.
        client: whose they are.

    Guarantees:
        - What is read is what was written last: a file is replaced whole, and synced.
        - Files have mode 0600 in a folder of mode 0700; others are refused.
        - A state counts only after an invitation says that its session was the last sum with this
          client in it; a run that goes on from a state that is not here is refused, so a folder
          that was lost, or restored from an older copy, is noticed.
        - No round is begun twice from the state that it made: rounds only rise.
    """

    def __init__(self, folder: Path, client: str) -> None:
        private_folder(folder, "kept states")
        self._folder, self._client = folder, client

    def base(self, ledger: str, number: int, said: str | None) -> Kept:
        """What a round goes on from.

        Args:
            ledger: hash of the first record of the run's ledger, hexadecimal.
            number: of the round that is invited to; held-out figures after round n come with n + 1.
            said: session of the last sum with this client in it, as the server says; None for none.

        Raises:
            LocalProtocolError: what is here was not left by that session, or is of that round or a
                later one.
            LedgerTampered: the file is not of this client and run.
            ConfigError: others have access to it.
        """
        found = self._read(ledger)
        for kept in found:
            if kept.session != said:
                continue
            if kept.round >= number:
                raise LocalProtocolError(
                    f"round = {number}: what this client keeps is of round {kept.round} already; "
                    "an older invitation is not taken again"
                )
            return kept
        here = ", ".join(str(kept.session) for kept in found)
        raise LocalProtocolError(
            f"kept state: the run goes on from session {said}, and what is kept here is of {here}: "
            "the folder was lost or is an older copy, or the server's ledger is"
        )

    def note(self, ledger: str, base: Kept, made: Kept) -> None:
        """Write what an attempt made, right before its masked input leaves; it was charged.

        Args:
            ledger: as in :meth:`base`.
            base: what the attempt went on from, which stays until the attempt is known to count.
            made: what it made.

        Raises:
            OSError: it cannot be made durable; nothing may be sent.
        """
        writer = Writer()
        writer.header(_KEPT)
        writer.fixed(bytes.fromhex(ledger), _DIGEST_BYTES, field="ledger")
        writer.blob(self._client.encode(), _MAX_ID, field="client")
        for kept in (base, made):
            writer.u32(kept.round, field="round")
            writer.blob(bytes.fromhex(kept.session or ""), SESSION_BYTES, field="session")
            writer.blob(kept.state, MAX_FRAME, field="state")
        write_whole(self._path(ledger), writer.done(), private=True)

    def _read(self, ledger: str) -> tuple[Kept, ...]:
        """The settled state and, if there is one, that of an attempt."""
        path = self._path(ledger)
        content = read_private(path, "kept state", limit=_LARGEST_FILE)
        if content is None:
            return (Kept(),)
        try:
            reader = Reader(content)
            reader.header(_KEPT)
            named = reader.fixed(_DIGEST_BYTES, field="ledger").hex()
            client = reader.blob(_MAX_ID, field="client")
            found = tuple(_kept(reader) for _ in range(2))
            reader.finish()
        except WireError as error:
            raise LedgerTampered(f"{path}: is not a kept state ({error})") from None
        if (named, client) != (ledger, self._client.encode()):
            raise LedgerTampered(f"{path}: is the kept state of another run or client")
        return found

    def _path(self, ledger: str) -> Path:
        return self._folder / f"{ledger[:32]}.kept"


def _kept(reader: Reader) -> Kept:
    number = reader.u32(field="round")
    session = reader.blob(SESSION_BYTES, field="session")
    state = reader.blob(MAX_FRAME, field="state")
    return Kept(number, session.hex() or None, state)
