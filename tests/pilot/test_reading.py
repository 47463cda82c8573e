import math
from dataclasses import replace

import pytest
from pilot_records import ALONE_AT_45, cost, guarantee, record, skipped, trial

from securefed.errors import ConfigError
from securefed.pilot.reading import read_pilot
from securefed.pilot.words import Words

ALL_SWEPT = {"rank": [2], "sharing": ["fedit"], "bits": [20], "epsilon": [1.0]} | {
    "aggregation": ["bfv"]
}
NOT_LOCAL = {"beats_local": False}


def read(*trials, decision=None, **given):
    # Ten clients stay ten, so that what is measured is what is projected.
    asked = {"projection": {"clients": 10, "rounds": 5}} | given
    return read_pilot(record(*trials, decision=NOT_LOCAL | (decision or {}), **asked))


def outcome(reading, key, name="base"):
    asked = next(each for each in reading.asked if each.criterion.key == key)
    return next(one.outcome for one in asked.judged if one.trial == name)


def said(reading, part):
    return Words("en").say(reading.sentences[part])


# -- go ------------------------------------------------------------------------------------


def test_go_names_the_base_run_if_it_meets_all():
    reading = read(
        trial(after=40.0),
        trial("rank = 16", "sweep", after=30.0),
        ALONE_AT_45,
        decision={"beats_local": True, "least_improvement": 0.2, "epsilon": 2.5},
    )
    assert reading.verdict == "go"
    assert reading.trial is not None
    assert reading.trial.name == "base"
    assert said(reading, 0) == "Go with “base”: by itself it meets all that was asked."


def test_go_names_the_trial_that_gains_most_where_the_base_run_falls_short():
    reading = read(
        trial(after=46.0),
        trial("rank = 2", "sweep", after=40.0),
        trial("rank = 16", "sweep", after=39.0),
        decision={"least_improvement": 0.1},
    )
    assert reading.verdict == "go"
    assert reading.trial is not None
    assert reading.trial.name == "rank = 16"


def test_go_says_what_it_gains_and_costs_and_never_a_bare_epsilon():
    text = said(read(trial()), 1)
    for words in ("20.00\u00a0% lower perplexity", "1\u00a0MB", "2\u00a0s", "for one example"):
        assert words in text
    assert "ε\u00a0=\u00a02.50 for one example, at δ\u00a0=\u00a010⁻⁵, against the server" in text


@pytest.mark.parametrize("group", ["baseline", "protection"])
def test_what_is_there_to_compare_with_is_not_gone_on_with(group):
    reading = read(
        trial(after=46.0),
        trial("no protection", group, after=30.0),
        decision={"least_improvement": 0.2},
    )
    assert reading.verdict == "improve"


# -- each criterion ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"least_improvement": 0.2}, "met"),
        ({"least_improvement": 0.21}, "not_met"),
        ({"epsilon": 2.5}, "met"),
        ({"epsilon": 2.49}, "not_met"),
        ({"megabytes_per_round": 1.0}, "met"),
        ({"megabytes_per_round": 0.99}, "not_met"),
        ({"client_seconds_per_round": 2.0}, "met"),
        ({"client_seconds_per_round": 1.9}, "not_met"),
        ({"memory_gib": 1.0}, "met"),
        ({"memory_gib": 0.9}, "not_met"),
        ({"cost": 0.05}, "met"),
        ({"cost": 0.049}, "not_met"),
    ],
    ids=str,
)
def test_a_bound_is_met_up_to_itself(asked, expected):
    # 10^6 bytes at 1 a 10^9, of 10 clients over 5 rounds: 0.05.
    reading = read(trial(), decision=asked, prices={"per_gb": 1.0})
    assert outcome(reading, next(iter(asked))) == expected
    assert (reading.verdict == "go") == (expected == "met")


@pytest.mark.parametrize(
    ("after", "expected"), [(34.1, "not_met"), (34.0, "met")], ids=["below", "at the share"]
)
def test_a_share_of_what_full_fine_tuning_gains(after, expected):
    # Full fine-tuning gains 0.4; 0.8 of it is 0.32.
    full = trial("full fine-tuning", "baseline", after=30.0, epsilon=None)
    reading = read(trial(after=after), full, decision={"share_of_full": 0.8})
    assert outcome(reading, "share_of_full") == expected


