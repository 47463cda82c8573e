"""A run from Python objects: sections in the place of a run file, texts in the place of files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from securefed.config import DataSection, RunConfig, parse_config
from securefed.config.base import Section
from securefed.errors import ConfigError, DataError
from securefed.training.corpora import OBJECTS, Corpus
from securefed.training.records import CLIENT_ID, document_of

GivenSection = Section | Mapping[str, Any] | str | Path
"""A section of the run file: the model of it, its values, or (``model`` alone) its source."""

Texts = Iterable[str | Mapping[str, object]]
"""One client's texts or records: a list, or whatever gives these in turn: a ``datasets.Dataset``
(or a column of one, or an ``IterableDataset``), in its plain format."""

GivenClients = Mapping[str, Texts] | str | Path
"""Texts by client, or a folder as ``data.source`` takes it."""


def config_from(sections: Mapping[str, GivenSection], clients: GivenClients | None) -> RunConfig:
    """The run file that sections and clients make.

    Args:
        sections: by name, as the run file has them.
        clients: sets ``data.source``: :data:`OBJECTS` for texts by client.

    Raises:
        ConfigError: there is no such section, a field is wrong, or nobody's data is given.
    """
    known = set(RunConfig.model_fields)
    unknown = sorted(set(sections) - known)
    if unknown:
        raise ConfigError(
            f"Federation({unknown[0]}=...): there is no such section; there are "
            f"{', '.join(sorted(known))}, and clients"
        )
    values = {name: _values(name, given) for name, given in sections.items()}
    data = values.setdefault("data", {})
    if clients is not None:
        if "source" in data:
            raise ConfigError(
                f"Federation(clients=..., data=...): data.source = {data['source']!r} and clients "
                "both say whose texts are trained on; leave one of them out"
            )
        if not isinstance(clients, str | Path | Mapping):
            raise ConfigError(
                f"Federation(clients=...): is a {type(clients).__name__}; it must be a mapping "
                "from each client's name to its texts or records (a data set is one client's: "
                "clients={'a': dataset}), or a folder"
            )
        data["source"] = str(clients) if isinstance(clients, str | Path) else OBJECTS
    elif "source" not in data:
        raise ConfigError(
            "Federation(...): no clients are given; give clients= (texts by client, or a folder), "
            "or data={'source': ...}"
        )
    return parse_config(values)


def _values(name: str, given: GivenSection) -> dict[str, Any]:
    if isinstance(given, Section):
        return given.model_dump(mode="json", exclude_none=True, exclude_unset=True)
    if isinstance(given, Mapping):
        return dict(given)
    if name == "model":
        return {"source": str(given)}
    raise ConfigError(
        f"Federation({name}=...): is a {type(given).__name__}; it must be a mapping of the "
        "section's settings (securefed schema lists them)"
    )


def _not_in_turn(texts: object) -> str:
    """Why something gives no records in turn, whatever it gives; empty where it may."""
    kind = type(texts).__name__
    if isinstance(texts, Mapping):  # it would give its keys
        return (
            f"is a {kind}, not records in turn; give a list of records, or one split of a "
            "DatasetDict (dataset['train'])"
        )
    if type(texts).__module__.partition(".")[0] == "pandas":  # it would give its columns' names
        return f"is a {kind} of pandas; give frame.to_dict('records')"
    if not isinstance(texts, Iterable):
        return f"is a {kind}; give a list of texts or records"
    return ""


def corpus_from(clients: Mapping[str, Texts], section: DataSection, labels: int | None) -> Corpus:
    """Documents from texts by client.

    A text is a document; a record is a mapping with the fields that ``section`` names, checked as
    those of files are.  Each is named by its place, from 0, which also decides what is held out.

    Raises:
        DataError: a client has a name that is none or no texts, or a record is not what it must be.
    """
    if type(clients).__module__.partition(".")[0] == "datasets":
        raise DataError(
            f"clients: is a {type(clients).__name__}, whose parts are splits and not clients; give "
            "clients={'a': dataset['train'], ...}, with one data set for each client"
        )
    found = {}
    for name, texts in clients.items():
        if not isinstance(name, str) or not CLIENT_ID.fullmatch(name):
            raise DataError(
                f"clients[{name!r}]: a client's name is 1 to 64 letters, digits, dots, dashes and "
                "underscores, and begins with a letter or a digit"
            )
        if isinstance(texts, str):
            raise DataError(f"clients[{name!r}]: is one text; give a list of texts or records")
        if why := _not_in_turn(texts):
            raise DataError(f"clients[{name!r}]: {why}")
        documents = []
        for place, item in enumerate(texts):
            where = f"clients[{name!r}][{place}]"
            row = {section.text_field: item} if isinstance(item, str) else item
            if not isinstance(row, Mapping):
                raise DataError(
                    f"{where}: is a {type(item).__name__}; it must be a text, or a mapping of a "
                    "record's fields (of a data set with a format, give .with_format(None))"
                )
            documents.append(
                document_of(row, where=where, key=f"{place}", section=section, labels=labels)
            )
        if not documents:
            raise DataError(f"clients[{name!r}]: has no texts")
        found[name] = documents
    return Corpus("objects", MappingProxyType(found), [], tuple(found), "yours", False)
