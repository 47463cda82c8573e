"""Characters that are not shown, or that turn what is shown around, made visible.

Names and reasons come from files that others wrote.  A control character is no XML, and one that
turns the direction of writing makes a sentence read as another.
"""

from __future__ import annotations

import re

_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069"
    r"\ud800-\udfff\ufeff\ufffe\uffff]"
)
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def visible(text: str) -> str:
    r"""The text with a mark in the place of each such character.

    Example:
        >>> visible("a\x00b")
        'a\ufffdb'
    """
    return _CONTROL.sub(_UNKNOWN, text)
