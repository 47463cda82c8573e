"""Both languages say the same things, with the same figures at their places."""

import re
from pathlib import Path

import pytest

import securefed.reports
from securefed.errors import ConfigError
from securefed.reports.catalogue import catalogue, filled, percent, places, power, significant, size
from securefed.reports.wording import Wording, table

SOURCES = Path(securefed.reports.__file__).parent


def test_both_languages_have_the_same_keys_and_places():
    english, japanese = table("en"), table("ja")
    assert english.keys() == japanese.keys()
    for key in english:
        assert places(english[key]) == places(japanese[key]), key
        assert english[key].strip(), key
        assert japanese[key].strip(), key


def test_japanese_is_japanese():
    letters = re.compile(r"[\u0370-\u03ff\u3040-\u30ff\u4e00-\u9fff]")
    words = {
        key: filled(text, lambda name, kind: "", str).strip() for key, text in table("ja").items()
    }
    unlike = {key: text for key, text in words.items() if text and not letters.search(text)}
    names = {key: text for key, text in unlike.items() if table("en")[key] == text}
    marks = {key: text for key, text in unlike.items() if not re.search(r"[A-Za-z]", text)}
    assert unlike.keys() - names.keys() - marks.keys() == set()


def test_every_key_that_the_code_names_is_there():
    named = re.compile(r'(?:key=|word\(|line_of\(|fact\(|_fact\(|_item\("\w+", )\s*"([a-z_.]+)"')
    prefixes = {
        "identity.py": "fact.",
        "aggregation.py": "parameter.",
        "system.py": "system.",
    }
    missing = []
    for path in SOURCES.rglob("*.py"):
        for key in named.findall(path.read_text(encoding="utf-8")):
            known = {key, prefixes.get(path.name, "") + key, f"summary.{key}", f"column.{key}"}
            if not known & table("en").keys():
                missing.append((path.name, key))
    assert missing == []


def test_an_unknown_language_is_named():
    with pytest.raises(ConfigError, match="language = 'fr': must be one of"):
        Wording("fr")
    with pytest.raises(ConfigError, match=r"language = '\.\./en'"):
        catalogue(SOURCES / "languages", "../en")


def test_places_are_filled_and_the_words_between_are_passed_on():
    text = filled("a {x} b {y:count}", lambda name, kind: f"<{name}:{kind}>", str.upper)
    assert text == "A <x:> B <y:count>"


def test_figures_are_written_as_people_read_them():
    assert [significant(v) for v in (0.000012345, 1234.5, 0.5)] == ["0.0000123", "1,234", "0.5"]
    assert [power(v) for v in (1e-5, 2.5e-7, 0.25)] == ["10⁻⁵", "2.5×10⁻⁷", "0.25"]
    assert size(1_234_567) == "1.23\N{NO-BREAK SPACE}MB"
    assert percent(0.125) == "12.5\N{NO-BREAK SPACE}%"
    word = Wording("en")
    assert word.number(2.891, "epsilon") == "2.90"
    assert word.number("unprotected", "epsilon") == "UNPROTECTED"
    assert word.number(None, "figure") == "not measured"
