import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import rfc8785
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from securefed.errors import ConfigError, LedgerError, LedgerTampered
from securefed.evidence import chain
from securefed.evidence.ledger import Ledger, read_ledger


def clock() -> str:
    return "2026-01-31T12:00:00Z"


def head_file(path: Path) -> Path:
    return path.with_name("ledger.head.json")


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def rehashed(line: bytes, **changes: object) -> bytes:
    """The line that a forger who knows the format would write."""
    fields = json.loads(line) | changes
    del fields["hash"]
    tagged = b"securefed/ledger/record/1\0" + rfc8785.dumps(fields)
    return rfc8785.dumps(fields | {"hash": hashlib.sha256(tagged).hexdigest()}) + b"\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A closed ledger of six records, seq 0 to 5."""
    file = tmp_path / "ledger.jsonl"
    with Ledger.create(file, {"run": "test"}, clock=clock) as written:
        for number in range(1, 6):
            written.append("round", {"round": number, "epsilon": number / 8})
    return file


def in_subprocess(program: str, *arguments: str) -> subprocess.Popen[str]:
    head = """
        import os, resource, signal, sys, time
        from pathlib import Path
        from securefed.errors import LedgerError
        from securefed.evidence.ledger import Ledger, read_ledger
        clock = lambda: "2026-01-31T12:00:00Z"
        path = Path(sys.argv[1])
    """
    source = textwrap.dedent(head) + textwrap.dedent(program)
    return subprocess.Popen(
        [sys.executable, "-c", source, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return output


# What is written


def test_records_come_back_as_they_were_appended(path):
    records = read_ledger(path)
    assert [record.seq for record in records] == list(range(6))
    assert [record.kind for record in records] == ["genesis"] + ["round"] * 5
    assert records[0].body == {"run": "test"}
    assert records[3].body == {"round": 3, "epsilon": 0.375}
    assert {record.time for record in records} == {clock()}
    with Ledger.open(path, clock=clock) as opened:
        assert opened.records == records
        added = opened.append("round", {"round": 6})
        assert opened.head == added
    assert read_ledger(path) == [*records, added]


def test_the_format_is_as_documented(path):
    lines = lines_of(path)
    previous = "0" * 64
    for seq, line in enumerate(lines):
        fields = json.loads(line)
        assert line == rfc8785.dumps(fields) + b"\n"
        assert list(fields) == ["body", "hash", "kind", "prev", "seq", "time"]
        assert (fields["seq"], fields["prev"]) == (seq, previous)
        assert line == rehashed(line)
        previous = fields["hash"]
    assert json.loads(head_file(path).read_bytes()) == {"seq": 5, "hash": previous}


def test_the_line_and_the_head_are_in_place_when_append_returns(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with Ledger.create(path, {}, clock=clock) as written:
        record = written.append("round", {"round": 1})
        assert read_ledger(path)[-1] == record
        assert json.loads(head_file(path).read_bytes()) == {"seq": 1, "hash": record.hash}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON, max_size=4))
@settings(max_examples=200)
def test_every_json_body_is_read_back_equal(body):
    line = chain.encode_record(1, clock(), "x", body, "0" * 64)
    assert line.count(b"\n") == 1
    assert chain.decode_record(line).body == body


@pytest.mark.parametrize("value", [1e16, 2.0**53, -1e20, 1e21, 5e-324, 1.7976931348623157e308])
def test_floats_that_canonical_json_writes_as_integers_verify(tmp_path, value):
    path = tmp_path / "ledger.jsonl"
    Ledger.create(path, {"value": value}, clock=clock).close()
    assert read_ledger(path)[0].body == {"value": value}


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"rounds": [{"n": 2**53}]}, r"body\.rounds\[0\]\.n: 9007199254740992 is beyond 2\^53 - 1"),
        ({"n": -(2**60)}, r"body\.n: -\d+ is beyond 2\^53 - 1"),
        ({"loss": float("nan")}, r"body\.loss: nan is not a finite number"),
        ({"loss": float("-inf")}, r"body\.loss: -inf is not a finite number"),
        ({"path": Path("x")}, r"body\.path: a PosixPath is not a JSON value"),
        ({"key": b"x"}, r"body\.key: a bytes is not a JSON value"),
        ({"n": {1: 2}}, r"body\.n: a key is a int, text is allowed"),
        ({"text": "\ud800"}, "has no canonical form"),
        ({"\ud800": 1}, "has no canonical form"),
        ({"long": "x" * 2**20}, r"record 6: \d+ bytes, at most 1048576 are allowed"),
        ({"deep": json.loads("[" * 70 + "]" * 70)}, "nested more than 64 deep"),
    ],
)
def test_a_body_that_json_cannot_hold_is_refused_by_its_place(path, body, complaint):
    before = path.read_bytes()
    with Ledger.open(path, clock=clock) as opened:
        with pytest.raises(LedgerError, match=complaint):
            opened.append("round", body)
        assert path.read_bytes() == before
        assert opened.append("round", {}).seq == 6


