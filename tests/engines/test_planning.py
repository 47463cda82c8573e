import pytest
from tiny import write_run

from securefed import Federation
from securefed.config import ProfileSection
from securefed.engines.planning import plan_cohort
from securefed.engines.profiles import sections_of
from securefed.errors import ConfigError
from securefed.federation.slice_plans import standing_slices

pytestmark = pytest.mark.usefixtures("units_are_measured_once")

MACHINE = {"memory_gib": 4.0, "upload_mbit": 8.0, "download_mbit": 40.0}
COHORT = ["site-0", "site-1", "site-2"]


def profile(**values):
    return ProfileSection(**MACHINE | values)


def test_every_client_has_one_profile():
    own, rest = profile(clients=["site-1"], slowdown=3.0), profile()
    found = sections_of([own, rest], COHORT)
    assert found == {"site-0": rest, "site-1": own, "site-2": rest}


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ([profile(clients=["site-9"])], "'site-9' is no client of this run"),
        ([profile(clients=["site-1"])], "'site-0' has none"),
        ([profile(clients=["site-1"]), profile(clients=["site-1"])], "'site-1' is named twice"),
        ([profile(), profile()], "2 tables have clients = 'others'"),
    ],
)
def test_profiles_that_do_not_fit_the_cohort_are_refused(sections, named):
    with pytest.raises(ConfigError, match=named):
        sections_of(sections, COHORT)


def write_and_load(folder, **sections):
    return Federation.from_config(write_run(folder, **sections))


def prepared(folder, **sections):
    federation = write_and_load(folder, **sections)
    return federation.config, *federation.prepare()


def test_under_dp_sgd_steps_are_common_and_participation_may_differ(tmp_path):
    weak = MACHINE | {"clients": ["site-0", "site-1"], "slowdown": 8.0}
    cohort = {
        "min_clients": 3,
        "profiles": [weak, MACHINE],
        "schedule": {"periods": [1, 3], "seconds_per_token": 0.01, "least_work": 0.25},
    }
    config, bench, settings = prepared(tmp_path, cohort=cohort)
    planning = plan_cohort(config, bench, settings)
    given = {name: client.assignment for name, client in planning.schedule.clients.items()}
    assert {one.local_steps for one in given.values()} == {1}
    assert {name for name, one in given.items() if one.period == 3} == {"site-0", "site-1"}
    assert planning.schedule.mean_seconds <= 0.6 * planning.schedule.uniform_seconds
    # What a batch is follows from the whole cohort; whose data is where does not matter.
    assert len({one.batch for one in given.values()}) == 1
    assert planning.workload.travelling == {config.lora.rank: bench.dimension}
    assert planning.workload.token_bytes >= 0
    with pytest.raises(ConfigError, match=r"cohort\.schedule\.local_steps with privacy\.unit"):
        write_and_load(tmp_path, cohort=cohort | {"schedule": {"local_steps": [1, 2]}})


@pytest.mark.parametrize("lever", ["rank_tiers", "periods"])
def test_a_slice_and_a_round_of_a_few_have_room_for_all_corrupt_clients_of_the_cohort(
    tmp_path, lever
):
    """Two of six may be corrupt, and both be of the highest tier, or take part always."""
    choice = {"rank_tiers": [1, 2]} if lever == "rank_tiers" else {"periods": [1, 2]}
    cohort = {
        "min_clients": 2,
        "profiles": [MACHINE],
        "schedule": choice | {"seconds_per_token": 0.01},
    }
    privacy = {"corrupt_fraction": 0.34, "dropout_fraction": 0.0}
    config, bench, settings = prepared(tmp_path, cohort=cohort, privacy=privacy)
    least = plan_cohort(config, bench, settings).rules.least_cohort
    assert least == 4
    standing = {"policy": settings.sum_policy, "aggregation": settings.aggregation}
    assert standing_slices([6, least], **standing) == 2
    assert standing_slices([6, least - 1], **standing) == 1
