"""Runs that carry out a plan: one strong client, three middling ones, two weak ones."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engines.test_tampering import rewrite, set_in, unclosed
from safetensors.torch import load_file
from tiny import write_run

from securefed import Federation
from securefed.cli import watching
from securefed.cli.closing import draw, table
from securefed.cli.watching import round_line
from securefed.config import load_config
from securefed.engines.checked_gradients import CheckedGradients
from securefed.engines.events import Silent
from securefed.engines.planning import plan_cohort
from securefed.engines.run import Run
from securefed.engines.run_plan import RunPlan
from securefed.engines.verify import verified_run, verify_run
from securefed.errors import ConfigError, LedgerTampered, ThresholdNotMet
from securefed.evidence.budget import read_charges
from securefed.evidence.ledger import read_ledger
from securefed.federation.client import ClientRound
from securefed.federation.scheduling import schedule
from securefed.privacy.pld import effective_gaussian, gaussian_epsilon

pytestmark = pytest.mark.usefixtures("units_are_measured_once")

LINK = {"upload_mbit": 20.0, "download_mbit": 50.0, "memory_gib": 16.0}
WEAK = {"upload_mbit": 0.4, "download_mbit": 4.0, "memory_gib": 4.0}
MACHINES = [
    LINK | {"clients": ["site-0"]},
    LINK | {"clients": "others", "slowdown": 2.5},
    WEAK | {"clients": ["site-4", "site-5"], "slowdown": 10.0},
]
SCHEDULE = {
    "local_steps": [4, 8],
    "periods": [1, 2],
    "least_work": 0.25,
    "seconds_per_token": 2e-3,
    "carry_out": True,
}
STRONG = ("site-0", "site-1", "site-2", "site-3")
EVERYBODY = (*STRONG, "site-4", "site-5")


def write(folder: Path, *, schedule=None, training=None, cohort=None, privacy=None, **sections):
    folder.mkdir(parents=True, exist_ok=True)
    return write_run(
        folder,
        privacy={
            "unit": "client",
            "noise_multiplier": 4.0,
            "expected_batch": None,
            "corrupt_fraction": 0.2,
        }
        | (privacy or {}),
        training={"rounds": 4, "local_steps": 8, "batch_size": 4} | (training or {}),
        cohort={"profiles": MACHINES, "schedule": SCHEDULE | (schedule or {})} | (cohort or {}),
        **sections,
    )


class Watcher(Silent):
    def __init__(self):
        self.plans, self.lines = [], []

    def planned(self, plan):
        self.plans.append(plan)

    def round_end(self, event):
        self.lines.append(round_line(event))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    base, watcher = tmp_path_factory.mktemp("planned"), Watcher()
    result = Federation.from_config(write(base), observer=watcher).run(base / "out")
    return result, watcher


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole[0].folder, tmp_path / "copy"))


def genesis(out: Path) -> dict:
    return read_ledger(out / "ledger.jsonl")[0].body


def bodies(out: Path, kind: str) -> list[dict]:
    return [dict(r.body) for r in read_ledger(out / "ledger.jsonl") if r.kind == kind]


def charges(out: Path) -> dict[str, list[int]]:
    return {
        path.parent.name: [charge.body["round"] for charge in read_charges(path)]
        for path in sorted((out / "clients").glob("*/budget.jsonl"))
    }


def test_the_plan_is_shown_recorded_and_kept_to(whole):
    result, watcher = whole
    (plan,) = watcher.plans
    recorded = genesis(result.folder)["plan"]
    given = {name: one.assignment for name, one in plan.clients.items()}
    assert {name: one.period for name, one in given.items()} == dict.fromkeys(STRONG, 1) | {
        "site-4": 2,
        "site-5": 2,
    }
    assert given["site-0"].local_steps == 8
    assert {given[name].local_steps for name in EVERYBODY[1:]} == {4}
    for name, one in given.items():
        for field in ("local_steps", "micro_batch", "period", "rank", "bits"):
            assert recorded["clients"][name][field] == getattr(one, field)
    summed = bodies(result.folder, "round_summed")
    assert [body["survivors"] for body in summed] == [
        list(EVERYBODY), list(STRONG), list(EVERYBODY), list(STRONG)
    ]  # fmt: skip
    assert all(body["late"] == {} for body in summed)
    ordinary, full = summed[1]["virtual_seconds"], summed[0]["virtual_seconds"]
    assert ordinary < 0.5 * full
    assert "6/6 clients" in watcher.lines[1]
    assert "4/4 clients" in watcher.lines[2]
    assert f"{ordinary:.3g} virtual s" in watcher.lines[2]
    assert [event.cohort for event in result.events] == [6, 6, 4, 6, 4]
    evaluated = bodies(result.folder, "evaluated")
    assert [len(body["survivors"]) for body in evaluated] == [6, 6]


def test_a_plan_and_its_rounds_are_printed(whole, capsys, monkeypatch):
    result, watcher = whole
    monkeypatch.setattr(watching.console, "width", 120)
    with watching.watching() as shown:
        shown.planned(watcher.plans[0])
    watching.console.print(table(load_config(result.folder / "config.toml"), result))
    out = capsys.readouterr().out
    assert re.search(r"site-0 +│ +2 │ +8 │ +16 │ +all │", out)
    assert re.search(r"site-4 +│ +2 │ +4 │ +16 │ 1 of 2 │", out)
    assert re.search(r"survivors, fewest in a round +│ +│ +4 of 4 ", out)
    assert "virtual seconds a round" in out
    draw(load_config(result.folder / "config.toml"), result, [])
    assert (result.folder / "rounds.svg").stat().st_size > 0


def test_a_client_is_charged_for_its_own_rounds_and_sends_nothing_in_others(whole):
    out = whole[0].folder
    weak = {"site-4": [1, 3], "site-5": [1, 3]}
    assert charges(out) == {name: [1, 2, 3, 4] for name in STRONG} | weak
    for name in EVERYBODY:
        rows = json.loads((out / "clients" / name / "costs.json").read_text())["rows"]
        found = [row["round"] for row in rows if row["what"] == "round"]
        assert found == charges(out)[name]
    assert whole[0].charges == 4
    lines = verify_run(out).lines
    found = [line.partition(", epsilon")[0] for line in lines if line.startswith("plan: ")]
    assert found == [
        "plan: site-0, site-1, site-2, site-3 in every round: 4 charges",
        "plan: site-4, site-5 in one of 2 rounds: 2 charges",
    ]


def test_the_statement_is_that_of_who_takes_part_most_and_no_less_than_exact_composition(whole):
    """Sums of Gaussian mechanisms without sampling: the squares of 1 / z add up."""
    result = whole[0]
    settings = verified_run(result.folder).settings
    kinds = {kind.members: kind for kind in settings.cohorts.kinds}
    assert set(kinds) == {6, 4}
    zs = {n: effective_gaussian(k.plan, k.bounds.honest_floor)[0] for n, k in kinds.items()}
    stated = result.guarantees["server"].epsilon
    assert stated == settings.epsilon_after(4) > settings.epsilon_after(2)
    exact = math.sqrt(sum(1.0 / zs[size] ** 2 for size in (6, 4, 6, 4)))
    assert gaussian_epsilon(1.0 / exact, 1.0, 1, settings.stated.delta) <= stated
    # Each kind's noise is sized for its own honest survivors; one client of six may be corrupt, and
    # it may be among the four (0.2 of four would be none).
    assert [kinds[size].bounds.corrupt for size in (6, 4)] == [1, 1]
    assert kinds[4].bounds.honest_floor == 2
    assert kinds[4].plan.local_std * math.sqrt(2) == pytest.approx(kinds[4].plan.honest_std)
    assert "in every round" in result.guarantees["server"].accountant


@pytest.mark.slow
def test_a_resumed_run_keeps_the_plan_that_it_began_with(tmp_path, monkeypatch):
    path, out = write(tmp_path), tmp_path / "out"
    round_of = Run._round

    def killed(self, ledger, number):
        if number == 2:
            raise KeyboardInterrupt
        round_of(self, ledger, number)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_round", killed)
        with pytest.raises(KeyboardInterrupt):
            Federation.from_config(path).run(out)
    before = genesis(out)["plan"]
    # The attempt at a round without the weak ones ends without a record: it is not theirs to pay.
    with monkeypatch.context() as patch:
        patch.setattr("securefed.engines.run.carry", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            Federation.from_config(out / "config.toml").run(out, resume=True)
    assert verify_run(out).charges == 2  # one of the strong ones', the other unended

    def no_planning(*arguments):
        pytest.fail("a resumed run does not plan again")

    monkeypatch.setattr("securefed.engines.simulation.plan_cohort", no_planning)
    watcher = Watcher()
    Federation.from_config(out / "config.toml", observer=watcher).run(out, resume=True)
    assert genesis(out)["plan"] == before
    assert len(watcher.plans) == 1
    (abandoned,) = bodies(out, "round_abandoned")
    assert abandoned["charged"] == list(STRONG)
    found = charges(out)
    assert found["site-5"] == [1, 3]
    assert found["site-0"] == [1, 2, 2, 3, 4]
    assert verify_run(out).charges == 5


def _interrupted(*arguments, **options):
    raise KeyboardInterrupt


def changed_plan(out: Path, change) -> None:
    def altered(records):
        change(records[0][1]["plan"])
        return records

    rewrite(out / "ledger.jsonl", altered)


def of_client(**values):
    return lambda plan: plan["clients"]["site-4"].update(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (of_client(period=1), "site-4 = .*planned again"),
        (of_client(local_steps=8), "site-4 = .*planned again"),
        (lambda plan: plan["clients"].pop("site-5"), "site-5 = None, planned again"),
        (lambda plan: plan["profiles"]["site-4"].update(upload=9e9), "profile of site-4"),
        (lambda plan: plan["rules"].update(periods=[1, 2, 3]), "periods = .*by the run file"),
        (lambda plan: plan["rules"].update(least_cohort=2), "least_cohort = 2"),
        (lambda plan: plan["workload"].update(seconds_per_token=1.0), "profile of site-0"),
        (lambda plan: plan["workload"].update(corrupt=0.0), "corrupt = 0.*by the run file"),
        (lambda plan: plan["workload"].update(tokens=4), "tokens = 4, by the run file"),
        (lambda plan: plan.pop("workload"), "lacks what it must hold"),
    ],
    ids=[
        "period",
        "steps",
        "client",
        "profile",
        "periods",
        "least",
        "speed",
        "corrupt",
        "tokens",
        "cut",
    ],
)
def test_another_plan_than_follows_from_what_stands_beside_it_is_noticed(copy, change, words):
    changed_plan(copy, change)
    with pytest.raises(LedgerTampered, match=words):
        verify_run(copy)
    unclosed(copy)
    with pytest.raises(LedgerTampered, match=words):
        Federation.from_config(copy / "config.toml").run(copy, resume=True)


def test_a_run_without_its_plan_is_noticed(copy):
    def change(records):
        del records[0][1]["plan"]
        return records

    rewrite(copy / "ledger.jsonl", change)
    with pytest.raises(LedgerTampered, match="plan: missing"):
        verify_run(copy)


def test_charges_and_survivors_outside_a_rounds_own_cohort_are_refused(copy):
    out = copy / "ledger.jsonl"
    whole = {path.name: path.read_bytes() for path in copy.glob("ledger.*")}

    def again():
        for name, held in whole.items():
            (copy / name).write_bytes(held)

    charged = [*STRONG, "site-4"]
    rewrite(out, set_in("round_summed", 1, charged=charged))
    with pytest.raises(LedgerTampered, match=r"charged: 'site-4' takes no part in this round"):
        verify_run(copy)
    again()
    rewrite(out, set_in("round_summed", 1, survivors=charged))
    with pytest.raises(LedgerTampered, match=r"survivors: 'site-4' takes no part in this round"):
        verify_run(copy)
    again()
    # Three survivors are enough of four invited, and too few of six.
    rewrite(out, set_in("round_summed", 0, survivors=list(STRONG)))
    with pytest.raises(LedgerTampered, match="4 survivors, at least 5 are needed"):
        verify_run(copy)
    again()
    (attempt,) = [body for body in bodies(copy, "round_opened") if body["round"] == 2]
    path = copy / "clients" / "site-4" / "budget.jsonl"
    rewrite(path, lambda records: [*records, ("charge", attempt)])
    with pytest.raises(LedgerTampered, match="charges round 2, in which site-4 takes no part"):
        verify_run(copy)


# -- deadlines -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """One round of everybody with a deadline that one client, fifty times slower, misses."""
    base, watcher = tmp_path_factory.mktemp("timed"), Watcher()
    machines = [LINK | {"clients": "others"}, WEAK | {"clients": ["site-5"], "slowdown": 50.0}]
    path = write(
        base,
        training={"rounds": 2},
        schedule={"periods": [1], "local_steps": [8], "deadline": 1.5, "patience": 60.0},
        cohort={"profiles": machines},
    )
    result = Federation.from_config(path, observer=watcher).run(base / "out")
    return result, watcher


def test_who_is_late_is_in_no_sum_and_on_record(timed):
    result, watcher = timed
    out = result.folder
    for body in bodies(out, "round_summed"):
        assert body["late"] == {"site-5": "masked_input"}
        assert body["survivors"] == list(EVERYBODY[:5])
        assert body["virtual_seconds"] < 6.0
    # It was late with a vector that it had charged.
    assert charges(out)["site-5"] == [1, 2]
    assert "6 invited, 5 in time (late: site-5 in masked_input)" in watcher.lines[1]
    assert "dropped out" not in watcher.lines[1]
    assert verify_run(out).finished


@pytest.mark.parametrize(
    ("late", "words"),
    [
        ({"site-0": "masked_input"}, "site-0 in 'masked_input', and it is among the survivors"),
        ({"site-5": "share"}, "site-5 in 'share', before it charges itself, was charged"),
        ({"site-9": "unmask"}, "no member or no stage"),
        ({"site-5": "never"}, "no member or no stage"),
        ({}, r"metrics\.jsonl: line 2: note"),
    ],
)
def test_what_the_ledger_says_of_late_clients_is_checked(timed, tmp_path, late, words):
    copy = Path(shutil.copytree(timed[0].folder, tmp_path / "copy"))
    rewrite(copy / "ledger.jsonl", set_in("round_summed", 0, late=late))
    with pytest.raises(LedgerTampered, match=words):
        verify_run(copy)


def test_a_late_vector_was_charged_and_nobody_is_late_where_no_stage_closes(timed, copy, tmp_path):
    out = Path(shutil.copytree(timed[0].folder, tmp_path / "timed"))
    rewrite(out / "ledger.jsonl", set_in("round_summed", 1, charged=list(EVERYBODY[:5])))
    account = out / "clients" / "site-5" / "budget.jsonl"
    rewrite(account, lambda records: records[:-1])
    with pytest.raises(LedgerTampered, match="site-5 in 'masked_input', after it charged itself"):
        verify_run(out)
    late = {"site-5": "unmask"}
    rewrite(copy / "ledger.jsonl", set_in("round_summed", 0, late=late))
    with pytest.raises(LedgerTampered, match="without a deadline every stage waits for all"):
        verify_run(copy)


def test_a_deadline_opens_no_sum_below_the_floor(tmp_path):
    """Two of six are late, one more than dropout_fraction = 0.25 allows."""
    path = write(
        tmp_path,
        training={"rounds": 1},
        schedule={"periods": [1], "local_steps": [8], "deadline": 1.5, "patience": 1.5},
        cohort={
            "profiles": [
                LINK | {"clients": "others"},
                WEAK | {"clients": ["site-4", "site-5"], "slowdown": 50.0},
            ]
        },
    )
    with pytest.raises(ThresholdNotMet, match="masked_input: 4 clients answered, at least 5"):
        Federation.from_config(path).run(tmp_path / "out")
    (failed,) = bodies(tmp_path / "out", "round_failed")
    assert failed["late"] == {"site-4": "masked_input", "site-5": "masked_input"}
    assert failed["charged"] == list(EVERYBODY)
    assert verify_run(tmp_path / "out").charges == 1


def test_secret_samples_are_prepared_first_and_a_small_memory_takes_small_micro_batches(
    tmp_path, monkeypatch
):
    """Whoever is late is so before it has charged anything; the plan's own deadline is kept."""
    path = write(
        tmp_path,
        training={"rounds": 2, "local_steps": None, "batch_size": None, "micro_batch": 8},
        privacy={"unit": "example", "expected_batch": 200, "noise_multiplier": 2.0},
        schedule={"local_steps": [], "deadline": "plan"},
    )
    out, federation = tmp_path / "out", Federation.from_config(path)
    made = plan_cohort(federation.config, *federation.prepare())
    # An example takes 1.6 GiB: the memory of the weak holds two, that of the others ten.
    workload = replace(made.workload, token_bytes=0.2 * 2**30)
    planned = schedule(made.profiles, workload, made.rules)
    plan = RunPlan(planned, workload, made.profiles, made.rules, federation.config)
    sizes = {name: plan.given(name).micro_batch for name in EVERYBODY}
    assert len(set(sizes.values())) == 2
    assert sizes["site-4"] < sizes["site-0"] == made.rules.uniform.micro_batch

    begun, prepared, used = [], [], []
    prepare, start, now = ClientRound.prepare, ClientRound.start, CheckedGradients.now

    def preparing(self):
        prepared.append(self)
        prepare(self)

    def starting(self):
        begun.append(len(prepared))
        return start(self)

    def at_a_time(self, micro_batch=None):
        found = now(self, micro_batch)
        used.append(found.micro_batch)
        return found

    monkeypatch.setattr(ClientRound, "prepare", preparing)
    monkeypatch.setattr(ClientRound, "start", starting)
    monkeypatch.setattr(CheckedGradients, "now", at_a_time)
    result = Federation(federation.config, plan=plan).run(out)
    # All of a round's contributions are made before its first message; evaluations have none.
    assert begun == [0] * 6 + [6] * 6 + [10] * 4 + [10] * 6
    assert used == [sizes[name] for name in (*EVERYBODY, *STRONG)]
    assert all(body["late"] == {} for body in bodies(out, "round_summed"))
    assert result.charges == 2
    run = verified_run(out)
    # One sampling probability for all rounds: the batch that is expected follows the members.
    q = run.settings.stated.sampling_probability
    assert q == 200 / sum(run.settings.sizes.values())
    total = np.ones(3)
    found = run.settings.gradient(total, STRONG)
    np.testing.assert_allclose(found, 1 / (q * sum(run.settings.sizes[n] for n in STRONG)))


