"""Results of attacks written into a run folder, and a run's material and report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from securefed.cli.reporting import material
from securefed.crypto.identity import IdentityKey
from securefed.engines.verify import verified_run
from securefed.evidence.anchoring import signer_record
from securefed.evidence.results import About, AttackDocument, Measurement, Metric, Subject
from securefed.reports.build import build
from securefed.reports.document import Report
from securefed.reports.material import Material

KEY = IdentityKey.generate()


def genesis(folder: Path) -> dict[str, Any]:
    """The body of a run's first record."""
    line = (folder / "ledger.jsonl").read_text().splitlines()[0]
    body: dict[str, Any] = json.loads(line)["body"]
    return body


def roster(folder: Path) -> Path:
    """The keys of a run's parties."""
    return folder.with_name(f"{folder.name}.keys") / "roster.json"


def document(folder: Path, **changes: Any) -> AttackDocument:
    """A result about a run, as an audit would write it; the figures are made up."""
    values: dict[str, Any] = {
        "attack": "alignment-on-sum",
        "attacks": "membership",
        "exposure": "sum",
        "defence": "noise and masks",
        "model": Subject(source="model", fingerprint=genesis(folder)["model_fingerprint"]),
        "settings": {"batch": 1, "clients": None},
        "seeds": [0],
        "n": 240,
        "metrics": {
            "auc": Metric(
                value=0.53,
                interval=(0.47, 0.59),
                prior=0.5,
                lift=0.03,
                lift_interval=(-0.03, 0.09),
                method="bootstrap",
            ),
            "advantage": Metric(value=0.04),
            "worst_record_advantage": Metric(value=0.21, interval=(0.05, 0.37)),
        },
        "headline": "auc",
        "verdict": "guessed",
        "predicted": {"epsilon": 3.5, "delta": 1e-5},
        "curve": [(0.0, 0.0), (0.01, 0.02), (0.1, 0.13), (0.5, 0.55), (1.0, 1.0)],
    }
    measurement = Measurement(**(values | changes))
    about = About(time="2026-11-29T10:00:00Z", seconds=1.5, version="0.1.0")
    return AttackDocument(measurement=measurement, about=about)


def add_attacks(folder: Path) -> None:
    """Two results with the defence on, one with it off, and one that is void."""
    bare = {
        "defence": "off",
        "predicted": None,
        "metrics": {
            "auc": Metric(
                value=0.91, interval=(0.86, 0.95), prior=0.5, lift=0.41, lift_interval=(0.36, 0.45)
            )
        },
        "curve": [(0.0, 0.0), (0.01, 0.4), (0.1, 0.8), (1.0, 1.0)],
    }
    void = {
        "attack": "span-inversion",
        "attacks": "texts",
        "exposure": "masked",
        "defence": "masks",
        "verdict": "void",
        "reason": "the attack says itself that it does not apply in 3 of 3 trials",
        "metrics": {},
        "headline": None,
        "predicted": None,
        "curve": [],
        "n": 3,
    }
    place = folder / "attacks"
    place.mkdir()
    (place / "signer.json").write_text(signer_record(KEY.public))
    for name, changes in (("on", {}), ("off", bare), ("void", void)):
        envelope = document(folder, **changes).signed(KEY)
        (place / f"{name}.json").write_text(json.dumps(envelope))


def material_of(folder: Path, **changes: Any) -> Material:
    """A run's material, with its own keys trusted."""
    found = material(folder, verified_run(folder, roster(folder)), [KEY.public])
    return dataclasses.replace(found, **changes)


def report_of(folder: Path, **changes: Any) -> Report:
    """A run's report."""
    return build(material_of(folder, **changes))
