from dataclasses import replace

import pytest
from pilot_records import RUN, cost, guarantee, record, skipped, trial

from securefed.pilot.compared import compare

ALONE = {"decision": {"beats_local": False}}


def moved(compared, what, name="base"):
    return next(one for one in compared.trials[name] if one.what == what)


def keys(compared):
    return [said.key for said in compared.differences]


def test_the_same_pilot_twice_differs_in_nothing():
    made = record(trial(), **ALONE)
    compared = compare(made, made)
    assert compared.differences == ()
    assert {one.change for one in compared.trials["base"]} == {"same", "not_measured"}
    assert moved(compared, "money").change == "not_measured"
    assert (compared.then, compared.now) == ("go", "go")


def test_each_figure_is_better_or_worse_in_its_own_direction():
    then = record(trial(after=40.0, epsilon=2.5), **ALONE)
    now = record(
        trial(after=39.0, epsilon=2.0, costs=cost(up=700_000.0, seconds={"train": 1.0})),
        prices={"per_gb": 1.0},
        **ALONE,
    )
    compared = compare(now, then)
    changes = {one.what: one.change for one in compared.trials["base"]}
    # Money is that of bytes alone, at today's prices in both.
    assert changes == {
        "quality": "better",
        "bytes": "worse",
        "seconds": "better",
        "epsilon": "better",
        "money": "worse",
    }
    back = {one.what: one.change for one in compare(then, now).trials["base"]}
    assert back["quality"] == "worse"
    assert back["bytes"] == "better"
    assert keys(compared) == ["differs.prices"]


def test_verdicts_then_and_now():
    compared = compare(record(trial(), **ALONE), record(trial(after=51.0), **ALONE))
    assert (compared.then, compared.now) == ("stop", "go")


@pytest.mark.parametrize("section", ["data", "model", "evaluation"])
def test_other_data_are_said_first_and_no_quality_is_called_better(section):
    other = RUN | {section: {"source": "other"}, "aggregation": RUN["aggregation"] | {"bits": 24}}
    compared = compare(record(trial(after=30.0), **ALONE), record(trial(), run=other, **ALONE))
    assert keys(compared)[0] == "differs.data"
    assert "differs.run" in keys(compared)
    assert keys(compared).index("differs.run") > keys(compared).index("differs.data")
    assert moved(compared, "quality").change == "not_measured"
    assert moved(compared, "bytes").change == "same"


def test_public_and_private_pilots_are_not_compared_in_quality():
    compared = compare(record(trial(after=30.0), **ALONE), record(trial(), public=False, **ALONE))
    assert keys(compared)[0] == "differs.public"
    assert moved(compared, "quality").change == "not_measured"


def test_another_machine_tells_nothing_of_seconds():
    then = replace(record(trial(), **ALONE), machine={"cores": 64}, software="securefed 0.1")
    compared = compare(record(trial(costs=cost(seconds={"train": 1.0})), **ALONE), then)
    assert keys(compared) == ["differs.machine", "differs.software"]
    assert moved(compared, "seconds").change == "not_measured"


def test_epsilons_of_other_units_are_not_compared():
    other = guarantee(2.0) | {"unit": "one client's whole contribution"}
    now = replace(trial(epsilon=2.0), guarantees=(other,))
    assert moved(compare(record(now), record(trial())), "epsilon").change == "not_measured"
    lost = compare(record(trial(epsilon=None)), record(trial()))
    assert moved(lost, "epsilon").change == "worse"
    won = compare(record(trial()), record(trial(epsilon=None)))
    assert moved(won, "epsilon").change == "better"


def test_trials_of_one_pilot_alone_are_named_and_other_settings_or_seeds_said():
    then = record(
        trial(), trial("rank = 2", "sweep", varied={"lora.rank": 2}), skipped("bits = 20")
    )
    now = record(
        trial(),
        trial(seed=2),
        trial("rank = 2", "sweep", varied={"lora.rank": 2, "lora.alpha": 4.0}),
        trial("bits = 20", "sweep"),
    )
    compared = compare(now, then)
    assert compared.only_now == ("bits = 20",)
    assert compared.only_then == ()
    assert keys(compared) == ["differs.seeds", "differs.trial"]
    assert compare(then, now).only_then == ("bits = 20",)


def test_a_folder_of_the_machine_is_not_shown():
    other = RUN | {"data": {"source": "/home/somebody/cases"}}
    said = compare(record(trial()), record(trial(), run=other)).differences[0]
    assert (said.values["then"], said.values["now"]) == ("cases", "letters")
