"""Values of a ledger by name, and the lines that they come from."""

import json
import math
from typing import get_args

import pytest
from threat_files import facts, ledger, record

from securefed.threats.ledger_names import LedgerName
from securefed.threats.ledger_values import Beside

NAMES = get_args(LedgerName)
ALL = Beside(openings_beyond_sums=0, unsigned_rounds=2)


def whole():
    found = ledger()
    found[-1].body["guarantees"].append({"against": "fellow_client", "epsilon": 3.0})
    found[-1].body["histograms"] = {"guarantees": [{"against": "server", "epsilon": 1.5}]}
    return found


@pytest.mark.parametrize(
    ("name", "value"),
    {
        "closing.epsilon.server": 2.0,
        "closing.epsilon.release": 2.0,
        "closing.epsilon.fellow_client": 3.0,
        "closing.epsilon.figures": 1.5,
        "closing.charges": 1.0,
        "privacy.noise_multiplier": 0.6,
        "privacy.delta": 1e-5,
        "rounds.summed": 1.0,
        "rounds.failed": 0.0,
        "rounds.survivors.min": 3.0,
        "rounds.survivor_floor": 3.0,
        "evaluation.unnoised_sums": 1.0,
        "evaluation.histograms": 0.0,
        "openings.beyond_sums": 0.0,
        "witnesses.unsigned_rounds": 2.0,
    }.items(),
)
def test_each_name_has_its_value_and_where_it_stands(name, value):
    records = whole()
    found = facts(records=records, beside=ALL).ledger_value(name)
    assert (found.value, found.why) == (value, "")
    assert found.references
    for where in found.references:
        if where.kind == "ledger":
            assert records[where.line - 1].hash == where.sha256
        if where.pointer is not None:
            part = records[where.line - 1].body
            for key in where.pointer.split("/")[1:]:
                part = part[int(key)] if isinstance(part, list) else part[key]
            assert part == value or isinstance(part, list) or name == "rounds.survivor_floor"


def test_every_name_of_the_closed_list_is_tested_above():
    (mark,) = test_each_name_has_its_value_and_where_it_stands.pytestmark
    assert {name for name, _ in mark.args[1]} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_ledger_there_is_no_value(name):
    found = facts(records=[]).ledger_value(name)
    assert (found.value, found.why) == (None, "there is no ledger: nothing was run")


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("closing.")])
def test_of_a_run_that_is_not_finished_the_closing_values_are_not_known(name):
    found = facts(records=whole()[:-1]).ledger_value(name)
    assert (found.value, "not finished" in found.why) == (None, True)


def test_unprotected_is_infinite_and_never_within_a_bound():
    found = facts(records=ledger("unprotected")).ledger_value("closing.epsilon.server")
    assert math.isinf(found.value)


def test_what_nobody_looked_at_is_not_taken_for_good():
    for name in ("openings.beyond_sums", "witnesses.unsigned_rounds"):
        assert facts(records=whole()).ledger_value(name).value is None


def test_a_long_ledger_is_cited_by_its_first_and_last_lines():
    records = ledger()
    more = [record(n, "round_summed", {"survivors": ["a"]}) for n in range(5, 30)]
    found = facts(records=[*records[:-1], *more]).ledger_value("rounds.summed")
    assert found.value == 26.0
    assert len(found.references) == 8
    assert json.dumps([each.line for each in found.references]) == "[4, 6, 7, 8, 27, 28, 29, 30]"