def test_who_is_late_before_it_charges_keeps_nothing_of_what_it_had_prepared(tmp_path):
    """Its steps are noised, but paid for by nobody: what it sends later must not follow from them.

    ``fedsa`` under local DP-SGD: B stays with the client and decides its later updates of A.
    """
    machines = [LINK | {"clients": "others"}, WEAK | {"clients": ["site-5"], "slowdown": 50.0}]
    path = write(
        tmp_path,
        training={"rounds": 1, "local_steps": 2, "batch_size": None},
        privacy={"unit": "example", "mechanism": "local", "expected_batch": 60}
        | {"noise_multiplier": 2.0, "update_clip_norm": 1.0},
        schedule={"periods": [1], "local_steps": [], "deadline": 1.5, "patience": 60.0},
        cohort={"profiles": machines},
        lora={"sharing": "fedsa", "rank": 2},
    )
    out = tmp_path / "out"
    Federation.from_config(path).run(out)
    (summed,) = bodies(out, "round_summed")
    assert summed["late"] == {"site-5": "advertise"}
    assert charges(out) == {name: [1] for name in EVERYBODY[:5]} | {"site-5": []}
    for name in EVERYBODY:
        kept = load_file(out / "personal" / name / "round-1.safetensors")
        assert any(value.any() for value in kept.values()) == (name != "site-5")


