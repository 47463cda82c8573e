import itertools
import json
from dataclasses import asdict, fields, replace

import pytest

from securefed.config import parse_config
from securefed.engines.mixed_ranks import mixed_ranks, rank_sections
from securefed.errors import ConfigError
from securefed.federation.capability import Assignment, CapabilityProfile, Workload
from securefed.federation.costs import UnitCosts
from securefed.federation.scheduling import Rules, schedule
from securefed.privacy.accounting import guarantee
from securefed.privacy.mechanisms import plan_round
from securefed.privacy.policy import CohortBounds, PrivacyPolicy

BASE = 5e-4
"""Seconds a token of the strong client; the others are slower by stated factors."""

UNITS = UnitCosts(
    **{field.name: 1e-4 for field in fields(UnitCosts)}
    | {"draw": 1.5e-6, "share_step": 7e-8, "weight_step": 9e-8, "read_share": 4e-7}
    | {"keystream_value": 6e-10, "pack_value": 4e-9, "unpack_value": 4e-9}
    | {"nonce": 1e-6, "place": 2e-7, "listed": 9e-8, "hash": 6e-10, "copy": 3e-11}
)
"""About what ``measure_units`` finds; the short steps that are not named are rounded up."""


def cohort():
    """One strong client, six middling and three weak ones: compute 2 to 3.5 and 8 to 10 times
    slower, links 5 and 50 times."""
    link = 12.5e6
    found = {
        "strong": CapabilityProfile(
            memory=64 << 30, seconds_per_token=BASE, upload=link, download=link
        )
    }
    for n in range(6):
        found[f"middling-{n}"] = CapabilityProfile(
            memory=16 << 30,
            seconds_per_token=BASE * (2 + 0.3 * n),
            upload=link / 5,
            download=link / 2.5,
        )
    for n in range(3):
        found[f"weak-{n}"] = CapabilityProfile(
            memory=2 << 30,
            seconds_per_token=BASE * (8 + n),
            upload=link / 50,
            download=link / 12.5,
        )
    return found


def workload(**values):
    """SmolLM2-135M with LoRA on v_proj (30 layers of 576 -> 192), windows of 32 tokens."""
    given = {
        "clients": 10,
        "corrupt": 0.1,
        "base_parameters": 134_515_008,
        "base_bytes": 4 * 134_515_008,
        "adapter_width": 30 * (576 + 192),
        "travelling": {rank: 30 * 192 * rank for rank in (1, 2, 4, 8, 16)},
        "rank": 16,
        "tokens": 32,
        "token_bytes": 2e5,
        "filled": False,
        "seconds_per_token": BASE,
        "seconds_per_value": 2e-7,
        "units": UNITS,
    }
    return Workload(**given | values)


UNIFORM = Assignment(rank=16, local_steps=4, batch=16, micro_batch=16, bits=24)
RULES = Rules(
    uniform=UNIFORM,
    ranks=(1, 2, 4, 8, 16),
    steps=(1, 2, 3, 4),
    bits=(20, 24),
    periods=(1, 2, 4),
    least_work=0.25,
    least_cohort=3,
)


@pytest.fixture(scope="module")
def plan():
    return schedule(cohort(), workload(), RULES)


def test_the_planners_round_takes_at_most_three_fifths_of_the_uniform_ones(plan):
    assert plan.mean_seconds <= 0.6 * plan.uniform_seconds
    assert plan.full_seconds <= 0.6 * plan.uniform_seconds


def test_nobody_holds_the_others_up_and_everybody_does_its_part(plan):
    for name, planned in plan.clients.items():
        always = planned.assignment.period == 1
        assert planned.seconds <= (plan.ordinary_seconds if always else plan.full_seconds)
        assert RULES.least_work <= planned.work <= 1.0
        assert planned.seconds == pytest.approx(sum(planned.parts.values()))
        assert name in str(plan.to_record())
    # The strong client is slowed down by nobody: it does all that it did.
    assert plan.clients["strong"].work == 1.0


def test_more_would_be_late(plan):
    """Each client has the highest rank, then the most steps, that end in time."""
    for name, planned in plan.clients.items():
        given, profile = planned.assignment, cohort()[name]
        deadline = max(p.seconds for p in plan.clients.values())
        for steps in (s for s in RULES.steps if s > given.local_steps):
            assert workload().seconds(profile, replace(given, local_steps=steps)) > deadline


