"""Threat models as files: what is refused, and where the message points."""

import json
from importlib import resources

import jsonschema
import pytest
from threat_files import ATTACK_EVIDENCE, LEDGER_EVIDENCE, TEST_EVIDENCE, model, text, values

from securefed.errors import ConfigError
from securefed.threats.loading import load_threat_model, load_threat_models
from securefed.threats.model import threat_model_schema


def refusal(content: dict) -> str:
    with pytest.raises(ConfigError) as refused:
        load_threat_model(text(content), "small.yaml")
    return str(refused.value)


def line_of(content: dict, words: str) -> int:
    lines = text(content).decode().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if words in line)


def test_a_model_is_read_with_its_words_in_two_languages():
    found = model()
    assert (found.title.en, found.title.ja) == ("Small", "小さい")
    assert (found.assets[0].description.en, found.assets[0].description.ja) == ("An update", None)
    assert found.where("claims", 0) == f"small.yaml:{line_of(values(), 'C-one')}"


def test_an_unknown_key_is_named_with_its_line():
    content = values(stetement="x")
    assert refusal(content) == (
        f"small.yaml:{line_of(content, 'stetement')}: claims.0.stetement: no such key is known here"
    )


def test_every_fault_is_told_not_only_the_first():
    content = values(kind="magic")
    content["threats"][0]["severity"] = "terrible"
    lines = refusal(content).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        f"small.yaml:{line_of(content, 'terrible')}",
        f"small.yaml:{line_of(content, 'magic')}",
    ]


@pytest.mark.parametrize(
    ("claim", "at", "words"),
    [
        ({"threats": ["T-none"]}, "T-none", "'T-none' is no threat of this file"),
        (
            {"controls": [{"code": "securefed.x", "config": {"aggregation.knd": "pairwise"}}]},
            "aggregation.knd",
            "no run file has it; at 'knd' allowed: kind,",
        ),
        (
            {"controls": [{"code": "securefed.x", "config": {"aggregation.kind": "pairwize"}}]},
            "pairwize",
            "a run file cannot have it",
        ),
        (
            {"applies_when": {"privacy.unit": {"op": "in", "value": ["example", "person"]}}},
            "privacy.unit",
            "'person'",
        ),
        (
            {"applies_when": {"privacy.unit": {"op": "in", "value": "example"}}},
            "privacy.unit",
            "must be a list",
        ),
        (
            {"controls": [{"code": "securefed.x", "optional": True}]},
            "securefed.x",
            "no config says when it is in force",
        ),
        ({"evidence": []}, "evidence: []", "at least 1 item"),
        (
            {"evidence": [TEST_EVIDENCE, {"role": "baseline"} | TEST_EVIDENCE]},
            "- role",
            "stands twice",
        ),
        ({"evidence": [{"type": "test", "test": "test_it"}]}, "test: test_it", "match pattern"),
        ({"evidence": [{"type": "hearsay"}]}, "hearsay", "does not match any of the expected"),
        (
            {"evidence": [{k: v for k, v in ATTACK_EVIDENCE.items() if k != "baseline"}]},
            "attack: span",
            "baseline: is missing",
        ),
        (
            {"evidence": [ATTACK_EVIDENCE | {"exposure": "plain"}]},
            "exposure: plain",
            "the actor sees none of ['individual-updates'] (AC-server)",
        ),
        (
            {"evidence": [ATTACK_EVIDENCE | {"exposure": "masked with all others"}]},
            "exposure: masked with",
            "the actor does not see ['secrets-of-colluding-clients']",
        ),
        ({"evidence": [ATTACK_EVIDENCE | {"exposure": "game"}]}, "exposure: game", "malicious"),
        ({"evidence": [ATTACK_EVIDENCE | {"exposure": "aura"}]}, "exposure: aura", "allowed: "),
        (
            {"evidence": [LEDGER_EVIDENCE | {"ledger": "closing.luck"}]},
            "closing.luck",
            "must be 'closing.",
        ),
        (
            {
                "evidence": [
                    LEDGER_EVIDENCE | {"accept": {"op": "<=", "of": "ci_upper", "value": 1}}
                ]
            },
            "of: ci_upper",
            "has no interval",
        ),
        (
            {"evidence": [LEDGER_EVIDENCE | {"accept": {"op": "<=", "config": "budget.epsilo"}}]},
            "budget.epsilo",
            "no run file has it",
        ),
        ({"evidence": [LEDGER_EVIDENCE | {"accept": {"op": "<="}}]}, "accept:", "needs one of"),
    ],
)
def test_a_claim_that_refers_to_what_is_not_there_is_refused_at_its_line(claim, at, words):
    content = values(**claim)
    told = refusal(content)
    assert f"small.yaml:{line_of(content, at)}: " in told
    assert words in told