# -- local work ------------------------------------------------------------------------------


def test_updates_are_scaled_to_the_mean_of_public_steps_where_that_is_asked_for(whole, tmp_path):
    config = load_config(write(tmp_path, training={"normalize_steps": True}))
    plan = RunPlan.of_record(genesis(whole[0].folder)["plan"], config)
    weights = dict.fromkeys(EVERYBODY, 1.0)
    steps = {name: plan.given(name).local_steps for name in EVERYBODY}
    for number, members in ((1, EVERYBODY), (2, STRONG)):
        mean = np.mean([steps[name] for name in members])
        for name in members:
            assert plan.scale(name, number, weights) == pytest.approx(mean / steps[name])
    # Weighed by the same public weights as the sum is.
    heavy = weights | {"site-0": 3.0}
    mean = (3 * 8 + 3 * 4) / 6
    assert plan.scale("site-0", 2, heavy) == pytest.approx(mean / 8)
    # All parties of a round go by one plan, or their masks do not cancel.
    model, found = bytes(32), verified_run(whole[0].folder).settings.cohorts
    faster = replace(plan.profiles["site-0"], upload=9e9)
    other = replace(plan, profiles=plan.profiles | {"site-0": faster})
    assert found.binding(model) != model
    assert len({plan.digest, other.digest}) == 2
    plain = RunPlan.of_record(
        genesis(whole[0].folder)["plan"], load_config(whole[0].folder / "config.toml")
    )
    assert {plain.scale(name, 1, weights) for name in EVERYBODY} == {1.0}


