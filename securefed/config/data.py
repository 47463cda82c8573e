"""The ``data`` section of the run file."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from securefed.config.base import Section


class DataSection(Section):
    """Each client's own data, and how it is cut into examples.

    ``source`` is a folder (one file or one sub-folder a client), or a built-in corpus.
    For causal language modelling an example is one non-overlapping window of ``window_tokens``
    tokens; for classification it is one record, cut off at ``window_tokens``.

    ``user_field`` names the field of a JSONL or CSV record that says whose record it is (a
    patient, a sender); it goes with ``privacy.unit = "user"``.  Without it each document is a user
    of its own there.  A user is held out whole or not at all.

    ``messages_field`` names a field of JSONL records that holds a conversation: a list of messages,
    each with ``role`` and ``content``.  An example is then one conversation, put in words by the
    tokenizer's own chat template and cut off at ``window_tokens``; ``completion_only`` counts the
    loss of what the role ``assistant`` says alone.  Both are for causal language modelling.
    """

    source: str = "builtin:state-of-the-union"
    format: Literal["auto", "jsonl", "csv", "text"] = "auto"
    text_field: str = "text"
    label_field: str = "label"
    user_field: Annotated[str, Field(min_length=1)] | None = None
    messages_field: Annotated[str, Field(min_length=1)] | None = None
    completion_only: bool = False
    window_tokens: Annotated[int, Field(ge=4, le=8192)] = 32
    clients: Literal["all", "default"] | Annotated[list[str], Field(min_length=1)] = "all"
    min_examples: Annotated[int, Field(ge=1)] = 1
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1

    @model_validator(mode="after")
    def _completions_are_of_conversations(self) -> Self:
        if self.completion_only and self.messages_field is None:
            raise ValueError(
                "completion_only = true without messages_field: which part of a text is the "
                "completion is not known; name the field that holds the messages"
            )
        return self
