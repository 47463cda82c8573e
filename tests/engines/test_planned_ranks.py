"""Runs that carry out a plan whose ranks differ: three strong clients, three on a slow link."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from engines.test_mixed_rank_runs import Told, base_model, records
from engines.test_planned_runs import charges, genesis
from engines.test_tampering import rewrite, set_in, unclosed
from safetensors.torch import load_file
from tiny import write_run

from securefed import Federation
from securefed.config import LoraSection, load_config
from securefed.engines import planning, run_plan
from securefed.engines.run import Run
from securefed.engines.run_plan import RunPlan
from securefed.engines.verify import verified_run, verify_run
from securefed.engines.virtual_time import modelled_seconds
from securefed.errors import ConfigError, LedgerTampered
from securefed.federation.client import ClientRound
from securefed.federation.scheduling import schedule
from securefed.lora.adapter import adapter_state, build_adapter, load_adapter_state
from securefed.lora.columns import at_rank
from securefed.lora.parts import AdapterParts
from securefed.lora.ranks import section_at
from securefed.privacy.clipping import L2Clip
from securefed.training.steps import AdamWTrainer

pytestmark = pytest.mark.usefixtures("units_are_measured_once")

STRONG, WEAK = ("site-0", "site-1", "site-2"), ("site-3", "site-4", "site-5")
EVERYBODY = STRONG + WEAK
OWN = dict.fromkeys(STRONG, 4) | dict.fromkeys(WEAK, 1)
LINK = {"upload_mbit": 20.0, "download_mbit": 50.0, "memory_gib": 16.0}
SLOW = {"upload_mbit": 0.02, "download_mbit": 4.0, "memory_gib": 16.0}
MACHINES = [
    LINK | {"clients": ["site-0", "site-1"]},
    LINK | {"clients": ["site-2"], "slowdown": 9.0},
    SLOW | {"clients": "others"},
]
SCHEDULE = {
    "rank_tiers": [1, 4],
    "local_steps": [4, 8],
    "seconds_per_token": 2e-3,
    "carry_out": True,
}
LORA = {"rank": 4, "alpha": 6.0}
MODULES, OUT = 4, 32  # of the tiny model: B is [4, 32, rank]


def write(folder: Path, *, schedule=None, cohort=None, **sections) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    given = {
        "lora": LORA,
        "privacy": {
            "unit": "client",
            "noise_multiplier": 4.0,
            "expected_batch": None,
            "corrupt_fraction": 0.0,
        },
        "training": {"rounds": 2, "local_steps": 8, "batch_size": 4},
    }
    return write_run(
        folder,
        cohort={"profiles": MACHINES, "schedule": SCHEDULE | (schedule or {})} | (cohort or {}),
        **{name: given.get(name, {}) | sections.get(name, {}) for name in {*given, *sections}},
    )


class Clocks:
    """What virtual clocks are asked: seconds, by attempt at a round, stage and client."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.rounds: list[dict[tuple[str, str], tuple[int, int, float]]] = []
        patch.setattr(run_plan, "modelled_seconds", self._modelled)

    def _modelled(self, workload, members, *, prepared=False):
        seconds = modelled_seconds(workload, members, prepared=prepared)
        asked: dict[tuple[str, str], tuple[int, int, float]] = {}
        self.rounds.append(asked)

        def noted(name, stage, up, down):
            asked[stage, name] = (up, down, seconds(name, stage, up, down))
            return asked[stage, name][2]

        return noted


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Killed before its second round, and resumed without planning again."""
    base = tmp_path_factory.mktemp("planned-ranks")
    path, out, told = write(base), base / "out", Told()
    round_of = Run._round

    def killed(self, ledger, number):
        if number == 2:
            raise KeyboardInterrupt
        round_of(self, ledger, number)

    def no_planning(*arguments):
        pytest.fail("a resumed run does not plan again")

    with pytest.MonkeyPatch.context() as patch:
        clocks = Clocks(patch)
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Run, "_round", killed)
            with pytest.raises(KeyboardInterrupt):
                Federation.from_config(path).run(out)
        assert "site-0" in genesis(out)["plan"]["clients"]
        patch.setattr("securefed.engines.simulation.plan_cohort", no_planning)
        result = Federation.from_config(out / "config.toml", observer=told).run(out, resume=True)
    return result, told, clocks


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished[0].folder, tmp_path / "copy"))


def test_the_plans_ranks_are_the_runs_and_it_is_resumed_and_verified(finished):
    result, told, _ = finished
    out = result.folder
    first = genesis(out)
    assert {name: one["rank"] for name, one in first["plan"]["clients"].items()} == OWN
    assert first["privacy"]["ranks"] == OWN
    assert first["privacy"]["widths"] == [128, 384]
    assert "cohorts" not in first["privacy"]
    assert "ranks: 3 clients at rank 1, 3 clients at rank 4" in told.lines
    for body in records(out, "round_summed"):
        assert body["slices"] == {"1": list(EVERYBODY), "2": list(STRONG)}
        assert (body["closed"], body["late"]) == ({}, {})
    assert charges(out) == {name: [1, 2] for name in EVERYBODY}
    lines = verify_run(out).lines
    assert any("of 4 sums in 2 rounds 0 stayed closed" in line for line in lines)
    run = verified_run(out)
    ring = {one["bits"] for one in first["plan"]["clients"].values()}
    assert {one.plan.bits for one in run.settings.slices.slices} == ring
    assert result.guarantees["server"].epsilon == run.settings.slices.guarantee(
        "server", rounds=2
    ).epsilon  # fmt: skip
    assert sorted(path.name for path in (out / "ranks").iterdir()) == ["1", "4"]


def test_virtual_seconds_are_those_of_the_bytes_that_each_rank_really_sent(finished):
    result, _, clocks = finished
    summed = records(result.folder, "round_summed")
    assert len(clocks.rounds) == len(summed) == 2
    for asked, body in zip(clocks.rounds, summed, strict=True):
        stages = {stage for stage, _ in asked}
        slowest = [max(s for (own, _), (*_, s) in asked.items() if own == at) for at in stages]
        assert body["virtual_seconds"] == pytest.approx(sum(slowest))
        up = {name: sum(b for (_, own), (b, *_) in asked.items() if own == name) for name in OWN}
        assert sum(up.values()) == body["bytes_up"]
        assert max(up[name] for name in WEAK) < 0.7 * min(up[name] for name in STRONG)
    rows = json.loads((result.folder / "clients" / "site-4" / "costs.json").read_text())["rows"]
    (row,) = [row for row in rows if row["what"] == "round"]  # since the resume
    own = [b for (_, name), (b, *_) in clocks.rounds[1].items() if name == "site-4"]
    assert row["bytes_up"] == sum(own)
    by_rank = json.loads((result.folder / "costs.json").read_text())["by_rank"]
    assert {rank: one["clients"] for rank, one in by_rank.items() if rank != "over"} == {
        "1": 3, "4": 3
    }  # fmt: skip


# -- tampering -----------------------------------------------------------------------------------


def in_plan(change):
    def altered(found):
        change(found[0][1]["plan"])
        return found

    return altered


def in_privacy(change):
    def altered(found):
        change(found[0][1]["privacy"])
        return found

    return altered


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (in_plan(lambda plan: plan["clients"]["site-0"].update(rank=1)), "site-0 = .*planned agai"),
        (in_plan(lambda plan: plan["clients"]["site-4"].update(rank=4)), "site-4 = .*planned agai"),
        (in_plan(lambda plan: plan["clients"]["site-4"].update(tiers=[])), "site-4 = .*planned"),
        (in_plan(lambda plan: plan["rules"].update(ranks=[2, 4])), "ranks = .*by the run file"),
        (in_plan(lambda plan: plan["workload"]["travelling"].update({"4": 513})), "513 values"),
        (in_privacy(lambda body: body["ranks"].update({"site-4": 4})), "ranks = "),
        (in_privacy(lambda body: body.update(widths=[256, 256])), "widths = "),
        (in_privacy(lambda body: body.pop("widths")), "widths = None"),
        (
            set_in("round_summed", 0, slices={"1": list(EVERYBODY), "2": ["site-4", *STRONG]}),
            "slice 2: 'site-4' does not hold it",
        ),
    ],
    ids=["lower", "higher", "one", "tiers", "sizes", "ranks", "widths", "no widths", "slice"],
)
def test_other_ranks_than_follow_from_the_plan_are_noticed(copy, change, words):
    rewrite(copy / "ledger.jsonl", change)
    with pytest.raises(LedgerTampered, match=words):
        verify_run(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (in_plan(lambda plan: plan["clients"]["site-0"].update(rank=1)), "site-0 = .*planned agai"),
        (in_privacy(lambda body: body["ranks"].update({"site-4": 4})), r"privacy\.ranks is "),
    ],
    ids=["plan", "ranks"],
)
def test_a_run_with_other_ranks_than_its_plans_is_not_resumed(copy, change, words):
    rewrite(copy / "ledger.jsonl", lambda found: change(found)[:-2])
    with pytest.raises(LedgerTampered, match=words):
        Federation.from_config(copy / "config.toml").run(copy, resume=True)


# -- the same sums by hand -----------------------------------------------------------------------


def own_delta(folder: Path, section: LoraSection, initial: dict, rank: int, examples, steps: int):
    """What a client's own smaller model, as a deployment builds it, changes by: [4, 32, rank]."""
    model = build_adapter(base_model(folder), section_at(section, rank), task="causal-lm")
    load_adapter_state(model, at_rank(initial, rank))
    parts = AdapterParts(model, "ffa")
    before = parts.flat()
    AdamWTrainer(
        local_steps=steps, batch_size=4, learning_rate=0.02, task="causal-lm",
        device=torch.device("cpu"), seed=section.seed,
    ).train(model, examples, 1)  # fmt: skip
    return (parts.flat() - before).astype(np.float64)


