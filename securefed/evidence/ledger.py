"""The one writer of a ledger: nothing is acknowledged before it is on the disk.

The format and its verification are in :mod:`securefed.evidence.chain`.  An append writes the line
and flushes it to the disk, then replaces the head, then returns.  A kill therefore leaves one of
three states, each healed by :meth:`Ledger.open`: nothing of the line, a torn line (cut off, and
noted by a record of kind ``recovered``), or a whole line that the head does not name yet.
Everything else is tampering, or a broken disk, and is refused by name.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import rfc8785

from securefed.errors import ConfigError, LedgerError
from securefed.evidence.chain import (
    GENESIS,
    NO_HASH,
    Head,
    Record,
    check_head,
    decode_record,
    encode_record,
    head_path,
    read_head,
    read_ledger,
    read_records,
)

__all__ = ["RECOVERED", "Ledger", "Record", "read_ledger"]

RECOVERED = "recovered"

_KIND_LIMIT = 64
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")


class Ledger:
    """A ledger open for appending; made by :meth:`create` or :meth:`open`.

    An exclusive lock is held until :meth:`close`, the end of a ``with`` block or of the process.
    One thread at a time may use it.

    Guarantees:
        - When ``append`` has returned, the record survives a kill or a power cut, as far as the
          disk keeps what it said it flushed.
        - When ``append`` has raised, the record is not in the ledger; the next can be appended.
          If the disk does not even let it be taken back, every later ``append`` is refused, and
          ``open`` says what stands.
    """

    def __init__(
        self, path: Path, file: IO[bytes], records: list[Record], clock: Callable[[], str]
    ) -> None:
        self._path = path
        self._file = file
        self._records = records
        self._clock = clock
        self._broken = False

    @classmethod
    def create(cls, path: Path, genesis: Mapping[str, Any], *, clock: Callable[[], str]) -> Self:
        """Start a ledger whose first record has kind ``genesis``.

        Args:
            path: the file, which must not exist, in a folder that does.
            genesis: the first record's body.
            clock: gives the time of each record, RFC 3339.

        Raises:
            LedgerError: the file or its head exists, or cannot be written; nothing is left behind.
            ConfigError: the clock's text is not RFC 3339.
        """
        if head_path(path).exists():
            raise LedgerError(f"{head_path(path)}: exists, and would not fit a new ledger")
        file = _open_locked(path, os.O_CREAT | os.O_EXCL)
        ledger = cls(path, file, [], clock)
        try:
            ledger._append(GENESIS, genesis)
        finally:
            if not ledger._records:
                path.unlink(missing_ok=True)
                head_path(path).unlink(missing_ok=True)
                ledger.close()
        return ledger

    @classmethod
    def open(cls, path: Path, *, clock: Callable[[], str]) -> Self:
        """Verify a ledger and go on writing it; heals what a kill can leave.

        Raises:
            LedgerTampered: names the file, the line and what is wrong with it.
            LedgerError: the file is missing, another process holds it, or it cannot be written.
            ConfigError: the clock's text is not RFC 3339, where a recovery is noted.
        """
        file = _open_locked(path, 0)
        ready = False
        try:
            head = read_head(path)
            records, torn = read_records(path)
            check_head(path, head, head, records, torn)
            if not records:
                raise LedgerError(f"{path}: was never finished, holds no record; remove it")
            ledger = cls(path, file, records, clock)
            ledger._heal(head, torn)
            ready = True
        finally:
            if not ready:
                file.close()
        return ledger

    @property
    def path(self) -> Path:
        """The ledger's file."""
        return self._path

    @property
    def records(self) -> list[Record]:
        """All records, first to last."""
        return list(self._records)

    @property
    def head(self) -> Record:
        """The last record."""
        return self._records[-1]

    def append(self, kind: str, body: Mapping[str, Any]) -> Record:
        """Write a record through to the disk, then return it.

        Args:
            kind: 1 to 64 characters; ``genesis`` and ``recovered`` are the ledger's own.
            body: JSON values (:mod:`securefed.evidence.chain`); at most 1 MiB as a line.

        Returns:
            The record as it will be read back.

        Raises:
            LedgerError: a value that JSON cannot hold exactly, a line that is too long, or a
                failed write (a full disk); the ledger is unchanged and usable.
            ConfigError: the clock's text is not RFC 3339.
        """
        if kind in (GENESIS, RECOVERED) or not 1 <= len(kind) <= _KIND_LIMIT:
            raise LedgerError(
                f"kind: {kind!r} given; 1 to {_KIND_LIMIT} characters other than {GENESIS!r} and "
                f"{RECOVERED!r} are allowed"
            )
        return self._append(kind, body)

    def close(self) -> None:
        """Give the lock back; the ledger can then be opened elsewhere."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _append(self, kind: str, body: Mapping[str, Any]) -> Record:
        if self._file.closed:
            raise LedgerError(f"{self._path}: is closed; open it again")
        if self._broken:
            raise LedgerError(f"{self._path}: a failed write could not be undone; open it again")
        seq = len(self._records)
        prev = self._records[-1].hash if seq else NO_HASH
        line = encode_record(seq, self._time(), kind, body, prev)
        record = decode_record(line)
        start = os.fstat(self._file.fileno()).st_size
        try:
            _write_all(self._file, line)
            os.fsync(self._file.fileno())
            _replace_head(self._path, Head(record.seq, record.hash))
            self._records.append(record)
        except OSError as error:
            raise LedgerError(
                f"{self._path}: record {seq} could not be written ({error.strerror}) and is not "
                "in the ledger"
            ) from error
        finally:
            # Also on an interrupt: what memory does not hold must not stay in the file.
            if len(self._records) == seq:
                self._take_back(start)
        return record

    def _time(self) -> str:
        time = self._clock()
        if not _RFC3339.fullmatch(time):
            raise ConfigError(f"clock: {time!r} given, RFC 3339 (2026-01-31T12:00:00Z) allowed")
        return time

    def _take_back(self, size: int) -> None:
        """Undo an append: the head first, so that a kill in between leaves it one behind."""
        try:
            if self._records:
                head = Head(self.head.seq, self.head.hash)
                if read_head(self._path) != head:
                    _replace_head(self._path, head)
            self._cut(size)
        except (OSError, LedgerError):
            self._broken = True

    def _cut(self, size: int) -> None:
        os.ftruncate(self._file.fileno(), size)
        os.fsync(self._file.fileno())

    def _heal(self, head: Head, torn: bytes) -> None:
        try:
            if torn:
                self._cut(os.fstat(self._file.fileno()).st_size - len(torn))
            if head.seq < self.head.seq:
                _replace_head(self._path, Head(self.head.seq, self.head.hash))
        except OSError as error:
            raise LedgerError(f"{self._path}: cannot be healed ({error.strerror})") from error
        if torn:
            note = {"cut_bytes": len(torn), "cut_sha256": hashlib.sha256(torn).hexdigest()}
            self._append(RECOVERED, note)


def _replace_head(path: Path, head: Head) -> None:
    """Put a whole new head in the place of the old one, durably."""
    target = head_path(path)
    temporary = target.with_name(target.name + ".tmp")
    try:
        with temporary.open("wb", buffering=0) as file:
            _write_all(file, rfc8785.dumps({"hash": head.hash, "seq": head.seq}) + b"\n")
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _write_all(file: IO[bytes], data: bytes) -> None:
    """An unbuffered write may be short: on a full disk the next one says so."""
    while data:
        data = data[file.write(data) :]


def _open_locked(path: Path, extra: int) -> IO[bytes]:
    # Imported here: Windows has no fcntl, and a ledger can be verified there.
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | extra, 0o644)
    except OSError as error:
        raise LedgerError(f"{path}: cannot be opened ({error.strerror})") from error
    file = os.fdopen(descriptor, "ab", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise LedgerError(
                f"{path}: another process is writing it; wait for its end, or stop it"
            ) from None
        raise LedgerError(f"{path}: cannot be locked ({error.strerror})") from error
    return file
