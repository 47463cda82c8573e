"""Rows of frameworks: their files are checked, and a verdict follows from claims and facts."""

import json
from pathlib import Path

import pytest
import report_sample as sample
import yaml

from securefed.errors import ConfigError
from securefed.reports.crosswalk import crosswalk
from securefed.reports.crosswalk.facts import FACTS, find
from securefed.reports.crosswalk.files import WHO, frameworks, parse

ROOT = Path(__file__).parents[2]

ONE = """\
id: one
title: {en: One, ja: 一つ}
edition: first
source: https://example.org/one
rows:
  - id: "1"
    requirement: {en: Do it., ja: 行う。}
    claims: [TM-honest-but-curious-server/C-sum-only]
    facts: [finished]
    sections: [privacy]
"""


def row(text: str = ONE, **changes):
    """The only row of a framework, judged against the sample report with ``changes``."""
    return crosswalk(sample.report(**changes), [parse(text.encode(), "one.yaml")])[0].rows[0]


def with_claim(verdict):
    return [
        sample.threat_model("TM-honest-but-curious-server", [sample.claim("C-sum-only", verdict)])
    ]


# The shipped files


def test_the_frameworks_that_were_asked_for_are_there():
    assert [one.id for one in frameworks()] == [
        "eu-ai-act-annex-iv",
        "gdpr-art-35",
        "hipaa-164.514-b-1",
        "iso-iec-27559",
        "jp-appi",
        "nist-ai-100-2-e2025",
        "nist-ai-rmf-1.0",
        "nist-sp-800-226",
    ]


def test_every_claim_that_a_row_rests_on_is_in_a_threat_model():
    there = {
        f"{model['id']}/{claim['id']}"
        for path in (ROOT / "threat_models").glob("*.yaml")
        for model in [yaml.safe_load(path.read_text(encoding="utf-8"))]
        for claim in model["claims"]
    }
    cited = {claim for one in frameworks() for row in one.rows for claim in row.claims}
    assert cited
    assert cited <= there


def test_a_row_written_from_memory_or_from_a_copy_is_not_checked():
    for one, source in zip(crosswalk(sample.report()), frameworks(), strict=True):
        for shown, row in zip(one.rows, source.rows, strict=True):
            copy = None if row.seen is None else source.seen[row.seen].copy_of
            assert shown.checked == (copy == "official")
            assert (shown.checked_against is None) == (copy is None)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_sentence_of_a_crosswalk_is_in_the_catalogue(language):
    table = json.loads(
        (ROOT / f"securefed/reports/languages/{language}.json").read_text(encoding="utf-8")
    )
    keys = {f"crosswalk.{how}.{fact}" for fact in FACTS for how in ("holds", "lacks")}
    keys |= {f"crosswalk.who.{who}" for who in WHO}
    keys |= {f"crosswalk.seen.{c}" for c in ("official", "reproduction", "draft", "contents")}
    keys |= {f"crosswalk.why.{how}" for how in ("shown", "signed", "refuted", "open", "elsewhere")}
    keys |= {
        "crosswalk.then",
        "crosswalk.text",
        "crosswalk.why.organisational",
        "crosswalk.open",
        "crosswalk.absent",
    }
    assert not keys - table.keys()


# Verdicts


@pytest.mark.parametrize("verdict", ["verified", "not_refuted"])
def test_a_row_is_evidenced_when_all_of_it_is_shown(verdict):
    found = row(threat_models=with_claim(verdict))
    assert found.verdict == "evidenced"
    assert found.who is None


def test_a_refuted_claim_is_a_row_not_met_whatever_else_holds():
    assert row(threat_models=with_claim("refuted")).verdict == "not_met"
    assert (
        row(
            ONE.replace("facts: [finished]", "most: partly\n    who: expert"),
            threat_models=with_claim("refuted"),
        ).verdict
        == "not_met"
    )


@pytest.mark.parametrize("verdict", ["void", "stale", "not_run", "inconclusive"])
def test_a_claim_that_was_not_shown_leaves_a_row_in_part_or_not_met(verdict):
    assert row(threat_models=with_claim(verdict)).verdict == "partly"
    bare = ONE.replace("    facts: [finished]\n", "")
    assert row(bare, threat_models=with_claim(verdict)).verdict == "not_met"


def test_a_claim_that_the_run_does_not_hold_is_not_shown():
    bare = ONE.replace("    facts: [finished]\n", "")
    found = row(bare, threat_models=[])
    assert found.verdict == "not_met"
    assert "absent" in json.dumps(found.why.model_dump())


def test_a_signed_statement_alone_is_no_evidence():
    bare = ONE.replace("    facts: [finished]\n", "")
    assert row(bare, threat_models=with_claim("manual")).verdict == "partly"


def test_a_row_about_what_the_run_does_not_do_does_not_apply():
    assert row(threat_models=with_claim("not_applicable")).verdict == "not_applicable"