@pytest.mark.parametrize("normalized", [pytest.param(False, marks=pytest.mark.slow), True])
def test_each_slice_moves_by_the_exact_mean_over_those_who_hold_it(finished, tmp_path, normalized):
    """Scaled to the mean of all clients' steps where that is asked for, then clipped as a whole."""
    clip = 1.5
    path = write(
        tmp_path,
        training={
            "rounds": 1,
            "local_learning_rate": 0.02,
            "server_optimizer": "sgd",
            "server_learning_rate": 1.0,
            "normalize_steps": normalized,
        },
        privacy={"mechanism": "none", "noise_multiplier": None, "update_clip_norm": clip},
        evaluation={"max_windows": 1},
    )
    config = load_config(path)
    plan = RunPlan.of_record(genesis(finished[0].folder)["plan"], config)
    steps = {name: plan.given(name).local_steps for name in EVERYBODY}
    assert set(steps.values()) == {4, 8}
    federation = Federation(config, plan=plan)
    federation.run(tmp_path / "out")
    bench = federation.prepare()[0]
    initial, total, lengths = adapter_state(bench.model), np.zeros((MODULES, OUT, 4)), []
    counts = np.array([6.0, 3.0, 3.0, 3.0])  # who holds each column
    for name, rank in OWN.items():
        own = own_delta(
            tmp_path, config.lora, initial, rank, bench.clients[name].train, steps[name]
        )
        if normalized:
            own *= np.mean(list(steps.values())) / steps[name]
        lengths.append(np.linalg.norm(own))
        total[..., :rank] += L2Clip(clip).unit(own).reshape(MODULES, OUT, rank)
    assert min(lengths) < clip < max(lengths)
    saved = tmp_path / "out" / "checkpoints" / "round-1" / "state.safetensors"
    found = load_file(saved)["parameters"].numpy().reshape(MODULES, OUT, 4)
    np.testing.assert_allclose(found, total / counts, atol=2e-5)
    assert np.abs(found).max(axis=(0, 1)).min() > 0.005  # every column moves
    assert verify_run(tmp_path / "out").finished


