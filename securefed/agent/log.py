"""An agent's log: one JSON object a line, for the data owner and nobody else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from securefed.agent.private_folder import check_private
from securefed.errors import ConfigError


class Log:
    """Writes events.

    What is written names fields, values and policies.  No error message of this package holds key
    material, data or an update, and nothing else of a round is written.

    Args:
        stream: text; flushed after each line.
        clock: gives RFC 3339 text.
    """

    def __init__(self, stream: IO[str], clock: Callable[[], str]) -> None:
        self._stream, self._clock = stream, clock

    def write(self, event: str, **values: str | int | float) -> None:
        """One line.

        Args:
            event: what happened, in a word.
            values: what else is told of it.
        """
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