@pytest.mark.parametrize("kind", ["", "genesis", "recovered", "x" * 65])
def test_a_kind_of_the_ledgers_own_or_of_wrong_length_is_refused(path, kind):
    with Ledger.open(path, clock=clock) as opened, pytest.raises(LedgerError, match="kind: "):
        opened.append(kind, {})


def test_a_clock_that_is_not_rfc_3339_is_refused(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with pytest.raises(ConfigError, match="clock: 'now' given, RFC 3339"):
        Ledger.create(path, {}, clock=lambda: "now")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_ledger_or_head_is_never_overwritten(path):
    before = path.read_bytes()
    head_before = head_file(path).read_bytes()
    with pytest.raises(LedgerError, match="exists"):
        Ledger.create(path, {}, clock=clock)
    assert (path.read_bytes(), head_file(path).read_bytes()) == (before, head_before)
    head_file(path).unlink()
    with pytest.raises(LedgerError, match="File exists"):
        Ledger.create(path, {}, clock=clock)
    assert path.read_bytes() == before


def test_a_missing_ledger_is_refused(tmp_path):
    with pytest.raises(LedgerError, match="No such file"):
        Ledger.open(tmp_path / "ledger.jsonl", clock=clock)
    with pytest.raises(LedgerError, match="No such file"):
        read_ledger(tmp_path / "ledger.jsonl")


def test_a_closed_ledger_refuses_to_append(path):
    opened = Ledger.open(path, clock=clock)
    opened.close()
    with pytest.raises(LedgerError, match="is closed"):
        opened.append("round", {})


# One writer


def test_a_second_writer_is_refused_and_a_reader_is_not(path):
    with Ledger.open(path, clock=clock) as opened:
        program = """
            print(len(read_ledger(path)))
            try:
                Ledger.open(path, clock=clock)
            except LedgerError as error:
                print(error)
        """
        output = finished(in_subprocess(program, str(path)))
        assert output.splitlines() == [
            "6",
            f"{path}: another process is writing it; wait for its end, or stop it",
        ]
        with pytest.raises(LedgerError, match="another process is writing it"):
            Ledger.open(path, clock=clock)
        opened.append("round", {})
    Ledger.open(path, clock=clock).close()


def test_a_ledger_verifies_at_any_moment_while_it_is_written(path):
    program = """
        with Ledger.open(path, clock=clock) as opened:
            print("ready", flush=True)
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                opened.append("round", {"text": "x" * 3000})
    """
    process = in_subprocess(program, str(path))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    lengths = set()
    while process.poll() is None:
        lengths.add(len(read_ledger(path)))
    finished(process)
    assert len(lengths) > 5


class GrowingFile(io.RawIOBase):
    """What a reader meets when a line is written in two halves: its end lies between them."""

    def __init__(self, *reads: bytes) -> None:
        self._reads = list(reads)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        part = self._reads.pop(0) if self._reads else b""
        buffer[: len(part)] = part
        return len(part)


def test_the_second_half_of_a_line_written_meanwhile_is_not_a_line_of_its_own(path, monkeypatch):
    whole = path.read_bytes()
    last = lines_of(path)[-1]
    cut = len(whole) - len(last) // 2

    def growing(_):
        return io.BufferedReader(GrowingFile(whole[:cut], b"", whole[cut:]))

    monkeypatch.setattr(chain, "open_regular", growing)
    records, torn = chain.read_records(path)
    assert [record.seq for record in records] == [0, 1, 2, 3, 4]
    assert torn == last[: len(last) - len(last) // 2]


# Tampering


def swap(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[3], lines[2], *lines[4:]]


def edit(lines: list[bytes]) -> list[bytes]:
    return [*lines[:2], lines[2].replace(b"0.25", b"0.125"), *lines[3:]]


TAMPERINGS: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "edited value": (edit, "line 3: .*a value was edited"),
    "edited seq": (
        lambda x: [*x[:2], x[2].replace(b'"seq":2', b'"seq":9'), *x[3:]],
        "line 3: .*a value was edited",
    ),
    "edited and hashed again": (
        lambda x: [*x[:2], rehashed(x[2], body={"round": 2, "epsilon": 0}), *x[3:]],
        "line 4: prev is not the hash of line 3, which was rewritten",
    ),
    "last line edited and hashed again": (
        lambda x: [*x[:5], rehashed(x[5], body={})],
        r"line 6: ledger\.head\.json names another hash: wrong head, or line rewritten",
    ),
    "removed line": (
        lambda x: [*x[:2], *x[3:]],
        "line 3: a line was removed: seq 2 is expected, 3 follows",
    ),
    "removed first line": (lambda x: x[1:], "line 1: a line was removed: seq 0 is expected"),
    "swapped lines": (
        swap,
        "line 3: the order was changed: seq 3 stands here, seq 2 in line 4",
    ),
    "repeated line": (
        lambda x: [*x[:3], *x[2:]],
        "line 4: seq 2 stands here again, seq 3 is expected: a line was put in",
    ),
    "cut tail": (
        lambda x: x[:5],
        r"line 6: is missing: ledger\.head\.json is at seq 5, the tail was cut off",
    ),
    "cut last newline": (lambda x: [*x[:5], x[5][:-1]], "line 6: is missing.*tail was cut off"),
    "emptied": (lambda x: [], "line 1: is missing.*tail was cut off"),
    "last line made unreadable": (lambda x: [*x[:5], b"garbage\n"], "line 6: is missing"),
    "middle line made unreadable": (lambda x: [*x[:3], b"{\n", *x[4:]], "line 4: "),
    "blank line": (lambda x: [*x[:3], b"\n", *x[3:]], "line 4: "),
    "another encoding": (
        lambda x: [*x[:3], x[3].replace(b":", b": ", 1), *x[4:]],
        "line 4: is not in canonical form",
    ),
    "doubled key": (
        lambda x: [*x[:3], x[3].replace(b'{"body"', b'{"kind":"a","body"'), *x[4:]],
        "line 4: is not in canonical form",
    ),
    "field added": (
        lambda x: [*x[:3], rehashed(x[3], note="x"), *x[4:]],
        "line 4: is not a record: the fields must be body, hash, kind, prev, seq, time",
    ),
    "type changed": (
        lambda x: [*x[:3], rehashed(x[3], seq="3"), *x[4:]],
        "line 4: seq is not of type int",
    ),
    "not a number": (
        lambda x: [*x[:3], x[3].replace(b"0.375", b"NaN"), *x[4:]],
        "line 4: ",
    ),
    "number without end": (
        lambda x: [*x[:3], x[3].replace(b"0.375", b"1" * 5000), *x[4:]],
        "line 4: ",
    ),
    "nesting without end": (
        lambda x: [*x[:3], b"[" * 400_000 + b"\n", *x[4:]],
        "line 4: ",
    ),
    "line without end": (lambda x: [*x, b"x" * 2_000_000], "line 7: longer than 1048576 bytes"),
    "second genesis": (
        lambda x: [*x, rehashed(x[5], seq=6, kind="genesis", prev=json.loads(x[5])["hash"])],
        "line 7: kind 'genesis' cannot stand here",
    ),
    "two lines beyond the head": (
        lambda x: two_more(x),
        r"line 8: ledger\.head\.json is behind, at seq 5: wrong head, or a line was put in",
    ),
    "a torn line beyond an unnamed one": (
        lambda x: [*two_more(x)[:7], b'{"bo'],
        r"line 7: ledger\.head\.json is behind",
    ),
}


def two_more(lines: list[bytes]) -> list[bytes]:
    one = rehashed(lines[-1], seq=6, prev=json.loads(lines[-1])["hash"])
    two = rehashed(one, seq=7, prev=json.loads(one)["hash"])
    return [*lines, one, two]


@pytest.mark.parametrize("case", TAMPERINGS)
def test_tampering_is_refused_by_file_line_and_cause(path, case):
    change, complaint = TAMPERINGS[case]
    path.write_bytes(b"".join(change(lines_of(path))))
    damaged = path.read_bytes()
    with pytest.raises(LedgerTampered, match=complaint) as refused:
        read_ledger(path)
    assert str(path) in str(refused.value)
    with pytest.raises(LedgerTampered, match=complaint):
        Ledger.open(path, clock=clock)
    assert path.read_bytes() == damaged


@given(position=st.integers(0, 10**9), value=st.integers(0, 255))
@settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_no_changed_byte_goes_unnoticed(path, tmp_path, position, value):
    original = path.read_bytes()
    changed = bytearray(original)
    changed[position % len(changed)] = value
    copy = tmp_path / "copy" / "ledger.jsonl"
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(changed)
    head_file(copy).write_bytes(head_file(path).read_bytes())
    if changed == original:
        assert len(read_ledger(copy)) == 6
    else:
        with pytest.raises(LedgerTampered):
            read_ledger(copy)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "ledger.head.json: line 1: is not a head"),
        (b'{"seq":5}', "is not a head"),
        (b'{"hash":1,"seq":5}', "is not a head"),
        (b'{"hash":"00","seq":-1}', "is not a head"),
        (b'{"hash":"00","seq":5,"x":1}', "is not a head"),
        (b'{"hash":"00","seq":5}', r"line 6: ledger\.head\.json names another hash"),
        (b'{"hash":"00","seq":4}', r"line 5: ledger\.head\.json names another hash"),
        (b'{"hash":"00","seq":6}', r"line 7: is missing"),
        (None, r"line 6: ledger\.head\.json is behind, at seq -1"),
    ],
)
def test_a_wrong_head_is_refused(path, content, complaint):
    if content is None:
        head_file(path).unlink()
    else:
        head_file(path).write_bytes(content)
    for call in (lambda: read_ledger(path), lambda: Ledger.open(path, clock=clock)):
        with pytest.raises(LedgerTampered, match=complaint):
            call()


