"""The words of a record, found again in the catalogue, so that they can be said in any language.

A ledger holds its statements in English sentences, and these are what is claimed.  A report says
the same ones: each is looked for among the English sentences of the catalogue whose keys begin
with ``held.``.  One that is not there is shown as it stands, in English, and marked as such; a test
holds every sentence that :mod:`securefed.privacy` can write to be known.
"""

from __future__ import annotations

import functools
import re

from securefed.reports.catalogue import filled, places
from securefed.reports.values import Said, Value, Verbatim
from securefed.reports.wording import table

PREFIX = "held."

_VALUE, _WORDS = r"[\w.+\-]+", ".+?"
_DEPTH = 4


def recognised(text: str) -> Said | Verbatim:
    """A record's sentence as a key and values; or as it stands, where no key fits."""
    return _found(text, _DEPTH) or Verbatim(verbatim=text)


def recognised_parts(text: str) -> list[Said | Verbatim]:
    """The same of each of several sentences that a record joins by semicolons."""
    whole = _found(text, _DEPTH)
    return [whole] if whole is not None else [recognised(part) for part in text.split("; ")]


def _found(text: str, depth: int) -> Said | None:
    if depth == 0:
        return None
    for key, pattern, nested in _patterns():
        match = pattern.fullmatch(text)
        if match is None:
            continue
        values: dict[str, Value] = {}
        for name, held in match.groupdict().items():
            inner = _found(held, depth - 1) if name in nested else None
            if name in nested and inner is None:
                break
            values[name] = held if inner is None else inner
        else:
            return Said(key=key, values=values)
    return None


@functools.cache
def _patterns() -> list[tuple[str, re.Pattern[str], frozenset[str]]]:
    """Key, pattern, and which places hold a sentence themselves; the most literal first."""
    found = []
    for key, template in table("en").items():
        if not key.startswith(PREFIX):
            continue
        nested = frozenset(name for name, kind in places(template) if kind == "held")

        def place(name: str, kind: str) -> str:
            return f"(?P<{name}>{_WORDS if kind in ('held', 'words') else _VALUE})"

        literal = len(filled(template, lambda name, kind: "", str))
        found.append((literal, key, filled(template, place, re.escape), nested))
    found.sort(reverse=True)
    return [(key, re.compile(pattern), nested) for _, key, pattern, nested in found]
