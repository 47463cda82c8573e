"""From a run file to a policy, its statements and the event that is charged."""

import numpy as np
import pytest
from scipy.stats import binom

from securefed.config import RunConfig, dump_config, load_config, parse_config
from securefed.engines.settings import Settings, _room_for, unit_name
from securefed.errors import ConfigError
from securefed.privacy.accounting import ADVERSARIES

SIZES = {f"site-{i}": 100 for i in range(8)}


def settings_of(**privacy) -> Settings:
    return Settings(parse_config({"privacy": privacy}), sizes=SIZES, dimension=50)


def test_a_run_file_can_say_that_samples_are_shown_and_every_reading_then_counts_with_q_1():
    secret, shown = settings_of(), settings_of(sample_is_secret=False)
    whole = settings_of(expected_batch=800.0)
    assert RunConfig().privacy.sample_is_secret
    for who in ADVERSARIES:
        stated = shown.guarantee(who, 3)
        assert stated.epsilon > 1.5 * secret.guarantee(who, 3).epsilon
        # Not the same grid: a whole batch leaves less room in the ring.
        assert stated.epsilon == pytest.approx(whole.guarantee(who, 3).epsilon, rel=0.01)
        assert "sample_is_secret = false" in stated.sampling
    assert shown.epsilon_after(3) == shown.guarantee("server", 3).epsilon
    # The sample is drawn all the same.
    assert shown.sum_policy.sampling_probability == secret.sum_policy.sampling_probability == 0.16


def test_whether_the_sample_is_shown_is_part_of_what_is_charged_and_recorded():
    for value in (True, False):
        settings = settings_of(sample_is_secret=value)
        assert settings.event()["sample_is_secret"] is value
        assert settings.record()["sample_is_secret"] is value


def test_conditional_rounding_reaches_the_plan_the_event_and_the_statement():
    usual, redrawn = (
        settings_of(unit="client", rounding=how) for how in ("unconditional", "conditional")
    )
    assert redrawn.event()["rounding"] == redrawn.record()["rounding"] == "conditional"
    assert redrawn.record()["rounding_failure"] == 0.0 < usual.record()["rounding_failure"]
    assert redrawn.plan.clip_units < redrawn.plan.sensitivity < usual.plan.sensitivity
    assert redrawn.epsilon_after(3) < usual.epsilon_after(3)
    for who in ADVERSARIES:
        assert any("rounded again" in line for line in redrawn.guarantee(who, 3).assumptions)
        assert not any("rounded again" in line for line in usual.guarantee(who, 3).assumptions)
        assert "rounding bound" in usual.guarantee(who, 3).accountant
        assert "rounding bound" not in redrawn.guarantee(who, 3).accountant


@pytest.mark.parametrize(
    ("privacy", "why"),
    [
        ({"unit": "example"}, "depend on its other units"),
        ({"unit": "client", "sample_is_secret": False}, "response times are shown"),
    ],
)
def test_conditional_rounding_is_refused_where_its_bound_or_its_time_would_not_hold(privacy, why):
    with pytest.raises(ConfigError, match=f"rounding = 'conditional' with .*{why}"):
        settings_of(rounding="conditional", **privacy)


def test_a_run_file_cannot_say_it_with_a_word_that_is_not_a_truth_value():
    with pytest.raises(ConfigError, match=r"privacy\.sample_is_secret"):
        settings_of(sample_is_secret="perhaps")


def test_removal_of_excess_noise_is_charged_and_recorded_and_reaches_the_plan():
    for value in (True, False):
        settings = settings_of(remove_excess_noise=value)
        assert settings.event()["remove_excess_noise"] is value
        assert settings.record()["remove_excess_noise"] is value
        assert bool(settings.plan.removable_stds) is value
        assert ("removed" in settings.guarantee("server", 3).mechanism) is value
    assert not RunConfig().privacy.remove_excess_noise


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"privacy": {"mechanism": "central"}}, "layers are of 'distributed'"),
        ({"privacy": {"mechanism": "none"}}, "layers are of 'distributed'"),
        ({"privacy": {"mechanism": "local"}}, "layers are of 'distributed'"),
        ({"privacy": {"noise": "skellam"}}, "layers are of 'distributed'"),
        ({"aggregation": {"kind": "plaintext"}}, "revealed in a masked round"),
        ({"aggregation": {"kind": "bfv"}}, "'bfv' with masked = true"),
    ],
)
def test_a_run_file_cannot_ask_for_removal_where_there_are_no_layers(values, message):
    privacy = values.get("privacy", {}) | {"remove_excess_noise": True}
    with pytest.raises(ConfigError, match=message):
        parse_config(values | {"privacy": privacy})