def levers():
    return {
        name: schedule(cohort(), workload(), RULES.only(*names))
        for name, names in {
            "nothing": (),
            "rank": ("rank",),
            "steps": ("steps",),
            "bits": ("bits",),
            "participation": ("participation",),
            "all": ("rank", "steps", "bits", "participation"),
        }.items()
    }


def test_each_lever_alone_buys_something_and_all_together_most():
    found = {name: plan.mean_seconds / plan.uniform_seconds for name, plan in levers().items()}
    assert found["nothing"] == pytest.approx(1.0)
    for name in ("rank", "steps", "bits", "participation"):
        assert found["all"] < found[name] < 1.0
    # This cohort's weak clients are bound by compute: fewer bits or ranks buy little.
    assert found["steps"] < 0.5 < found["rank"] < found["bits"]


def test_where_the_link_binds_rank_buys_most():
    slow = {
        name: replace(profile, upload=profile.upload / 100, seconds_per_token=BASE)
        for name, profile in cohort().items()
    }
    ratios = {}
    for lever in ("rank", "steps", "bits"):
        plan = schedule(slow, workload(), RULES.only(lever))
        ratios[lever] = plan.mean_seconds / plan.uniform_seconds
    assert ratios["rank"] < 0.5
    assert ratios["rank"] < ratios["bits"] < ratios["steps"]


def test_the_same_arguments_give_the_same_plan_in_any_order(plan):
    backwards = dict(reversed(cohort().items()))
    again = schedule(backwards, workload(), RULES)
    assert json.dumps(again.to_record()) == json.dumps(plan.to_record())


def test_every_client_is_told_why(plan):
    weak, strong = plan.clients["weak-2"].reason, plan.clients["strong"].reason
    assert "most of it training" in weak
    assert "steps 1, not 4" in weak
    assert "steps" not in strong


def test_no_plan_that_keeps_the_rules_has_much_shorter_rounds():
    """Against every choice of rank, steps and period for each of four clients."""
    everyone = cohort()
    profiles = {name: everyone[name] for name in ("middling-0", "middling-5", "strong", "weak-0")}
    asked = workload(clients=4, corrupt=0.0)
    rules = replace(RULES, ranks=(4, 16), steps=(1, 2, 4), bits=(24,), periods=(1, 3))
    rules = replace(rules, least_cohort=2)
    choices = [
        given
        for rank, steps, period in itertools.product(rules.ranks, rules.steps, rules.periods)
        if (given := replace(UNIFORM, rank=rank, local_steps=steps, period=period)).work
        >= rules.least_work * UNIFORM.work
    ]
    best = float("inf")
    for chosen in itertools.product(choices, repeat=4):
        members = list(zip(profiles.values(), chosen, strict=True))
        always = [member for member in members if member[1].period == 1]
        if len(always) < rules.least_cohort:
            continue
        full, ordinary = asked.round_seconds(members), asked.round_seconds(always)
        mean = ordinary if len(always) == 4 else (2 * ordinary + full) / 3
        best = min(best, mean)
    plan = schedule(profiles, asked, rules)
    assert best <= plan.mean_seconds <= 1.1 * best


def test_a_slice_of_a_rank_has_contributors_enough_in_every_round():
    # Only one client could send the highest slices in time.
    profiles = {
        name: replace(profile, seconds_per_token=BASE, upload=25_000 if name != "strong" else 1e9)
        for name, profile in cohort().items()
    }
    lonely = schedule(profiles, workload(), replace(RULES, least_cohort=2).only("rank"))
    ranks = [planned.assignment.rank for planned in lonely.clients.values()]
    for rank in RULES.ranks:
        assert sum(r >= rank for r in ranks) != 1


def test_steps_are_common_where_the_sample_is_priced():
    for unit in ("example", "user"):
        with pytest.raises(ConfigError, match="sampling probability and steps are the same"):
            RULES.check(unit)
        RULES.only("rank", "bits", "participation").check(unit)
    RULES.check("client")


def test_memory_bounds_the_micro_batch_and_refuses_who_holds_no_example():
    need = workload().memory
    profiles = cohort() | {"weak-0": replace(cohort()["weak-0"], memory=int(need(1, 2)) + 1)}
    plan = schedule(profiles, workload(), RULES)
    assert plan.clients["weak-0"].assignment.micro_batch == 2
    assert "micro-batch 2, not 16" in plan.clients["weak-0"].reason
    # With a gradient an example, memory bounds the rank too.
    filled = workload(filled=True, token_bytes=1e3, seconds_per_value=0.0)
    fast = replace(cohort()["strong"], memory=int(filled.memory(4, 2)) + 1)
    profiles["weak-0"] = fast
    small = schedule(profiles, filled, replace(RULES, steps=(4,))).clients["weak-0"].assignment
    assert filled.memory(small.rank, small.micro_batch) <= fast.memory
    assert small.rank < UNIFORM.rank
    profiles["weak-0"] = replace(cohort()["weak-0"], memory=int(need(1, 1)) - 1)
    with pytest.raises(ConfigError, match="profile of weak-0: memory = "):
        schedule(profiles, workload(), RULES)


