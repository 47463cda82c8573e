"""Reads a report's HTML as its reader does: blocks of text, figures, marks and where they lead."""

from __future__ import annotations

import base64
import json
import re
import tomllib
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "br", "hr", "img", "input", "link"}
BLOCKS = {"tr", "li", "p", "dd"}
PLACE = re.compile(r"(?P<path>[^\s:]+)(?::(?P<line>\d+))?(?: (?P<pointer>/\S*))?")


@dataclass
class Found:
    """A block of text: a row, a point, a paragraph.

    ``plain`` is its text without figures, marks, names and code.
    """

    plain: str = ""
    figures: list[tuple[str, str]] = field(default_factory=list)  # value, text
    marks: list[int] = field(default_factory=list)
    code: list[str] = field(default_factory=list)


class Page(HTMLParser):
    """A page, read once."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.stack: list[tuple[str, dict[str, str]]] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.blocks: list[tuple[str, Found]] = []  # id of the enclosing top part, block
        self.ids: list[str] = []
        self.sources: dict[int, str] = {}
        self.headings: list[int] = []
        self._open: list[Found] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag in VOID:
            return
        self.stack.append((tag, attributes))
        if tag in BLOCKS:
            self._open.append(Found())
            self.blocks.append((self._part(), self._open[-1]))
        if tag in ("data", "code") and self._open:
            value = attributes.get("value", attributes.get("data-value"))
            if value is not None:
                self._open[-1].figures.append((value, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        opened, _ = self.stack.pop()
        assert opened == tag, f"{opened} is closed by {tag}"
        if tag in BLOCKS:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._open:
            return
        block, within = self._open[-1], [tag for tag, _ in self.stack]
        classes = [attributes.get("class", "") for _, attributes in self.stack]
        if "refs" in classes:
            number = int(data.strip("[]"))
            block.marks.append(number)
        elif "code" in within or "data" in within:
            _, attributes = self.stack[-1]
            if "value" in attributes or "data-value" in attributes:
                value, text = block.figures[-1]
                block.figures[-1] = (value, text + data)
            else:
                block.code.append(data)
        else:
            block.plain += data

    def _part(self) -> str:
        named = [attributes["id"] for _, attributes in self.stack if "id" in attributes]
        return "/".join(named)


def sources(page: Page) -> dict[int, str]:
    """Of every number, the place that is listed for it."""
    found = {}
    for part, block in page.blocks:
        if part.endswith("sources") and block.code:
            number = int(block.plain.strip().strip("[]—").split("]")[0])
            found[number] = block.code[0]
    return found


def follow(folder: Path, place: str) -> Any:
    """What a reader finds at a place, with no help of the package."""
    match = PLACE.fullmatch(place)
    assert match is not None, place
    text = (folder / match["path"]).read_text(encoding="utf-8")
    if match["line"]:
        text = text.splitlines()[int(match["line"]) - 1]
    if match["path"].endswith(".yaml"):
        return text
    document = tomllib.loads(text) if match["path"].endswith(".toml") else json.loads(text)
    if "payload" in document:
        document = json.loads(base64.b64decode(document["payload"]))
    roots = [document["body"], document] if "body" in document else [document]
    for root in roots:
        found = root
        for part in (match["pointer"] or "").split("/")[1:]:
            if isinstance(found, list):
                found = found[int(part)]
            else:
                found = found.get(part) if isinstance(found, dict) else None
        if found is not None:
            return found
    raise AssertionError(f"{place}: nothing stands there")


def leaves(value: Any) -> list[Any]:
    """All that stands in a value: itself, and how many entries a list has."""
    if isinstance(value, dict):
        return [len(value), *(leaf for each in value.values() for leaf in leaves(each))]
    if isinstance(value, list):
        return [len(value), *(leaf for each in value for leaf in leaves(each))]
    return [value]
