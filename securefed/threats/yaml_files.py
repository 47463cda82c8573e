"""YAML for files that people sign off: one reading only, and the line of every value.

YAML is read as data that every reader takes alike.  Refused by file and line are therefore:

- what YAML 1.1 and 1.2 read differently (``off`` is false in one and text in the other; ``010``,
  ``1_000``, ``12:30``, ``2026-01-31``, ``1e5``);
- a key that stands twice, of which most readers keep the last;
- anchors, aliases and tags, by which a small file can become a large one or make objects;
- more than one document, and nesting deeper than 32.

Source: YAML 1.2.2, section 10.3 (core schema), against what PyYAML's resolver of YAML 1.1 gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from securefed.errors import ConfigError
from securefed.threats.files import FILE_LIMIT

Place = tuple[str | int, ...]
"""Keys and indexes from the top of a file to a value."""

_DEPTH_LIMIT = 32
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9]*)\.[0-9]+([eE][-+][0-9]+)?")
_WORDS: dict[str, object] = {"null": None, "~": None, "true": True, "false": False}
_STANDARD = "tag:yaml.org,2002:"
_TAG = {bool: "bool", int: "int", float: "float", str: "str", type(None): "null"}


@dataclass(frozen=True)
class Document:
    """A file's content.

    Attributes:
        name: of the file, for messages.
        value: what it holds: mappings with text keys, lists, text, numbers, booleans, null.
        lines: the line of each key or item, from 1, by place.
    """

    name: str
    value: Any
    lines: dict[Place, int] = field(repr=False)

    def line(self, place: Place) -> int:
        """The line of a value, or of the nearest one around it that is there.

        Parts that are in no file are passed over: pydantic puts the names of kinds between them,
        and a kind may be called like a key.
        """
        return self.lines.get(self._nearest((), place), 1)

    def _nearest(self, here: Place, rest: Place) -> Place:
        if not rest:
            return here
        passed_over = self._nearest(here, rest[1:])
        if (*here, rest[0]) not in self.lines:
            return passed_over
        return max(passed_over, self._nearest((*here, rest[0]), rest[1:]), key=len)

    def where(self, place: Place) -> str:
        """``file:line`` of a value."""
        return f"{self.name}:{self.line(place)}"


def read_yaml(data: bytes, name: str) -> Document:
    """The content of a file.

    Raises:
        ConfigError: it is longer than ``FILE_LIMIT``, not UTF-8, not YAML, or holds what this
            module refuses; the message begins with ``file:line``.
    """
    if len(data) > FILE_LIMIT:
        raise ConfigError(f"{name}: longer than {FILE_LIMIT} bytes, which is the most allowed")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigError(f"{name}:{line}: is not UTF-8 at byte {error.start}") from None
    reader = _Reader(name)
    try:
        value = reader.document(iter(yaml.parse(text, Loader=yaml.SafeLoader)))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        raise ConfigError(f"{name}:{line}: is not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}:1: is not YAML: {str(error).splitlines()[0]}") from None
    return Document(name, value, reader.lines)


class _Reader:
    """Makes values of the events of one file."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._resolver: Any = yaml.SafeLoader("")
        self.lines: dict[Place, int] = {}

    def document(self, events: Iterator[yaml.Event]) -> Any:
        value: Any = None
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._refuse(event, "a second document begins; a file holds one")
                value = self._value(next(events), events, ())
        if documents == 0:
            raise ConfigError(f"{self._name}:1: is empty")
        return value

    def _value(self, event: yaml.Event, events: Iterator[yaml.Event], place: Place) -> Any:
        self.lines.setdefault(place, _line(event))
        if len(place) > _DEPTH_LIMIT:
            self._refuse(event, f"is nested deeper than {_DEPTH_LIMIT}")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            self._refuse(event, "anchors (&) and aliases (*) are not allowed; write it out")
        if (tag := getattr(event, "tag", None)) is not None:
            self._refuse(event, f"the tag {tag!r} is not allowed")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(event := next(events), yaml.SequenceEndEvent):
                items.append(self._value(event, events, (*place, len(items))))
            return items
        return self._mapping(events, place)

    def _mapping(self, events: Iterator[yaml.Event], place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            key = self._value(event, events, (*place, "?")) if _plain_key(event) else None
            self.lines.pop((*place, "?"), None)
            if not isinstance(key, str):
                self._refuse(event, "a key must be text")
            if key in found:
                self._refuse(event, f"the key {key[:80]!r} stands twice")
            self.lines[(*place, key)] = _line(event)
            found[key] = self._value(next(events), events, (*place, key))
        return found

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        text = event.value
        if event.style is not None:  # quoted, or a block: text
            return text
        value: Any = text
        if text in _WORDS or text == "":
            value = _WORDS.get(text)
        elif _INTEGER.fullmatch(text):
            value = int(text) if len(text) <= 18 else text
        elif _FLOAT.fullmatch(text):
            value = float(text)
        resolved = self._resolver.resolve(yaml.ScalarNode, text, (True, False))
        if resolved != _STANDARD + _TAG[type(value)] or _reads_as_number(value):
            self._refuse(
                event,
                f"{text[:80]!r} is read differently by YAML 1.1 and 1.2; put text in quotes, write "
                "true or false, and numbers as 8, 0.25 or 1.0e-5",
            )
        return value

    def _refuse(self, event: yaml.Event, what: str) -> NoReturn:
        raise ConfigError(f"{self._name}:{_line(event)}: {what}")


def _line(event: yaml.Event) -> int:
    return 1 if event.start_mark is None else event.start_mark.line + 1


def _plain_key(event: yaml.Event) -> bool:
    return isinstance(event, yaml.ScalarEvent | yaml.AliasEvent)


def _reads_as_number(value: object) -> bool:
    """Text that YAML 1.2 takes for a number where 1.1 takes it for text: ``1e5``, ``0o17``."""
    if not isinstance(value, str):
        return False
    return (
        re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+", value)
        is not None
    )
