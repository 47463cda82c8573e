"""kill -9 at many moments: nothing is lost, nothing is counted less than it was spent."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import write_run

import securefed
from securefed import Federation
from securefed.config import load_config
from securefed.engines.run import Run
from securefed.engines.run_folder import RunFolder
from securefed.engines.settings import Settings
from securefed.engines.verify import verify_run
from securefed.errors import ConfigError, LedgerTampered, ThresholdNotMet
from securefed.evidence.budget import read_charges
from securefed.evidence.ledger import read_ledger

ROUNDS = 4
CHEAP = {"noise_multiplier": 4.0}  # its epsilon takes a tenth of the time


def started(path: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "securefed", "run", str(path), "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for(process: subprocess.Popen[bytes], ledger: Path, text: bytes) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        if ledger.exists() and text in ledger.read_bytes():
            return
        time.sleep(0.002)
    pytest.fail(f"the run ended or hung before its ledger held {text!r}")


# After the kill the ledger holds this much; the delay moves the kill to different places behind it.
@pytest.mark.parametrize(
    ("marker", "delay"),
    [
        pytest.param(b'"kind":"genesis"', 0.0, marks=pytest.mark.slow, id="begun"),
        pytest.param(b'"kind":"round_opened"', 0.03, marks=pytest.mark.slow, id="masked inputs"),
        pytest.param(b'"kind":"round_summed"', 0.0, id="summed, not applied"),
    ],
)
def test_a_killed_run_is_finished_by_resume_and_counts_every_charge(tmp_path, marker, delay):
    path = write_run(tmp_path, training={"rounds": ROUNDS}, privacy=CHEAP)
    out = tmp_path / "out"
    process = started(path, out)
    try:
        wait_for(process, out / "ledger.jsonl", marker)
        time.sleep(delay)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = {p.parent.name: len(read_charges(p)) for p in (out / "clients").glob("*/budget.jsonl")}
    opened_before = sum(r.kind == "round_opened" for r in read_ledger(out / "ledger.jsonl"))

    result = Federation.from_config(out / "config.toml").run(out, resume=True)

    assert result.rounds == ROUNDS
    records = read_ledger(out / "ledger.jsonl")
    applied = [r.body["round"] for r in records if r.kind == "round_applied"]
    assert applied == list(range(1, ROUNDS + 1))
    sessions = [r.body["session"] for r in records if r.kind == "round_opened"]
    assert len(set(sessions)) == len(sessions)  # a retry is a new session, with fresh noise
    for budget in (out / "clients").glob("*/budget.jsonl"):
        charges = read_charges(budget)
        # Nothing charged before the kill is forgotten, and every session is charged at most once.
        assert len(charges) >= before.get(budget.parent.name, 0)
        assert len({c.body["session"] for c in charges}) == len(charges)
        assert ROUNDS <= len(charges) <= ROUNDS + 1
        assert opened_before <= len(sessions)
    assert result.charges == max(
        len(read_charges(p)) for p in (out / "clients").glob("*/budget.jsonl")
    )
    verdict = verify_run(out)
    assert verdict.finished
    assert verdict.charges == result.charges
    assert load_config(out / "config.toml").training.rounds == ROUNDS


@pytest.mark.slow
def test_an_attempt_that_was_charged_and_never_opened_still_counts(tmp_path):
    """Kill when the first client has charged round 1: it pays for the attempt and the retry."""
    path = write_run(tmp_path, training={"rounds": 2}, privacy=CHEAP)
    out = tmp_path / "out"
    process = started(path, out)
    first = out / "clients" / "site-0" / "budget.jsonl"
    try:
        wait_for(process, first, b'"kind":"charge"')
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    applied = sum(r.kind == "round_applied" for r in read_ledger(out / "ledger.jsonl"))
    charged = len(read_charges(first))
    assert charged > applied, "the kill came after the round was applied; nothing is tested"
    result = Federation.from_config(out / "config.toml").run(out, resume=True)
    assert result.charges == 2 + charged - applied
    settings = Federation.from_config(out / "config.toml").prepare()[1]
    assert result.guarantees["server"].epsilon == settings.epsilon_after(result.charges)
    assert result.guarantees["server"].epsilon > settings.epsilon_after(2)


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("number", [0, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_line_lost_between_a_round_and_its_metrics_is_made_again_from_the_ledger(
    tmp_path, monkeypatch, number
):
    drops = [{"round": 2, "client": "site-1", "stage": "masked_input"}]
    path = write_run(tmp_path, cohort={"simulated_dropouts": drops}, evaluation={"every": 2})
    out = tmp_path / "out"
    append, kept = RunFolder.append_metrics, []

    def killed(self, line):
        kept.append(line)
        if line["round"] == number:
            raise KeyboardInterrupt
        append(self, line)

    monkeypatch.setattr(RunFolder, "append_metrics", killed)
    if number == 0:
        monkeypatch.setattr(RunFolder, "rewrite_metrics", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Federation.from_config(path).run(out)
    monkeypatch.undo()
    result = Federation.from_config(out / "config.toml").run(out, resume=True)
    found = metrics(out)
    assert [line["round"] for line in found] == [0, 1, 2, 3]
    assert [line["survivors"] for line in found] == [6, 6, 5, 6]
    assert [line["perplexity"] is not None for line in found] == [True, False, True, True]
    assert found[2]["note"] == "1 dropped out"
    assert all(line["bytes_up"] > 0 for line in found[1:])
    assert found[1 : len(kept) + 1] == kept  # what the killed process was about to write
    assert [event.to_record() for event in result.events] == found
    assert verify_run(out).finished


def test_figures_lost_between_the_last_round_and_its_evaluation_are_measured_on_resume(
    tmp_path, monkeypatch
):
    path = write_run(tmp_path, training={"rounds": 1})
    out = tmp_path / "out"
    evaluate = Run._evaluate

    def killed(self, ledger, number):
        if number == 1:
            raise KeyboardInterrupt
        return evaluate(self, ledger, number)

    monkeypatch.setattr(Run, "_evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        Federation.from_config(path).run(out)
    monkeypatch.undo()
    result = Federation.from_config(out / "config.toml").run(out, resume=True)
    assert result.charges == 1
    assert [line["perplexity"] for line in metrics(out)] == [
        pytest.approx(result.before.perplexity),
        pytest.approx(result.after.perplexity),
    ]


SHOWN = {"max_windows": 4, "window_tokens": 8, "show_clients": True}


def test_the_worst_client_before_is_kept_across_a_resume_where_it_is_shown(tmp_path, monkeypatch):
    path = write_run(tmp_path, training={"rounds": 1}, evaluation=SHOWN)
    out = tmp_path / "out"
    monkeypatch.setattr(Run, "_round", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Federation.from_config(path).run(out)
    monkeypatch.undo()
    result = Federation.from_config(out / "config.toml").run(out, resume=True)
    assert result.before.worst >= result.before.perplexity
    assert result.after.worst >= result.after.perplexity
    assert "worst" not in (out / "ledger.jsonl").read_text()


def test_resuming_a_finished_run_shows_the_same_result_and_writes_nothing(tmp_path):
    path = write_run(tmp_path, training={"rounds": 2}, evaluation=SHOWN)
    out = tmp_path / "out"
    first = Federation.from_config(path).run(out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = Federation.from_config(out / "config.toml").run(out, resume=True)
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert again.before == first.before
    assert again.after == first.after
    assert again.guarantees == first.guarantees
    assert (again.rounds, again.charges, again.stopped) == (first.rounds, first.charges, "")
    records = [[event.to_record() for event in result.events] for result in (first, again)]
    assert records[0] == records[1]
    (out / "shown.json").write_text('{"worst_client": {"0": 1.0, "2": 1.0}}')
    with pytest.raises(LedgerTampered, match=r"shown\.json"):
        Federation.from_config(out / "config.toml").run(out, resume=True)


# -- another version, and a resume that is refused -----------------------------------------


@pytest.fixture
def stopped(tmp_path, monkeypatch) -> Path:
    """A run that was killed after its first round, by version 0.0.1."""
    out = tmp_path / "out"
    path = write_run(tmp_path, training={"rounds": 2})
    round_of = Run._round

    def killed(self, ledger, number):
        if number == 2:
            raise KeyboardInterrupt
        round_of(self, ledger, number)

    with monkeypatch.context() as patch:
        patch.setattr(securefed, "__version__", "0.0.1")
        patch.setattr(Run, "_round", killed)
        with pytest.raises(KeyboardInterrupt):
            Federation.from_config(path).run(out)
    return out


def test_another_version_goes_on_with_a_run_and_says_so_in_the_ledger(stopped):
    assert not verify_run(stopped).finished
    result = Federation.from_config(stopped / "config.toml").run(stopped, resume=True)
    assert (result.rounds, result.charges) == (2, 2)
    records = read_ledger(stopped / "ledger.jsonl")
    assert records[0].body["software"] == "securefed 0.0.1"
    noted = [r.body["software"] for r in records if r.kind == "software_changed"]
    assert noted == [f"securefed {securefed.__version__}"]
    assert verify_run(stopped).finished


def test_another_version_that_plans_otherwise_does_not_go_on_and_is_no_tampering(
    stopped, monkeypatch
):
    record = Settings.record
    monkeypatch.setattr(Settings, "record", lambda self: record(self) | {"local_std": 1.0})
    with pytest.raises(ConfigError, match=r"privacy\.local_std is .* by securefed 0\.0\.1"):
        Federation.from_config(stopped / "config.toml").run(stopped, resume=True)


def test_a_resume_that_is_refused_gives_ledger_and_accounts_back(stopped):
    federation = Federation.from_config(stopped / "config.toml")
    kept = []  # an error holds on to whatever the call that raised it left open
    for name in ("checkpoints/round-1/state.safetensors", "clients/site-5/budget.jsonl"):
        whole = (stopped / name).read_bytes()
        (stopped / name).write_bytes(whole[:-1] + b" \n")
        with pytest.raises(LedgerTampered) as refusal:
            federation.run(stopped, resume=True)
        kept.append(refusal)
        (stopped / name).write_bytes(whole)
    assert federation.run(stopped, resume=True).rounds == 2, kept


def test_a_metrics_line_torn_by_a_kill_swallows_no_later_line(tmp_path):
    drops = [{"round": 2, "client": f"site-{i}", "stage": "masked_input"} for i in range(3)]
    path = write_run(tmp_path, training={"rounds": 2}, cohort={"simulated_dropouts": drops})
    out = tmp_path / "out"
    with pytest.raises(ThresholdNotMet):
        Federation.from_config(path).run(out)
    with (out / "metrics.jsonl").open("a") as stream:
        stream.write('{"round": 2, "surv')
    with pytest.raises(ThresholdNotMet):
        Federation.from_config(out / "config.toml").run(out, resume=True)
    assert [line["round"] for line in metrics(out)] == [0, 1]
