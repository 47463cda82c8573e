"""A user's folder: read as documented, refused with file and line, never shown."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.config import DataSection
from securefed.errors import DataError
from securefed.training.folder import Document, read_folder

SECRET = "patient 4711 has an appointment"


def section(**changes: object) -> DataSection:
    return DataSection.model_validate({"source": "unused", **changes})


def read(folder: Path, labels: int | None = None, **changes: object) -> dict[str, list[Document]]:
    return read_folder(folder, section=section(**changes), labels=labels)


def refused(folder: Path, labels: int | None = None, **changes: object) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, labels, **changes)
    message = str(caught.value)
    assert SECRET not in message
    assert "4711" not in message
    assert caught.value.__cause__ is None  # nor may a chained error show it
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


def test_a_file_or_a_sub_folder_is_a_client(tmp_path: Path) -> None:
    (tmp_path / "beta.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "label": 9}\n')
    (tmp_path / "alpha.csv").write_text('text,other\n"with, comma\nand line",x\nlast,y\n')
    (tmp_path / "gamma.txt").write_text("first paragraph\n\nsecond paragraph\n")
    (tmp_path / "delta").mkdir()
    (tmp_path / "delta" / "b.txt").write_text("b")
    (tmp_path / "delta" / "a.jsonl").write_text('{"text": "a"}')
    (tmp_path / ".hidden").write_bytes(b"\xff")
    found = read(tmp_path)
    assert list(found) == ["alpha", "beta", "delta", "gamma"]
    assert [(document.text, document.key) for document in found["alpha"]] == [
        ("with, comma\nand line", "alpha.csv:3"),
        ("last", "alpha.csv:4"),
    ]
    assert [(document.text, document.key) for document in found["beta"]] == [
        ("one", "beta.jsonl:1"),
        ("two", "beta.jsonl:3"),
    ]
    assert [document.key for document in found["delta"]] == ["delta/a.jsonl:1", "delta/b.txt"]
    assert [document.text for document in found["gamma"]] == [
        "first paragraph\n\nsecond paragraph\n"
    ]
    for documents in found.values():
        assert all(d.label is None and d.held_out is None for d in documents)


def test_fields_and_labels_are_taken_by_the_names_given(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "one", "class": 2}')
    (tmp_path / "b.csv").write_text("class,body\n0,two\n")
    found = read(tmp_path, 3, text_field="body", label_field="class")
    assert [(d.text, d.label) for d in found["a"] + found["b"]] == [("one", 2), ("two", 0)]


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("\ufefftext\nüber\n".encode())
    assert [document.text for document in read(tmp_path)["a"]] == ["über"]


def test_a_given_format_holds_for_every_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# text")
    assert "suffix '.md'; allowed: .jsonl, .csv, .txt" in refused(tmp_path)
    assert read(tmp_path, format="text")["a"][0].text == "# text"


def test_a_line_separator_within_a_json_string_is_not_a_new_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one\u2028two"}\n', encoding="utf-8")
    assert [document.text for document in read(tmp_path)["a"]] == ["one\u2028two"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refused(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    assert "no folder" in refused(tmp_path / "file")


def test_a_folder_without_clients_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".DS_Store").write_text("x")
    assert "no files or folders of clients" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"), [("a.txt", " \n"), ("a.jsonl", "\n\n"), ("a.csv", "text\n"), ("a.csv", "")]
)
def test_an_empty_client_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert "client a has no documents" in refused(tmp_path)


def test_an_empty_sub_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert "client a has no documents" in refused(tmp_path)


def test_a_client_that_comes_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}')
    assert "client a comes twice" in refused(tmp_path)


@pytest.mark.parametrize("name", ["with space.txt", "-dash.txt", "é.txt", "a" * 65 + ".txt"])
def test_a_name_that_is_no_client_id_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    assert "a client's name is" in refused(tmp_path)


def test_a_folder_within_a_client_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a" / "deeper").mkdir(parents=True)
    assert "nothing but files" in refused(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "' + SECRET,
        f'["{SECRET}"]',
        f'"{SECRET}"',
        f'{{"text": "{SECRET}"}} {{"text": "two"}}',
        "[" * 100_000,
    ],
    ids=["cut short", "a list", "a string", "two records", "too deep"],
)
def test_a_malformed_line_is_named_by_file_and_number(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    assert f"{tmp_path / 'a.jsonl'}:2: is not one JSON object" in refused(tmp_path)


@pytest.mark.parametrize(
    "record",
    [{"body": SECRET}, {"text": None, "body": SECRET}, {"text": 4711}, {"text": [SECRET]},
     {"text": "  "}, {"text": SECRET + "\ud800"}],
    ids=["missing", "null", "number", "list", "blank", "half a surrogate pair"],
)  # fmt: skip
def test_a_record_without_usable_text_is_refused(tmp_path: Path, record: dict[str, object]) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    message = refused(tmp_path)
    assert f"{tmp_path / 'a.jsonl'}:1" in message
    assert "'text'" in message


@pytest.mark.parametrize("label", [-1, 3, 4711, True, 1.0, "spam", "-1", "", None, [1]])
def test_a_label_out_of_range_is_refused(tmp_path: Path, label: object) -> None:
    record = {"text": SECRET, "label": label}
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": "x", "label": 2}) + "\n" + json.dumps(record)
    )
    assert f"{tmp_path / 'a.jsonl'}:2: " in refused(tmp_path, 3)


def test_a_label_is_asked_for_only_where_the_task_has_labels(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\nx\n")
    assert read(tmp_path)["a"][0].label is None
    assert "has no field 'label'" in refused(tmp_path, 2)


def test_a_missing_field_of_json_is_answered_with_the_fields_that_are_there(tmp_path: Path) -> None:
    record = {"body": SECRET, "class": 1, SECRET: 2}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    said = refused(tmp_path)
    assert "a.jsonl:1: has no field 'text'; set data.text_field" in said
    assert said.endswith("there are 'body', 'class'")
    (tmp_path / "b.jsonl").write_text(
        json.dumps({"talk": [{"role": "user", "content": SECRET}]}) + "\n"
    )
    (tmp_path / "a.jsonl").rename(tmp_path / "c.jsonl")
    assert "there are 'talk' (a conversation: data.messages_field)" in refused(tmp_path)
    (tmp_path / "b.jsonl").unlink()
    said = refused(tmp_path, 2, text_field="body")
    assert "has no field 'label'; set data.label_field" in said


def test_text_files_have_no_labels(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(SECRET)
    assert "has no labels" in refused(tmp_path, 2)


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_a_file_that_is_not_utf8_is_refused_by_its_place(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(SECRET.encode() + b"\xe9")
    assert f"is not UTF-8 at byte {len(SECRET)}" in refused(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (f"text,other\nfine,x\n{SECRET}\n", ":3: has 1 columns, the first line has 2"),
        (f"text\n{SECRET},more\n", ":2: has 2 columns"),
        (f'text\n"{SECRET}', "is not CSV"),
        (f"{SECRET},x\nfirst,row\n", ":2: has no field 'text': the first line, which must name"),
        ("text\n" + "x" * 200_000, "is not CSV"),
    ],
    ids=["too few", "too many", "open quote", "no header", "over the field limit"],
)
def test_a_malformed_row_is_named_by_file_and_number(
    tmp_path: Path, content: str, says: str
) -> None:
    (tmp_path / "a.csv").write_text(content)
    assert says in refused(tmp_path)


@pytest.mark.parametrize("where", ["a file", "a folder", "in a folder", "a loop"])
def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, where: str) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "a.txt").write_text(SECRET)
    if where == "a file":
        (inside / "a.txt").symlink_to(outside / "a.txt")
    elif where == "a folder":
        (inside / "a").symlink_to(outside)
    elif where == "in a folder":
        (inside / "a").mkdir()
        (inside / "a" / "a.txt").symlink_to(Path("..") / ".." / "outside" / "a.txt")
    else:
        (inside / "a.txt").symlink_to(inside / "b.txt")
        (inside / "b.txt").symlink_to(inside / "a.txt")
        assert "a client is a file" in refused(inside)
        return
    assert "leads out of" in refused(inside)


def test_the_folder_itself_may_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert list(read(tmp_path / "link")) == ["a"]


def test_a_pipe_is_refused_and_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    assert "a client is a file" in refused(tmp_path)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip),
            st.integers(0, 6),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_jsonl_gives_back_every_record_in_order(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("clients")
    lines = [json.dumps({"text": t, "label": n}, ensure_ascii=n % 2 == 0) for t, n in records]
    (folder / "a.jsonl").write_bytes("\n".join(lines).encode())
    documents = read(folder, 7)["a"]
    assert [(d.text, d.label) for d in documents] == records
    assert len({d.key for d in documents}) == len(records)


# Users


def test_a_record_s_user_is_its_text_or_integer_without_white_space_around(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "one", "patient": 7}\n{"text": "two", "patient": " 7"}\n'
        '{"text": "three", "patient": "q-8"}\n'
    )
    (tmp_path / "b.csv").write_text("patient,text\n7,one\n 7 ,two\n")
    found = read(tmp_path, user_field="patient")
    assert [d.user for d in found["a"]] == ["7", "7", "q-8"]
    assert [d.owner for d in found["b"]] == ["7", "7"]
    assert [d.user for d in read(tmp_path)["a"]] == [None] * 3
    assert [d.owner for d in read(tmp_path)["a"]] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3"]
    assert "q-8" not in repr(found["a"][2])


@pytest.mark.parametrize(
    "value", ["null", '""', '" \\t"', "true", "4711.5", '["4711"]', '{"4711": 1}', '"\\ud800 4711"']
)
def test_a_user_that_is_none_is_refused_with_its_line_and_never_shown(
    tmp_path: Path, value: str
) -> None:
    (tmp_path / "a.jsonl").write_text(
        f'{{"text": "x", "patient": 1}}\n\n{{"text": "{SECRET}", "patient": {value}}}\n'
    )
    message = refused(tmp_path, user_field="patient")
    assert "a.jsonl:3: " in message
    assert "'patient'" in message


def test_a_record_without_the_user_s_field_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text,other\n{SECRET},1\n")
    assert "a.csv:2: has no field 'patient'" in refused(tmp_path, user_field="patient")


def test_a_blank_user_in_a_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text,patient\nx,1\n{SECRET}, \n")
    assert "a.csv:3: field 'patient' must be" in refused(tmp_path, user_field="patient")


def test_a_text_file_has_no_users(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(SECRET)
    assert "a text file has no data.user_field" in refused(tmp_path, user_field="patient")


def test_keys_that_look_alike_are_one_user(tmp_path: Path) -> None:
    """One person under two keys would have less protection than is stated."""
    keys = ["Jos\u00e9", "Jose\u0301", "jos\u00e9", "Jos\u00e9\u200b", "\ufeffJOS\u00c9 "]
    lines = [json.dumps({"text": f"text {i}", "patient": key}) for i, key in enumerate(keys)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert len({document.user for document in read(tmp_path, user_field="patient")["a"]}) == 1


def test_a_field_or_column_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "patient": "ann", "patient": "bob"}')
    assert "a.jsonl:1: is not one JSON object, or names a field twice" in refused(
        tmp_path, user_field="patient"
    )
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "a.csv").write_text("patient,text,patient\nann,x,bob\n")
    assert "a.csv:1: names a column twice" in refused(tmp_path, user_field="patient")
