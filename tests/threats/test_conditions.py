"""Conditions on a run, and what an actor sees."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from threat_files import config, facts, ledger

from securefed.errors import ConfigError
from securefed.threats.conditions import (
    RUN_FACTS,
    UNKNOWN,
    Conditions,
    check,
    check_path,
    is_off,
    look_up,
    unknown,
    unmet,
)
from securefed.threats.facts import RunFacts
from securefed.threats.views import EXPOSURES, why_not_seen

CONDITIONS = TypeAdapter(Conditions)


def conditions(**by_path):
    return CONDITIONS.validate_python({k.replace("__", "."): v for k, v in by_path.items()})


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        ("pairwise", True),
        ("bfv", False),
        ({"op": "==", "value": "pairwise"}, True),
        ({"op": "!=", "value": "plaintext"}, True),
        ({"op": "in", "value": ["bfv", "ckks"]}, False),
        ({"op": "not_in", "value": ["bfv", "ckks"]}, True),
        ({"op": "set", "value": True}, True),
        ({"op": "set", "value": False}, False),
        ({"op": "starts_with", "value": "pair"}, True),
    ],
)
def test_words_are_compared_as_they_say(wanted, holds):
    assert (unmet(conditions(aggregation__kind=wanted), facts()) == {}) is holds


@pytest.mark.parametrize(
    ("op", "value", "holds"),
    [
        ("<", 4, True),
        ("<", 3, False),
        ("<=", 3, True),
        (">", 2, True),
        (">=", 3, True),
        (">", 3, False),
    ],
)
def test_numbers_are_compared_as_they_say(op, value, holds):
    wanted = {"op": op, "value": value}
    assert (unmet(conditions(cohort__min_clients=wanted), facts()) == {}) is holds


@pytest.mark.parametrize("op", ["<", "<=", ">", ">=", "==", "in", "starts_with"])
def test_what_is_not_set_meets_no_comparison(op):
    value = {"in": ["f" * 64], "starts_with": "f"}.get(op, 1 if op != "==" else "f" * 64)
    wanted = conditions(model__fingerprint={"op": op, "value": value})
    assert unmet(wanted, facts()) == {"model.fingerprint": None}


def test_a_path_into_a_section_that_is_not_there_has_no_value():
    assert look_up(config(), "evaluation.histogram.epsilon") is None
    assert look_up(config(), "cohort.ranks") == []
    assert unmet(conditions(cohort__ranks={"op": "set", "value": True}), facts())


def test_facts_of_the_ledger_are_unknown_before_the_run():
    before, after = RunFacts(config=config()), facts(records=ledger())
    wanted = conditions(run__clients={"op": ">=", "value": 200})
    assert unmet(wanted, before) == {}
    assert unknown(wanted, before) == ["run.clients"]
    assert unmet(wanted, after) == {"run.clients": 4}
    assert unknown(wanted, after) == []
    assert [after.value(path) for path in RUN_FACTS] == [4, 10, 0.6, 1]
    assert all(before.value(path) is UNKNOWN for path in RUN_FACTS)


@pytest.mark.parametrize(
    "path", ["aggregation.knd", "agregation.kind", "run.luck", "aggregation.kind.x"]
)
def test_a_path_that_no_run_file_has_is_refused(path):
    with pytest.raises(ConfigError, match=path):
        check_path(path)
    with pytest.raises(ConfigError, match=path):
        facts().value(path)


@pytest.mark.parametrize(
    ("path", "value"),
    [("aggregation.kind", "pairwize"), ("aggregation.masked", "of course"), ("lora.rank", "many")],
)
def test_a_value_that_no_run_file_can_have_is_refused(path, value):
    wanted = CONDITIONS.validate_python({path: value})[path]
    with pytest.raises(ConfigError, match=value):
        check(path, wanted)


@pytest.mark.parametrize(
    ("path", "found", "off"),
    [
        ("aggregation.kind", "plaintext", True),
        ("aggregation.kind", "pairwise", False),
        ("aggregation.masked", False, True),
        ("privacy.mechanism", "none", True),
        ("privacy.mechanism", "central", False),
        ("privacy.corrupt_fraction", 0.0, True),
        ("evaluation.show_clients", True, True),
        ("model.fingerprint", None, True),
        ("budget.epsilon", None, True),
        ("budget.epsilon", 8.0, False),
        ("privacy.unit", "example", False),
    ],
)
def test_a_defence_that_is_off_is_known_as_such(path, found, off):
    assert is_off(path, found) is off
    check_path(path)


@given(st.sampled_from(sorted(EXPOSURES)), st.sets(st.sampled_from(["masked-updates", "metadata"])))
def test_nobody_sees_an_update_in_the_clear_who_is_not_shown_one(exposure, view):
    why = why_not_seen(exposure, view, "honest-but-curious")
    seen = exposure == "masked" and "masked-updates" in view
    assert (why == "") is seen


def test_a_game_is_about_a_malicious_actor():
    assert why_not_seen("game", ["masked-updates"], "malicious") == ""
    assert "honest-but-curious" in why_not_seen("game", ["masked-updates"], "honest-but-curious")
