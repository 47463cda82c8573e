"""The rows of each framework, read from the files beside this module and checked."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from securefed.config.base import Section
from securefed.errors import ConfigError
from securefed.reports.crosswalk.facts import FactName
from securefed.threats.yaml_files import read_yaml

_FOLDER = Path(__file__).parent

Copy = Literal[
    "official",  # published by whoever issues the text
    "reproduction",  # the text, put up by somebody else
    "draft",  # an earlier edition
    "contents",  # its table of contents alone
]
Who = Literal[
    "controller",
    "data_protection_officer",
    "data_owner",
    "provider",
    "deployer",
    "security",
    "counsel",
    "expert",
    "auditor",
]
WHO: tuple[Who, ...] = get_args(Who)
Most = Literal["evidenced", "partly", "organisational"]
Part = Literal[
    "identity",
    "not_this",
    "system",
    "privacy",
    "aggregation",
    "leakage",
    "utility",
    "threat_models",
    "limitations",
    "reproduce",
]
Words = Annotated[str, Field(min_length=1, max_length=600)]
ClaimName = Annotated[str, Field(pattern=r"^TM-[a-z0-9-]+/C-[a-z0-9-]+$")]


class BothLanguages(Section):
    """Words of ours, in both languages of a report."""

    en: Words
    ja: Words


class Seen(Section):
    """A text that a mapping was compared with.

    Attributes:
        copy_of: which sort of copy; no more than ``official`` makes a row ``checked``.
        what: it was.
        address: where.
        date: when, as YYYY-MM-DD.
    """

    copy_of: Copy = Field(alias="copy")
    what: BothLanguages
    address: Annotated[str, Field(pattern=r"^https?://\S+$")]
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]


class Row(Section):
    """A place in a framework's text, and what must hold for a run to answer it.

    Attributes:
        id: the place.
        requirement: what it asks, in words of ours.
        most: the best that software can make of it; ``organisational`` rows have no rule.
        who: answers what is left; needed where anything is.
        claims: ``model/claim``, each of which must be shown.
        facts: that must hold in the report.
        partly_unless: facts without which the row is answered in part.
        sections: parts of the report that answer it.
        seen: key of the framework's ``seen``; None where the row was written from memory.
    """

    id: Words
    requirement: BothLanguages
    most: Most = "evidenced"
    who: Who | None = None
    claims: list[ClaimName] = Field(default=[])
    facts: list[FactName] = Field(default=[])
    partly_unless: list[FactName] = Field(default=[])
    sections: list[Part]
    seen: str | None = None

    @model_validator(mode="after")
    def _has_a_rule_or_somebody(self) -> Self:
        rests = bool(self.claims or self.facts)
        if self.most == "organisational" and (rests or self.partly_unless):
            raise ValueError("an organisational row rests on no claim and no fact")
        if self.most != "organisational" and not rests:
            raise ValueError("needs a claim or a fact, or most: organisational")
        if (self.most != "evidenced" or self.partly_unless) and self.who is None:
            raise ValueError(f"who must answer the rest? one of {', '.join(WHO)}")
        return self


class FrameworkFile(Section):
    """One framework."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")]
    title: BothLanguages
    edition: Words
    source: Annotated[str, Field(pattern=r"^https?://\S+$")]
    note: BothLanguages | None = None
    seen: dict[str, Seen] = Field(default={})
    rows: Annotated[list[Row], Field(min_length=1)]

    @model_validator(mode="after")
    def _rows_fit_together(self) -> Self:
        ids = [row.id for row in self.rows]
        for row in self.rows:
            if ids.count(row.id) > 1:
                raise ValueError(f"the row {row.id!r} stands twice")
            if row.seen is not None and row.seen not in self.seen:
                raise ValueError(
                    f"row {row.id!r}: seen = {row.seen!r}: must be one of {sorted(self.seen)}"
                )
        return self


def parse(data: bytes, name: str) -> FrameworkFile:
    """One framework, from the text of its file.

    Raises:
        ConfigError: it is no YAML, or not what a framework must be; the message begins with the
            file and the line.
    """
    document = read_yaml(data, name)
    try:
        return FrameworkFile.model_validate(document.value)
    except ValidationError as error:
        first = error.errors()[0]
        place = tuple(first["loc"])
        field = ".".join(str(part) for part in place) or "file"
        raise ConfigError(f"{document.where(place)}: {field}: {first['msg']}") from None


def frameworks(files: Mapping[str, bytes] | None = None) -> list[FrameworkFile]:
    """Every framework, in the order of the file names.

    Args:
        files: name -> text; None for those of this package.

    Raises:
        ConfigError: as :func:`parse`, or two files have one id.
    """
    if files is None:
        return list(_shipped())
    found = [parse(data, name) for name, data in sorted(files.items())]
    ids = [one.id for one in found]
    for one, name in zip(found, sorted(files), strict=True):
        if ids.count(one.id) > 1:
            raise ConfigError(f"{name}: id = {one.id!r}: another file has it too")
    return found


@functools.cache
def _shipped() -> tuple[FrameworkFile, ...]:
    return tuple(frameworks({p.name: p.read_bytes() for p in _FOLDER.glob("*.yaml")}))