def test_who_is_rarely_there_takes_part_rarely():
    profiles = cohort() | {"strong": replace(cohort()["strong"], availability=0.5)}
    plan = schedule(profiles, workload(), RULES)
    assert plan.clients["strong"].assignment.period == 2
    assert "available no oftener" in plan.clients["strong"].reason
    with pytest.raises(ConfigError, match="no plan"):
        schedule(profiles, workload(), RULES.only("rank", "steps"))


def test_participation_is_a_fixed_schedule_that_charges_count():
    plan = schedule(cohort(), workload(), RULES.only("participation"))
    rarely = {n for n, planned in plan.clients.items() if planned.assignment.period > 1}
    assert rarely >= {"weak-0", "weak-1", "weak-2"}
    assert plan.smallest_cohort == 10 - len(rarely)
    rounds = 10
    counted = dict.fromkeys(plan.clients, 0)
    for number in range(1, rounds + 1):
        members = plan.participants(number)
        assert len(members) in (10 - len(rarely), 10)
        assert len(members) >= RULES.least_cohort
        for name in members:
            counted[name] += 1
    assert counted == plan.charges(rounds)
    # The statement of a run is that of whoever is charged most; one by one they pay for less.
    policy = PrivacyPolicy(clip_norm=1.0, noise_multiplier=4.0, unit="client")
    planned = plan_round(policy, cohort_size=plan.smallest_cohort, dimension=100)

    def epsilon(charges):
        found = guarantee(policy, planned, cohort_size=plan.smallest_cohort, rounds=charges)
        assert found.sampling == "none credited: this adversary knows who takes part"
        return found.epsilon

    assert max(counted.values()) == rounds
    assert epsilon(counted["weak-0"]) < epsilon(counted["strong"]) == epsilon(rounds)


def test_noise_sized_for_the_smallest_round_is_enough_in_every_larger_one():
    policy = PrivacyPolicy(clip_norm=1.0, noise_multiplier=4.0, unit="client")
    smallest = plan_round(policy, cohort_size=7, dimension=100, bits=32)
    for size in range(7, 40):
        honest = CohortBounds.of(policy, size).honest_floor
        relative = smallest.noise_std(honest) * smallest.resolution
        assert relative >= policy.noise_multiplier * policy.clip_norm * (1 - 1e-12)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"ranks": (1, 2)}, "ranks"),
        ({"steps": (4, 2)}, "steps"),
        ({"bits": ()}, "bits"),
        ({"periods": (2,)}, "periods"),
        ({"least_work": 0.0}, "least_work"),
        ({"least_cohort": 1}, "least_cohort"),
        ({"uniform": replace(UNIFORM, period=2)}, "uniform.period"),
    ],
)
def test_rules_out_of_range_are_refused(values, named):
    with pytest.raises(ConfigError, match=named):
        replace(RULES, **values)


@pytest.mark.parametrize(
    ("field", "value"),
    [("memory", 0), ("seconds_per_token", float("nan")), ("upload", -1.0), ("availability", 0.0)],
)
def test_a_profile_out_of_range_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        replace(cohort()["strong"], **{field: value})


def test_profiles_speak_of_machines_alone():
    assert set(asdict(cohort()["strong"])) == {
        "memory", "seconds_per_token", "upload", "download", "availability",
    }  # fmt: skip


def test_the_ranks_of_a_plan_are_those_that_a_run_of_the_same_tables_trains_at(plan):
    given = {name: planned.assignment for name, planned in plan.clients.items()}
    ranks = {name: assignment.rank for name, assignment in given.items()}
    assert len(set(ranks.values())) > 1
    tables = [section.model_dump() for section in rank_sections(ranks)]
    config = parse_config({"lora": {"rank": 16}, "cohort": {"ranks": tables}})
    found = mixed_ranks(config, ranks)
    assert found is not None
    assert found.rank_of == ranks
    assert {assignment.tiers for assignment in given.values()} == {found.tiers.ranks}
