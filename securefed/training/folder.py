"""A user's own folder of texts, one file or one sub-folder a client."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

from securefed.config import DataSection
from securefed.errors import DataError
from securefed.training.records import CLIENT_ID, Document, document_of

__all__ = ["Document", "read_folder"]

_FORMATS = {".jsonl": "jsonl", ".csv": "csv", ".txt": "text"}


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
        section: ``format`` is used, and the names of fields.
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
        if not CLIENT_ID.fullmatch(client):
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
            raise DataError(
                f"{file}: suffix {file.suffix!r}; allowed: {', '.join(_FORMATS)}; take it out of "
                "the folder, or set data.format if it is one of these under another name"
            )
        how = _FORMATS[file.suffix]
    try:
        content = file.read_bytes().decode("utf-8-sig")  # spreadsheets write the signature
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    place = file.relative_to(root).as_posix()
    if how == "text":
        if labels is not None:
            raise DataError(f"{file}: a text file has no labels; use jsonl or csv")
        for name in ("user_field", "messages_field"):
            if getattr(section, name) is not None:
                raise DataError(f"{file}: a text file has no data.{name}; use jsonl or csv")
        if content.strip():
            yield Document(content, None, place, None)
        return
    if how == "csv" and section.messages_field is not None:
        raise DataError(f"{file}: a CSV column holds no data.messages_field; use jsonl")
    rows = _jsonl(file, content) if how == "jsonl" else _csv(file, content)
    for line, row in rows:
        yield document_of(
            row,
            where=f"{file}:{line}",
            key=f"{place}:{line}",
            section=section,
            labels=labels,
            named=how == "jsonl",
        )


def _jsonl(file: Path, content: str) -> Iterator[tuple[int, dict[str, object]]]:
    # Not splitlines(): it would also cut at characters that JSON allows within a string.
    for line, row in enumerate(content.split("\n"), start=1):
        if row.strip():
            try:
                record = json.loads(row, object_pairs_hook=_without_repeats)
            except (ValueError, RecursionError):
                raise DataError(
                    f"{file}:{line}: is not one JSON object, or names a field twice; JSONL has one "
                    "object a line"
                ) from None
            if not isinstance(record, dict):
                raise DataError(f"{file}:{line}: is not one JSON object; JSONL has one a line")
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
                    f"{len(header)}; a text with commas in it must stand in double quotes"
                )
            yield reader.line_num, dict(zip(header, row, strict=True))


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError
    return record