# -- deadlines -----------------------------------------------------------------------------------


def test_late_clients_close_a_slice_and_no_other_and_are_on_record(tmp_path):
    """``site-2`` spends all its time in one stage, those on the slow link theirs in all of them."""
    path = write(tmp_path, schedule={"deadline": 4.3, "local_steps": [8]})
    told = Told()
    result = Federation.from_config(path, observer=told).run(tmp_path / "out")
    out = result.folder
    for body in records(out, "round_summed"):
        assert body["late"] == {"site-2": "masked_input"}
        assert body["closed"] == {"2": "ThresholdNotMet"}
        assert body["slices"] == {"1": sorted({*EVERYBODY} - {"site-2"})}
        assert body["virtual_seconds"] < 4 * 4.3
    assert charges(out)["site-2"] == [1, 2]  # it was late with what it had charged
    notes = [json.loads(line)["note"] for line in (out / "metrics.jsonl").open()]
    assert notes[1] == (
        "6 invited, 5 in time (late: site-2 in masked_input); slice 2 stayed closed"
    )
    moved = load_file(out / "checkpoints" / "round-2" / "state.safetensors")["parameters"].numpy()
    columns = moved.reshape(MODULES, OUT, 4)
    assert (columns[..., 0] != 0).all()
    assert not columns[..., 1:].any()
    assert any("2 stayed closed" in line for line in verify_run(out).lines)
    rewrite(out / "ledger.jsonl", set_in("round_summed", 0, late={"site-0": "masked_input"}))
    with pytest.raises(LedgerTampered, match="site-0 in 'masked_input', and it is among the surv"):
        verify_run(out)


