"""A pilot's order of events: time, budget, kills and going on."""

import json
import shutil

import pytest
from pilot_tiny import CLIENTS, NOTHING_BESIDES, Told, by_name, go, write_pilot

from securefed import Federation
from securefed.config import RunConfig, load_config, load_pilot
from securefed.engines.verify import verified_run
from securefed.errors import BudgetExceeded, ConfigError, LedgerTampered
from securefed.evidence.ledger import Ledger, read_ledger
from securefed.pilot.charges import PilotLedger
from securefed.pilot.design import Planned
from securefed.pilot.folder import PilotFolder
from securefed.pilot.pace import Pace
from securefed.pilot.records import Cost, Trial

pytestmark = pytest.mark.usefixtures("units_are_measured_once")

LEDGER = "pilot-ledger.jsonl"
TWO_ROUNDS = {"training": {"rounds": 2}}
SHORT = {"baselines": NOTHING_BESIDES, "sweep": {"rank": [1], "bits": [24]}}
PRIVATE = SHORT | {"data": {"public": False}, "budget": {"epsilon": 30.0}}


class Kill(BaseException):
    """The process is gone: nothing catches this."""


def kinds(folder) -> list[str]:
    return [record.kind for record in read_ledger(folder / LEDGER)]


def stopping_in_round_2(monkeypatch, trial: str):
    """Kill the process once, in one trial's second round: all have charged it, no sum is known."""
    original, left = Ledger.append, [1]

    def killed(self, kind, body):
        if left and trial in str(self.path) and (kind, body.get("round")) == ("round_summed", 2):
            left.clear()
            raise Kill
        return original(self, kind, body)

    monkeypatch.setattr(Ledger, "append", killed)


def began(monkeypatch) -> list[tuple[str, bool]]:
    """Which run folders were begun or gone on with from now on."""
    found, original = [], Federation.run

    def watched(self, out=None, *, resume=False):
        found.append((out.name, resume))
        return original(self, out, resume=resume)

    monkeypatch.setattr(Federation, "run", watched)
    return found


# -- time ----------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.slow
def test_what_would_not_end_in_time_is_left_out_and_named_and_a_longer_pilot_makes_it(
    tmp_path, monkeypatch
):
    path = write_pilot(tmp_path, minutes=30.0, **SHORT)
    clock = Clock()
    told = Told(lambda trial: setattr(clock, "now", 1801.0))
    record = go(path, tmp_path / "out", told, timer=clock)
    found = by_name(record)
    assert [trial.status for trial in record.trials] == ["done", "skipped", "skipped"]
    assert all(
        "minutes = 30: 31 minutes are gone" in found[n].why for n in ("rank = 1", "bits = 24")
    )
    assert all(trial.quality is None for trial in record.trials[1:])
    path.write_text(path.read_text().replace("minutes = 30.0", "minutes = 90.0"))
    runs = began(monkeypatch)
    record = go(path, tmp_path / "out", resume=True)
    assert [trial.status for trial in record.trials] == ["done"] * 3
    assert [name for name, _ in runs] == ["02-bits-24", "03-rank-1"]
    assert record.config["minutes"] == 90.0


@pytest.fixture(scope="module")
def hurried(tmp_path_factory):
    """A pilot that has next to no time, and its file."""
    folder = tmp_path_factory.mktemp("hurried")
    path = write_pilot(folder, minutes=1e-6, **SHORT)
    return path, go(path, folder / "out")


def test_the_base_run_is_made_however_little_time_there_is(hurried):
    _, record = hurried
    assert [trial.status for trial in record.trials] == ["done", "skipped", "skipped"]


