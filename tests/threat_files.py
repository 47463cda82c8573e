"""A small threat model, and run facts, for tests to change."""

import copy
import datetime
from typing import Any

import yaml

from securefed.config import parse_config
from securefed.evidence.chain import Record
from securefed.evidence.results import About, AttackDocument, Measurement, Metric, Subject
from securefed.threats.facts import MeasuredAttack, RunFacts
from securefed.threats.loading import load_threat_model
from securefed.threats.model import ThreatModel
from securefed.threats.stored import Stored, StoredTests, TestResult
from securefed.threats.verdicts import Reference

CODE, OTHER_CODE = "a" * 64, "b" * 64
WEIGHTS, OTHER_WEIGHTS = "c" * 64, "d" * 64
TEST = "tests/test_it.py::test_it"
TODAY = datetime.date(2026, 11, 29)
NOW = datetime.datetime(2026, 11, 29, 12, tzinfo=datetime.UTC)

TEST_EVIDENCE = {"type": "test", "test": TEST}
ATTACK_EVIDENCE = {
    "type": "attack",
    "attack": "span-inversion",
    "exposure": "masked",
    "defence": "masks",
    "metric": "token_recall",
    "accept": {"op": "<=", "value": 0.1, "of": "ci_upper"},
    "baseline": {
        "exposure": "plain",
        "defence": "off",
        "expect": {"op": ">=", "value": 0.5, "of": "ci_lower"},
    },
    "min_trials": 4,
}
LEDGER_EVIDENCE = {
    "type": "ledger",
    "ledger": "closing.epsilon.server",
    "accept": {"op": "<=", "value": 8.0},
}
MANUAL_EVIDENCE = {
    "type": "manual",
    "manual": "retention",
    "asks": "How long is the adapter kept?",
    "who": "controller",
}

_MODEL: dict[str, Any] = {
    "schema_version": 2,
    "id": "TM-small",
    "title": {"en": "Small", "ja": "小さい"},
    "taxonomies": dict.fromkeys(("linddun", "stride", "nist_aml", "atlas", "owasp_ml"), "some"),
    "system": {
        "protocol": "pairwise",
        "cohort": {"min_clients": 3, "threshold": 2},
        "rounds": 2,
        "config_ref": "examples/demo.toml",
    },
    "assets": [{"id": "AS-update", "description": "An update", "privacy_unit": "client"}],
    "actors": [
        {
            "id": "AC-server",
            "role": "server",
            "corruption": "honest-but-curious",
            "view": ["masked-updates", "opened-sums"],
        }
    ],
    "threats": [
        {
            "id": "T-read",
            "title": "Reading it",
            "actor": "AC-server",
            "asset": "AS-update",
            "linddun": [{"id": "data-disclosure", "match": "exact"}],
            "stride": [{"id": "I", "match": "approximate"}],
            "nist_aml": [{"id": "NISTAML.032", "match": "exact"}],
            "atlas": [],
            "owasp_ml": [],
            "severity": "high",
        }
    ],
    "claims": [
        {
            "id": "C-one",
            "threats": ["T-read"],
            "statement": "Nothing is read.",
            "kind": "cryptographic",
            "assumptions": ["The code is this code."],
            "controls": [
                {
                    "code": "securefed.secagg.pairwise_client",
                    "config": {"aggregation.kind": "pairwise"},
                }
            ],
            "evidence": [TEST_EVIDENCE],
            "residual_risk": {"level": "low", "statement": "Some."},
        }
    ],
    "out_of_scope": [{"threat": "A flood", "reason": "Water is not modelled."}],
}


def values(**claim: Any) -> dict[str, Any]:
    """The model's values, with some of its one claim's replaced."""
    found = copy.deepcopy(_MODEL)
    found["claims"][0] |= copy.deepcopy(claim)
    return found


class _Plain(yaml.SafeDumper):
    """Writes a part that stands twice out twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def text(content: dict[str, Any]) -> bytes:
    return yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True).encode()


def model(**claim: Any) -> ThreatModel:
    return load_threat_model(text(values(**claim)), "small.yaml")


def config(**sections: dict[str, Any]) -> Any:
    base: dict[str, Any] = {"model": {"source": "some/model"}, "data": {"source": "some/data"}}
    return parse_config(base | sections)


def record(seq: int, kind: str, body: dict[str, Any]) -> Record:
    return Record(seq, "2026-11-29T12:00:00Z", kind, body, "0" * 64, f"{seq:064x}")


def ledger(epsilon: Any = 2.0, survivors: int = 3, **genesis: Any) -> list[Record]:
    """A finished run of one round with four clients."""
    names = ["a", "b", "c", "d"]
    first = {
        "cohort": names,
        "privacy": {
            "dropout_fraction": 0.25,
            "noise_multiplier": 0.6,
            "dimension": 10,
            "delta": 1e-5,
        },
    }
    statements = [{"against": who, "epsilon": epsilon} for who in ("server", "release")]
    return [
        record(0, "genesis", first | genesis),
        record(1, "evaluation_opened", {"round": 0}),
        record(2, "round_opened", {"round": 1}),
        record(3, "round_summed", {"round": 1, "survivors": names[:survivors]}),
        record(4, "closed", {"rounds": 1, "charges": 1, "guarantees": statements}),
    ]


def facts(**changed: Any) -> RunFacts:
    given: dict[str, Any] = {
        "config": config(),
        "records": ledger(),
        "source_sha256": CODE,
        "model_fingerprint": WEIGHTS,
    }
    return RunFacts(**(given | changed))


def passed(test: str = TEST, **changed: Any) -> Stored:
    """A stored result of a test."""
    given: dict[str, Any] = {
        "test": test,
        "outcome": "passed",
        "cases": 1,
        "seconds": 0.5,
        "slow": False,
        "date": "2026-11-28T10:00:00Z",
        "source_sha256": CODE,
        "test_sha256": "e" * 64,
    }
    where = Reference(kind="file", path="threat_models/evidence/quick.json", pointer="/results/0")
    return Stored(TestResult(**(given | changed)), where, anchored=True)


def stored_tests(*stored: Stored) -> StoredTests:
    return StoredTests(stored)


def measured(
    exposure: str = "masked",
    defence: str = "masks",
    low: float = 0.0,
    value: float = 0.02,
    high: float = 0.05,
    **changed: Any,
) -> MeasuredAttack:
    """A result of an attack on the run of :func:`facts`."""
    run_file = config().model_dump(mode="json", exclude_none=True)
    given: dict[str, Any] = {
        "attack": "span-inversion",
        "attacks": "texts",
        "exposure": exposure,
        "defence": defence,
        "model": Subject(source="model", fingerprint=WEIGHTS),
        "settings": {
            "batch": 1,
            "clients": None,
            "config": run_file,
            "code": ["0.1.0", CODE, "2.13.0"],
        },
        "seeds": [0, 1, 2, 3],
        "n": 4,
        "metrics": {"token_recall": Metric(value=value, interval=(low, high))},
        "headline": "token_recall",
        "verdict": "guessed",
    }
    time = changed.pop("time", "2026-11-29T09:00:00Z")
    document = AttackDocument(
        measurement=Measurement(**(given | changed)),
        about=About(time=time, seconds=1.0, version="0.1.0"),
    )
    reference = Reference(kind="file", path=f"attacks/{exposure}.json", sha256="f" * 64)
    return MeasuredAttack(document, reference, anchored=True)


def working_baseline(**changed: Any) -> MeasuredAttack:
    """The same attack where it works."""
    return measured("plain", "off", **({"low": 0.8, "value": 0.9, "high": 1.0} | changed))
