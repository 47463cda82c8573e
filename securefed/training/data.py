"""From clients' documents to examples, and which of them are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from securefed.config import DataSection
from securefed.errors import ConfigError, DataError
from securefed.training.conversations import conversation_tokens
from securefed.training.corpora import Corpus, Document
from securefed.training.examples import ClientData, Examples, Task, Tokenizer, client_sizes

__all__ = [
    "ClientData",
    "Examples",
    "Task",
    "Tokenizer",
    "chosen_clients",
    "client_sizes",
    "measured_examples",
    "tokenize_clients",
]

# Sets this use of the hash apart from any other hash of the same keys.
_HELD_OUT_TAG = b"securefed held-out documents 1"

_REMEDY = "give it more or longer texts"
# A window holds the template's own words and the question before it holds any of an answer.
_REMEDY_CHATS = "raise data.window_tokens, which the template and the questions may fill"


def tokenize_clients(
    corpus: Corpus,
    section: DataSection,
    *,
    tokenizer: Tokenizer,
    task: Task,
    labels: int | None,
    held_out_windows: int,
    held_out_tokens: int,
    class_weights: Sequence[float] | None = None,
) -> dict[str, ClientData]:
    """Cut the chosen clients' documents into examples.

    Causal language modelling: an example is a window of exactly ``section.window_tokens`` tokens
    of one document, without special tokens; windows follow one another without overlap, and what
    is left at a document's end, shorter than a window, is dropped.  Classification: an example is
    one document, with the tokenizer's special tokens, cut off and padded on the right to
    ``section.window_tokens``.

    With ``section.messages_field`` an example is one conversation (:mod:`.conversations`), cut off
    and padded likewise.

    An example's user is that of its document (``Document.owner``): users partition the examples,
    and no window crosses from one to another.

    Where the corpus does not say what is held out, ``section.held_out_fraction`` of a client's
    users are, with all of their documents (a document without a named user is one of its own),
    those with the smallest keyed hashes of their keys: at least one, never all; for causal language
    modelling only users with a document of ``held_out_tokens`` tokens or more are considered, and
    one of them is left for training if there are two.  Of a lone document's tokens, no user being
    named, the last ones are held out: that fraction of them, at least one held-out window.

    Args:
        corpus: documents by client.
        section: ``clients``, ``window_tokens``, ``min_examples`` and ``held_out_fraction``.
        tokenizer: of the model that is adapted.
        task: what an example is.
        labels: the number of classes for classification; otherwise None.
        held_out_windows: the most held-out examples of a client, >= 1; evenly spread ones are
            taken if there are more.
        held_out_tokens: tokens of a held-out window in causal language modelling, >= 4;
            classification cuts off at ``section.window_tokens`` there too.
        class_weights: by which training examples of each class are weighed; None for all alike.

    Returns:
        The chosen clients in sorted order, each with ``section.min_examples`` training examples or
        more and a held-out one.

    Raises:
        ConfigError: ``section.clients`` names a client that the corpus has not or names one twice;
            ``labels`` does not fit the task; the tokenizer cannot pad.
        DataError: a client has too few examples, none held out, a label that is missing or out of
            range, or named users of which there is only one.

    Guarantees:
        - Every token of a document is in at most one training example, of that document's user.
        - Nothing about one client depends on another client's data.
        - The same arguments give the same arrays.
    """
    if (task == "sequence-classification") != (labels is not None):
        raise ConfigError(f"labels = {labels} with task = {task!r}: give labels for classification")
    if held_out_windows < 1 or held_out_tokens < 4:
        raise ConfigError(
            f"held_out_windows = {held_out_windows}, held_out_tokens = {held_out_tokens}: allowed "
            "are >= 1 and >= 4"
        )
    if labels is not None and tokenizer.pad_token_id is None:
        raise ConfigError("tokenizer: has no padding token, which classification needs")
    data = {}
    for client in chosen_clients(corpus, section):
        documents = corpus.clients[client]
        _check_users(client, documents)
        parts = _parts(client, documents, section, tokenizer, labels, held_out_tokens)
        train, held_out = parts.train.weighed(class_weights), parts.held_out
        if len(train) < section.min_examples:
            raise DataError(
                f"client {client}: has {len(train)} training examples of {section.window_tokens} "
                f"tokens; data.min_examples = {section.min_examples} are needed: "
                f"{_REMEDY if section.messages_field is None else _REMEDY_CHATS}, lower that, or "
                "leave the client out (data.clients)"
            )
        if not len(held_out):
            length = f" of {held_out_tokens} tokens" if labels is None else ""
            raise DataError(
                f"client {client}: has 0 held-out examples{length} besides its {len(train)} "
                "training examples; at least 1 is needed: give it more documents, or leave the "
                "client out (data.clients)"
            )
        data[client] = ClientData(
            client, train, _spread(held_out, held_out_windows), parts.documents, parts.lost
        )
    return data


def measured_examples(
    documents: Sequence[Document],
    section: DataSection,
    *,
    tokenizer: Tokenizer,
    task: Task,
    labels: int | None,
    tokens: int,
) -> Examples:
    """All of some documents as examples to measure on, cut as held-out ones are.

    Args:
        documents: of one owner.
        section: ``window_tokens``, at which records of a classifier are cut off.
        tokenizer: of the model.
        task: what an example is.
        labels: the number of classes for classification; otherwise None.
        tokens: of a window in causal language modelling.

    Raises:
        DataError: there is no example, or a label is missing or out of range.
    """
    held_out = [replace(document, held_out=True) for document in documents]
    found = _parts("the set", held_out, section, tokenizer, labels, tokens).held_out
    if not len(found):
        why = (
            f"has {tokens} tokens, which a window takes (evaluation.window_tokens)"
            if section.messages_field is None
            else f"has a token to predict within data.window_tokens = {section.window_tokens}"
        )
        raise DataError(f"the set: none of its {len(held_out)} documents {why}")
    return found


def chosen_clients(corpus: Corpus, section: DataSection) -> list[str]:
    """The clients of a corpus that a run file names, sorted.

    Raises:
        ConfigError: it names a client that the corpus has not, or names one twice.
    """
    if section.clients == "all":
        return sorted(corpus.clients)
    wanted = corpus.default_clients if section.clients == "default" else section.clients
    unknown = sorted(set(wanted) - set(corpus.clients))
    if unknown:
        raise ConfigError(
            f"data.clients: {corpus.name} has no client {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(sorted(corpus.clients))}"
        )
    if len(set(wanted)) < len(wanted):
        twice = min(name for name in wanted if list(wanted).count(name) > 1)
        raise ConfigError(f"data.clients: {twice!r} is named twice; each may be named once")
    return sorted(wanted)


def _check_users(client: str, documents: list[Document]) -> None:
    flagged = any(document.held_out is not None for document in documents)
    held_out = {document.owner for document in documents if document.held_out}
    if flagged and held_out & {document.owner for document in documents if not document.held_out}:
        raise DataError(f"client {client}: a user's documents are partly held out; allowed: whole")
    if documents[0].user is not None and len({document.owner for document in documents}) < 2:
        raise DataError(
            f"client {client}: all documents are of one user; a user is held out whole, so at "
            "least 2 are needed"
        )


def _held_out_indices(documents: list[Document], able: list[int], fraction: float) -> set[int]:
    """Which documents are held out: as the corpus says, or those of some users of ``able`` ones."""
    flags = [document.held_out for document in documents]
    if any(flag is not None for flag in flags):
        return {index for index, flag in enumerate(flags) if flag}

    def order(owner: str) -> bytes:
        key = owner.encode("utf-8")
        return hashlib.blake2b(key, key=_HELD_OUT_TAG, digest_size=16).digest()

    owners = [document.owner for document in documents]
    able_users = {owners[index] for index in able}
    # One of the able users is left for training wherever there are two.
    count = min(max(1, round(fraction * len(set(owners)))), max(1, len(able_users) - 1))
    chosen = set(sorted(able_users, key=order)[:count])
    return {index for index, owner in enumerate(owners) if owner in chosen}


def _numbered(owners: Sequence[str]) -> NDArray[np.int64]:
    """int64[n]: equal where owners are, 0 .. m - 1 in the order in which they come."""
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
    return np.array([numbers[owner] for owner in owners], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class _Parts:
    """Both parts of a client's documents, and as ``ClientData`` has them how many are lost."""

    train: Examples
    held_out: Examples
    documents: int
    lost: int


