"""The bill of materials: valid by the official schema, and nothing in it points nowhere."""

import json

import pytest
import report_sample as sample
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from securefed.reports.crosswalk import crosswalk
from securefed.reports.cyclonedx import render


def full(**changes):
    report = sample.report(**changes)
    return report.model_copy(update={"crosswalk": crosswalk(report)})


def bill(**changes):
    return json.loads(render(full(**changes), "en"))


def nodes(value):
    yield value
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            yield from nodes(inner)


def refs(document):
    return [n["bom-ref"] for n in nodes(document) if isinstance(n, dict) and "bom-ref" in n]


STRICT = JsonStrictValidator(SchemaVersion.V1_6)
HOSTILE = 'a "b" \\ <c> \u202e \x07 日本 #/%?'


@pytest.mark.parametrize("language", ["en", "ja"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"threat_models": [], "limitations": []},
        {"privacy": sample.Privacy(hazards=[], statements=[])},
        {
            "threat_models": [
                sample.threat_model(
                    "TM-honest-but-curious-server",
                    [sample.claim("C-sum-only", "refuted"), sample.claim("C-dp-server", "void")],
                )
            ]
        },
    ],
)
def test_it_is_valid_by_the_official_schema(language, changes):
    text = render(full(**changes), language)
    assert STRICT.validate_str(text) is None


def test_words_of_a_run_folder_do_no_harm():
    identity = sample.report().identity.model_copy(
        update={"name": HOSTILE, "model": HOSTILE, "dependencies": {"x_y.Z": HOSTILE}}
    )
    text = render(full(identity=identity), "en")
    assert STRICT.validate_str(text) is None
    assert json.loads(text)["metadata"]["component"]["name"] == HOSTILE


def test_the_validator_refuses_what_is_no_bill_of_materials():
    broken = bill() | {"declarations": {"claims": [{"surprise": 1}]}}
    assert STRICT.validate_str(json.dumps(broken)) is not None


def test_every_name_is_there_once_and_every_link_leads_to_one():
    document = bill()
    names = refs(document)
    assert len(names) == len(set(names))
    declared = document["declarations"]
    links = [entry["ref"] for entry in document["dependencies"]]
    links += [ref for entry in document["dependencies"] for ref in entry.get("dependsOn", [])]
    for claim in declared["claims"]:
        links += [claim["target"], *claim.get("evidence", []), *claim.get("counterEvidence", [])]
    for attestation in declared["attestations"]:
        links.append(attestation["assessor"])
        for row in attestation["map"]:
            links += [row["requirement"], *row.get("claims", []), *row.get("counterClaims", [])]
    assert set(links) <= set(names)
    assert len(declared["claims"]) == 2
    assert len(declared["evidence"]) == 2
    assert len(declared["attestations"]) == len(document["definitions"]["standards"]) == 8


def test_a_refuted_claim_has_evidence_against_it_and_is_no_claim_for_a_requirement():
    model = sample.threat_model(
        "TM-honest-but-curious-server", [sample.claim("C-sum-only", "refuted")]
    )
    declared = bill(threat_models=[model])["declarations"]
    (claim,) = declared["claims"]
    assert "evidence" not in claim
    assert claim["counterEvidence"] == ["evidence:TM-honest-but-curious-server/C-sum-only/0"]
    rows = [row for one in declared["attestations"] for row in one["map"]]
    assert not any("claims" in row for row in rows)
    against = [row for row in rows if "counterClaims" in row]
    assert against
    assert all(row["conformance"]["rationale"].startswith("not_met") for row in against)


@pytest.mark.parametrize("verdict", ["void", "stale", "not_run", "inconclusive"])
def test_evidence_that_shows_nothing_is_cited_for_no_claim(verdict):
    model = sample.threat_model(
        "TM-honest-but-curious-server", [sample.claim("C-sum-only", verdict)]
    )
    (claim,) = bill(threat_models=[model])["declarations"]["claims"]
    assert "evidence" not in claim
    assert "counterEvidence" not in claim
    assert verdict in claim["reasoning"]


def test_no_epsilon_stands_alone():
    (found,) = [
        json.loads(p["value"])
        for p in bill()["metadata"]["component"]["properties"]
        if p["name"].startswith("securefed:privacy.")
    ]
    assert found["epsilon"] == 3.21
    assert {"delta", "unit", "adjacency", "mechanism", "sampling", "accountant", "trust"} <= set(
        found
    )


def test_nobody_affirms_and_no_score_is_given():
    text = render(full(), "en")
    assert "affirmation" not in text
    assert '"score"' not in text


def test_the_same_report_gives_the_same_text_and_another_head_another_serial_number():
    assert render(full(), "en") == render(full(), "en")
    other = sample.report().identity.model_copy(update={"head": "99" * 32})
    assert bill()["serialNumber"] != bill(identity=other)["serialNumber"]
