"""From evidence to verdicts: the rules as a table, and what holds of all of them."""

import datetime
import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from threat_files import (
    ATTACK_EVIDENCE,
    CODE,
    LEDGER_EVIDENCE,
    MANUAL_EVIDENCE,
    NOW,
    OTHER_CODE,
    TEST_EVIDENCE,
    TODAY,
    config,
    facts,
    ledger,
    measured,
    model,
    passed,
    stored_tests,
    working_baseline,
)

from securefed.threats.facts import RunFacts
from securefed.threats.judging import WORST_FIRST, combine, judge, judge_claim
from securefed.threats.statements import SignedStatement, Statement
from securefed.threats.stored import StoredTests
from securefed.threats.verdicts import EvidenceFinding, Reference, Verdict

VERDICTS = get_args(Verdict)
OF_ATTACKS = ("refuted", "void", "stale", "not_run", "inconclusive", "not_refuted")


def piece(verdict: str) -> EvidenceFinding:
    kind = "attack" if verdict == "not_refuted" else "test"
    return EvidenceFinding(type=kind, cites="it", verdict=verdict, reason="why")


def judged(claim, of_facts=None, tests=None):
    found = model(**claim)
    of_tests = stored_tests(passed()) if tests is None else tests
    return judge_claim(found, found.claims[0], of_facts or facts(), of_tests, today=TODAY)


# -- how pieces make a verdict ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "verdict"),
    [
        ("verified", "verified"),
        ("not_refuted", "not_refuted"),
        ("verified not_refuted", "verified"),
        ("verified not_applicable", "verified"),
        ("not_applicable not_applicable", "not_applicable"),
        ("verified manual", "manual"),
        ("not_refuted manual", "manual"),
        ("verified not_refuted inconclusive", "inconclusive"),
        ("manual inconclusive", "inconclusive"),
        ("verified not_run", "not_run"),
        ("inconclusive not_run", "not_run"),
        ("not_run stale", "stale"),
        ("stale void", "void"),
        ("void refuted verified", "refuted"),
    ],
)
def test_the_worst_piece_decides(pieces, verdict):
    for order in itertools.permutations(pieces.split()):
        assert combine([piece(each) for each in order])[0] == verdict


some = st.lists(st.sampled_from(VERDICTS), min_size=1, max_size=6)


@given(some, st.sampled_from(OF_ATTACKS))
def test_an_attack_never_makes_a_claim_verified(before, attack):
    old = combine([piece(each) for each in before])[0]
    new = combine([*(piece(each) for each in before), piece(attack)])[0]
    if new == "verified":
        assert old == "verified"


@given(st.lists(st.sampled_from(OF_ATTACKS), min_size=1, max_size=6))
def test_attacks_alone_never_verify(attacks):
    assert combine([piece(each) for each in attacks])[0] != "verified"


@given(some)
def test_anything_refuted_refutes_and_more_evidence_never_mends_it(before):
    old = combine([piece(each) for each in before])[0]
    assert combine([*(piece(each) for each in before), piece("refuted")])[0] == "refuted"
    if old in WORST_FIRST:
        for more in VERDICTS:
            new = combine([*(piece(each) for each in before), piece(more)])[0]
            assert WORST_FIRST.index(new) <= WORST_FIRST.index(old)


# -- controls --------------------------------------------------------------------------------


def test_a_control_that_is_off_refutes_whatever_the_tests_say():
    off = facts(config=config(aggregation={"kind": "plaintext"}))
    found = judged({}, off)
    assert found.verdict == "refuted"
    assert found.reason == (
        "control is off: aggregation.kind = 'plaintext' (securefed.secagg.pairwise_client)"
    )
    assert [each.verdict for each in found.evidence] == ["verified"]


def test_an_optional_control_that_is_not_set_shows_nothing_and_is_void():
    controls = [
        {
            "code": "securefed.training.models",
            "config": {"model.fingerprint": {"op": "set", "value": True}},
            "optional": True,
        }
    ]
    found = judged({"controls": controls})
    assert (found.verdict, found.reason) == (
        "void",
        "control is not set: model.fingerprint is not set (securefed.training.models)",
    )
    pinned = facts(config=config(model={"source": "some/model", "fingerprint": "c" * 64}))
    assert judged({"controls": controls}, pinned).verdict == "verified"


def test_an_optional_control_does_not_hide_what_is_refuted():
    optional = {
        "code": "securefed.evidence.budget",
        "config": {"budget.epsilon": {"op": "set", "value": True}},
        "optional": True,
    }
    found = judged(
        {"controls": [optional], "evidence": [LEDGER_EVIDENCE]}, facts(records=ledger(9))
    )
    assert found.verdict == "refuted"
    off = {"code": "securefed.secagg", "config": {"aggregation.kind": "bfv"}}
    assert judged({"controls": [optional, off]}).verdict == "refuted"


