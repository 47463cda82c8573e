"""``pytest --threat-models``: every claim of every threat model is a test.

``pytest --threat-models`` collects ``threat_models/*.yaml``, runs the tests that claims cite, each
once, then each claim as an item (``threat_models/malicious-server.yaml::C-one-list``).  A claim
fails whose verdict is refuted, void, stale or not_run.  Slow tests run with ``-m slow`` only; else
their stored results count (``threat_models/evidence/``), which are stale when code has changed.

What an attack, a ledger or a person says is about a run: it counts with ``--threat-run RUN``, and
without it is left out.  Claims that rest on nothing else are then no items; the summary names them.

``--threat-evidence FILE --threat-key KEY`` stores what the cited tests of this session came to,
signed and dated.  All runs in one process: a claim needs the outcomes of tests of many files.

Without ``--threat-models`` nothing of this does anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

_NAME = "securefed-claims"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("threat models of securefed")
    group.addoption(
        "--threat-models", action="store_true", help="Run each claim of threat_models/*.yaml."
    )
    group.addoption(
        "--threat-run", metavar="RUN", help="Judge claims by this run folder, its attacks too."
    )
    group.addoption(
        "--threat-signer",
        metavar="FILE",
        action="append",
        default=[],
        help="Public key whose signatures are known; may be repeated.",
    )
    group.addoption(
        "--threat-evidence", metavar="FILE", help="Store what cited tests came to, signed."
    )
    group.addoption("--threat-key", metavar="FILE", help="Signs it; made if it is not there.")


def pytest_configure(config: pytest.Config) -> None:
    """Begin, where it is asked for; comes before xdist starts its workers."""
    options = ("--threat-run", "--threat-signer", "--threat-evidence", "--threat-key")
    if not config.getoption("--threat-models"):
        for name in options:
            if config.getoption(name):
                raise pytest.UsageError(f"{name} goes with --threat-models")
        return
    if bool(config.getoption("--threat-evidence")) != bool(config.getoption("--threat-key")):
        raise pytest.UsageError("--threat-evidence and --threat-key go together")
    from securefed.auditing.claim_items import Claims
    from securefed.errors import SecureFedError

    if "dist" in config.option:
        config.option.dist, config.option.tx, config.option.numprocesses = "no", [], 0
    try:
        config.pluginmanager.register(Claims(config), _NAME)
    except SecureFedError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """A threat model's file, among those that are asked for."""
    claims = parent.config.pluginmanager.get_plugin(_NAME)
    return None if claims is None else claims.collector(file_path, parent)