def test_clients_take_their_own_steps_and_scale_before_the_clip(whole, tmp_path):
    federation = Federation.from_config(write(tmp_path, training={"normalize_steps": True}))
    plan = RunPlan.of_record(genesis(whole[0].folder)["plan"], federation.config)
    bench, settings = Federation(federation.config, plan=plan).prepare()
    for name, number in (("site-0", 1), ("site-1", 1), ("site-1", 2)):
        bench.begin_round(number)
        examples = bench.clients[name].train
        own = bench._delta(name, settings, examples, number)
        sent = bench._vector(name, settings, settings.sum_policy, examples, number)
        scale = plan.scale(name, number, settings.weights)
        assert scale != 1.0
        np.testing.assert_allclose(sent, scale * own, rtol=1e-6)
        large = np.full_like(own, 3e38)  # a finite change of any size stays finite
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench, "_delta", lambda *given, found=large: found)
            huge = bench._vector(name, settings, settings.sum_policy, examples, number)
        np.testing.assert_allclose(huge, scale * large.astype(np.float64), rtol=1e-9)
        shorter = bench._delta(name, prepared_uniform(federation), examples, number)
        assert (np.abs(shorter - own).max() == 0.0) == (settings.local_steps(name) == 8)


def prepared_uniform(federation):
    return Federation(federation.config).prepare()[1]


