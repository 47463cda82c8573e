"""Records of a ledger: their one encoding, their hash chain, and how a file is verified.

``ledger.jsonl`` holds one record a line, in canonical JSON (RFC 8785)::

    {"body": {...}, "hash": hex, "kind": text, "prev": hex, "seq": n, "time": RFC 3339}

``hash`` is SHA-256 over a tag and the canonical JSON of the record without ``hash``; ``prev`` is
the hash of the line before, 64 zeros for the first.  ``ledger.head.json`` holds the last ``seq``
and ``hash``, so that a cut tail is seen.

What the chain does not show: a rewrite of the whole file and its head by someone who can write
both.  Against that, keep or sign the head elsewhere.

Bodies hold JSON values with finite floats and integers up to 2^53 - 1 in size.  JSON has one
number type: 1.0 is written as 1 and read back as the integer 1, in a fresh record too.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import rfc8785

from securefed.errors import LedgerError, LedgerTampered
from securefed.evidence.reading import open_regular, read_regular

LINE_LIMIT = 1 << 20
_HEAD_LIMIT = 4096
GENESIS = "genesis"
NO_HASH = "0" * 64

_HASH_TAG = b"securefed/ledger/record/1\0"
_INTEGER_MAX = 2**53 - 1
_DEPTH_LIMIT = 64
_FIELDS = {"body": dict, "hash": str, "kind": str, "prev": str, "seq": int, "time": str}


@dataclass(frozen=True)
class Record:
    """One line of a ledger.

    Attributes:
        seq: place in the ledger, from 0.
        time: when it was written, RFC 3339, by the writer's own clock.
        kind: what it says.
        body: its content, JSON values.
        prev: hash of the record before, hexadecimal.
        hash: hash of this record, hexadecimal.
    """

    seq: int
    time: str
    kind: str
    body: dict[str, Any]
    prev: str
    hash: str


@dataclass(frozen=True)
class Head:
    """The last acknowledged record; seq -1 when the head file is not there yet."""

    seq: int
    hash: str


def read_ledger(path: Path) -> list[Record]:
    """Verify a ledger without writing or locking, also while it is being written.

    A torn last line, which no caller was told is there, is left out.

    Raises:
        LedgerTampered: names the file, the line and what is wrong with it.
        LedgerError: the file cannot be read.
    """
    # A writer may be at work: the file as read lies between the heads before and after.
    before = read_head(path)
    records, torn = read_records(path)
    check_head(path, before, read_head(path), records, torn)
    if not records:
        raise LedgerError(f"{path}: holds no record")
    return records


def encode_record(seq: int, time: str, kind: str, body: Mapping[str, Any], prev: str) -> bytes:
    """One record as its line, newline included.

    Args:
        seq: its place, >= 0.
        time: RFC 3339.
        kind: what it says.
        body: JSON values; see the head of this module.
        prev: hash of the record before, or ``NO_HASH``.

    Raises:
        LedgerError: names the place of a value that JSON cannot hold exactly, or the length of a
            line beyond 1 MiB.
    """
    _check_json(body, "body", _DEPTH_LIMIT)
    fields: dict[str, Any] = {
        "body": dict(body),
        "kind": kind,
        "prev": prev,
        "seq": seq,
        "time": time,
    }
    try:
        fields["hash"] = _hash(fields)
        line = rfc8785.dumps(fields) + b"\n"
    except ValueError as error:
        raise LedgerError(f"record {seq}: has no canonical form: {error}") from None
    if len(line) > LINE_LIMIT:
        raise LedgerError(f"record {seq}: {len(line)} bytes, at most {LINE_LIMIT} are allowed")
    return line


def line_of(record: Record) -> bytes:
    """The line that a verified record was read from, newline included."""
    return encode_record(record.seq, record.time, record.kind, record.body, record.prev)


def _check_json(value: Any, where: str, depth: int) -> None:
    """Refuse, by the place where it stands, what would not come back as it went in."""
    if depth == 0:
        raise LedgerError(f"{where}: nested more than {_DEPTH_LIMIT} deep")
    match value:
        case None | bool() | str():
            pass
        case int():
            if abs(value) > _INTEGER_MAX:
                raise LedgerError(f"{where}: {value} is beyond 2^53 - 1; write it as text")
        case float():
            if not math.isfinite(value):
                raise LedgerError(f"{where}: {value} is not a finite number")
        case dict():
            for key, item in value.items():
                if not isinstance(key, str):
                    raise LedgerError(f"{where}: a key is a {type(key).__name__}, text is allowed")
                _check_json(item, f"{where}.{key}", depth - 1)
        case list() | tuple():
            for index, item in enumerate(value):
                _check_json(item, f"{where}[{index}]", depth - 1)
        case _:
            raise LedgerError(f"{where}: a {type(value).__name__} is not a JSON value")


def _hash(fields: Mapping[str, Any]) -> str:
    content = {name: value for name, value in fields.items() if name != "hash"}
    return hashlib.sha256(_HASH_TAG + rfc8785.dumps(content)).hexdigest()


def _parsed_integer(text: str) -> int | float:
    """Canonical JSON writes large floats without an exponent: 1e16 is read back as a float."""
    if len(text) > 17:
        return float(text)
    value = int(text)
    return value if abs(value) <= _INTEGER_MAX else float(value)


def _parsed(line: bytes) -> Any:
    return json.loads(line.decode("utf-8"), parse_int=_parsed_integer)


def decode_record(line: bytes) -> Record:
    """The inverse of :func:`encode_record`.

    Raises:
        ValueError: what is wrong with the line; also when it is another encoding of a record.
    """
    try:
        fields = _parsed(line)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON: it was edited, or the file is no ledger") from None
    if not isinstance(fields, dict) or fields.keys() != _FIELDS.keys():
        raise ValueError(f"is not a record: the fields must be {', '.join(_FIELDS)}")
    for name, kind in _FIELDS.items():
        if type(fields[name]) is not kind:
            raise ValueError(f"{name} is not of type {kind.__name__}: it was edited")
    if rfc8785.dumps(fields) + b"\n" != line:
        raise ValueError("is not in canonical form: it was edited")
    if _hash(fields) != fields["hash"]:
        raise ValueError("the content does not have the hash it names: a value was edited")
    return Record(**fields)


def _refuse(path: Path, number: int, what: str) -> NoReturn:
    raise LedgerTampered(f"{path}: line {number}: {what}")


def read_records(path: Path) -> tuple[list[Record], bytes]:
    """The verified chain, and a torn last line (empty when there is none).

    Raises:
        LedgerTampered: names the line and what is wrong with it.
        LedgerError: the file cannot be read.
    """
    lines = []
    try:
        with open_regular(path) as file:
            while line := file.readline(LINE_LIMIT + 1):
                lines.append(line)
                if len(line) > LINE_LIMIT:
                    _refuse(path, len(lines), f"longer than {LINE_LIMIT} bytes")
                if not line.endswith(b"\n"):
                    # A writer is at work, or was killed: reading on would take the rest of this
                    # line, once it is written, for a line of its own.
                    break
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read ({error.strerror})") from error
    torn = lines.pop() if lines and _is_torn(lines[-1]) else b""
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = decode_record(line)
        except (ValueError, RecursionError) as error:
            _refuse(path, number, str(error))
        if record.seq != number - 1:
            _refuse(path, number, _why_out_of_place(record.seq, number, lines))
        if record.prev != (records[-1].hash if records else NO_HASH):
            before = f"line {number - 1}" if records else "a first record"
            _refuse(path, number, f"prev is not the hash of {before}, which was rewritten")
        if (record.kind == GENESIS) != (number == 1):
            _refuse(path, number, f"kind {record.kind!r} cannot stand here")
        records.append(record)
    return records, torn


def _is_torn(line: bytes) -> bool:
    if not line.endswith(b"\n"):
        return True
    try:
        _parsed(line)
    except (ValueError, RecursionError):
        return True
    return False


def _why_out_of_place(found: int, number: int, lines: list[bytes]) -> str:
    expected = number - 1
    if found < expected:
        return f"seq {found} stands here again, seq {expected} is expected: a line was put in"
    for later, line in enumerate(lines[number:], start=number + 1):
        # In canonical form "seq" and "time" end the line, so this is the record's own seq.
        if b'","seq":%d,"time":"' % expected in line:
            return f"the order was changed: seq {found} stands here, seq {expected} in line {later}"
    return f"a line was removed: seq {expected} is expected, {found} follows"


def check_head(path: Path, before: Head, after: Head, records: list[Record], torn: bytes) -> None:
    """Refuse a file that does not end at its head, or (a kill between the two) one record later.

    Args:
        path: the ledger's file, for messages.
        before: the head as it was before the file was read.
        after: the head as it was afterwards; another one only if a writer is at work.
        records: the verified chain.
        torn: a torn last line; what stands before it must be the head.

    Raises:
        LedgerTampered: a cut tail, or a head of another ledger or time.
    """
    last = len(records) - 1
    name = head_path(path).name
    if last < before.seq:
        _refuse(path, last + 2, f"is missing: {name} is at seq {before.seq}, the tail was cut off")
    for head in (before, after):
        if 0 <= head.seq <= last and records[head.seq].hash != head.hash:
            differs = f"{name} names another hash"
            _refuse(path, head.seq + 1, f"{differs}: wrong head, or line rewritten")
    if last > after.seq + (0 if torn else 1):
        behind = f"{name} is behind, at seq {after.seq}"
        _refuse(path, last + 1, f"{behind}: wrong head, or a line was put in")


def head_path(path: Path) -> Path:
    """``ledger.head.json`` beside ``ledger.jsonl``."""
    return path.with_name(path.stem + ".head.json")


def read_head(path: Path) -> Head:
    """The head of the ledger at ``path``; of seq -1 when there is none.

    Raises:
        LedgerTampered: the file is not a head.
        LedgerError: it cannot be read.
    """
    try:
        line = read_regular(head_path(path), _HEAD_LIMIT)
    except FileNotFoundError:
        return Head(-1, NO_HASH)
    except OSError as error:
        raise LedgerError(f"{head_path(path)}: cannot be read ({error.strerror})") from error
    try:
        fields = _parsed(line)
    except (ValueError, RecursionError):
        fields = None
    match fields:
        case {"seq": int(seq), "hash": str(digest)} if seq >= 0 and len(fields) == 2:
            return Head(seq, digest)
        case _:
            what = "is not a head: exactly seq and hash are expected"
            raise LedgerTampered(f"{head_path(path)}: line 1: {what}")
