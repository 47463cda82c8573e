"""Where the guides lie, and what their headings can be linked by."""

from __future__ import annotations

import re
from pathlib import Path

GUIDES = Path(__file__).parents[1] / "examples" / "guides"


def anchors(page: str) -> set[str]:
    """What ``#...`` may name in a page, as the repository's host makes it of headings."""
    found = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def links(page: str) -> list[tuple[str, str]]:
    """Files and anchors that a page links to, without what lies elsewhere."""
    found = re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page)
    return [(target, anchor) for target, anchor in found if not target.startswith("http")]