def _parts(
    client: str,
    documents: list[Document],
    section: DataSection,
    tokenizer: Tokenizer,
    labels: int | None,
    held_out_tokens: int,
) -> _Parts:
    if labels is not None:
        return _classification_parts(client, documents, section, tokenizer, labels)
    if section.messages_field is not None:
        return _conversation_parts(client, documents, section, tokenizer)
    return _language_parts(documents, section, tokenizer, held_out_tokens)


def _conversation_parts(
    client: str, documents: list[Document], section: DataSection, tokenizer: Tokenizer
) -> _Parts:
    width = section.window_tokens
    if tokenizer.pad_token_id is None:
        raise ConfigError("tokenizer: has no padding token, which conversations need")
    found = [conversation_tokens(client, d, tokenizer, section) for d in documents]
    # What is predicted is the next token: the first one is no target.
    able = [row for row, (_, targets) in enumerate(found) if any(targets[1:width])]
    chosen = _held_out_indices(documents, able, section.held_out_fraction)
    input_ids = np.full((len(documents), width), tokenizer.pad_token_id, dtype=np.int64)
    mask, wanted = np.zeros_like(input_ids), np.zeros_like(input_ids)
    for row, (ids, targets) in enumerate(found):
        kept = min(len(ids), width)
        input_ids[row, :kept], mask[row, :kept] = ids[:kept], 1
        wanted[row, :kept] = targets[:kept]
    users = _numbered([document.owner for document in documents])
    everything = Examples(input_ids, mask, None, users, wanted)
    train = [row for row in range(len(documents)) if row not in chosen]
    return _Parts(
        everything.take([row for row in train if row in set(able)]),
        everything.take([row for row in able if row in chosen]),
        len(train),
        len(set(train) - set(able)),
    )