def test_a_cohort_that_masks_on_a_ring_cannot_remove_noise():
    config = parse_config({"privacy": {"remove_excess_noise": True}})
    sizes = {f"site-{i:03}": 100 for i in range(200)}
    with pytest.raises(ConfigError, match="sparse masking graph"):
        Settings(config, sizes=sizes, dimension=50)


def test_a_target_becomes_the_least_noise_that_keeps_every_round_within_it():
    settings = settings_of(target_epsilon=2.0)
    assert 0.99 * 2.0 < settings.epsilon_after(10) <= 2.0
    assert settings.guarantee("server", 10).epsilon == settings.epsilon_after(10)
    assert settings.record()["noise_multiplier"] == settings.stated.noise_multiplier


def test_a_recorded_noise_stands_in_for_the_search_and_is_checked_against_the_target():
    found = settings_of(target_epsilon=2.0).stated.noise_multiplier
    config = parse_config({"privacy": {"target_epsilon": 2.0}})
    again = Settings(config, sizes=SIZES, dimension=50, noise_multiplier=found)
    assert again.stated.noise_multiplier == found
    with pytest.raises(ConfigError, match=r"privacy.target_epsilon = 2: .* costs epsilon 2\.\d+"):
        Settings(config, sizes=SIZES, dimension=50, noise_multiplier=0.98 * found)
    # A run file that names its noise is not overruled by what a record says.
    named = parse_config({"privacy": {"noise_multiplier": 0.9}})
    assert Settings(
        named, sizes=SIZES, dimension=50, noise_multiplier=9.0
    ).stated.noise_multiplier == pytest.approx(0.9)


def test_with_central_noise_targets_and_rounds_speak_of_the_release():
    settings = settings_of(mechanism="central", target_epsilon=2.0)
    assert settings.accounted == "release"
    assert 0.99 * 2.0 < settings.guarantee("release", 10).epsilon <= 2.0
    assert settings.guarantee("server", 10).epsilon == float("inf")


