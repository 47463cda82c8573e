"""Conversations in a model's own words, and which of their tokens are to be learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from securefed.config import DataSection
from securefed.errors import ConfigError, DataError
from securefed.training.records import Document, Message

if TYPE_CHECKING:
    from securefed.training.data import Tokenizer

ASSISTANT = "assistant"


def conversation_tokens(
    client: str, document: Document, tokenizer: Tokenizer, section: DataSection
) -> tuple[list[int], list[bool]]:
    """The tokens of one conversation, and which of them count.

    The tokenizer's chat template writes it; the whole text is tokenized once.  With
    ``section.completion_only`` those tokens count that lie within what the template writes for a
    message of the role ``assistant``, up to its end mark, without what stands before it to prompt
    for it.  A token that is partly outside does not count.

    Args:
        client: whose it is, for messages.
        document: with messages.
        tokenizer: of the model; it must be a fast one, which tells where in a text a token lies.
        section: ``completion_only`` is used.

    Raises:
        ConfigError: the tokenizer has no chat template, or is not a fast one.
        DataError: the template refuses the conversation, or writes earlier messages otherwise once
            there are later ones, so that what the assistant said cannot be told apart.

    Guarantees:
        - What comes out depends on this document alone.
    """
    if document.messages is None:
        raise DataError(f"client {client}, document {document.key}: is no conversation")
    if tokenizer.chat_template is None:
        raise ConfigError(
            "data.messages_field: the model's tokenizer has no chat template; use an instruct "
            "model, or data.text_field with the conversation written out"
        )
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            "data.messages_field: the model's tokenizer is not a fast one and does not tell where "
            "in a text its tokens lie; use a model with a tokenizer.json"
        )
    where = f"client {client}, document {document.key}"
    messages = document.messages
    text = _written(tokenizer, messages, where, prompt=False)
    spans = [(0, len(text))]
    if section.completion_only:
        spans = [
            _span(tokenizer, messages, place, text, where)
            for place, message in enumerate(messages)
            if message.role == ASSISTANT
        ]
    # The template writes special tokens itself.
    found = tokenizer([text], add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = found["input_ids"][0], found["offset_mapping"][0]
    counted = [
        any(begin <= first and last <= end for begin, end in spans) for first, last in offsets
    ]
    return list(ids), counted


def _span(
    tokenizer: Tokenizer, messages: tuple[Message, ...], place: int, text: str, where: str
) -> tuple[int, int]:
    """Where in ``text`` the message at ``place`` stands, without what prompts for it."""
    before = _written(tokenizer, messages[:place], where, prompt=True) if place else ""
    until = _written(tokenizer, messages[: place + 1], where, prompt=False)
    if not (until.startswith(before) and text.startswith(until)):
        raise DataError(
            f"{where}: the model's chat template writes earlier messages otherwise once there are "
            "later ones, so that completions cannot be told apart; use completion_only = false, or "
            "conversations with one answer"
        )
    return len(before), len(until)


def _written(
    tokenizer: Tokenizer, messages: tuple[Message, ...], where: str, *, prompt: bool
) -> str:
    given: list[dict[str, Any]] = [message._asdict() for message in messages]
    try:
        written = tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=prompt)
    except (TemplateError, ValueError, TypeError, KeyError):
        # The error may repeat what was said.
        raise DataError(
            f"{where}: the model's chat template refuses the conversation (many want user and "
            "assistant in turn, and some no system message)"
        ) from None
    return str(written)