def test_all_slices_of_a_secret_sample_are_made_before_the_first_message(tmp_path, monkeypatch):
    """Who is late is so before it has charged anything, and without its sample's telling."""
    path = write(
        tmp_path,
        training={"rounds": 1},
        privacy={"unit": "example", "noise_multiplier": 4.0, "expected_batch": 60},
        schedule={"local_steps": [], "deadline": 1.5},
        evaluation={"max_windows": 1},
    )
    done, begun = [], []
    prepare, start = ClientRound.prepare, ClientRound.start

    def preparing(self):
        done.append(self)
        prepare(self)

    def starting(self):
        begun.append(len(done))
        return start(self)

    monkeypatch.setattr(ClientRound, "prepare", preparing)
    monkeypatch.setattr(ClientRound, "start", starting)
    out = tmp_path / "out"
    Federation.from_config(path).run(out)
    slices = 3 * 2 + 3  # the strong have two each
    assert begun == [0] * 6 + [slices] * slices + [slices] * 6  # an evaluation before and after
    (body,) = records(out, "round_summed")
    assert body["late"] == {"site-2": "advertise"}
    assert body["charged"] == body["slices"]["1"] == sorted({*EVERYBODY} - {"site-2"})
    assert body["closed"] == {"2": "ThresholdNotMet"}
    assert charges(out)["site-2"] == []
    assert verify_run(out).charges == 1


# -- ranks that do not stand, and a target -------------------------------------------------------


def test_ranks_that_too_few_reach_are_merged_and_the_adapter_ends_before_them(tmp_path):
    machines = [LINK | {"clients": ["site-0", "site-1"]}, SLOW | {"clients": "others"}]
    path = write(
        tmp_path,
        cohort={"profiles": machines, "min_clients": 2},
        training={"rounds": 1},
        evaluation={"max_windows": 1},
    )
    federation, out = Federation.from_config(path), tmp_path / "out"
    federation.run(out)
    assert genesis(out)["privacy"]["ranks"] == dict.fromkeys(EVERYBODY, 1)
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (1, 1.5)
    verify_run(out)
    unclosed(out)
    Federation.from_config(path).run(out, resume=True)
    # The planner knew.  A plan of other rules, by which two would be enough, comes to the same.
    plan = RunPlan.of_record(genesis(out)["plan"], federation.config)
    rules = replace(plan.rules, least_cohort=2)
    pair = schedule(plan.profiles, plan.workload, rules)
    assert pair.clients["site-0"].assignment.rank == 4
    merged = RunPlan(pair, plan.workload, plan.profiles, rules, plan.config)
    assert (merged.given("site-0").rank, merged.given("site-0").tiers) == (1, ())
    assert merged.ranks.told() == (
        "ranks: 6 clients at rank 1; rank 4 merged into 1: only 2 clients would hold the columns "
        "beyond it, too few for a sum of their own"
    )
    bench, settings = Federation(federation.config, plan=merged).prepare()
    assert settings.slices.widths == (bench.dimension,) == (128,)