def test_a_baseline_must_have_the_defence_off_and_be_another_cell():
    masked = ATTACK_EVIDENCE | {"baseline": ATTACK_EVIDENCE["baseline"] | {"defence": "masks"}}
    assert "baseline.defence: must be 'off'" in refusal(values(evidence=[masked]))
    content = values(evidence=[ATTACK_EVIDENCE | {"exposure": "plain", "defence": "off"}])
    content["actors"][0]["view"] = ["individual-updates"]
    assert "is the very cell that it should be compared with" in refusal(content)


def test_out_of_scope_is_never_empty_and_no_threat_is_left_without_an_answer():
    content = values()
    content["out_of_scope"] = []
    assert "out_of_scope: List should have at least 1 item" in refusal(content)
    content = values()
    content["threats"].append(content["threats"][0] | {"id": "T-left"})
    assert "T-left is answered by no claim and is not in out_of_scope" in refusal(content)
    content["out_of_scope"] = [{"threat": "T-left", "reason": "Not today."}]
    assert load_threat_model(text(content), "small.yaml")
    content["out_of_scope"].append({"threat": "T-unknown", "reason": "No."})
    assert "T-unknown is no threat of this file" in refusal(content)


def test_actors_and_assets_of_threats_exist_and_ids_stand_once():
    content = values()
    content["threats"][0] |= {"actor": "AC-nobody", "asset": "AS-nothing"}
    told = refusal(content)
    assert "'AC-nobody' is no actor of this file: ['AC-server']" in told
    assert "'AS-nothing' is no asset of this file: ['AS-update']" in told
    content = values()
    content["claims"].append(content["claims"][0])
    assert "C-one stands twice among claims" in refusal(content)


def test_ids_are_unique_over_all_files():
    one = text(values())
    with pytest.raises(ConfigError, match=r"b.yaml:2: TM-small stands at a.yaml:2 too"):
        load_threat_models({"a.yaml": one, "b.yaml": one})
    other = values() | {"id": "TM-other"}
    with pytest.raises(ConfigError, match=r"b.yaml:\d+: T-read stands at a.yaml:\d+ too"):
        load_threat_models({"a.yaml": one, "b.yaml": text(other)})


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read"):
        load_threat_model(tmp_path / "none.yaml")


def test_the_published_schema_is_the_one_that_the_code_has():
    published = resources.files("securefed") / "schemas" / "threat-model.json"
    assert published.read_text(encoding="utf-8") == threat_model_schema()


@pytest.fixture(scope="module")
def schema_validator():
    schema = json.loads(threat_model_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize(
    "claim",
    [
        {},
        {"evidence": [TEST_EVIDENCE, ATTACK_EVIDENCE, LEDGER_EVIDENCE]},
        {"applies_when": {"privacy.unit": {"op": "in", "value": ["example"]}}},
        {"kind": "magic"},
        {"evidence": []},
        {"evidence": [{"type": "hearsay"}]},
        {"evidence": [ATTACK_EVIDENCE | {"baseline": None}]},
        {"assumptions": "none"},
    ],
)
def test_the_schema_and_the_loader_agree(schema_validator, claim):
    valid = schema_validator.is_valid(values(**claim))
    try:
        load_threat_model(text(values(**claim)), "small.yaml")
    except ConfigError:
        assert not valid
    else:
        assert valid
