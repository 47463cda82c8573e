"""A log of JSON lines: an agent's for its owner, a server's for its operator, and nobody else."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from securefed.errors import ConfigError
from securefed.operations.private_folder import check_private

UNPROTECTED = "unprotected"
"""What stands for an epsilon that is infinite, which JSON has no number for."""


_Value = str | int | float | Mapping[str, str] | Sequence[str]


class Log:
    """Writes events.

    What is written names fields, values and policies.  No error message of this package holds key
    material, data or an update, and nothing else of a round is written.

    A log that cannot be written, on a full disk say, ends nothing: what must stand before something
    leaves stands in the accounts, which refuse by themselves.  How many lines were not written when
    they were due is said once it can be; those of them that are not above it are lost.

    Args:
        stream: text; flushed after each line.  None writes nothing, and counts all the same.
        clock: gives RFC 3339 text.
        count: called with each event and its values, for metrics.
    """

    def __init__(
        self,
        stream: IO[str] | None,
        clock: Callable[[], str],
        *,
        count: Callable[[str, Mapping[str, Any]], None] | None = None,
    ) -> None:
        self._stream, self._clock, self._count = stream, clock, count
        self._missed = 0

    def write(
        self,
        event: str,
        **values: _Value,
    ) -> None:
        """One line.

        Args:
            event: what happened, in a word.
            values: what else is told of it.
        """
        if self._count is not None:
            self._count(event, values)
        if self._stream is None:
            return
        try:
            if self._missed:
                self._line(self._stream, "log not writable", {"lines": self._missed})
                self._missed = 0
            self._line(self._stream, event, values)
        except OSError:
            self._missed += 1

    def _line(self, stream: IO[str], event: str, values: Mapping[str, _Value]) -> None:
        line = {"time": self._clock(), "event": event, **values}
        stream.write(json.dumps(line, sort_keys=False) + "\n")
        stream.flush()


@contextmanager
def appended(path: Path) -> Iterator[IO[str]]:
    """A log file to append to, made for its owner alone (mode 0600).

    Raises:
        ConfigError: it cannot be opened, or is there already and open to others.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as error:
        raise ConfigError(f"log {path}: cannot be opened ({error.strerror})") from None
    stream = os.fdopen(descriptor, "a", encoding="utf-8")
    try:
        check_private(os.fstat(stream.fileno()), f"log {path}", "chmod 600")
        yield stream
    finally:
        with contextlib.suppress(OSError):  # what could not be written cannot be now
            stream.close()
