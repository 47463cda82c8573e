"""An agent's log: one JSON object a line, for the data owner and nobody else."""

from __future__ import annotations

import contextlib
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

    A log that cannot be written, on a full disk say, ends nothing: what must stand before something
    leaves stands in the accounts, which refuse by themselves.  How many lines were not written when
    they were due is said once it can be; those of them that are not above it are lost.

    Args:
        stream: text; flushed after each line.
        clock: gives RFC 3339 text.
    """

    def __init__(self, stream: IO[str], clock: Callable[[], str]) -> None:
        self._stream, self._clock = stream, clock
        self._missed = 0

    def write(self, event: str, **values: str | int | float) -> None:
        """One line.

        Args:
            event: what happened, in a word.
            values: what else is told of it.
        """
        try:
            if self._missed:
                self._line("log not writable", lines=self._missed)
                self._missed = 0
            self._line(event, **values)
        except OSError:
            self._missed += 1

    def _line(self, event: str, **values: str | int | float) -> None:
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
    stream = os.fdopen(descriptor, "a", encoding="utf-8")
    try:
        check_private(os.fstat(stream.fileno()), f"log {path}", "chmod 600")
        yield stream
    finally:
        with contextlib.suppress(OSError):  # what could not be written cannot be now
            stream.close()
