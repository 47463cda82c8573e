"""Words that are no markup, made safe to stand in Markdown, HTML and LaTeX inside it."""

from __future__ import annotations

import re

_MARKS = re.compile(r"[\\`*_\[\]<>|~$&]")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_OPENING = re.compile(r"^(?:[-+#=]|\d+(?=[.)](?:\s|$)))")
_ADDRESS = re.compile(r"://|\bwww\.", re.IGNORECASE)
_CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def escaped(text: str) -> str:
    r"""Text on one line that Markdown shows as it stands.

    Guarantees: nothing in ``text`` is read as markup of CommonMark, of tables, of HTML or of LaTeX
    between dollars, or becomes a link by itself; control characters and those that turn the
    direction of writing are replaced.

    Example:
        >>> escaped("- <b> a_b $x$ 3.21")
        '\\\\- &lt;b&gt; a\\\\_b \\\\$x\\\\$ 3.21'
    """
    line = " ".join(_CONTROL.sub(_UNKNOWN, text).split())
    marked = _MARKS.sub(lambda match: _ENTITIES.get(match[0], "\\" + match[0]), line)
    plain = _ADDRESS.sub(lambda match: match[0].replace(":", "&#58;").replace(".", "&#46;"), marked)
    return _OPENING.sub(_kept, plain)


def _kept(match: re.Match[str]) -> str:
    """A mark that would begin a list or a heading, or the number of an item."""
    return f"{match[0]}\\" if match[0].isdigit() else f"\\{match[0]}"
