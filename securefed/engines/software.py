"""What this package calls itself in what it writes."""

from __future__ import annotations

import securefed


def software() -> str:
    """Name and version of this package, as ledgers hold it."""
    return f"securefed {securefed.__version__}"