def test_one_of_several_settings_is_enough_where_the_control_says_so():
    control = {
        "code": "securefed.secagg",
        "any_of": [{"aggregation.kind": "pairwise"}, {"aggregation.masked": True}],
    }
    assert judged({"controls": [control]}).verdict == "verified"
    off = facts(config=config(aggregation={"kind": "plaintext"}))
    assert judged({"controls": [control]}, off).verdict == "refuted"


def test_a_claim_about_other_runs_is_not_applicable_with_all_its_evidence():
    found = judged({"applies_when": {"aggregation.kind": {"op": "in", "value": ["bfv", "ckks"]}}})
    assert found.verdict == "not_applicable"
    assert {each.verdict for each in found.evidence} == {"not_applicable"}


@pytest.mark.parametrize(
    ("applies_when", "sections"),
    [
        ({"aggregation.kind": "pairwise"}, {"aggregation": {"kind": "plaintext"}}),
        ({"privacy.mechanism": "distributed"}, {"privacy": {"mechanism": "none"}}),
        (
            {"model.fingerprint": {"op": "set", "value": True}},
            {"model": {"source": "some/model"}},
        ),
        (
            {"aggregation.kind": {"op": "in", "value": ["bfv"]}, "aggregation.masked": True},
            {"aggregation": {"kind": "bfv"}, "privacy": {"corrupt_fraction": 0.0}},
        ),
    ],
)
def test_a_defence_that_is_off_is_no_reason_why_a_claim_would_not_apply(applies_when, sections):
    claim = {"applies_when": applies_when, "controls": []}
    assert judged(claim, facts(config=config(**sections))).verdict == "refuted"


def test_a_piece_of_evidence_does_not_excuse_itself_by_a_defence_that_is_off():
    evidence = [TEST_EVIDENCE | {"applies_when": {"privacy.mechanism": "distributed"}}]
    off = facts(config=config(privacy={"mechanism": "none"}))
    assert judged({"evidence": evidence}, off).verdict == "refuted"
    central = facts(config=config(privacy={"mechanism": "central"}))
    assert judged({"evidence": evidence}, central).verdict == "not_applicable"


def test_what_is_only_known_after_the_run_is_not_run_before_it():
    claim = {
        "controls": [
            {"code": "securefed.secagg.graph", "config": {"run.clients": {"op": ">=", "value": 3}}}
        ]
    }
    assert judged(claim, RunFacts(config=config(), source_sha256=CODE)).verdict == "not_run"
    assert judged(claim).verdict == "verified"
    applies = {"applies_when": {"run.clients": {"op": ">=", "value": 200}}}
    assert judged(applies).verdict == "not_applicable"
    assert judged(applies, RunFacts(config=config(), source_sha256=CODE)).verdict == "verified"


# -- tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "verdict", "words"),
    [
        ([], "not_run", "there is no result"),
        ([passed()], "verified", "passed on 2026-11-28"),
        ([passed(cases=7)], "verified", "7 cases"),
        ([passed(outcome="failed")], "refuted", "failed on"),
        ([passed(outcome="skipped")], "not_run", "was skipped"),
        ([passed(source_sha256=OTHER_CODE)], "stale", "of other code"),
        ([passed(source_sha256=OTHER_CODE, outcome="failed")], "stale", "of other code"),
        ([passed("tests/test_it.py::test_other")], "not_run", "no result"),
        (
            [passed(), passed(source_sha256=OTHER_CODE, date="2026-11-29T10:00:00Z")],
            "verified",
            "2026-11-28",
        ),
        (
            [passed(), passed(outcome="failed", date="2026-11-29T10:00:00Z")],
            "refuted",
            "2026-11-29",
        ),
    ],
)
def test_a_test_counts_by_its_last_result_of_this_code(stored, verdict, words):
    found = judged({}, tests=stored_tests(*stored))
    assert found.verdict == verdict
    assert words in found.evidence[0].reason


def test_a_run_that_does_not_say_which_code_made_it_makes_every_test_stale():
    assert judged({}, facts(source_sha256=None)).verdict == "stale"


def test_a_result_of_another_version_of_the_test_is_stale(tmp_path):
    (tmp_path / "tests").mkdir()
    path = tmp_path / "tests" / "test_it.py"
    path.write_text("def test_it(): ...\n")
    found = judged({}, tests=StoredTests([passed()], root=tmp_path))
    assert (found.verdict, "another version" in found.reason) == ("stale", True)


