"""Words that are no markup, made safe to stand in Markdown, HTML and LaTeX inside it."""

from __future__ import annotations

import re

from securefed.reports.visible import visible

_MARKS = re.compile(r"[\\`*_\[\]<>|~$&]")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_OPENING = re.compile(r"^(?:[-+#=]|\d+(?=[.)](?:\s|$)))")
_ADDRESS = re.compile(r"://|\bwww\.", re.IGNORECASE)
_SPACES = re.compile(r"[^\S\N{NO-BREAK SPACE}]+")


def escaped(text: str) -> str:
    r"""Text on one line that Markdown shows as it stands.

    Guarantees: nothing in ``text`` is read as markup of CommonMark, of tables, of HTML or of LaTeX
    between dollars, or becomes a link by itself; control characters and those that turn the
    direction of writing are replaced.

    Example:
        >>> escaped("- <b> a_b $x$ 3.21")
        '\\- &lt;b&gt; a\\_b \\$x\\$ 3.21'
    """
    return at_start(inline(text).strip())


def at_start(markdown: str) -> str:
    """Inline Markdown that begins a line, so that it begins no list and no heading."""
    return _OPENING.sub(_kept, markdown)


def inline(text: str) -> str:
    """The same for text inside a line: spaces at its ends are kept, what begins a line is not."""
    line = _SPACES.sub(" ", visible(text))
    marked = _MARKS.sub(lambda match: _ENTITIES.get(match[0], "\\" + match[0]), line)
    return _ADDRESS.sub(lambda match: match[0].replace(":", "&#58;").replace(".", "&#46;"), marked)


def _kept(match: re.Match[str]) -> str:
    """A mark that would begin a list or a heading, or the number of an item."""
    return f"{match[0]}\\" if match[0].isdigit() else f"\\{match[0]}"
