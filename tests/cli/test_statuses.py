"""`securefed status` says where a run stands, from its ledger, while it runs and afterwards."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_run

from securefed import Federation
from securefed.cli import statuses
from securefed.engines.events import Silent
from securefed.engines.progress import Progress, RunWatch
from securefed.engines.verify import verify_run
from securefed.evidence.ledger import Ledger, read_ledger

HEAVY = ["torch", "transformers", "peft", "opacus", "safetensors"]


class Looking(Silent):
    """Looks at the run from outside after each round, as `securefed status` does."""

    def __init__(self) -> None:
        self.folder = Path()
        self.seen: list[Progress] = []

    def begun(self, folder):
        self.folder = folder

    def round_end(self, event):
        self.seen.append(RunWatch(self.folder).progress())


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    base = tmp_path_factory.mktemp("status")
    drop = {"round": 2, "client": "site-1", "stage": "masked_input"}
    path = write_run(base, training={"rounds": 2}, cohort={"simulated_dropouts": [drop]})
    looking = Looking()
    result = Federation.from_config(path, observer=looking).run(base / "out")
    return looking.seen, result


def test_a_run_in_progress_says_its_stage_and_what_was_spent(watched):
    seen, result = watched
    assert [p.applied for p in seen] == [0, 1, 2]
    assert [p.charges for p in seen] == [0, 1, 2]
    assert all(p.writing and not p.finished for p in seen)
    assert "held-out figures after round 0" in seen[0].stage
    assert seen[1].stage == "round 1 is applied"
    assert seen[0].minutes_left is None
    assert seen[1].minutes_left is not None
    assert seen[2].events[-1].survivors == 5
    epsilons = [p.guarantees["server"].epsilon for p in seen]
    assert epsilons[0] == 0.0
    assert epsilons[1] < epsilons[2] == result.guarantees["server"].epsilon


def test_a_finished_run_says_what_its_ledger_closed_with(watched):
    _, result = watched
    found = RunWatch(result.folder).progress()
    assert (found.finished, found.writing, found.stage) == (True, False, "finished")
    assert found.minutes_left is None
    assert found.guarantees == result.guarantees
    assert found.bytes_up == sum(event.bytes_up for event in result.events)
    assert verify_run(result.folder).charges == found.charges


def test_the_table_gives_epsilon_with_its_terms(cli, watched):
    _, result = watched
    code, out, err = cli("status", result.folder)
    assert code == 0, err
    assert "finished" in out
    assert "5 of 6" in out
    for who in ("server", "release", "fellow client"):
        assert f"epsilon so far against {who}" in out
    assert out.count("one window of 8 tokens, delta 1e-05, 2 rounds charged") == 3
    assert "accountant" in out
    assert "round   2/2 | 5/6 clients in the sum" in out


def test_watching_a_finished_run_ends(cli, watched, monkeypatch):
    monkeypatch.setattr(statuses.time, "sleep", lambda seconds: pytest.fail("it waits"))
    code, out, _ = cli("status", watched[1].folder, "--watch")
    assert code == 0
    assert "finished" in out


def test_a_stopped_run_counts_the_round_without_an_end(cli, watched, tmp_path):
    copy = Path(shutil.copytree(watched[1].folder, tmp_path / "copy"))
    records = read_ledger(copy / "ledger.jsonl")
    opened = max(n for n, record in enumerate(records) if record.kind == "round_opened")
    (copy / "ledger.jsonl").unlink()
    (copy / "ledger.head.json").unlink()
    times = iter([record.time for record in records])
    with Ledger.create(copy / "ledger.jsonl", records[0].body, clock=lambda: next(times)) as ledger:
        for record in records[1 : opened + 1]:
            ledger.append(record.kind, record.body)
    found = RunWatch(copy).progress()
    assert (found.applied, found.charges, found.writing) == (1, 2, False)
    assert found.stage == "round 2: clients train, clip, noise and mask"
    code, out, _ = cli("status", copy)
    assert code == 0
    assert "stopped; go on with" in out


def test_a_folder_that_is_no_run_is_refused(cli):
    code, _, err = cli("status", ".")
    assert code == 2
    assert "not a run folder" in err
    assert "securefed run" in err


def test_a_changed_ledger_is_refused(cli, watched, tmp_path):
    copy = Path(shutil.copytree(watched[1].folder, tmp_path / "copy"))
    text = (copy / "ledger.jsonl").read_text()
    (copy / "ledger.jsonl").write_text(text.replace('"charges":2', '"charges":1', 1))
    code, _, err = cli("status", copy)
    assert code == 1
    assert "ledger.jsonl: line" in err


def test_it_needs_no_torch(watched):
    program = f"""
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocked())
from securefed.cli import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "status", str(watched[1].folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "finished" in done.stdout
