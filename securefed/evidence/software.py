"""What code a run is made with: digest of this package's sources, and versions of what it uses."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import re
from collections.abc import Mapping
from pathlib import Path

import rfc8785

from securefed.errors import ConfigError

_DISTRIBUTION = "securefed"
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_FOR_TESTS = re.compile(r"extra\s*==\s*['\"]test['\"]")
_EXTRA = re.compile(r"\bextra\s*==")


@functools.cache
def source_sha256() -> str:
    """SHA-256 over the source files of this package, by path and content, in hexadecimal."""
    root = Path(__file__).parents[1]
    listing = [
        [path.relative_to(root).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()]
        for path in sorted(root.rglob("*.py"))
    ]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def dependencies() -> dict[str, str]:
    """Version by name of every installed distribution that this package can load.

    Those that it declares, extras too (but ``test``), and those that these need in turn.

    Raises:
        ConfigError: this package is not installed, so that nothing says what it needs.
    """
    return dict(_dependencies())


def dependencies_sha256(versions: Mapping[str, str]) -> str:
    """SHA-256 of the canonical JSON of such versions, in hexadecimal."""
    return hashlib.sha256(rfc8785.dumps(dict(versions))).hexdigest()


@functools.cache
def _dependencies() -> tuple[tuple[str, str], ...]:
    try:
        declared = importlib.metadata.requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            f"{_DISTRIBUTION} is not installed, so a run cannot record what it was made with; "
            "install it (pip install -c constraints.txt -e .)"
        ) from None
    waiting = [_name(line) for line in declared if not _FOR_TESTS.search(line)]
    found: dict[str, str] = {}
    while waiting:
        name = waiting.pop()
        if name in found or name == _DISTRIBUTION:
            continue
        try:
            found[name] = importlib.metadata.version(name)
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra or a platform that is not here
        waiting.extend(_name(line) for line in needed if not _EXTRA.search(line))
    return tuple(sorted(found.items()))


def _name(requirement: str) -> str:
    """The distribution's name at the start of a requirement, in its normal form (PEP 503)."""
    matched = _NAME.match(requirement)
    if matched is None:
        raise ConfigError(f"requirement {requirement!r} begins with no name")
    return re.sub(r"[-_.]+", "-", matched.group()).lower()
