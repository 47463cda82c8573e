"""What threat models name must exist: tests that run, code that imports, run files that load."""

import ast
import importlib.util
from pathlib import Path

import pytest
import yaml

from securefed.config import load_config

ROOT = Path(__file__).parents[1]
MODELS = sorted((ROOT / "threat_models").glob("*.yaml"))


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_claim_rests_on_evidence_that_exists(path):
    model = yaml.safe_load(path.read_text())
    assert model["out_of_scope"]
    threats = {threat["id"] for threat in model["threats"]}
    for claim in model["claims"]:
        assert claim["evidence"]
        assert set(claim["threats"]) <= threats
        for control in claim["controls"]:
            assert importlib.util.find_spec(control["code"]) is not None
        for item in claim["evidence"]:
            file, _, name = item["test"].partition("::")
            assert name in functions(ROOT / file), item["test"]
    assert {t for claim in model["claims"] for t in claim["threats"]} == threats
    load_config(ROOT / model["system"]["config_ref"])


def test_there_are_threat_models():
    assert len(MODELS) >= 2
