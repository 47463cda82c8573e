"""The threat models that this package comes with, and the evidence stored beside them.

They lie in ``threat_models/`` at the root of a clone; a wheel carries a copy of that folder inside
this package (``setup.py`` puts it there).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from securefed.errors import ConfigError
from securefed.evidence.reading import read_bounded

FILE_LIMIT = 1 << 20
"""Bytes of a threat model, or of a file of stored evidence, at most."""

_INSTALLED = Path(__file__).parent / "shipped"
_CLONED = Path(__file__).parents[2] / "threat_models"


def folder() -> Path:
    """Where the shipped threat models lie.

    Raises:
        ConfigError: this installation has none.
    """
    for place in (_INSTALLED, _CLONED):
        if place.is_dir():
            return place
    raise ConfigError(f"threat models: this installation of securefed has none at {_INSTALLED}")


def shipped() -> dict[str, bytes]:
    """Every shipped threat model, by its file's name, sorted.

    Raises:
        ConfigError: there is none, or one cannot be read or is longer than ``FILE_LIMIT``.
    """
    place = folder()
    found = {path.name: read_file(path) for path in sorted(place.glob("*.yaml"))}
    if not found:
        raise ConfigError(f"threat models: {place} holds no *.yaml")
    return found


def stored_evidence() -> dict[str, bytes]:
    """Every file of stored evidence (``evidence/*.json``), by name, sorted; there may be none.

    Raises:
        ConfigError: one cannot be read or is longer than ``FILE_LIMIT``.
    """
    return {p.name: read_file(p) for p in sorted((folder() / "evidence").glob("*.json"))}


def digests(files: dict[str, bytes]) -> dict[str, str]:
    """SHA-256 of each file, hexadecimal, by name: what a ledger's genesis holds of them."""
    return {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}


def read_file(path: Path) -> bytes:
    """A threat model's or stored evidence's bytes.

    Raises:
        ConfigError: it cannot be read, or is longer than ``FILE_LIMIT``.
    """
    return read_bounded(path, FILE_LIMIT)
