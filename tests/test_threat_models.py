"""The shipped threat models: what they name exists, and whom an auditor looks for is there."""

import ast
import functools
import importlib.util
import re
from pathlib import Path

import pytest

from securefed.auditing.catalogue import CATALOGUE
from securefed.auditing.cells import Cell
from securefed.config import load_config
from securefed.threats.files import shipped
from securefed.threats.loading import load_threat_models
from securefed.threats.model import Text

ROOT = Path(__file__).parents[1]
MODELS = load_threat_models(shipped())
CLAIMS = [(model, claim) for model in MODELS for claim in model.claims]
BY_CLAIM = pytest.mark.parametrize(
    ("model", "claim"), CLAIMS, ids=[claim.id for _, claim in CLAIMS]
)
BY_MODEL = pytest.mark.parametrize("model", MODELS, ids=[model.id for model in MODELS])

ADVERSARIES = {
    "TM-honest-but-curious-server",
    "TM-colluding-clients",
    "TM-malicious-server",
    "TM-malicious-client",
    "TM-network-eavesdropper",
    "TM-model-user",
    "TM-dropping-adversary",
    "TM-decryptor",
    "TM-reader-of-figures",
    "TM-record-owner",
}


@functools.cache
def functions(file: str) -> dict[str, bool]:
    """Every function of a test file, and whether it, or the file, is slow."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    marks = [ast.unparse(node.value) for node in tree.body if isinstance(node, ast.Assign)
             and ast.unparse(node.targets[0]) == "pytestmark"]  # fmt: skip
    whole = any("slow" in mark for mark in marks)
    return {
        node.name: whole or any("mark.slow" in ast.unparse(each) for each in node.decorator_list)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }


def named(test: str) -> tuple[str, str]:
    file, _, name = test.partition("::")
    return file, name.partition("[")[0]


def texts(part) -> list[Text]:
    """Every text in a part of a threat model."""
    if isinstance(part, Text):
        return [part]
    if isinstance(part, dict):
        return [text for each in part.values() for text in texts(each)]
    if isinstance(part, list | tuple):
        return [text for each in part for text in texts(each)]
    if hasattr(type(part), "model_fields"):
        return [text for name in type(part).model_fields for text in texts(getattr(part, name))]
    return []


def test_every_adversary_that_an_auditor_looks_for_has_a_file():
    assert {model.id for model in MODELS} == ADVERSARIES


@BY_CLAIM
def test_what_a_claim_rests_on_exists(model, claim):
    for control in claim.controls:
        assert importlib.util.find_spec(control.code) is not None, control.code
    for item in claim.evidence:
        if item.type == "test":
            file, name = named(item.test)
            assert name in functions(file), item.test
            assert functions(file)[name] == item.slow, item.test
        elif item.type == "attack":
            attack = CATALOGUE[item.attack]
            attack.check(Cell(item.attack, item.exposure, item.defence, item.batch))
            base = (item.baseline.exposure, item.baseline.defence)
            assert base == attack.baseline_of(item.exposure)


@BY_CLAIM
def test_what_only_people_can_answer_stands_in_claims_of_its_own(model, claim):
    """A signature that is missing must not take away what tests show, nor tests stand for it."""
    kinds = {item.type for item in claim.evidence}
    assert (kinds == {"manual"}) == (claim.kind == "procedural")
    assert "manual" not in kinds or kinds == {"manual"}


@BY_CLAIM
def test_an_attack_is_tried_only_by_claims_that_say_so(model, claim):
    """So that an audit that was not made leaves a proof's claim as it is."""
    if any(item.type == "attack" for item in claim.evidence):
        assert claim.kind == "empirical"
        assert claim.id.endswith(("-tried", "-attacked"))


@BY_MODEL
def test_every_text_is_there_in_japanese_too_and_uses_its_script(model):
    for text in texts(model):
        assert text.ja, text.en
        assert any("\u3040" <= letter <= "\u30ff" for letter in text.ja), text.ja


@BY_MODEL
def test_what_is_out_of_scope_is_said_and_what_shows_it_exists(model):
    assert model.out_of_scope
    for item in model.out_of_scope:
        if item.demonstrated_by is not None:
            file, name = named(item.demonstrated_by)
            assert name in functions(file), item.demonstrated_by


@BY_MODEL
def test_the_run_file_that_a_model_is_of_loads(model):
    config = load_config(ROOT / model.system.config_ref)
    assert config.cohort.min_clients == model.system.cohort.min_clients
    assert config.training.rounds == model.system.rounds


def test_claims_that_texts_refer_to_exist():
    ids = {claim.id for _, claim in CLAIMS}
    said = [words for model in MODELS for text in texts(model) for words in (text.en, text.ja)]
    said += [(ROOT / name).read_text(encoding="utf-8") for name in ("SECURITY.md", "README.ja.md")]
    for words in said:
        assert set(re.findall(r"\bC-[a-z]+(?:-[a-z]+)*", words)) <= ids
