"""How messages name a run's clients."""

from __future__ import annotations

from collections.abc import Collection

_MOST = 10


def named_clients(clients: Collection[str]) -> str:
    """Whom there is, for who named somebody else: the first ten of them."""
    first = sorted(clients)[:_MOST]
    left = len(clients) - len(first)
    return f"there are {', '.join(first)}{f' and {left} more' if left else ''}"