def _language_parts(
    documents: list[Document], section: DataSection, tokenizer: Tokenizer, held_out_tokens: int
) -> _Parts:
    texts = [document.text for document in documents]
    # Not verbose: a text longer than the model's context is cut into windows afterwards.
    found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    tokens = [np.asarray(ids, dtype=np.int64) for ids in found]
    owners = [document.owner for document in documents]
    if len(documents) == 1 and documents[0].held_out is None:
        # The boundary is moved to the left until the held-out part has a whole window.
        only = tokens[0]
        kept = len(only) - max(held_out_tokens, round(section.held_out_fraction * len(only)))
        train, held_out = [(owners[0], only[: max(kept, 0)])], [(owners[0], only[max(kept, 0) :])]
    else:
        able = [index for index, ids in enumerate(tokens) if len(ids) >= held_out_tokens]
        chosen = _held_out_indices(documents, able, section.held_out_fraction)
        owned = list(enumerate(zip(owners, tokens, strict=True)))
        held_out = [document for index, document in owned if index in chosen]
        train = [document for index, document in owned if index not in chosen]
    width = section.window_tokens
    lost = sum(len(ids) < width for _, ids in train)
    return _Parts(_windows(train, width), _windows(held_out, held_out_tokens), len(train), lost)


def _windows(documents: list[tuple[str, NDArray[np.int64]]], width: int) -> Examples:
    whole = [ids[: len(ids) // width * width].reshape(-1, width) for _, ids in documents]
    input_ids = np.concatenate([np.empty((0, width), dtype=np.int64), *whole])
    owners = [owner for (owner, _), rows in zip(documents, whole, strict=True) for _ in rows]
    return Examples(input_ids, np.ones_like(input_ids), None, _numbered(owners))


def _classification_parts(
    client: str,
    documents: list[Document],
    section: DataSection,
    tokenizer: Tokenizer,
    labels: int,
) -> _Parts:
    width = section.window_tokens
    texts = [document.text for document in documents]
    found = tokenizer(texts, truncation=True, max_length=width)["input_ids"]
    input_ids = np.full((len(documents), width), tokenizer.pad_token_id, dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    classes = np.empty(len(documents), dtype=np.int64)
    for row, document in enumerate(documents):
        if document.label is None or not 0 <= document.label < labels:
            raise DataError(
                f"client {client}, document {document.key}: the label is missing or out of range; "
                f"allowed: 0 .. {labels - 1}"
            )
        input_ids[row, : len(found[row])] = found[row]
        attention_mask[row, : len(found[row])] = 1
        classes[row] = document.label
    users = _numbered([document.owner for document in documents])
    everything = Examples(input_ids, attention_mask, classes, users)
    rows = list(range(len(documents)))
    chosen = _held_out_indices(documents, rows, section.held_out_fraction)
    train = everything.take([row for row in rows if row not in chosen])
    return _Parts(train, everything.take([row for row in rows if row in chosen]), len(train), 0)


def _spread(examples: Examples, most: int) -> Examples:
    count = len(examples)
    if count <= most:
        return examples
    return examples.take([place * count // most for place in range(most)])
