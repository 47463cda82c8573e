"""Escaped text shows as it stands, by an independent reader of Markdown."""

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from securefed.reports.markdown_text import escaped

READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def shown(text: str) -> str:
    """What a reader sees of one paragraph; anything but a paragraph of plain text is an error."""
    drawn = READER.render(text).strip()
    match = re.fullmatch(r"<p>([^<>]*)</p>", drawn)
    assert match is not None, drawn
    return html.unescape(match[1])


@pytest.mark.parametrize(
    "text",
    [
        "- item",
        "1. item",
        "12) item",
        "# heading",
        "+ a",
        "=== a",
        "> quote",
        "*a* _b_ `c` ~~d~~",
        "[a](b) ![c](d)",
        "<script>alert(1)</script>",
        "&lt; &amp; &#35;",
        "a | b",
        r"\* \\",
        "https://example.org www.example.org",
        "3.21 is no list",
        "---",
        "```",
    ],
)
def test_nothing_is_read_as_markup(text):
    assert shown(escaped(text)) == text


@given(st.text(alphabet=st.sampled_from("ab1.)- +#=*_`~[]()<>&!|\\$:/w \n日")))
def test_whatever_is_written_is_shown(text):
    plain = " ".join(text.split())
    assert escaped(text) == "" if not plain else shown(escaped(text)) == plain


@pytest.mark.parametrize("letter", ["\x00", "\x1b", "\u202e", "\u200b", "\ufeff"])
def test_control_characters_are_seen(letter):
    assert escaped(f"a{letter}b") == "a\N{REPLACEMENT CHARACTER}b"


def test_no_address_becomes_a_link_by_itself():
    assert "://" not in escaped("see https://example.org")
    assert "www." not in escaped("see www.example.org")
