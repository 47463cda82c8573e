"""An agent's log: one JSON object a line, for the data owner and nobody else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import IO


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
