"""The registry's entry: its fields, what a person must fill in, and no epsilon without a guarantee.

``SCHEMA`` is ours: the names and closed lists of the registry's schema as it was seen (see the
module), without its descriptions.
"""

import pytest
import report_sample as sample
import yaml
from jsonschema import Draft202012Validator

from securefed.errors import ConfigError
from securefed.reports.dp_registry import FILL_IN, render

TEXT = {"type": "string"}


def fields(required, **properties):
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


SCHEMA = fields(
    ["url_slug", "deployment"],
    url_slug=TEXT,
    deployment=fields(
        ["basic", "administrative"],
        basic=fields(
            "name data_curators description intended_use data_product_type data_product_region "
            "publication_date".split(),
            name=TEXT,
            data_curators={
                "type": "array",
                "minItems": 1,
                "items": fields(
                    ["data_curator_name", "data_curator_type"],
                    data_curator_name=TEXT,
                    data_curator_type={"enum": ["Government", "Industry", "Nonprofit"]},
                ),
            },
            description=TEXT,
            intended_use=TEXT,
            data_product_type={"enum": ["Machine learning model"]},
            data_product_region=TEXT,
            publication_date={"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
        ),
        dp_variant=fields(
            [],
            variant_name={
                "enum": ["Pure DP", "Approximate DP", "Zero-concentrated DP", "Renyi DP", "Custom"]
            },
            data_domain=TEXT,
            unprotected_quantities=TEXT,
        ),
        privacy_loss=fields(
            [],
            privacy_unit=TEXT,
            privacy_unit_details=TEXT,
            number_of_privacy_units={"type": "integer"},
            privacy_parameters=fields(
                [], epsilon={"type": "number"}, delta={"type": "number"}, rho={"type": "number"}
            ),
            privacy_parameters_details=TEXT,
        ),
        deployment_model=fields(
            [],
            model_name={"enum": ["Local", "Central", "Shuffle", "Federated", "Varies"]},
            model_name_details=TEXT,
            trust_assumptions=TEXT,
            actors=TEXT,
            release_type={"enum": ["One release", "Many releases"]},
            release_type_details=TEXT,
            data_source_type={"enum": ["Static", "Dynamic"]},
            data_source_type_details=TEXT,
            access_type={"enum": ["Interactive", "Non-interactive"]},
            access_type_details=TEXT,
        ),
        implementation=fields(
            [],
            preprocessing_and_hyperparameter_tuning=TEXT,
            mechanisms=TEXT,
            composition=TEXT,
            post_processing=TEXT,
            justification=TEXT,
            utility=TEXT,
            additional_information=TEXT,
        ),
        administrative=fields(
            ["status", "registry_authors", "tier"],
            evidence_sources={"type": "object"},
            status={"enum": ["Draft"]},
            registry_authors={"type": "array", "minItems": 1, "items": TEXT},
            tier={"enum": [1, 2, 3]},
        ),
    ),
)


def entry(language="en", **changes):
    return yaml.safe_load(render(sample.report(**changes), language))


def errors(document):
    return [list(e.absolute_path) for e in Draft202012Validator(SCHEMA).iter_errors(document)]


@pytest.mark.parametrize("language", ["en", "ja"])
def test_it_has_the_registrys_fields_once_a_person_has_answered(language):
    document = entry(language)
    document["deployment"]["basic"]["data_curators"][0]["data_curator_type"] = "Industry"
    assert errors(document) == []


def test_the_registry_refuses_it_until_a_person_has_answered():
    assert errors(entry()) == [["deployment", "basic", "data_curators", 0, "data_curator_type"]]


def test_what_software_cannot_know_is_left_open():
    deployment = entry()["deployment"]
    for text in (
        deployment["basic"]["intended_use"],
        deployment["basic"]["data_product_region"],
        deployment["basic"]["data_curators"][0]["data_curator_name"],
        deployment["administrative"]["registry_authors"][0],
        deployment["implementation"]["justification"],
    ):
        assert text.startswith(FILL_IN)


def test_the_parameters_are_those_against_the_release_with_all_others_beside_them():
    against_server = sample.statement(
        against="server", epsilon=sample.figure(9.87, "epsilon"), second=None
    )
    part = sample.Privacy(hazards=[], statements=[against_server, sample.statement()])
    loss = entry(privacy=part)["deployment"]["privacy_loss"]
    assert loss["privacy_parameters"] == {"epsilon": 3.21, "delta": 1e-5}
    assert "9.87" in loss["privacy_parameters_details"]
    assert loss["privacy_unit"].startswith("one example")


@pytest.mark.parametrize(
    "statements",
    [[], [sample.statement(protected=False)], [sample.statement(against="server")]],
)
def test_a_run_without_a_guarantee_for_its_release_is_not_registered(statements):
    with pytest.raises(ConfigError, match="dp-registry: the run has no"):
        render(sample.report(privacy=sample.Privacy(hazards=[], statements=statements)), "en")


def test_words_of_a_run_are_not_read_as_markup():
    identity = sample.report().identity.model_copy(update={"name": "a_b $x$ <script>\n# c"})
    name = entry(identity=identity)["deployment"]["basic"]["name"]
    assert name == r"a\_b \$x\$ &lt;script&gt; # c"


def test_text_of_several_lines_keeps_its_lines():
    text = render(sample.report(), "en")
    assert "actors: |-\n" in text
    assert entry()["deployment"]["deployment_model"]["actors"].count("\n") == 1


def test_the_same_report_gives_the_same_entry_and_says_what_it_was_made_after():
    assert render(sample.report(), "en") == render(sample.report(), "en")
    assert "057e5d81" in render(sample.report(), "en")