def test_of_several_full_fine_tunings_the_best_counts():
    rates = [
        trial(f"full fine-tuning, learning rate {rate}", "baseline", after=after, epsilon=None)
        for rate, after in ((1e-4, 40.0), (1e-3, 30.0))
    ]
    reading = read(trial(after=36.0), *rates, decision={"share_of_full": 0.8})
    assert outcome(reading, "share_of_full") == "not_met"


def test_a_tie_with_clients_alone_does_not_beat_them():
    tie = read(trial(after=45.0), ALONE_AT_45, decision={"beats_local": True})
    assert outcome(tie, "beats_local") == "not_met"


def test_the_worst_seed_decides():
    reading = read(
        trial(after=30.0), trial(after=41.0, seed=2), decision={"least_improvement": 0.2}
    )
    assert outcome(reading, "least_improvement") == "not_met"
    apart = read(
        trial(after=40.0),
        ALONE_AT_45,
        trial("clients alone", "baseline", after=39.0, epsilon=None, seed=2),
        decision={"beats_local": True},
    )
    assert outcome(apart, "beats_local") == "not_met"
    assert apart.verdict == "improve"


def test_bytes_and_seconds_are_held_to_the_bound_at_the_projected_size_too():
    asked = {"megabytes_per_round": 1.0, "client_seconds_per_round": 3.0}
    small = read(trial(), decision=asked)
    large = read(trial(), decision=asked, projection={"clients": 100, "rounds": 5})
    for key in asked:
        assert outcome(small, key) == "met"
        assert outcome(large, key) == "not_met"


@pytest.mark.parametrize(
    ("asked", "made"),
    [
        ({"beats_local": True}, {}),
        ({"share_of_full": 0.5}, {}),
        ({"client_seconds_per_round": 9.0}, {"costs": cost(seconds={})}),
        ({"memory_gib": 9.0}, {"costs": cost(memory=None)}),
        ({"cost": 9.0}, {}),
    ],
    ids=["no clients alone", "no full", "no seconds", "no memory", "no price"],
)
def test_what_is_not_measured_is_not_met_and_the_gap_says_how_to_measure_it(asked, made):
    reading = read(trial(**made), decision=asked)
    key = next(iter(asked))
    assert outcome(reading, key) == "not_measured"
    assert reading.verdict == "improve"
    assert Words("en")(f"how.{key}") in said(reading, 1)


def test_full_fine_tuning_that_gains_nothing_is_no_measure():
    full = trial("full fine-tuning", "baseline", after=51.0, epsilon=None)
    reading = read(trial(), full, decision={"share_of_full": 0.5})
    assert outcome(reading, "share_of_full") == "not_measured"


def test_no_guarantee_is_no_epsilon():
    reading = read(
        trial(epsilon=None), trial("epsilon = 2", "sweep", epsilon=2.0), decision={"epsilon": 3.0}
    )
    assert outcome(reading, "epsilon") == "not_met"
    assert reading.trial is not None
    assert reading.trial.name == "epsilon = 2"


def test_a_figure_that_is_no_number_meets_nothing():
    reading = read(trial(after=math.nan), trial("rank = 2", "sweep"))
    assert outcome(reading, "improves") == "not_measured"
    assert reading.trial is not None
    assert reading.trial.name == "rank = 2"


# -- improve -------------------------------------------------------------------------------


def test_improve_where_each_demand_is_met_but_nowhere_together():
    reading = read(
        trial(after=46.0, costs=cost(up=100.0, down=0.0)),
        trial("rank = 16", "sweep", after=30.0),
        decision={"least_improvement": 0.2, "megabytes_per_round": 0.5},
    )
    assert reading.verdict == "improve"
    text = said(reading, 1)
    assert "Closest to all of them is “rank = 16”" in text
    assert text.endswith("misses: bytes of a client and round (met by “base”).")


def test_improve_names_the_gap_and_the_lever_that_came_closest():
    reading = read(
        trial(after=46.0),
        trial("rank = 2", "sweep", after=47.0),
        trial("rank = 8", "sweep", after=44.0),
        trial("rank = 16", "sweep", after=42.0),
        decision={"least_improvement": 0.2},
    )
    assert reading.verdict == "improve"
    text = said(reading, 1)
    assert "“rank = 16” moved it from 8.00\u00a0% lower perplexity to 16.00\u00a0%" in text
    lever = next(e.lever for e in reading.asked if e.criterion.key == "least_improvement")
    assert lever is not None
    assert (lever.before, lever.after) == pytest.approx((0.08, 0.16))


