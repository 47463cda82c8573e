"""Corpora: natural clients, nothing double, nothing guessed; figures only, never a mail's text."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from securefed.config import DataSection
from securefed.errors import ConfigError, DataError
from securefed.training.assets import NpmMissing
from securefed.training.corpora import (
    BUILTIN_CORPORA,
    Corpus,
    docstring_clients,
    load_corpus,
    mail_clients,
    state_of_the_union_clients,
)

HAS_NPM = shutil.which("npm") is not None


@pytest.fixture(scope="session")
def asset_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests of a session, so that nothing is fetched twice."""
    own = os.environ.get("SECUREFED_CACHE")
    return Path(own) if own else tmp_path_factory.getbasetemp() / "asset-cache"


@pytest.fixture(scope="session")
def builtin(asset_cache: Path) -> Callable[[str], Corpus | None]:
    """Load a built-in corpus once a session; None where npm is missing, which is checked here."""
    loaded: dict[str, Corpus | None] = {}

    def load(name: str) -> Corpus | None:
        if name not in loaded:
            cached = (asset_cache / "assets" / f"{name}-0.2.3").exists()
            if name == "stdlib-docstrings":  # it needs neither a registry nor a cache
                none = asset_cache / "none"
                loaded[name] = load_corpus(f"builtin:{name}", cache=none, offline=True)
                assert not none.exists()
            elif HAS_NPM or cached:
                loaded[name] = load_corpus(f"builtin:{name}", cache=asset_cache)
            else:
                with pytest.raises(NpmMissing):
                    load_corpus(f"builtin:{name}", cache=asset_cache)
                loaded[name] = None
        return loaded[name]

    return load