@pytest.mark.parametrize(
    ("privacy", "message"),
    [
        ({"target_epsilon": 1.0, "noise_multiplier": 1.0}, "both given"),
        ({"target_epsilon": 1.0, "mechanism": "none"}, "no epsilon is reached"),
        ({"noise": "skellam", "mechanism": "central"}, "Skellam noise is for sums"),
        ({"noise_multiplier": 0.0}, "protects nothing"),
        ({"target_epsilon": 0.0}, "target_epsilon = 0.0: must be a number > 0"),
    ],
)
def test_noise_that_makes_no_sense_is_refused(privacy, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({"privacy": privacy})


def test_a_budget_without_an_epsilon_is_refused():
    with pytest.raises(ConfigError, match=r"budget.epsilon = 3 .* no epsilon is stated"):
        parse_config({"privacy": {"mechanism": "none"}, "budget": {"epsilon": 3.0}})


def test_a_target_cannot_be_met_where_contributions_are_in_the_clear():
    values = {"privacy": {"target_epsilon": 1.0}, "aggregation": {"kind": "plaintext"}}
    with pytest.raises(ConfigError, match="in the clear"):
        parse_config(values)
    values["privacy"]["mechanism"] = "central"
    assert parse_config(values).privacy.target_epsilon == 1.0


def test_a_resolved_run_file_reads_back_as_it_was(tmp_path):
    for privacy in ({}, {"target_epsilon": 1.0}, {"noise_multiplier": 0.9}):
        config = parse_config({"privacy": privacy})
        path = tmp_path / "run.toml"
        path.write_text(dump_config(config))
        assert load_config(path) == config
    assert parse_config({}).privacy.noise_multiplier == 0.6


# -- users ---------------------------------------------------------------------------------


def users_of(sizes=SIZES, *, data=None, model=None, **privacy) -> Settings:
    sections = {"privacy": {"unit": "user"} | privacy, "data": data or {}, "model": model or {}}
    return Settings(parse_config(sections), sizes=sizes, dimension=50)


def test_under_unit_user_sizes_batch_and_room_count_users():
    settings = users_of(expected_batch=40.0)
    assert settings.one_step
    assert settings.stated.unit == "user"
    assert settings.stated.sampling_probability == 40 / 800
    # The same figures as for as many examples: what is counted is another thing, not the bound.
    by_example = settings_of(expected_batch=40.0)
    assert settings.plan == by_example.plan
    assert 1 <= settings.plan.max_examples <= 100
    total = np.full(50, 20.0)
    assert settings.gradient(total, ("site-0", "site-1"))[0] == 20.0 / (0.05 * 200)
    assert settings.epsilon_after(3) == by_example.epsilon_after(3)
    with pytest.raises(ConfigError, match="hold 800 users in all"):
        users_of(expected_batch=801.0)
    assert settings.event()["unit"] == settings.record()["unit"] == "user"


def test_the_statement_says_which_user_and_what_it_leaves_out():
    named = users_of(expected_batch=40.0, data={"user_field": "patient"})
    text = str(named.guarantee("server", 3))
    for words in (
        "one user: one patient at one client, that is all of one client's records with the same "
        "'patient'",
        "not the same one at another client",
        "not one under two keys",
        "only spoken of",
        "how many users a client holds is public",
        "drawn in secret by each client, of its users",
        "a user's vector depends on no other user",
    ):
        assert words in text
    assert "example" not in text
    assert unit_name(named.config) == "one patient at one client"
    unnamed = users_of(expected_batch=40.0)
    assert unit_name(unnamed.config) == "one document"
    assert "one user: one document" in str(unnamed.guarantee("server", 3))
    assert "several documents of one are several users" in str(unnamed.guarantee("server", 3))


@pytest.mark.parametrize("mechanism", ["central", "local", "none"])
def test_every_mechanism_states_the_user(mechanism):
    noise = {} if mechanism == "none" else {"noise_multiplier": 1.0}
    settings = users_of(
        expected_batch=40.0, mechanism=mechanism, data={"user_field": "sender"}, **noise
    )
    for who in ADVERSARIES:
        statement = settings.guarantee(who, 1)
        assert statement.unit.startswith("one user: one sender at one client")
        assert "zero-out of one user" in statement.adjacency


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"data": {"user_field": "patient"}}, ["data.user_field = 'patient'", "unit = 'example'"]),
        (
            {"data": {"user_field": "patient"}, "privacy": {"unit": "client"}},
            ["data.user_field", "unit = 'client'"],
        ),
        ({"training": {"examples_per_user": 3}}, ["training.examples_per_user = 3"]),
        ({"training": {"examples_per_user": 0}}, ["training.examples_per_user"]),
        ({"data": {"user_field": ""}}, ["data.user_field"]),
        (
            {"training": {"trainer": "a:B"}, "privacy": {"unit": "user"}},
            ["unit = 'user'", "each user's own gradient", "unit = 'client'"],
        ),
        (
            {"privacy": {"unit": "client", "mechanism": "local"}},
            ["mechanism = 'local'", "'example' or 'user'"],
        ),
    ],
)
def test_what_does_not_go_with_a_unit_is_refused(sections, words):
    with pytest.raises(ConfigError) as caught:
        parse_config(sections)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(("units", "q"), [(100, 0.05), (1500, 0.016), (10**6, 1e-4), (7, 0.9)])
def test_the_ring_has_room_for_the_largest_sample_that_is_to_be_reckoned_with(units, q):
    room = _room_for(units, q)
    assert binom.sf(room, units, q) <= 2.0**-64
    assert room == 1 or binom.sf(room - 1, units, q) > 2.0**-64
    assert room < units or (units, q) == (7, 0.9)


def test_a_small_sample_of_many_examples_does_not_widen_the_ring():
    sizes = dict.fromkeys(SIZES, 1500)
    config = parse_config({"privacy": {"expected_batch": 128}})
    rare = Settings(config, sizes=sizes, dimension=3000)
    whole = parse_config({"privacy": {"expected_batch": 12000}})
    assert rare.plan.bits <= Settings(whole, sizes=sizes, dimension=3000).plan.bits - 3


def test_a_target_is_a_limit_too_and_the_smaller_of_two_holds():
    assert settings_of().limit is None
    assert settings_of(target_epsilon=2.0).limit == ("privacy.target_epsilon", 2.0)
    for budget, which in ((1.0, "budget.epsilon"), (3.0, "privacy.target_epsilon")):
        config = parse_config({"privacy": {"target_epsilon": 2.0}, "budget": {"epsilon": budget}})
        found = Settings(config, sizes=SIZES, dimension=50, noise_multiplier=5.0)
        assert found.limit == (which, min(budget, 2.0))