def test_improve_names_what_was_not_tried_where_nothing_tried_moved_it():
    reading = read(
        trial(after=46.0),
        trial("rank = 2", "sweep", after=47.0),
        decision={"least_improvement": 0.2},
        sweep={"rank": [2]},
    )
    assert reading.verdict == "improve"
    assert "not tried were: what of the adapter travels, bits of the ring" in said(reading, 1)
    assert "the adapter's rank" not in said(reading, 1)


# -- stop ----------------------------------------------------------------------------------


def test_stop_where_nothing_beats_the_untrained_model():
    reading = read(trial(after=50.0), trial("rank = 2", "sweep", after=50.1))
    assert reading.verdict == "stop"
    assert "no trial is better than the untrained model" in said(reading, 1)


def test_stop_where_nothing_finished():
    reading = read(skipped("base", "base"), skipped("rank = 2"))
    assert reading.verdict == "stop"
    assert reading.trial is None
    assert "no trial finished" in said(reading, 1)


def test_stop_where_no_trial_beats_clients_alone_if_that_is_asked():
    trials = (trial(after=46.0), trial("rank = 16", "sweep", after=45.5), ALONE_AT_45)
    asked = read(*trials, decision={"beats_local": True})
    assert asked.verdict == "stop"
    assert "clients that train alone (10.00\u00a0% lower perplexity)" in said(asked, 1)
    assert read(*trials).verdict == "go"


def test_stop_where_no_trial_has_the_epsilon_that_is_asked():
    trials = (trial(epsilon=2.5), trial("epsilon = 2", "sweep", epsilon=2.0))
    reading = read(*trials, decision={"epsilon": 1.0})
    assert reading.verdict == "stop"
    assert "an epsilon of at most ε\u00a0=\u00a01.00 for one example" in said(reading, 1)


def test_no_stop_for_an_epsilon_that_a_skipped_trial_was_to_be_held_to():
    held, loose = (
        read(
            trial(),
            skipped("a target", varied={"privacy.target_epsilon": target}),
            decision={"epsilon": 1.0},
        )
        for target in (1.0, 1.5)
    )
    assert held.verdict == "improve"
    assert loose.verdict == "stop"


def test_a_target_that_a_finished_trial_missed_is_no_hope():
    made = trial(varied={"privacy.target_epsilon": 1.0}, epsilon=None)
    assert read(made, decision={"epsilon": 1.0}).verdict == "stop"


def test_stop_where_no_lever_is_left():
    trials = (trial(after=46.0), trial("rank = 2", "sweep", after=47.0))
    asked = {"decision": {"least_improvement": 0.2}, "sweep": ALL_SWEPT}
    reading = read(*trials, **asked)
    assert reading.verdict == "stop"
    assert "nothing that can be varied moved it" in said(reading, 1)
    # One that was left out may be it; so may one that moved it at all.
    assert read(*trials, skipped("sharing = fedit"), **asked).verdict == "improve"
    moved = read(*trials, trial("bits = 20", "sweep", after=45.9), **asked)
    assert moved.verdict == "improve"


def test_every_reason_to_stop_is_named():
    reading = read(trial(after=51.0), ALONE_AT_45, decision={"beats_local": True, "epsilon": 1.0})
    text = said(reading, 1)
    for words in ("untrained model", "clients that train alone", "epsilon of at most"):
        assert words in text


def test_an_epsilon_against_several_is_stated_against_the_strongest():
    both = (guarantee(2.5, "release"), guarantee(2.5, "server"))
    text = said(read(replace(trial(), guarantees=both)), 1)
    assert "against the server" in text
    assert "released" not in text


# -- of all --------------------------------------------------------------------------------


def test_the_role_that_decides_is_named():
    reading = read(trial(), decision={"decides": "the board"})
    assert "the board decides" in said(reading, 2)


def test_a_record_without_a_valid_pilot_file_is_refused():
    made = record(trial(), decision={"beats_local": "maybe"})
    with pytest.raises(ConfigError, match=r"decision\.beats_local"):
        read_pilot(made)