def test_times_to_come_follow_from_trials_of_the_same_kind():
    run = RunConfig.model_validate({"lora": {"rank": 4}, "training": {"rounds": 10}})
    cost = Cost(
        values=1,
        bytes_up=0.0,
        bytes_down=0.0,
        client_seconds={"train": 0.5, "clip": 0.1, "mask": 9.0},
        server_seconds={},
        memory_bytes=None,
        storage_bytes={},
    )

    def over(name, seconds, varied, **more):
        values = {"group": "sweep", "seed": 1, "rounds": 10, "clients": 8, "cost": cost} | more
        return Trial(name=name, varied=varied, seconds=seconds, folder="runs/x", **values)

    def coming(name, changes=(), how="federated", seed=1):
        return Planned(
            number=2, name=name, group="sweep", seed=seed, how=how, changes=dict(changes)
        )

    pace = Pace(run, [], rates=2)
    assert pace.seconds_left([coming("x")]) is None
    pace.learn(over("base", 100.0, {}, group="base"))
    assert pace.seconds(coming("bits = 24", {"aggregation.bits": 24})) == 100.0
    assert pace.seconds(coming("rank = 8", {"lora.rank": 8})) == 200.0
    assert pace.seconds(coming("rank = 1", {"lora.rank": 1})) == 100.0
    assert pace.seconds(coming("pooled", how="pooled")) == pytest.approx(0.6 * 8 * 10)
    assert pace.seconds(coming("full", how="full")) == pytest.approx(3 * 2 * 0.6 * 8 * 10)
    bfv = {"aggregation.kind": "bfv"}
    pace.learn(over("encryption alone", 700.0, bfv))
    assert pace.seconds(coming("aggregation = bfv", bfv)) == 700.0
    assert pace.seconds(coming("rank = 8", {"lora.rank": 8})) == 200.0
    assert pace.seconds(coming("encryption alone", bfv, seed=2)) == 700.0
    assert pace.seconds_left([coming("a"), coming("b", bfv)]) == 800.0


# -- going on ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_pilot_goes_on_where_it_was_and_repeats_nothing(tmp_path, monkeypatch):
    path = write_pilot(tmp_path, TWO_ROUNDS, **SHORT)
    with monkeypatch.context() as patch:
        stopping_in_round_2(patch, "02-bits-24")
        with pytest.raises(Kill):
            go(path, tmp_path / "out")
    lines = tmp_path / "out" / "trials.jsonl"
    assert [json.loads(line)["trial"]["name"] for line in lines.open()] == ["base"]
    lines.write_text(lines.read_text() + '{"trial": {"na')  # a kill may tear a line
    runs = began(monkeypatch)
    told = Told()
    record = go(path, tmp_path / "out", told, resume=True)
    assert runs == [("02-bits-24", True), ("03-rank-1", False)]
    assert told.begun == ["bits = 24", "rank = 1"]
    assert [trial.status for trial in record.trials] == ["done"] * 3
    found = by_name(record)
    assert "resumed" in found["bits = 24"].why
    assert sorted(found["bits = 24"].quality.clients) == CLIENTS
    # A whole pilot once more: nothing is left to do, and the record is the same.
    again = go(path, tmp_path / "out", resume=True)
    assert len(runs) == 2
    assert again.trials == record.trials


def test_a_run_that_ended_before_its_line_was_written_is_read_and_not_repeated(tmp_path):
    path = write_pilot(tmp_path, baselines=NOTHING_BESIDES)
    first = go(path, tmp_path / "out").trials[0]
    (tmp_path / "out" / "trials.jsonl").unlink()
    before = (tmp_path / "out" / first.folder / "ledger.jsonl").read_bytes()
    again = go(path, tmp_path / "out", resume=True).trials[0]
    assert (tmp_path / "out" / first.folder / "ledger.jsonl").read_bytes() == before
    assert (again.quality, again.cost, again.epsilon) == (first.quality, first.cost, first.epsilon)
    assert again.why == ""


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        (
            "pilot.toml",
            "rank = [",
            "rank = [\n2,",
            r"pilot\.toml sweep\.rank is \[1\], not \[2, 1\]",
        ),
        ("run.toml", "rounds = 1", "rounds = 3", r"run\.toml training\.rounds is 1, not 3"),
    ],
    ids=["pilot", "run"],
)
def test_other_settings_are_refused_by_the_first_that_differs(
    hurried, tmp_path, file, old, new, words
):
    folder = shutil.copytree(hurried[0].parent, tmp_path / "copy")
    changed = folder / file
    text = changed.read_text()
    assert old in text
    changed.write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=words):
        go(folder / "pilot.toml", folder / "out", resume=True)


def test_a_folder_that_holds_something_is_not_touched_and_one_without_a_pilot_not_gone_on_with(
    tmp_path,
):
    path = write_pilot(tmp_path, **SHORT)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(ConfigError, match="is there already"):
        go(path, tmp_path / "out")
    with pytest.raises(ConfigError, match="no pilot to go on with"):
        go(path, tmp_path / "out", resume=True)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.slow
def test_a_trial_that_cannot_be_had_is_named_and_the_pilot_goes_on(tmp_path):
    run = {"lora": {"target_modules": ["v_proj"]}}
    sections = SHORT | {"sweep": {"rank": [64, 1], "sharing": []}}
    record = go(write_pilot(tmp_path, run, **sections), tmp_path / "out")
    found = by_name(record)
    assert found["rank = 64"].status == "skipped"
    assert "lora.rank = 64" in found["rank = 64"].why
    assert found["rank = 1"].status == "done"