def test_neither_fetching_nor_reading_needs_torch() -> None:
    program = (
        "import sys; sys.modules.update(torch=None, transformers=None);"
        "import securefed.training.corpora, securefed.training.data"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


# --- the State of the Union ------------------------------------------------------------------


def write_addresses(folder: Path, *stems: str) -> Path:
    for stem in stems:
        (folder / f"{stem}.txt").write_text(f" text of {stem} \n")
    return folder


def test_a_president_is_one_client_whatever_the_terms(tmp_path: Path) -> None:
    clients, notes = state_of_the_union_clients(
        write_addresses(
            tmp_path,
            "1885_grover_cleveland_d",
            "1888_grover_cleveland_d",
            "1889_benjamin_harrison_r",
            "1890_benjamin_harrison_r",
            "1896_grover_cleveland_d",
            "1900_william_mc_kinley_r",
            "1899_william_mc_kinley_r",
            "2021_joseph_r_biden_d",
        )
    )
    assert list(clients) == ["benjamin-harrison", "grover-cleveland", "william-mckinley"]
    assert [(d.key, d.held_out) for d in clients["grover-cleveland"]] == [
        ("1885_grover_cleveland_d", False),
        ("1888_grover_cleveland_d", False),
        ("1896_grover_cleveland_d", True),
    ]
    assert [d.key[:4] for d in clients["william-mckinley"]] == ["1899", "1900"]
    assert clients["grover-cleveland"][0].text == "text of 1885_grover_cleveland_d"
    assert "1 presidents with a single address" in notes[0]


def test_two_presidents_of_one_year_and_name_are_kept_apart(tmp_path: Path) -> None:
    clients, _ = state_of_the_union_clients(
        write_addresses(
            tmp_path,
            "1800_john_adams_f",
            "1825_john_quincy_adams_dr",
            "1826_john_quincy_adams_dr",
            "1799_john_adams_f",
            "1953_harry_s_truman_d",
            "1952_harry_s_truman_d",
            "1953_dwight_d_eisenhower_r",
            "1954_dwight_d_eisenhower_r",
        )
    )
    assert {client: [d.key[:4] for d in texts] for client, texts in clients.items()} == {
        "dwight-d-eisenhower": ["1953", "1954"],
        "harry-s-truman": ["1952", "1953"],
        "john-adams": ["1799", "1800"],
        "john-quincy-adams": ["1825", "1826"],
    }


def test_a_file_of_another_name_is_refused(tmp_path: Path) -> None:
    write_addresses(tmp_path, "1800_john_adams_f", "readme")
    with pytest.raises(DataError, match=r"readme\.txt"):
        state_of_the_union_clients(tmp_path)


def test_the_addresses_have_41_clients_each_with_its_last_one_held_out(
    builtin: Callable[[str], Corpus | None],
) -> None:
    corpus = builtin("state-of-the-union")
    if corpus is None:
        return  # that npm is missing was checked; the fallback has tests of its own
    assert len(corpus.clients) == 41
    assert list(corpus.clients) == sorted(corpus.clients)
    assert sum(map(len, corpus.clients.values())) == 233 - 2
    keys = [document.key for texts in corpus.clients.values() for document in texts]
    assert len(set(keys)) == len(keys)
    for texts in corpus.clients.values():
        years = [int(document.key[:4]) for document in texts]
        assert years == sorted(set(years))
        assert [document.held_out for document in texts] == [False] * (len(texts) - 1) + [True]
        assert len({document.key[5:].rsplit("_", 1)[0] for document in texts}) == 1
    namesakes = ("adams", "johnson", "harrison", "bush", "roosevelt")
    found = {name: sum(c.endswith(name) for c in corpus.clients) for name in namesakes}
    assert found == {"adams": 2, "johnson": 2, "harrison": 1, "bush": 2, "roosevelt": 2}
    assert len(corpus.clients["grover-cleveland"]) == 8
    words = sum(len(d.text.split()) for texts in corpus.clients.values() for d in texts)
    assert 1_700_000 < words < 1_794_884
    assert corpus.default_clients == (
        "theodore-roosevelt",
        "grover-cleveland",
        "andrew-jackson",
        "ulysses-s-grant",
        "harry-s-truman",
        "william-j-clinton",
        "james-polk",
        "dwight-d-eisenhower",
    )
    assert not corpus.fallback
    assert corpus.licence == "PDDL-1.0 AND CC0-1.0"


def test_without_npm_loading_raises_and_the_fallback_needs_no_npm(
    builtin: Callable[[str], Corpus | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NpmMissing):
        load_corpus("builtin:state-of-the-union", cache=tmp_path / "cache")
    fallback = builtin("stdlib-docstrings")
    assert fallback is not None
    assert fallback.fallback


# --- the docstrings --------------------------------------------------------------------------


def write_library(folder: Path, packages: int, words: int = 700) -> Path:
    for number in range(packages):
        package = folder / f"package{number}"
        package.mkdir(parents=True)
        for module in ("__init__", "alpha", "beta"):
            (package / f"{module}.py").write_text(
                f'"""Module {module}. {"word " * words}"""\n'
                'raise RuntimeError("imported")\n'
                'class C:\n    """Class text."""\n'
                '    async def f(self):\n        """Function text."""\n'
                '        "not a docstring"\n'
            )
    return folder


def test_docstrings_are_read_without_importing_anything(tmp_path: Path) -> None:
    library = write_library(tmp_path, 8)
    (library / "package0" / "broken.py").write_text("def (:\n")
    (library / "package0" / "nul.py").write_bytes(b'"""text"""\x00')
    (library / "package0" / "tests").mkdir()
    (library / "package0" / "tests" / "test_a.py").write_text('"""Test text."""')
    (library / "test").mkdir()
    (library / "test" / "__init__.py").write_text(f'"""{"word " * 9000}"""')
    (library / "alone.py").write_text(f'"""{"word " * 9000}"""')
    clients = docstring_clients(library)
    assert list(clients) == [f"package{number}" for number in range(8)]
    documents = clients["package0"]
    assert [document.key for document in documents] == [
        "package0.__init__",
        "package0.alpha",
        "package0.beta",
    ]
    assert [document.held_out for document in documents] == [False, False, True]
    paragraphs = documents[1].text.split("\n\n")
    assert paragraphs[0].startswith("Module alpha. word")
    assert paragraphs[1:] == ["Class text.", "Function text."]


def test_a_package_with_few_words_is_no_client_and_eight_are_needed(tmp_path: Path) -> None:
    write_library(tmp_path, 8)
    write_library(tmp_path / "small", 1, words=100)
    (tmp_path / "small" / "package0").rename(tmp_path / "package8")
    assert "package8" not in docstring_clients(tmp_path)
    shutil.rmtree(tmp_path / "package7")
    with pytest.raises(DataError, match="has 7 packages"):
        docstring_clients(tmp_path)


def test_this_python_gives_enough_clients_of_docstrings(
    builtin: Callable[[str], Corpus | None],
) -> None:
    corpus = builtin("stdlib-docstrings")
    assert corpus is not None
    assert corpus.fallback
    assert "fallback" in corpus.notes[0]
    assert len(corpus.clients) >= 8
    assert len(corpus.default_clients) == 8
    for documents in corpus.clients.values():
        words = [len(document.text.split()) for document in documents]
        held = [bool(document.held_out) for document in documents]
        assert held == sorted(held)  # the last modules
        held_words = sum(count for count, flag in zip(words, held, strict=True) if flag)
        first = held.index(True)
        assert 0 < first
        assert held_words * 10 >= sum(words) or first == 1
        assert (held_words - words[first]) * 10 < sum(words)
    assert str(Path(sysconfig.get_path("stdlib"))) not in str(corpus.notes)


# --- the mails -------------------------------------------------------------------------------


def write_mails(folder: Path) -> Path:
    """Two senders of twelve mails, one of nine, seven spams, and some that must go."""
    mails: dict[str, bytes] = {}
    for sender, count in {"Ann <ann@a.example>": 12, "bob@b.example": 12, "c@c.example": 9}.items():
        for number in range(count):
            mails[f"easy-ham-1/{sender[:3].strip()}{number:02}"] = (
                f"From: {sender.upper() if number % 2 else sender}\n"
                f"Subject: =?utf-8?q?caf=C3=A9?= {number}\nX-Secret: header\n"
                f"Received: from host\n\nbody {number} of {sender[:3]}\n"
            ).encode()
    for number in range(7):
        mails[f"spam-2/{number:02}"] = (
            f"From: s{number}@s.example\nSubject: s{number}\n\nbuy {number}\n".encode()
        )
    mails["easy-ham-2/duplicate"] = b"From: ann@a.example\nSubject: other\n\n body  0\tof Ann\r\n"
    mails["spam-2/duplicate"] = b"From: x@x.example\n\nbuy 3\n\n"
    mails["easy-ham-2/empty"] = b"From: ann@a.example\nSubject: nothing\n\n \n"
    for path, content in mails.items():
        target = folder / f"{path}.txt"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
    return folder


def test_senders_are_clients_and_spam_is_dealt_out_evenly(tmp_path: Path) -> None:
    clients, notes = mail_clients(write_mails(tmp_path))
    assert len(clients) == 2
    for client, documents in clients.items():
        assert "example" not in client
        assert [d.label for d in documents].count(0) == 12
        assert all(d.held_out is None for d in documents)
    assert sorted(sum(d.label == 1 for d in mails) for mails in clients.values()) == [3, 4]
    assert notes[0].startswith("2 mails with the body of another and 1 without a body")
    assert "1 smaller senders are left out" in notes[1]
    assert "no natural client" in notes[2]


def test_smaller_senders_are_clients_too_where_that_is_asked_for(tmp_path: Path) -> None:
    clients, notes = mail_clients(write_mails(tmp_path), least_wanted=9)
    wanted = [sum(d.label == 0 for d in documents) for documents in clients.values()]
    assert sorted(wanted) == [9, 12, 12]
    assert "3 senders of at least 9 wanted mails" in notes[1]
    assert "0 smaller senders are left out" in notes[1]


def test_of_the_headers_only_the_subject_is_kept(tmp_path: Path) -> None:
    clients, _ = mail_clients(write_mails(tmp_path))
    texts = [document.text for mails in clients.values() for document in mails]
    assert "café 0\nbody 0 of Ann" in texts
    assert not any(
        word in text for text in texts for word in ("X-Secret", "header", "example", "Received")
    )


def test_which_mails_spam_goes_to_does_not_depend_on_file_names(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    first = write_mails(tmp_path / "first")
    shutil.copytree(first, tmp_path / "second")
    # The second mail becomes the last: every later one moves to an odd distance from its place.
    moved = tmp_path / "second" / "spam-2" / "01.txt"
    moved.rename(moved.with_name("99.txt"))

    def spam(folder: Path) -> dict[str, set[str]]:
        clients, _ = mail_clients(folder)
        return {c: {d.text for d in mails if d.label == 1} for c, mails in clients.items()}

    assert spam(first) == spam(tmp_path / "second")


HARD_MAILS = {
    "unknown charset": (
        b"Content-Type: text/plain; charset=x-made-up\n\nplain w\xf6rds here\n",
        "plain wörds here",
    ),
    "charset with bytes in it": (
        b"Content-Type: text/plain; charset=\xff\xfe\n\nplain words\n",
        "plain words",
    ),
    "wrong utf-8": (
        b"Content-Type: text/plain; charset=utf-8\n\nplain \xff words\n",
        "plain \ufffd words",
    ),
    "a codec that is no charset": (
        b"Content-Type: text/plain; charset=hex\n\nplain words\n",
        "plain words",
    ),
    "html only": (
        b"Content-Type: text/html\n\n<html><style>p {color: red}</style><!-- x > y -->"
        b"<p class='a'>caf&eacute;</p>&amp; words<script>var a = '<b>';</script></html>\n",
        "café & words",
    ),
    "plain beside html": (
        b"Content-Type: multipart/alternative; boundary=B\n\n--B\nContent-Type: text/html\n\n"
        b"<p>html</p>\n--B\nContent-Type: text/plain\n\nplain\n--B--\n",
        "plain",
    ),
    "an attachment first": (
        b"Content-Type: multipart/mixed; boundary=B\n\n--B\nContent-Type: text/plain\n"
        b"Content-Disposition: attachment\n\nfile\n--B\n\nplain\n--B--\n",
        "plain",
    ),
    "a multipart that breaks off": (
        b"Content-Type: multipart/mixed; boundary=B\n\n--B\n\nplain\n",
        "plain",
    ),
    "base64": (
        b"Content-Type: text/plain\nContent-Transfer-Encoding: base64\n\ncGxhaW4gd29yZHM=\n",
        "plain words",
    ),
    "broken headers": (
        b'Subject: =?x-made-up?b?!!!?= a\xff\nContent-Type: ;;;\nFrom: <<"@,\n\nplain words\n',
        "plain words",
    ),
}


@pytest.mark.parametrize("kind", HARD_MAILS)
def test_a_badly_made_mail_is_still_read(tmp_path: Path, kind: str) -> None:
    content, body = HARD_MAILS[kind]
    folder = tmp_path / "easy-ham-1"
    folder.mkdir()
    (folder / "0.txt").write_bytes(b"From: a@a.example\n" + content)
    for number in range(1, 10):  # a client needs ten mails
        (folder / f"{number}.txt").write_bytes(f"From: a@a.example\n\n{number}\n".encode())
    clients, _ = mail_clients(tmp_path)
    (documents,) = clients.values()
    assert len(documents) == 10
    assert documents[0].text.partition("\n")[2] == body
    assert documents[0].text.encode("utf-8")


@pytest.mark.slow
def test_the_mails_have_80_clients_and_no_body_twice(
    builtin: Callable[[str], Corpus | None],
) -> None:
    corpus = builtin("spam-assassin")
    if corpus is None:
        return  # that npm is missing was checked
    ham = {c: sum(d.label == 0 for d in mails) for c, mails in corpus.clients.items()}
    spam = {c: sum(d.label == 1 for d in mails) for c, mails in corpus.clients.items()}
    assert len(ham) == 80
    assert min(ham.values()) == 10
    assert sum(ham.values()) == 2563
    assert sum(spam.values()) == 1634
    assert max(spam.values()) - min(spam.values()) <= 1
    everything = [document for mails in corpus.clients.values() for document in mails]
    # Bodies, without the subject; only figures leave this test.
    bodies = {hash(" ".join(d.text.partition("\n")[2].split())) for d in everything}
    duplicates = len(everything) - len(bodies)
    assert duplicates == 0
    keys = len({document.key for document in everything})
    assert keys == len(everything)
    addresses = sum("@" in client for client in corpus.clients)
    assert addresses == 0
    assert "real people" in corpus.licence


# --- by name ---------------------------------------------------------------------------------


def test_an_unknown_corpus_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_corpus("builtin:reuters", cache=tmp_path)
    assert all(f"builtin:{name}" in str(caught.value) for name in BUILTIN_CORPORA)


@pytest.mark.parametrize(("name", "labels"), [("state-of-the-union", 2), ("spam-assassin", 3)])
def test_labels_that_a_corpus_has_not_are_refused(tmp_path: Path, name: str, labels: int) -> None:
    with pytest.raises(ConfigError, match=f"labels = {labels}"):
        load_corpus(f"builtin:{name}", cache=tmp_path, offline=True, labels=labels)


def test_a_folder_is_a_corpus_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "hospitals"
    folder.mkdir()
    (folder / "north.jsonl").write_text('{"text": "one", "label": 1}')
    (folder / "south.jsonl").write_text('{"text": "two", "label": 0}')
    corpus = load_corpus(str(folder), cache=tmp_path / "none", labels=2)
    assert (corpus.name, corpus.default_clients) == ("hospitals", ("north", "south"))
    assert corpus.clients["north"][0].label == 1
    assert not corpus.fallback
    with pytest.raises(DataError):
        load_corpus(str(tmp_path / "nothing"), cache=tmp_path / "none")


def test_a_corpus_cannot_be_changed_by_its_users(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    corpus = load_corpus(str(tmp_path), cache=tmp_path)
    with pytest.raises(TypeError):
        corpus.clients["b"] = []  # type: ignore[index]


def test_a_built_in_corpus_has_no_field_of_users(tmp_path: Path) -> None:
    section = DataSection(source="builtin:stdlib-docstrings", user_field="module")
    with pytest.raises(ConfigError, match=r"data\.user_field = 'module'.* is one user"):
        load_corpus(section.source, cache=tmp_path, offline=True, section=section)
