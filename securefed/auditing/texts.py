"""Short public texts for attacks to be tried on."""

from __future__ import annotations

import re
from typing import Any

from securefed.training.corpora import Corpus
from securefed.training.folder import Document


def set_aside(document: Document, number: int) -> bool:
    """Whether a document is for priors and never attacked: held out, or every second one.

    Args:
        document: of a corpus.
        number: its place among its client's documents, from 0.
    """
    return number % 2 == 1 if document.held_out is None else document.held_out


def sentences(
    corpus: Corpus, tokenizer: Any, tokens: int, *, held_out: bool = False
) -> list[tuple[int, ...]]:
    """One sentence of exactly ``tokens`` tokens of each document that has one, specials included.

    Args:
        corpus: State of the Union addresses, say.
        tokenizer: of the model.
        tokens: without special tokens.
        held_out: of held-out documents instead of the others; of every second one where the corpus
            does not say which are.
    """
    found = []
    for client in sorted(corpus.clients):
        for number, document in enumerate(corpus.clients[client]):
            if set_aside(document, number) != held_out:
                continue
            for sentence in re.split(r"(?<=[.!?])\s+", document.text):
                if not 2 * tokens < len(sentence) < 12 * tokens:
                    continue
                ids = tokenizer(sentence)["input_ids"]
                special = sum(token in tokenizer.all_special_ids for token in ids)
                if len(ids) - special == tokens:
                    found.append(tuple(ids))
                    break
    return found