def test_a_plan_depends_on_no_clients_data(tmp_path):
    """Sizes are public; with other texts of the same sizes the choice and the plan are the same."""
    path = write(
        tmp_path,
        training={"rounds": 1, "local_steps": None, "batch_size": None},
        privacy={"unit": "example", "expected_batch": 60},
        schedule={"local_steps": []},
    )
    found = []
    for turned in (False, True):
        if turned:
            for text in (tmp_path / "data").glob("*.txt"):
                words = text.read_text().split("\n\n")
                text.write_text("\n\n".join(" ".join(w.split()[::-1]) for w in words) + "\n")
        federation = Federation.from_config(path)
        bench, settings = federation.prepare()
        made = plan_cohort(federation.config, bench, settings)
        # Speeds are measured anew; but for them all that the plan follows from is compared.
        speeds = {"token_bytes", "seconds_per_value"}
        workload = {k: v for k, v in made.workload.to_record().items() if k not in speeds}
        given = {name: one.assignment for name, one in made.schedule.clients.items()}
        found.append(
            (bench.clients["site-0"].train.input_ids.tolist(), workload, made.rules, given)
        )
    assert found[0][0] != found[1][0]
    assert found[0][1:] == found[1][1:]


# -- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"cohort": {"profiles": []}}, "carry_out = true without cohort.profiles"),
        ({"aggregation": {"kind": "bfv"}}, "carry_out with aggregation.kind = 'bfv'"),
        ({"schedule": {"carry_out": False, "deadline": 1.0}}, "no round is timed"),
        ({"schedule": {"enough": 0.5}}, "enough = 0.5 without deadline"),
        ({"schedule": {"deadline": 2.0, "patience": 1.0}}, "patience = 1.0: must be >= deadline"),
        ({"lora": {"sharing": "rolora"}}, "A and B travel in turn"),
        (
            {"training": {"normalize_steps": True}, "schedule": {"local_steps": []}},
            "nothing would be normalised",
        ),
        (
            {"training": {"control_weight": 1.0, "local_optimizer": "sgd"}},
            "control_weight with cohort.schedule.carry_out",
        ),
    ],
)
def test_run_files_whose_plan_could_not_be_carried_out_are_refused(tmp_path, sections, words):
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path, **sections))


def test_patience_below_the_plans_own_deadline_is_refused_before_a_run_begins(tmp_path):
    path = write(tmp_path, schedule={"deadline": "plan", "patience": 0.01})
    with pytest.raises(ConfigError, match=r"patience = 0\.01: must be finite and >= seconds"):
        Federation.from_config(path).run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_target_is_met_by_the_worst_of_the_rounds(whole, tmp_path):
    federation = Federation.from_config(
        write(tmp_path, privacy={"noise_multiplier": None, "target_epsilon": 3.0})
    )
    plan = RunPlan.of_record(genesis(whole[0].folder)["plan"], federation.config)
    _, settings = Federation(federation.config, plan=plan).prepare()
    assert 2.9 < settings.epsilon_after(4) <= 3.0
    for kind in settings.cohorts.kinds:
        assert kind.policy.noise_multiplier == settings.stated.noise_multiplier
