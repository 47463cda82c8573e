"""The threat models that a run was begun under: copies in its folder, hashes in its ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from securefed.errors import ConfigError, LedgerTampered
from securefed.threats.files import digests, read_file, shipped

THREAT_MODELS = "threat_models"
"""Their folder in a run folder, and their field in its ledger's first record."""


def unlike_shipped(genesis: Mapping[str, Any]) -> list[str]:
    """How a run's threat models differ from those of this installation, in words.

    Whoever begins a run chooses what it is judged by: a claim that was left out is not judged.
    """
    recorded, own = genesis[THREAT_MODELS], digests(shipped())
    if not recorded:
        return []  # then the shipped ones count
    names = sorted(name for name in set(recorded) | set(own) if recorded.get(name) != own.get(name))
    if not names:
        return []
    return [
        "the run was begun under other threat models than those of this installation; its claims "
        f"are judged by its own: {', '.join(names)}"
    ]


def check_threat_models(folder: Path, genesis: Mapping[str, Any]) -> set[str]:
    """Compare the threat models in a run folder with those that its ledger names.

    Args:
        folder: the run folder.
        genesis: body of the ledger's first record.

    Returns:
        Their paths inside the run folder, with ``/``.

    Raises:
        LedgerTampered: names the file that is missing, edited or not among them.
    """
    recorded = genesis[THREAT_MODELS]
    place = folder / THREAT_MODELS
    found = {path.name for path in place.iterdir()} if place.is_dir() else set()
    for name in sorted(found | set(recorded)):
        path = place / name
        if name not in found:
            raise LedgerTampered(f"{path}: is missing; the run was begun under it")
        if name not in recorded:
            raise LedgerTampered(f"{path}: is none of those that the run was begun under")
        try:
            digest = hashlib.sha256(read_file(path)).hexdigest()
        except ConfigError as error:
            raise LedgerTampered(str(error)) from None
        if digest != recorded[name]:
            raise LedgerTampered(
                f"{path}: is not the threat model that the run was begun under: it was edited"
            )
    return {f"{THREAT_MODELS}/{name}" for name in recorded}
