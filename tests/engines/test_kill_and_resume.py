"""kill -9 at many moments: nothing is lost, nothing is counted less than it was spent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import write_run

from securefed import Federation
from securefed.config import load_config
from securefed.engines.verify import verify_run
from securefed.evidence.budget import read_charges
from securefed.evidence.ledger import read_ledger

ROUNDS = 4


def started(path: Path, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "securefed", "run", str(path), "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for(process: subprocess.Popen[bytes], ledger: Path, text: bytes) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if ledger.exists() and text in ledger.read_bytes():
            return
        time.sleep(0.002)
    pytest.fail(f"the run ended or hung before its ledger held {text!r}")


# After the kill the ledger holds this much; the delay moves the kill to different places behind it.
@pytest.mark.parametrize(
    ("marker", "delay"),
    [
        (b'"kind":"genesis"', 0.0),
        (b'"kind":"round_opened"', 0.03),
        (b'"kind":"round_summed"', 0.0),
    ],
    ids=["begun", "masked inputs", "summed, not applied"],
)
def test_a_killed_run_is_finished_by_resume_and_counts_every_charge(tmp_path, marker, delay):
    path = write_run(tmp_path, training={"rounds": ROUNDS})
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


def test_an_attempt_that_was_charged_and_never_opened_still_counts(tmp_path):
    """Kill when the first client has charged round 1: it pays for the attempt and the retry."""
    path = write_run(tmp_path, training={"rounds": 2})
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


def test_a_metrics_line_torn_by_a_kill_swallows_no_later_line(tmp_path):
    import json

    from securefed.errors import ThresholdNotMet

    drops = [{"round": 2, "client": f"site-{i}", "stage": "masked_input"} for i in range(3)]
    path = write_run(tmp_path, training={"rounds": 2}, cohort={"simulated_dropouts": drops})
    out = tmp_path / "out"
    with pytest.raises(ThresholdNotMet):
        Federation.from_config(path).run(out)
    metrics = out / "metrics.jsonl"
    with metrics.open("a") as stream:
        stream.write('{"round": 2, "surv')
    with pytest.raises(ThresholdNotMet):
        Federation.from_config(out / "config.toml").run(out, resume=True)
    rounds = [json.loads(line)["round"] for line in metrics.read_text().splitlines()]
    assert rounds == [0, 1]
