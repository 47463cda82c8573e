"""One record of a client: from its fields to a document."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import NamedTuple

from securefed.config import DataSection
from securefed.errors import DataError

CLIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""A client's name: it is also a folder's."""

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}")
_SHOWN = 10


class Message(NamedTuple):
    """What one party of a conversation said."""

    role: str
    content: str


@dataclass(frozen=True)
class Document:
    """One record of one client.

    Attributes:
        text: valid Unicode, not blank.
        label: the class, 0 .. labels - 1; None where the task has none.
        key: stable and unique within its client; it decides what is held out where the corpus
            does not, and it names the record in messages, so it says nothing of the text.
        held_out: True: only ever measured on; False: only ever trained on; None: the corpus
            leaves it open.
        user: whose record it is; None where each document is a user of its own.
        messages: of a conversation, each with its role and what was said; None for other texts.
    """

    text: str
    label: int | None
    key: str
    held_out: bool | None
    user: str | None = field(default=None, repr=False)
    messages: tuple[Message, ...] | None = field(default=None, repr=False)

    @property
    def owner(self) -> str:
        """The user that the document is of: one unit of ``privacy.unit = "user"``."""
        return self.key if self.user is None else self.user


def document_of(
    row: Mapping[str, object],
    *,
    where: str,
    key: str,
    section: DataSection,
    labels: int | None,
    named: bool = True,
) -> Document:
    """Check a record and take from it what the run file asks for.

    Args:
        row: its fields.
        where: it stands, for messages; nothing of its content is ever in one.
        key: of the document.
        section: ``text_field``, ``label_field``, ``user_field`` and ``messages_field`` are used.
        labels: the number of classes, >= 2; None reads no labels.
        named: whether the fields have names of their own, which a message may show; those of a
            table whose first line was forgotten are somebody's data.

    Raises:
        DataError: a field is missing, or is not what it must be.
    """
    content = "text_field" if section.messages_field is None else "messages_field"
    wanted = {content: getattr(section, content), "user_field": section.user_field}
    if labels is not None:
        wanted["label_field"] = section.label_field
    for setting, name in wanted.items():
        if name is not None and row.get(name) is None:
            raise DataError(f"{where}: {_lacks(row, name, setting, named)}")
    messages = None
    if section.messages_field is not None:
        messages = _messages(row[section.messages_field])
        if messages is None:
            raise DataError(
                f"{where}: field {section.messages_field!r} must be a list of messages, each with "
                "a role and a content that are text and not blank"
            )
        text = "\n".join(message.content for message in messages)
    else:
        found = row[section.text_field]
        if not isinstance(found, str) or not found.strip() or not _is_unicode(found):
            raise DataError(f"{where}: field {section.text_field!r} must be text, not blank")
        text = found
    label = None
    if labels is not None:
        label = _label(row[section.label_field], labels)
        if label is None:
            raise DataError(
                f"{where}: field {section.label_field!r} must be an integer in 0 .. {labels - 1}"
            )
    user = None
    if section.user_field is not None:
        user = _user(row[section.user_field])
        if user is None:
            raise DataError(
                f"{where}: field {section.user_field!r} must be text, not blank, or an integer"
            )
    return Document(text, label, key, None, user, messages)


def _lacks(row: Mapping[str, object], name: str, setting: str, named: bool) -> str:
    """What to do about a field that is not there; of the record, names like a program's alone."""
    if name in row:
        return f"field {name!r} is empty (null); fill it in, or leave the record out"
    if not named:
        return (
            f"has no field {name!r}: the first line, which must name the columns, has "
            f"{len(row)} others; add that line, or name the column by data.{setting}"
        )
    fields = [
        repr(key) + " (a conversation: data.messages_field)" * (_messages(row[key]) is not None)
        for key in row
        if isinstance(key, str) and _FIELD.fullmatch(key)
    ]
    there = ", ".join(fields[:_SHOWN]) + ", ..." * (len(fields) > _SHOWN)
    return f"has no field {name!r}; set data.{setting} to the one that is meant" + (
        f": there are {there}" if there else ""
    )


def _messages(value: object) -> tuple[Message, ...] | None:
    if not isinstance(value, list | tuple) or not value:
        return None
    found = []
    for item in value:
        if not isinstance(item, Mapping):
            return None
        role, content = item.get("role"), item.get("content")
        for part in (role, content):
            if not isinstance(part, str) or not part.strip() or not _is_unicode(part):
                return None
        found.append(Message(str(role), str(content)))
    return tuple(found)


def _label(value: object, labels: int) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,5}", value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, Integral):  # NumPy's too
        return None
    found = int(value)
    return found if 0 <= found < labels else None


def _user(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | Integral):
        return None
    # One person under two keys would have less protection than is stated: what looks alike is one.
    text = unicodedata.normalize("NFKC", str(value)).casefold()
    user = "".join(c for c in text if unicodedata.category(c) != "Cf").strip()
    return user if user and _is_unicode(user) else None


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair; no tokenizer takes it
        return False
    return True
