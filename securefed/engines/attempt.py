"""One attempt at a round, as a ledger tells of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Attempt:
    """One attempt at one round.

    Attributes:
        event: the body of its opening record: the privacy event, round and session.
        charged: who is on record as charged; None while it has no end.
        charges: the most charges of any client when its sum was recorded; None without a sum.
    """

    event: Mapping[str, Any]
    charged: frozenset[str] | None = None
    charges: int | None = None

    @property
    def session(self) -> str:
        """Its name, hexadecimal."""
        return str(self.event["session"])

    @property
    def round(self) -> int:
        """The number of the round that was tried."""
        return int(self.event["round"])