def test_a_base_run_that_cannot_be_had_ends_the_pilot(tmp_path):
    path = write_pilot(tmp_path, {"lora": {"rank": 64}}, **SHORT)
    with pytest.raises(ConfigError, match=r"lora\.rank = 64"):
        go(path, tmp_path / "out")


# -- private data --------------------------------------------------------------------------


def test_private_data_is_paid_for_before_each_trial_and_nothing_runs_without_noise(
    tmp_path, monkeypatch
):
    """Also: no client's own figure, no memory and no exact time is kept."""
    order = []
    opened, run = PilotLedger.open, Federation.run

    def opening(self, folder, **charge):
        opened(self, folder, **charge)
        order.append(("opened", folder))

    def running(self, out=None, **options):
        # What is on the disk before the run begins, whoever asks.
        last = read_ledger(tmp_path / "out" / LEDGER)[-1]
        order.append(("run", last.body["folder"] if last.kind == "trial_opened" else None))
        return run(self, out, **options)

    monkeypatch.setattr(PilotLedger, "open", opening)
    monkeypatch.setattr(Federation, "run", running)
    sections = PRIVATE | {"baselines": {}, "sweep": {"bits": [24], "aggregation": ["bfv"]}}
    record = go(write_pilot(tmp_path, **sections), tmp_path / "out")
    made = ["runs/01-base", "runs/10-bits-24", "runs/11-aggregation-bfv"]
    assert order == [(what, folder) for folder in made for what in ("opened", "run")]
    done = [trial for trial in record.trials if trial.status == "done"]
    assert [trial.folder for trial in done] == made
    others = [trial for trial in record.trials if trial.status == "skipped"]
    assert {trial.group for trial in others} == {"baseline", "protection"}
    assert all("data.public = false" in trial.why for trial in others)
    assert record.spent["epsilon"] == pytest.approx(sum(trial.epsilon for trial in done))
    assert record.spent["delta"] == pytest.approx(3e-5)
    for trial in done:
        assert (trial.quality.clients, trial.quality.worst_after) == ({}, None)
        assert trial.cost.memory_bytes is None
        assert trial.cost.estimated == ("client_seconds",)
        assert trial.cost.client_seconds["train"] > 0.0
        assert trial.seconds % 60.0 == 0.0
        assert not (tmp_path / "out" / trial.folder / "shown.json").exists()
    assert record.seconds % 60.0 == 0.0
    assert "mask" in done[0].cost.client_seconds
    assert "encrypt" in done[2].cost.client_seconds
    for line in (tmp_path / "out" / "trials.jsonl").open():
        assert json.loads(line)["elapsed"] % 60.0 == 0.0


def test_the_budget_stops_what_would_exceed_it_and_says_so(tmp_path):
    write_pilot(tmp_path, **PRIVATE)
    once = Federation.from_config(tmp_path / "run.toml").prepare()[1].epsilon_after(1)
    budget, bits = 2.5 * once, [24, 26]
    path = write_pilot(
        tmp_path, **PRIVATE | {"budget": {"epsilon": budget}, "sweep": {"bits": bits}}
    )
    record = go(path, tmp_path / "out")
    assert [trial.status for trial in record.trials] == ["done", "done", "skipped"]
    assert f"budget.epsilon = {budget:g}" in record.trials[2].why
    assert record.spent["epsilon"] == pytest.approx(2 * once, rel=0.02)
    assert kinds(tmp_path / "out") == ["genesis", *["trial_opened", "trial_closed"] * 2]


def test_a_base_run_beyond_the_budget_is_not_begun(tmp_path):
    path = write_pilot(tmp_path, **PRIVATE | {"budget": {"epsilon": 0.1}})
    with pytest.raises(BudgetExceeded, match=r"budget.epsilon = 0.1: 0 is spent"):
        go(path, tmp_path / "out")
    assert list((tmp_path / "out" / "runs").iterdir()) == []


def test_a_base_run_without_noise_is_refused_on_private_data(tmp_path):
    path = write_pilot(tmp_path, {"privacy": {"mechanism": "none"}}, **PRIVATE)
    with pytest.raises(BudgetExceeded, match="UNPROTECTED"):
        go(path, tmp_path / "out")
    assert list((tmp_path / "out" / "runs").iterdir()) == []