def test_a_target_is_met_by_the_accounting_of_slices(finished, tmp_path):
    path = write(tmp_path, privacy={"noise_multiplier": None, "target_epsilon": 3.0})
    config = load_config(path)
    plan = RunPlan.of_record(genesis(finished[0].folder)["plan"], config)
    _, settings = Federation(config, plan=plan).prepare()
    stated = settings.guarantee("server", 2)
    assert 2.9 < stated.epsilon <= 3.0
    assert "2 slices of one vector" in stated.mechanism
    assert settings.slices.policy.noise_multiplier == settings.stated.noise_multiplier


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        (
            {"schedule": {"periods": [1, 2]}},
            r"periods = \[1, 2\] with carry_out: with unlike ranks",
        ),
        ({"cohort": {"ranks": [{"clients": "others", "rank": 4}]}}, "who has which rank would be"),
        ({"lora": {"sharing": "fedit"}}, "rank_tiers with lora.sharing = 'fedit'"),
        ({"lora": {"rank": 3}}, r"rank_tiers: the largest is 4, and lora\.rank = 3"),
        ({"aggregation": {"kind": "bfv"}}, "carry_out with aggregation.kind = 'bfv'"),
        ({"privacy": {"mechanism": "central"}}, "rank_tiers with privacy.mechanism = 'central'"),
        ({"privacy": {"noise": "skellam"}}, "rank_tiers with privacy.noise = 'skellam'"),
        ({"privacy": {"adaptive_clip": {}}}, "rank_tiers with privacy.adaptive_clip given"),
        (
            {"training": {"sparsify": "random", "keep_fraction": 0.5}},
            "rank_tiers with training.sparsify",
        ),
        ({"training": {"trainer": "m:T"}}, "rank_tiers with training.trainer"),
        (
            {"training": {"control_weight": 1.0, "local_optimizer": "sgd"}},
            "rank_tiers with training.control_weight",
        ),
        (
            {"schedule": {"carry_out": False}, "cohort": {"least_contributors": 3}},
            "least_contributors = 3 without ranks",
        ),
    ],
)
def test_what_planned_ranks_do_not_cover_is_refused_by_name(tmp_path, sections, words):
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path, **sections))


def test_a_plan_of_both_or_of_a_rank_that_the_run_file_does_not_leave_open_is_refused(
    finished, tmp_path
):
    plan = RunPlan.of_record(
        genesis(finished[0].folder)["plan"], load_config(finished[0].folder / "config.toml")
    )
    clients = dict(plan.schedule.clients)
    rarely = replace(clients["site-5"].assignment, period=2)
    clients["site-5"] = replace(clients["site-5"], assignment=rarely)
    with pytest.raises(ConfigError, match="unlike participation: with unlike ranks every client"):
        replace(plan, schedule=replace(plan.schedule, clients=clients))
    other = load_config(write(tmp_path, schedule={"rank_tiers": [2, 4]}))
    with pytest.raises(ConfigError, match=r"site-3 has rank 1, .* one of \[2, 4\]"):
        replace(plan, config=other)
    with pytest.raises(ConfigError, match="128 values travel at rank 1, here 64"):
        plan.check_widths((64, 448))


def test_a_plan_that_keeps_one_rank_is_one_of_whole_sums(finished, tmp_path):
    plan = RunPlan.of_record(
        genesis(finished[0].folder)["plan"], load_config(finished[0].folder / "config.toml")
    )
    rules = plan.rules.only("steps")
    steps = schedule(plan.profiles, plan.workload, rules)
    other = RunPlan(steps, plan.workload, plan.profiles, rules, plan.config)
    assert other.ranks is None
    settings = Federation(plan.config, plan=other).prepare()[1]
    assert settings.slices is None
    assert [kind.members for kind in settings.cohorts.kinds] == [6]


def test_least_contributors_are_the_planners_too(tmp_path):
    """Three hold the columns beyond rank 1, and four are asked for."""
    config = load_config(write(tmp_path, cohort={"least_contributors": 4}))
    made = planning.plan_cohort(config, *Federation(config).prepare())
    assert made.rules.least_cohort == 4
    assert {one.assignment.rank for one in made.schedule.clients.values()} == {1}
