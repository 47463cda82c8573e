import pytest
from pilot_records import cost, record, trial

from securefed.pilot.projecting import project
from securefed.pilot.reading import read_pilot
from securefed.pilot.settings import pilot_config
from securefed.pilot.stages import stages
from securefed.pilot.summaries import summaries

UNMASKED = {"aggregation.kind": "bfv"}


def staged(*trials, **given):
    made = record(*trials, **({"decision": {"beats_local": False}} | given))
    return made, stages(made, pilot_config(made), read_pilot(made))


def values(said, key):
    return next(item.values for item in said if item.key == key)


def keys(said):
    return [item.key for item in said]


def test_the_limited_stage_lies_between_by_the_geometric_mean():
    _, found = staged(trial(), projection={"clients": 1000, "rounds": 45})
    assert [stage.name for stage in found] == ["pilot", "limited", "full"]
    # The square roots of 10 * 1000 and of 5 * 45.
    assert [(stage.clients, stage.rounds) for stage in found] == [(10, 5), (100, 15), (1000, 45)]


def test_bounds_are_those_that_were_asked():
    asked = {
        "beats_local": False,
        "least_improvement": 0.1,
        "epsilon": 3.0,
        "megabytes_per_round": 2.0,
        "client_seconds_per_round": 4.0,
        "cost": 90.0,
    }
    _, (_, limited, full) = staged(trial(varied=UNMASKED), decision=asked, prices={"per_gb": 1.0})
    for stage in (limited, full):
        assert values(stage.stop, "stage.stop_perplexity")["figure"] == pytest.approx(45.0)
        assert values(stage.stop, "stage.stop_epsilon")["bound"] == 3.0
        assert values(stage.stop, "stage.stop_lost")["share"] == 0.25
        assert values(stage.stop, "stage.stop_bytes")["bytes"] == 2_000_000
        assert values(stage.stop, "stage.stop_seconds")["seconds"] == 4.0
        assert values(stage.back, "stage.back_perplexity")["before"] == 50.0
        assert values(stage.back, "stage.back_worst_perplexity")["before"] == 60.0
    # All of it may cost 90; of the limited stage, 100 clients and 23 rounds, 1.5 times 2.3.
    assert values(full.stop, "stage.stop_money")["money"] == 90.0
    assert values(limited.stop, "stage.stop_money")["money"] == pytest.approx(1.5 * 100 * 23 * 1e-3)


def test_without_bounds_half_of_the_gain_is_kept_and_costs_may_be_half_as_much_again():
    made, (_, limited, full) = staged(trial(), prices={"per_gb": 1.0})
    # It gained 0.2: 0.1 are to be kept.
    assert values(limited.stop, "stage.stop_perplexity")["figure"] == pytest.approx(45.0)
    assert values(limited.stop, "stage.stop_epsilon")["bound"] == 2.5
    config = pilot_config(made)
    for stage in (limited, full):
        whole = project(
            made,
            summaries(made)[0],
            clients=stage.clients,
            rounds=stage.rounds,
            prices=config.prices,
        )
        assert whole is not None
        assert values(stage.stop, "stage.stop_bytes")["bytes"] == 1.5 * whole.bytes_each
        assert values(stage.stop, "stage.stop_seconds")["seconds"] == 1.5 * whole.seconds_each
        assert values(stage.stop, "stage.stop_money")["money"] == 1.5 * whole.money


def test_accuracy_is_bounded_from_below_and_in_points():
    made = trial(metric="accuracy", before=0.5, after=0.7, worst=(0.4, 0.6))
    _, (_, limited, _) = staged(made)
    assert values(limited.stop, "stage.stop_accuracy")["figure"] == pytest.approx(0.6)
    assert values(limited.back, "stage.back_accuracy")["before"] == 0.5
    assert values(limited.back, "stage.back_worst_accuracy")["before"] == 0.4


def test_epsilon_is_planned_again_for_the_rounds_to_come():
    _, (_, limited, full) = staged(trial(varied=UNMASKED), projection={"rounds": 45})
    assert values(limited.enter, "stage.replan_noise") == {"bound": 2.5, "rounds": 15}
    assert values(full.enter, "stage.replan_noise") == {"bound": 2.5, "rounds": 45}
    target = {"privacy.target_epsilon": 2.5, "privacy.noise_multiplier": None}
    _, (_, limited, _) = staged(trial(varied=target))
    assert "stage.replan_target" in keys(limited.enter)
    _, (_, limited, _) = staged(trial(epsilon=None))
    assert "stage.no_epsilon" in keys(limited.enter)
    assert "stage.stop_epsilon" not in keys(limited.stop)


@pytest.mark.parametrize(("after", "verdict"), [(40.0, "go"), (46.0, "improve"), (51.0, "stop")])
def test_what_follows_from_the_verdict(after, verdict):
    asked = {"beats_local": False, "least_improvement": 0.1}
    _, (pilot, limited, _) = staged(trial(after=after), decision=asked)
    assert keys(pilot.stop) == [f"stage.verdict_is_{verdict}"]
    assert "stage.verdict_go" in keys(limited.enter)


def test_what_must_not_be_seen_bounds_nothing():
    made = trial(worst=None, costs=cost(seconds={}), epsilon=2.5)
    _, (_, limited, _) = staged(made, public=False)
    assert "stage.stop_seconds" not in keys(limited.stop)
    assert "stage.back_worst_perplexity" not in keys(limited.back)


def test_no_stage_is_made_of_nothing():
    assert staged()[1] == ()