def test_a_kill_between_opening_and_running_leaves_the_charge_behind(tmp_path, monkeypatch):
    def killed(self, out=None, **options):
        raise Kill

    path = write_pilot(tmp_path, **PRIVATE | {"sweep": {}})
    with monkeypatch.context() as patch:
        patch.setattr(Federation, "run", killed)
        with pytest.raises(Kill):
            go(path, tmp_path / "out")
    assert kinds(tmp_path / "out") == ["genesis", "trial_opened"]
    lost = read_ledger(tmp_path / "out" / LEDGER)[-1].body["epsilon"]
    # Whether it ran is not known any more: it counts, and the next one is opened beside it.
    record = go(path, tmp_path / "out", resume=True)
    (trial,) = record.trials
    assert trial.folder == "runs/01-base-again-2"
    assert record.spent["epsilon"] == pytest.approx(lost + trial.epsilon)


def test_a_killed_private_run_goes_on_within_what_it_was_opened_with(tmp_path, monkeypatch):
    """The attempt that was cut off is charged, so the last round is not affordable any more."""
    path = write_pilot(tmp_path, TWO_ROUNDS, **PRIVATE | {"sweep": {}})
    with monkeypatch.context() as patch:
        stopping_in_round_2(patch, "01-base")
        with pytest.raises(Kill):
            go(path, tmp_path / "out")
    opened = read_ledger(tmp_path / "out" / LEDGER)[-1].body["epsilon"]
    assert kinds(tmp_path / "out") == ["genesis", "trial_opened"]
    record = go(path, tmp_path / "out", resume=True)
    (trial,) = record.trials
    assert (trial.folder, trial.rounds) == ("runs/01-base", 1)
    assert "round 2 would exceed it" in trial.why
    assert record.spent["epsilon"] == trial.epsilon <= opened
    assert kinds(tmp_path / "out") == ["genesis", "trial_opened", "trial_closed"]


def test_without_the_pilots_ledger_nothing_more_is_spent(tmp_path):
    path = write_pilot(tmp_path, **PRIVATE | {"sweep": {}})
    folder, pilot = PilotFolder(tmp_path / "out"), load_pilot(path)
    folder.begin(pilot, load_config(pilot.run))
    (folder.runs / "01-base").mkdir()
    with pytest.raises(LedgerTampered, match=r"pilot-ledger\.jsonl: is missing"):
        go(path, tmp_path / "out", resume=True)


@pytest.mark.slow
def test_a_run_folder_that_is_gone_counts_as_spent(tmp_path):
    path = write_pilot(tmp_path, **PRIVATE | {"sweep": {}})
    first = go(path, tmp_path / "out").trials[0]
    shutil.rmtree(tmp_path / "out" / first.folder)
    (tmp_path / "out" / "trials.jsonl").unlink()
    record = go(path, tmp_path / "out", resume=True)
    assert record.trials[0].folder == "runs/01-base-again-2"
    assert record.spent["epsilon"] == pytest.approx(2 * first.epsilon)


def test_histograms_of_held_out_figures_are_in_what_a_private_pilot_spends(tmp_path):
    """One example moves its client from bin to bin; that adds to what it costs in training."""
    counted = {"figures": "histogram", "histogram": {"noise_multiplier": 8.0}}
    path = write_pilot(tmp_path, {"evaluation": counted}, **PRIVATE | {"sweep": {}})
    record = go(path, tmp_path / "out")
    (trial,) = record.trials
    run = verified_run(tmp_path / "out" / trial.folder)
    beside = run.settings.histograms.moved("server", run.histogram_charges)
    assert run.histogram_charges == 2
    assert beside > 0.5
    opened, closed = read_ledger(tmp_path / "out" / LEDGER)[1:]
    for body in (opened.body, closed.body, record.spent):
        assert body["epsilon"] == pytest.approx(trial.epsilon + beside)
        assert body["delta"] == pytest.approx(2e-5)
    # Training may spend its own part of the opening alone, and a further histogram nothing.
    assert opened.body["training_epsilon"] == trial.epsilon
    assert run.settings.config.budget.epsilon == trial.epsilon
    assert run.settings.histograms.leaves_out(2, in_between=False)


def test_a_private_pilot_that_cannot_pay_for_its_histograms_is_not_begun(tmp_path):
    counted = {"figures": "histogram", "histogram": {"noise_multiplier": 0.5}}
    path = write_pilot(tmp_path, {"evaluation": counted}, **PRIVATE | {"budget": {"epsilon": 6.0}})
    with pytest.raises(BudgetExceeded, match=r"budget.epsilon = 6: 0 is spent"):
        go(path, tmp_path / "out")
    assert kinds(tmp_path / "out") == ["genesis"]