# -- the ledger ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "accept", "verdict", "words"),
    [
        (ledger(2.0), {"op": "<=", "value": 8.0}, "verified", "2 is within <= 8"),
        (ledger(8.0), {"op": "<=", "value": 8.0}, "verified", "8 is within"),
        (ledger(8.1), {"op": "<=", "value": 8.0}, "refuted", "8.1 is not <= 8"),
        (ledger("unprotected"), {"op": "<=", "value": 8.0}, "refuted", "unprotected"),
        (ledger()[:-1], {"op": "<=", "value": 8.0}, "not_run", "not finished"),
        ([], {"op": "<=", "value": 8.0}, "not_run", "nothing was run"),
        (ledger(), {"op": "<=", "config": "budget.epsilon"}, "not_run", "is not set"),
    ],
)
def test_a_ledger_value_is_held_to_its_bound(records, accept, verdict, words):
    claim = {"evidence": [LEDGER_EVIDENCE | {"accept": accept}]}
    found = judged(claim, facts(records=records))
    assert found.verdict == verdict
    assert words in found.evidence[0].reason


def test_a_ledger_value_is_held_to_a_setting_and_to_another_value_and_says_where_both_stand():
    budget = facts(config=config(budget={"epsilon": 1.0}))
    claim = {"evidence": [LEDGER_EVIDENCE | {"accept": {"op": "<=", "config": "budget.epsilon"}}]}
    found = judged(claim, budget).evidence[0]
    assert (found.verdict, found.value, found.allowed) == ("refuted", 2.0, "<= budget.epsilon = 1")
    assert [(each.path, each.line, each.pointer) for each in found.references] == [
        ("ledger.jsonl", 5, "/guarantees/0/epsilon"),
        ("config.toml", None, "/budget/epsilon"),
    ]
    survivors = {
        "type": "ledger",
        "ledger": "rounds.survivors.min",
        "accept": {"op": ">=", "ledger": "rounds.survivor_floor"},
    }
    assert judged({"evidence": [survivors]}).verdict == "verified"
    assert (
        judged({"evidence": [survivors]}, facts(records=ledger(survivors=2))).verdict == "refuted"
    )


# -- statements ------------------------------------------------------------------------------


def statement(**changed):
    given = {
        "run": ledger()[0].hash,
        "model": "TM-small",
        "claim": "C-one",
        "manual": "retention",
        "statement": "Two years.",
        "by": "Controller",
        "signed_off": TODAY - datetime.timedelta(days=10),
        "expires": TODAY,
    } | changed
    where = Reference(kind="file", path="statements/x.json")
    return SignedStatement(Statement(**given), where, anchored=True)


@pytest.mark.parametrize(
    ("statements", "verdict"),
    [
        ([], "not_run"),
        ([statement()], "manual"),
        ([statement(expires=None)], "manual"),
        ([statement(expires=TODAY - datetime.timedelta(days=1))], "stale"),
        ([statement(by="intern")], "not_run"),
        ([statement(claim="C-two")], "not_run"),
        ([statement(manual="basis")], "not_run"),
        ([statement(model="TM-other")], "not_run"),
        ([statement(run="9" * 64)], "not_run"),
        ([statement(signed_off=TODAY + datetime.timedelta(days=1))], "not_run"),
        (
            [statement(expires=TODAY - datetime.timedelta(days=1)), statement(signed_off=TODAY)],
            "manual",
        ),
    ],
)
def test_only_an_unexpired_statement_of_whoever_was_asked_about_this_run_counts(
    statements, verdict
):
    found = judged({"evidence": [MANUAL_EVIDENCE]}, facts(statements=statements))
    assert found.verdict == verdict


# -- attacks beside tests, and the whole ----------------------------------------------------


def test_a_claim_is_verified_by_tests_and_ledger_with_the_attack_beside_it():
    claim = {"evidence": [TEST_EVIDENCE, LEDGER_EVIDENCE, ATTACK_EVIDENCE]}
    attacked = facts(attacks=[measured(), working_baseline()])
    found = judged(claim, attacked)
    assert found.verdict == "verified"
    assert found.reason == "2 tests and ledger values hold; 1 attacks did not refute it"
    assert judged(claim).verdict == "not_run"
    assert judged(claim, facts(attacks=[measured()])).verdict == "void"
    broken = measured(low=0.6, value=0.7, high=0.8)
    assert judged(claim, facts(attacks=[broken, working_baseline()])).verdict == "refuted"


def test_a_judgement_holds_every_claim_and_says_who_judged():
    found = judge(
        [model()],
        facts(),
        stored_tests(passed()),
        now=NOW,
        software="securefed 0.1.0",
        source_sha256=OTHER_CODE,
    )
    assert (found.made, found.software, found.source_sha256) == (
        "2026-11-29T12:00:00Z",
        "securefed 0.1.0",
        OTHER_CODE,
    )
    assert [(each.model, each.claim, each.verdict) for each in found.findings] == [
        ("TM-small", "C-one", "verified")
    ]
