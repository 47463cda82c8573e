"""A user's own folder of texts, one file or one sub-folder a client."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from securefed.config import DataSection
from securefed.errors import DataError

_CLIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_FORMATS = {".jsonl": "jsonl", ".csv": "csv", ".txt": "text"}


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
    """

    text: str
    label: int | None
    key: str
    held_out: bool | None
    user: str | None = field(default=None, repr=False)

    @property
    def owner(self) -> str:
        """The user that the document is of: one unit of ``privacy.unit = "user"``."""
        return self.key if self.user is None else self.user


def read_folder(
    folder: Path, *, section: DataSection, labels: int | None = None
) -> dict[str, list[Document]]:
    """Read every client of a folder.

    ``NAME.jsonl``, ``NAME.csv`` or ``NAME.txt`` is the client ``NAME``; so is the sub-folder
    ``NAME`` with all files in it.  Names that begin with a dot are passed over.  In JSONL a line
    is a document, in CSV (first line: the column names) a row is one, and a text file is one
    document as a whole, because a document is the longest piece that a window of tokens may lie
    in: text cut at every blank line would lose the end of every paragraph.  With
    ``section.format`` other than ``auto`` every file is read in that format, whatever its suffix.

    Args:
        folder: the source.
        section: ``format``, ``text_field``, ``label_field`` and ``user_field`` are used.
        labels: the number of classes, >= 2; None reads no labels.

    Returns:
        Documents by client id, both in the order of names and lines; ``held_out`` is None.  Users
        are told apart by their text without white space around it: 7, "7" and " 7" are one, since
        taking two for one costs accuracy, and taking one for two would cost protection.

    Raises:
        DataError: the folder is missing or has no client; a client is empty, has a name that is
            not 1 to 64 letters, digits, dots, dashes and underscores, or comes twice; a file is a
            link that leads out of the folder, has an unknown suffix or is not UTF-8; a record is
            malformed, has no text, has a label that is not an integer in 0 .. labels - 1, or has
            no user where ``user_field`` is set.  The message names file and line and never shows
            what stands there.
    """
    if not folder.is_dir():
        raise DataError(
            f"data.source: there is no folder {folder}; it was looked for beside the run file and "
            f"as {folder.absolute()}"
        )
    clients: dict[str, list[Document]] = {}
    for entry in _entries(folder, folder):
        client = entry.name if entry.is_dir() else entry.stem
        if not _CLIENT_ID.fullmatch(client):
            raise DataError(
                f"{entry}: a client's name is 1 to 64 letters, digits, dots, dashes and "
                "underscores, and begins with a letter or a digit"
            )
        if client in clients:
            raise DataError(f"{entry}: client {client} comes twice in {folder}")
        files = _entries(entry, folder) if entry.is_dir() else [entry]
        clients[client] = [
            document for file in files for document in _documents(file, folder, section, labels)
        ]
        if not clients[client]:
            raise DataError(f"{entry}: client {client} has no documents")
    if not clients:
        raise DataError(f"data.source: {folder} holds no files or folders of clients")
    return clients


def _entries(folder: Path, root: Path) -> list[Path]:
    """What lies in a folder, sorted; links may not lead out of ``root``."""
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}") from None
    for entry in entries:
        if not Path(os.path.realpath(entry)).is_relative_to(os.path.realpath(root)):
            raise DataError(f"{entry}: is a link that leads out of {root}")
        if not entry.is_file() and not (entry.is_dir() and folder == root):
            raise DataError(f"{entry}: a client is a file, or a folder with nothing but files")
    return entries


def _documents(
    file: Path, root: Path, section: DataSection, labels: int | None
) -> Iterator[Document]:
    how: str = section.format
    if how == "auto":
        if file.suffix not in _FORMATS:
            raise DataError(f"{file}: suffix {file.suffix!r}; allowed: {', '.join(_FORMATS)}")
        how = _FORMATS[file.suffix]
    try:
        content = file.read_bytes().decode("utf-8-sig")  # spreadsheets write the signature
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 at byte {error.start}") from None
    place = file.relative_to(root).as_posix()
    if how == "text":
        if labels is not None:
            raise DataError(f"{file}: a text file has no labels; use jsonl or csv")
        if section.user_field is not None:
            raise DataError(f"{file}: a text file has no data.user_field; use jsonl or csv")
        if content.strip():
            yield Document(content, None, place, None)
        return
    rows = _jsonl(file, content) if how == "jsonl" else _csv(file, content)
    label_field = section.label_field if labels is not None else None
    wanted = [name for name in (section.text_field, label_field, section.user_field) if name]
    for line, row in rows:
        for name in wanted:
            if row.get(name) is None:
                raise DataError(f"{file}:{line}: has no field {name!r}")
        text = row[section.text_field]
        if not isinstance(text, str) or not text.strip() or not _is_unicode(text):
            raise DataError(f"{file}:{line}: field {section.text_field!r} must be text, not blank")
        label = None
        if labels is not None:
            label = _label(row[section.label_field], labels)
            if label is None:
                raise DataError(
                    f"{file}:{line}: field {section.label_field!r} must be an integer in "
                    f"0 .. {labels - 1}"
                )
        user = None
        if section.user_field is not None:
            user = _user(row[section.user_field])
            if user is None:
                raise DataError(
                    f"{file}:{line}: field {section.user_field!r} must be text, not blank, or an "
                    "integer"
                )
        yield Document(text, label, f"{place}:{line}", None, user)


def _jsonl(file: Path, content: str) -> Iterator[tuple[int, dict[str, object]]]:
    # Not splitlines(): it would also cut at characters that JSON allows within a string.
    for line, row in enumerate(content.split("\n"), start=1):
        if row.strip():
            try:
                record = json.loads(row, object_pairs_hook=_without_repeats)
            except (ValueError, RecursionError):
                raise DataError(
                    f"{file}:{line}: is not one JSON object, or names a field twice"
                ) from None
            if not isinstance(record, dict):
                raise DataError(f"{file}:{line}: is not one JSON object")
            yield line, record


def _csv(file: Path, content: str) -> Iterator[tuple[int, dict[str, object]]]:
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    header: list[str] | None = None
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{file}:{reader.line_num}: is not CSV: {error}") from None
        if row is None:
            return
        if header is None:
            header = row
            if len(set(header)) != len(header):
                raise DataError(f"{file}:{reader.line_num}: names a column twice")
        elif row:
            if len(row) != len(header):
                raise DataError(
                    f"{file}:{reader.line_num}: has {len(row)} columns, the first line has "
                    f"{len(header)}"
                )
            yield reader.line_num, dict(zip(header, row, strict=True))


def _label(value: object, labels: int) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,5}", value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < labels else None


def _user(value: object) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    # One person under two keys would have less protection than is stated: what looks alike is one.
    text = unicodedata.normalize("NFKC", str(value)).casefold()
    user = "".join(c for c in text if unicodedata.category(c) != "Cf").strip()
    return user if user and _is_unicode(user) else None


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError
    return record


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair; no tokenizer takes it
        return False
    return True
