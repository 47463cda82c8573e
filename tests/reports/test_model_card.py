"""The model card: read back as the Hub's own library reads it."""

import pytest
import report_sample as sample
from huggingface_hub import ModelCard

from securefed.errors import ConfigError
from securefed.reports.model_card import render


def card(language="en", **changes):
    return ModelCard(render(sample.report(**changes), language))


def with_identity(**changes):
    return sample.report().identity.model_copy(update=changes)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_hub_reads_what_it_needs(language):
    found = card(language, identity=with_identity(model="org/base-model"))
    data = found.data.to_dict()
    assert data["library_name"] == "peft"
    assert data["base_model"] == "org/base-model"
    assert data["pipeline_tag"] == "text-generation"
    assert {"differential-privacy", "secure-aggregation", "federated-learning"} <= set(data["tags"])
    assert data["securefed"]["ledger_head"] == "78" * 32
    assert found.text.strip().startswith("# demo")


def test_what_is_no_name_on_the_hub_is_not_put_there_as_one():
    for model in (
        "builtin:smollm2-135m-instruct",
        "../models/base",
        "a/b/c",
        "/abs/path",
        "org/a b",
    ):
        data = card(identity=with_identity(model=model)).data.to_dict()
        assert "base_model" not in data
        assert data["securefed"]["base_model_source"] == model


def test_nothing_is_claimed_that_the_run_does_not_know():
    data = card().data.to_dict()
    assert not {"license", "language", "datasets"} & data.keys()


def test_the_privacy_statement_is_whole():
    text = card().text
    for part in (
        "3.21",
        "10⁻⁵",
        "one example",
        "add or remove one example",
        "distributed discrete Gaussian",
        "secret Poisson sample",
        "PLD",
        "at most 1 of 8 clients colludes",
        "AES-256-CTR is a pseudorandom generator",
    ):
        assert part in text
    assert "Fairness was not measured." in text
    assert "securefed verify demo" in text


def test_a_run_without_protection_says_so_first_and_has_no_tag_for_it():
    part = sample.Privacy(hazards=[], statements=[sample.statement(protected=False)])
    plain = sample.Aggregation(kind="plaintext", statement=[], parameters=[], rounds=[])
    found = card(privacy=part, aggregation=plain)
    assert not {"differential-privacy", "secure-aggregation"} & set(found.data.to_dict()["tags"])
    warning = found.text.index("No differential-privacy guarantee")
    assert warning < found.text.index("## ")


def test_an_unfinished_and_unanchored_run_says_so_first():
    found = card(identity=with_identity(finished=False, anchored=False))
    head = found.text[: found.text.index("## ")]
    assert "no closing record" in head
    assert "not checked against keys" in head


def test_words_of_a_run_are_neither_markup_nor_front_matter():
    hostile = "a\n---\nlicense: mit\n---\n<script>x</script> # [b](c)"
    found = card(identity=with_identity(name=hostile, model=hostile, task=hostile))
    data = found.data.to_dict()
    assert "license" not in data
    assert data["securefed"]["base_model_source"] == hostile
    assert "<script>" not in found.text
    assert "[b](c)" not in found.text


def test_every_number_beside_a_figure_is_listed_at_the_end():
    text = card().text
    assert "3.21 \\[1\\]" in text
    assert "| \\[1\\] |" in text


def test_an_unknown_language_is_refused():
    with pytest.raises(ConfigError, match="language = 'fr'"):
        render(sample.report(), "fr")