def test_a_fact_that_lacks_is_said():
    report = sample.report()
    unfinished = report.identity.model_copy(update={"finished": False})
    found = row(identity=unfinished)
    assert found.verdict == "partly"
    assert "crosswalk.lacks.finished" in json.dumps(found.why.model_dump())


def test_an_organisational_row_stays_so_and_names_who_must_answer():
    text = ONE.replace("    claims: [TM-honest-but-curious-server/C-sum-only]\n", "").replace(
        "facts: [finished]", "most: organisational\n    who: controller"
    )
    found = row(text)
    assert found.verdict == "organisational"
    assert found.who is not None
    assert found.who.key == "crosswalk.who.controller"


def test_a_unit_smaller_than_a_person_answers_in_part():
    text = ONE.replace("facts: [finished]", "partly_unless: [unit_is_person]\n    who: controller")
    assert row(text).verdict == "partly"
    people = sample.Privacy(
        hazards=[], statements=[sample.statement(unit=sample.Said(key="held.unit.client"))]
    )
    assert row(text, privacy=people).verdict == "evidenced"


@pytest.mark.parametrize(
    ("fact", "part"),
    [
        ("dp_protected", {"privacy": sample.Privacy(hazards=[], statements=[])}),
        (
            "dp_protected",
            {"privacy": sample.Privacy(hazards=[], statements=[sample.statement(protected=False)])},
        ),
        (
            "second_accountant",
            {"privacy": sample.Privacy(hazards=[], statements=[sample.statement(second=None)])},
        ),
        ("attacks", {"leakage": sample.Leakage(attacks=[], curves=[], notes=[])}),
        (
            "attacks",
            {
                "leakage": sample.Leakage(
                    attacks=[sample.attack(anchored=False)], curves=[], notes=[]
                )
            },
        ),
        (
            "attacks",
            {"leakage": sample.Leakage(attacks=[sample.attack(fits=False)], curves=[], notes=[])},
        ),
        (
            "attacks",
            {
                "leakage": sample.Leakage(
                    attacks=[sample.attack(verdict="void")], curves=[], notes=[]
                )
            },
        ),
        (
            "baselines",
            {
                "leakage": sample.Leakage(
                    attacks=[sample.attack(baseline=None)], curves=[], notes=[]
                )
            },
        ),
        (
            "worst_and_average",
            {"leakage": sample.Leakage(attacks=[sample.attack(worst=None)], curves=[], notes=[])},
        ),
        (
            "masked",
            {
                "aggregation": sample.Aggregation(
                    kind="plaintext", statement=[], parameters=[], rounds=[]
                )
            },
        ),
        ("threats", {"threat_models": []}),
        ("out_of_scope", {"threat_models": []}),
        ("limitations", {"limitations": []}),
    ],
)
def test_a_fact_does_not_hold_without_what_it_is_about(fact, part):
    assert find(fact, sample.report()).holds
    assert not find(fact, sample.report(**part)).holds


def test_a_fact_about_a_figure_says_where_the_figure_stands():
    assert find("dp_protected", sample.report()).references == [sample.ledger(9)]


# Errors of a file


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("facts: [finished]", "facts: [finish]", 9, "facts.0"),
        ("sections: [privacy]", "sections: [money]", 10, "sections.0"),
        (
            "claims: [TM-honest-but-curious-server/C-sum-only]",
            "claims: [C-sum-only]",
            8,
            "claims.0",
        ),
        ("{en: Do it., ja: 行う。}", "{en: Do it.}", 7, "requirement.ja"),
        ("edition: first\n", "", 1, "edition"),
        ("source: https://example.org/one", "source: memory", 4, "source"),
        ("facts: [finished]", "surprise: true", 9, "surprise"),
        ("facts: [finished]", "most: partly", 6, "who must answer"),
        ("facts: [finished]", "most: organisational", 6, "rests on no claim"),
        ("facts: [finished]", "seen: nowhere", 1, "seen = 'nowhere'"),
        ('- id: "1"', "- id: 2026-01-01", 6, "read differently"),
    ],
)
def test_an_error_names_file_line_and_field(old, new, line, says):
    assert old in ONE
    with pytest.raises(ConfigError) as error:
        parse(ONE.replace(old, new).encode(), "one.yaml")
    assert str(error.value).startswith(f"one.yaml:{line}: ")
    assert says in str(error.value)


def test_two_rows_of_one_name_and_two_files_of_one_id_are_refused():
    twice = ONE + ONE[ONE.index("  - id") :]
    with pytest.raises(ConfigError, match="stands twice"):
        parse(twice.encode(), "one.yaml")
    with pytest.raises(ConfigError, match="another file has it too"):
        frameworks({"a.yaml": ONE.encode(), "b.yaml": ONE.encode()})