def test_a_head_two_behind_is_refused_and_one_behind_is_healed(path):
    heads = []
    with Ledger.open(path, clock=clock) as opened:
        for _ in range(2):
            heads.append(head_file(path).read_bytes())
            opened.append("round", {})
    latest = head_file(path).read_bytes()
    head_file(path).write_bytes(heads[0])
    with pytest.raises(LedgerTampered, match="is behind, at seq 5"):
        Ledger.open(path, clock=clock)
    head_file(path).write_bytes(heads[1])
    assert len(read_ledger(path)) == 8
    assert head_file(path).read_bytes() == heads[1]
    with Ledger.open(path, clock=clock) as opened:
        assert opened.head.seq == 7
        assert head_file(path).read_bytes() == latest


# What a kill leaves


def test_a_line_torn_at_any_byte_is_cut_off_and_noted(path):
    whole = lines_of(path)
    following = two_more(whole)[6]
    head = head_file(path).read_bytes()
    for cut in range(1, len(following), 7):
        torn = following[:cut]
        path.write_bytes(b"".join(whole) + torn)
        head_file(path).write_bytes(head)
        assert len(read_ledger(path)) == 6
        with Ledger.open(path, clock=clock) as opened:
            assert lines_of(path)[:6] == whole
            assert [record.seq for record in opened.records] == list(range(7))
            assert opened.head.kind == "recovered"
            assert opened.head.body == {
                "cut_bytes": cut,
                "cut_sha256": hashlib.sha256(torn).hexdigest(),
            }
            opened.append("round", {})
        assert len(read_ledger(path)) == 8


