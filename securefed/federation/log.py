"""A log of JSON lines: an agent's for its owner, a server's for its operator, and nobody else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from securefed.errors import ConfigError
from securefed.federation.private_folder import check_private

UNPROTECTED = "unprotected"
"""What stands for an epsilon that is infinite, which JSON has no number for."""


class Log:
    """Writes events.

    What is written names fields, values and policies.  No error message of this package holds key
    material, data or an update, and nothing else of a round is written.

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

    def write(
        self,
        event: str,
        **values: str | int | float | Mapping[str, str] | Sequence[str],
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
        line = {"time": self._clock(), "event": event} | values
        self._stream.write(json.dumps(line, sort_keys=False) + "\n")
        self._stream.flush()


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
    with os.fdopen(descriptor, "a", encoding="utf-8") as stream:
        check_private(os.fstat(stream.fileno()), f"log {path}", "chmod 600")
        yield stream
