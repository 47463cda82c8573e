"""YAML that is read in one way only, and knows its lines."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from securefed.errors import ConfigError
from securefed.threats.files import FILE_LIMIT
from securefed.threats.yaml_files import read_yaml


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: off\n", 2, "'off' is read differently"),
        ("a: Yes\n", 1, "read differently"),
        ("a: 010\n", 1, "read differently"),
        ("a: 1_000\n", 1, "read differently"),
        ("a: 12:30\n", 1, "read differently"),
        ("a: 2026-01-31\n", 1, "read differently"),
        ("a: 1e5\n", 1, "read differently"),
        ("a: .5\n", 1, "read differently"),
        ("a: 0o17\n", 1, "read differently"),
        ("a: .inf\n", 1, "read differently"),
        ("a: 1\nb: 2\na: 3\n", 3, "'a' stands twice"),
        ("a: 1\nb: {c: 1, c: 2}\n", 2, "'c' stands twice"),
        ("a: &x 1\n", 1, "anchors"),
        ("a: 1\nb: *a\n", 2, "anchors"),
        ("a: !!python/object:os.system {}\n", 1, "tag"),
        ("a: !!str 1\n", 1, "tag"),
        ("<<: {a: 1}\n", 1, "read differently"),
        ("1: a\n", 1, "key must be text"),
        ("[a]: b\n", 1, "key must be text"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("a:\n  - [1\n", 3, "is not YAML"),
        ("[" * 40 + "]" * 40, 1, "nested deeper than 32"),
        ("", 1, "is empty"),
        ("a: \x01", 1, "is not YAML"),
    ],
)
def test_what_readers_would_take_differently_is_refused_by_file_and_line(text, line, words):
    with pytest.raises(ConfigError) as refused:
        read_yaml(text.encode(), "some.yaml")
    assert str(refused.value).startswith(f"some.yaml:{line}: ")
    assert words in str(refused.value)


def test_bytes_that_are_no_text_and_files_that_are_too_long_are_refused():
    with pytest.raises(ConfigError, match=r"some.yaml:2: is not UTF-8 at byte 6"):
        read_yaml(b"a: 1\nb\xff", "some.yaml")
    with pytest.raises(ConfigError, match="longer than"):
        read_yaml(b"#" * (FILE_LIMIT + 1), "some.yaml")


def test_quoted_words_stay_text_and_numbers_are_numbers():
    text = 'a: "off"\nb: -1.0e-5\nc:\nd: true\ne: 8\nf: [x, 0.25]\ng: >-\n  off\n  on\n'
    expected = {
        "a": "off",
        "b": -1e-5,
        "c": None,
        "d": True,
        "e": 8,
        "f": ["x", 0.25],
        "g": "off on",
    }
    assert read_yaml(text.encode(), "some.yaml").value == expected


def test_each_place_has_its_line_and_one_that_is_not_there_that_of_its_neighbour():
    document = read_yaml(b"a:\n  - b: 1\n    c: 2\n  - 3\n", "some.yaml")
    assert document.where(("a", 0, "c")) == "some.yaml:3"
    assert document.line(("a", 1)) == 4
    assert document.line(("a", 0, "some-kind", "c")) == 3
    assert document.line(("a", 0, "missing")) == 2
    assert document.line(()) == 1


leaves = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(min_size=1, max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None)
@given(trees)
def test_what_is_read_is_what_another_reader_reads(value):
    text = yaml.safe_dump(value, allow_unicode=True).encode()
    try:
        found = read_yaml(text, "some.yaml").value
    except ConfigError:
        return  # refused is never misread
    assert found == yaml.safe_load(text)