@pytest.mark.parametrize("torn", [b"\0" * 50, b"{\n", b'{"body":{"x"\n', b"\xff\xfe\n"])
def test_an_unreadable_last_line_is_cut_off_and_noted(path, torn):
    with path.open("ab") as file:
        file.write(torn)
    with Ledger.open(path, clock=clock) as opened:
        assert (opened.head.seq, opened.head.kind) == (6, "recovered")
    assert len(read_ledger(path)) == 7


def test_a_ledger_killed_before_its_first_head_is_healed(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger.create(path, {}, clock=clock).close()
    head_file(path).unlink()
    assert len(read_ledger(path)) == 1
    with Ledger.open(path, clock=clock) as opened:
        opened.append("round", {})
    assert len(read_ledger(path)) == 2


@pytest.mark.parametrize("content", [b"", b'{"body":{'])
def test_a_ledger_without_a_whole_record_says_so(tmp_path, content):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="never finished, holds no record"):
        Ledger.open(path, clock=clock)
    with pytest.raises(LedgerError, match="holds no record"):
        read_ledger(path)


@pytest.mark.parametrize("seed", range(6))
def test_after_a_kill_every_acknowledged_record_is_there(tmp_path, seed):
    chance = random.Random(seed)
    path = tmp_path / "ledger.jsonl"
    program = """
        if path.exists():
            opened = Ledger.open(path, clock=clock)
        else:
            opened = Ledger.create(path, {}, clock=clock)
        number = len(opened.records)
        while True:
            record = opened.append("round", {"text": "x" * (number * 977 % 20_000)})
            os.write(1, f"{record.seq} {record.hash}\\n".encode())
            number += 1
    """
    acknowledged: dict[int, str] = {}
    for kills in (1, 2):
        process = in_subprocess(program, str(path))
        assert process.stdout is not None
        heard = [process.stdout.readline()]
        time.sleep(chance.uniform(0.0, 0.12))
        process.send_signal(signal.SIGKILL)
        # communicate() would miss what readline() has already buffered.
        heard += process.stdout.read().splitlines(keepends=True)
        process.wait(timeout=60)
        # The last acknowledgement may itself be torn.
        for line in heard:
            if line.endswith("\n"):
                seq, digest = line.split()
                acknowledged[int(seq)] = digest
        with Ledger.open(path, clock=clock) as opened:
            hashes = [record.hash for record in opened.records]
            # The genesis, and for each kill one unheard and one that notes the recovery.
            assert len(hashes) <= len(acknowledged) + 1 + 2 * kills
    assert len(acknowledged) >= 2
    assert {seq: hashes[seq] for seq in acknowledged} == acknowledged


