"""The report as a model card for the Hugging Face Hub: what a user of the adapter must know.

A card is YAML between two lines of hyphens, then Markdown.  It holds the differential-privacy
statements whole, what was measured, the limitations and how to verify; threat models and crosswalk
are left to the report, which it names.

Source: the Hub's documentation of model cards, and ``huggingface_hub.ModelCard``, which reads it
back in a test.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from securefed.reports.blocks import numbered
from securefed.reports.catalogue import checked_language
from securefed.reports.document import Report
from securefed.reports.markdown import section
from securefed.reports.markdown_text import escaped
from securefed.reports.page import page
from securefed.reports.pages.closing import sources
from securefed.reports.values import Value
from securefed.reports.wording import Wording

_PARTS = (
    "identity",
    "open",
    "figures",
    "not_this",
    "privacy",
    "aggregation",
    "leakage",
    "utility",
    "limitations",
    "reproduce",
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_PIPELINES = {
    "causal-lm": "text-generation",
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
}


def render(report: Report, language: str) -> str:
    """The card, as the text of a ``README.md``.

    Raises:
        ConfigError: there is no such language.
    """
    word = Wording(checked_language(language))
    found = page(report, language)
    parts = tuple(part for part in (*found.first, *found.sections) if part.id in _PARTS)
    numbers = numbered(parts)
    front = yaml.safe_dump(_front(report), sort_keys=False, allow_unicode=True)
    text = [
        f"---\n{front}---",
        f"# {escaped(report.identity.name)}",
        *_opening(report, word),
        *(section(part, numbers) for part in (*parts, sources(numbers, word))),
    ]
    return "\n\n".join(text) + "\n"


def _front(report: Report) -> dict[str, Any]:
    """What the Hub reads; nothing that the run does not know, such as a licence, is in it."""
    identity = report.identity
    protected = any(s.protected for s in report.privacy.statements if s.subject == "training")
    tags = ["lora", "federated-learning", "securefed"]
    tags += ["differential-privacy"] if protected else []
    tags += ["secure-aggregation"] if report.aggregation.kind != "plaintext" else []
    front: dict[str, Any] = {"library_name": "peft"}
    if _HUB_NAME.fullmatch(identity.model):
        front["base_model"] = identity.model
        front["base_model_relation"] = "adapter"
    if identity.task in _PIPELINES:
        front["pipeline_tag"] = _PIPELINES[identity.task]
    front["tags"] = tags
    front["securefed"] = {
        "base_model_source": identity.model,
        "base_model_fingerprint": identity.weights,
        "ledger_head": identity.head,
        "finished": identity.finished,
        "anchored": identity.anchored,
    }
    return front


def _opening(report: Report, word: Wording) -> list[str]:
    """What it is, and what is wrong with it, before anything else."""

    def said(key: str, **values: Value) -> str:
        return word(f"card.{key}", **values)

    identity = report.identity
    lines = [said("what", model=escaped(identity.model), task=escaped(identity.task))]
    if not any(s.protected for s in report.privacy.statements if s.against == "release"):
        lines.append(f"> **{said('unprotected')}**")
    if not identity.finished:
        lines.append(f"> **{said('unfinished')}**")
    if not identity.anchored:
        lines.append(f"> **{said('unanchored')}**")
    return [*lines, said("report")]