# A full disk


def test_a_full_disk_leaves_the_ledger_as_it_was_and_usable(path):
    """RLIMIT_FSIZE is enforced by the kernel: the write is cut short, then fails."""
    program = """
        opened = Ledger.open(path, clock=clock)
        before = path.read_bytes()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        for room in (0, 1, 100, 4000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, hard))
            try:
                opened.append("round", {"text": "x" * 5000})
            except LedgerError as error:
                print(error)
            assert path.read_bytes() == before
            assert opened.head.seq == 5 and len(opened.records) == 6
            assert len(read_ledger(path)) == 6
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert opened.append("round", {"text": "x" * 5000}).seq == 6
    """
    output = finished(in_subprocess(program, str(path)))
    message = "record 6 could not be written (File too large) and is not in the ledger"
    assert output.splitlines() == [f"{path}: {message}"] * 4
    assert len(read_ledger(path)) == 7


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_head_that_finds_the_disk_full_takes_its_line_back(path):
    before, head = path.read_bytes(), head_file(path).read_bytes()
    with Ledger.open(path, clock=clock) as opened:
        path.with_name("ledger.head.json.tmp").symlink_to("/dev/full")
        with pytest.raises(LedgerError, match="No space left on device"):
            opened.append("round", {})
        assert (path.read_bytes(), head_file(path).read_bytes()) == (before, head)
        assert opened.append("round", {}).seq == 6
    assert len(read_ledger(path)) == 7
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "ledger.head.json",
        "ledger.jsonl",
    ]


def test_a_failed_create_leaves_nothing_behind(tmp_path):
    (tmp_path / "ledger.head.json.tmp").mkdir()
    with pytest.raises(LedgerError, match="record 0 could not be written"):
        Ledger.create(tmp_path / "ledger.jsonl", {}, clock=clock)
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.head.json.tmp"]


def test_an_interrupted_append_is_taken_back(path):
    """Opening a FIFO without a reader blocks, so the interrupt arrives between line and head."""
    with Ledger.open(path, clock=clock) as opened:
        fifo = path.with_name("ledger.head.json.tmp")
        os.mkfifo(fifo)
        previous = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            with pytest.raises(KeyboardInterrupt):
                opened.append("round", {})
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        fifo.unlink()
        assert len(read_ledger(path)) == 6
        assert opened.append("round", {}).seq == 6
    assert len(read_ledger(path)) == 7


def test_interrupts_at_any_moment_leave_file_and_memory_agreed(path):
    chance = random.Random(0)
    interrupted = 0
    previous = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Ledger.open(path, clock=clock) as opened:
            quickest = 1.0
            for _ in range(5):
                begun = time.perf_counter()
                opened.append("round", {})
                quickest = min(quickest, time.perf_counter() - begun)
            for number in range(60):
                try:
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-4, 1.2 * quickest))
                    opened.append("round", {"number": number})
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted += 1
                assert read_ledger(path) == opened.records
                assert json.loads(head_file(path).read_bytes())["seq"] == opened.head.seq
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interrupted > 10


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt
